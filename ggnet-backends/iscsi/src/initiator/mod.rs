//! An initiator (RFC 7143) for tests, load generators and tools. It shares the layout of PDUs, the text keys, CHAP and the digests with
//! the target.
//!
//! Two levels:
//! * [`Connection`] sends and receives PDUs one by one. It sends exactly what the caller passes, so that a test can violate the protocol:
//!   the caller can change the [sequence numbers](Numbers) and the keys of a login.
//! * [`Initiator`] is a session with one logical unit: commands with their data, many of them in flight within the target's window; it
//!   answers R2Ts and pings, and, if requested, logs in again when the connection is lost.
//!
//! ```text
//!  Initiator ──▶ login ──▶ Connection ──▶ Numbers, headers ──▶ pdu
//!      └── cdb      └── Account
//! ```
//!
//! Error recovery level 0 and one connection per session (RFC 7143 chapter 7 and section 13.2): any error except [`Error::Scsi`] ends the
//! session, and only a new login helps.
//!
//! Memory is limited whatever the target sends: one PDU of the length that was declared at login, and for each command in flight the data
//! that it requested.
//!
//! ```no_run
//! use ggnet_iscsi::initiator::{Account, Initiator};
//!
//! # async fn example() -> Result<(), ggnet_iscsi::initiator::Error> {
//! let portal = ([192, 0, 2, 1], 3260).into();
//! let account = Account::new(portal, "iqn.2024-01.org.example:disk", "iqn.2024-01.org.example:pc");
//! let mut disk = Initiator::login(account).await?;
//! let sectors = disk.read(0, 8).await?;
//! disk.write(8, &sectors).await?;
//! disk.flush().await?;
//! disk.logout().await
//! # }
//! ```

mod account;
pub mod cdb;
mod connection;
mod error;
mod headers;
mod login;
mod session;
#[cfg(test)]
mod tests;

pub use account::Account;
pub use connection::{Connection, Pdu};
pub use error::Error;
pub use headers::{Numbers, Transfer, unsolicited};
pub use session::{Initiator, Outcome};

pub use crate::negotiate::Params;
pub use crate::pdu::{Bhs, Digests, FINAL, IMMEDIATE, NO_TAG, opcode};

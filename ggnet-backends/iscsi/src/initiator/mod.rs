//! An initiator (RFC 7143) for tests, load generators and tools. It shares the layout of PDUs, the text keys, CHAP and the digests with
//! the target.
//!
//! Two levels:
//! * [`Connection`] sends and receives PDUs one by one. It does what it is told, so that a test can break the protocol: the
//!   [sequence numbers](Numbers) and the keys of a login are the caller's to change.
//! * [`Initiator`] is a session with one logical unit: commands with their data, many in flight within the target's window, R2T and pings
//!   answered, and a new login when the connection is lost, if that is asked for.
//!
//! ```text
//!  Initiator ──▶ login ──▶ Connection ──▶ Numbers, headers ──▶ pdu
//!      └── cdb      └── Account
//! ```
//!
//! Error recovery level 0 and one connection per session (RFC 7143 chapter 7 and section 13.2): an error other than
//! [`Error::Scsi`] ends the session, and a new login is the only way on.
//!
//! Memory is bounded whatever the target sends: one PDU of the length that was declared at login, and for each command in flight the data
//! that it asked for.
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

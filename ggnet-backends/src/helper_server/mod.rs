//! The helper: the only process of GGnet that runs as root, with a closed list of operations that it does for a server without root.
//!
//! ```text
//!   server (user ggnet)                      helper (root)
//!                                            ┌─▶ fence ─▶ the kernel's tree, below this GGnet's names
//!                 helper ═══socket═══ server
//!                                            └─▶ the units on its command line: state, start, restart
//! ```
//! The kernel identifies the caller (SO_PEERCRED).
//!
//! Invariants: a rejected request has changed nothing; what is allowed depends only on how the helper was started, never on the request;
//! the kernel opens a disk with the rights of the server's user; secrets are sent to the helper, never back, and are in no log line and no
//! error; every connection is limited in time and size.

mod fence;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod server;
#[cfg(test)]
mod tests;

pub use server::{Duties, TargetDuty, serve};

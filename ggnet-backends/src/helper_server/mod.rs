//! The helper: the one process of GGnet that is root, and the closed list of things that it does for a server that is not.
//!
//! ```text
//!   server (user ggnet)                      helper (root)
//!                                            ┌─▶ fence ─▶ the kernel's tree, below this GGnet's names
//!                 helper ═══socket═══ server
//!                                            └─▶ units that its command line names: state, start, restart
//! ```
//! Whoever asks is known by the kernel's word for it (SO_PEERCRED).
//!
//! Invariants: a question that is refused has changed nothing; what is allowed is decided by what the helper was started with, never by
//! what is asked; the kernel opens a disk with the rights of the server's user; secrets travel to the helper, never back, and are in
//! no log line and no error; every connection is bounded in time and size.

mod fence;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod server;
#[cfg(test)]
mod tests;

pub use server::{Duties, TargetDuty, serve};

//! Whole-system tests: real machines (virtual ones), real daemons, real packets. One binary, one module per subject, so
//! that the harness is linked once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod boot;
mod chap_off;
mod data_folders;
mod debian;
mod faults;
mod guest_on_tgt;
mod hostile;
mod install;
mod load;
mod long;
mod open_iscsi;
mod pxe;
mod room;
mod soak;
mod stalls;

//! The server killed at every call of a start, a reboot, a stop, an import, a publication and its first reconcile, over the real SQLite
//! store, the writeback store `layers` and the image store `files`, in one folder that is used through all the kills of a test. Targets, DHCP
//! entries, boot files and the converter are those in memory. ggnet-core's tests kill the same calls over memory alone.
//!
//! ```text
//!   whole ─▶ work, killed at call k ─▶ opened again, first reconcile ─▶ backends and folder compared with the store ─▶ boots ─▶ whole, k + 1
//! ```
//! How the process dies: the k-th call of all ports is not begun, or begun and abandoned, or done and its answer lost. From then on no call
//! gets through, and the runtime is dropped with every task where it stands. What differs from SIGKILL: file work that a blocking thread has
//! begun, and a statement that SQLite's thread has received, run to their end first. [`host`] removes two other differences: the database
//! and its log are put back as they were at the kill, because closing the old connections would tidy them up; and the next process begins only
//! when the old one has no file open. What happens within a call is tested elsewhere: `layers` and `files` are killed at every file operation
//! over a simulated disk (beside their code), and SQLite within its transactions by a real SIGKILL (`store_sqlite`).

#![allow(clippy::disallowed_methods, reason = "the test's own files and pauses, not a server's")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod check;
mod host;
mod reconcile;
mod sessions;
mod versions;

/// How often the last call is polled: never; once, and the process goes on for a part of a millisecond; until it is done, and its answer is lost.
const POLLS: [usize; 3] = [0, 1, 50];

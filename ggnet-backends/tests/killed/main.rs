//! Kills the server at every call of a start, a reboot, a stop, an import, a publication and its first reconcile, with the real SQLite
//! store, the writeback store `layers` and the image store `files`, in one folder that is used through all kills of a test. Targets, DHCP
//! entries, boot files and the converter are those in memory. ggnet-core's tests kill at the same calls with memory only.
//!
//! ```text
//!   whole ─▶ work, killed at call k ─▶ opened again, first reconcile ─▶ backends and folder compared with the store ─▶ boots ─▶ whole, k + 1
//! ```
//! How the process dies: the k-th call of all ports is not started, or started and abandoned, or completed and its result lost. From then
//! on no call gets through, and the runtime is dropped with every task where it is. The difference to SIGKILL: a file operation that a
//! blocking thread has started, and a statement that SQLite's thread has received, complete first. [`host`] removes two other differences:
//! the database and its log are restored to their state at the kill, because closing the old connections would change them; and the next
//! process starts only when the old one has no file open. Interruptions inside a call are tested elsewhere: `layers` and `files` are killed
//! at every file operation on a simulated disk (next to their code), and SQLite within its transactions by a real SIGKILL (`store_sqlite`).

#![allow(clippy::disallowed_methods, reason = "the test's own files and pauses, not a server's")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod check;
mod host;
mod reconcile;
mod sessions;
mod versions;

/// How often the last call is polled: never; once, and the process runs for a part of a millisecond; or until it completes, and its result
/// is lost.
const POLLS: [usize; 3] = [0, 1, 50];

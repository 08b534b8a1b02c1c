//! The one place that starts external programs: [`CommandRunner`] for those that run to their end, [`SystemRunner::start`] for one
//! that runs on beside us ([`Coprocess`]).
//!
//! ```text
//!   Invocation ──▶ resolve program ──▶ spawn in a group of its own ──▶ read stdout, stderr ──▶ wait ──▶ Output
//!                    └─▶ Unavailable          │ time limit, or the future is dropped
//!                                             └─▶ SIGKILL to the whole group, reaped
//! ```
//! Invariants:
//! * No shell: a fixed argv, an empty environment but for `PATH` and `LC_ALL=C`, stdin never inherited.
//! * A program never outlives its call (or its [`Coprocess`]): it is killed with its group at the time limit and when the future is dropped, and the
//!   kernel kills it when our process dies (`setpriv --pdeathsig`).
//! * Nothing is kept without a bound: stdout up to a limit, of stderr the last lines.
//! * Resource limits are set by `prlimit` of util-linux as a prefix of the argv, so that no code of ours runs between fork and exec.

mod coprocess;
mod invocation;
mod output;
mod spawn;
mod system;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use ggnet_core::error::Result;

pub use coprocess::{Coprocess, Pipes};
#[cfg(any(feature = "external", feature = "target-lio-targetcli"))]
pub(crate) use invocation::shown;
pub use invocation::{Arg, Invocation, Limits, LineSink, Stdin};
pub use output::Output;
pub use system::SystemRunner;

/// Starts an external program and waits for its end.
#[cfg_attr(any(test, feature = "mock"), mockall::automock)]
#[async_trait]
pub trait CommandRunner: Send + Sync + 'static {
    /// Runs a program to its end, whatever its exit code: a non-zero one is no error here, because what it means is the caller's
    /// to know ([`Output::require_success`]).
    ///
    /// # Errors
    /// `Unavailable` when the program (or `setpriv` or `prlimit`, which start it) is missing, with the line that installs it;
    /// `Permission` when it must not be executed; `Timeout` at the time limit, after the whole process group was killed.
    ///
    /// # Cancellation
    /// When the future is dropped the whole process group gets SIGKILL at once and is reaped in the background.
    async fn run(&self, invocation: Invocation) -> Result<Output>;
}

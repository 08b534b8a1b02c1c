//! The only place that starts external programs: [`CommandRunner`] for programs that run to their end, [`SystemRunner::start`] for a
//! program that runs alongside this process ([`Coprocess`]).
//!
//! ```text
//!   Invocation ──▶ resolve program ──▶ spawn in a group of its own ──▶ read stdout, stderr ──▶ wait ──▶ Output
//!                    └─▶ Unavailable          │ time limit, or the future is dropped
//!                                             └─▶ SIGKILL to the whole group, reaped
//! ```
//! Invariants:
//! * No shell: a fixed argv, an environment that only has `PATH` and `LC_ALL=C`, stdin never inherited.
//! * A program never outlives its call (or its [`Coprocess`]): it is killed with its group at the time limit and when the future is
//!   dropped, and the kernel kills it when our process dies (`setpriv --pdeathsig`).
//! * Output is kept within limits: stdout up to a maximum size, and the last lines of stderr.
//! * `prlimit` of util-linux sets resource limits as a prefix of the argv, so that none of our code runs between fork and exec.

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
    /// Runs a program to its end, whatever its exit code: a non-zero code is not an error here, because only the caller knows its meaning
    /// ([`Output::require_success`]).
    ///
    /// # Errors
    /// `Unavailable` if the program (or `setpriv` or `prlimit`, which start it) is missing, with the command that installs it; `Permission`
    /// if it must not be executed; `Timeout` at the time limit, after the whole process group was killed.
    ///
    /// # Cancellation
    /// If the future is dropped, the whole process group gets SIGKILL at once and is reaped in the background.
    async fn run(&self, invocation: Invocation) -> Result<Output>;
}

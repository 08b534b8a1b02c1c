//! The log: lines on standard error, written by a thread of its own.
//!
//! Invariants: a line that cannot be written (nobody reads the pipe, the disk is full) is lost and nothing else is; a reader that hangs
//! holds up nobody, because lines wait in a bounded queue and those beyond it are dropped; what waits is written when the process ends.

use std::io::IsTerminal as _;

use ggnet_core::{Error, Result};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Lines that may wait for a reader.
const WAITING: usize = 8192;

/// Writes the last lines when dropped.
#[must_use = "without it the last lines are lost"]
pub(crate) struct Logging {
    _thread: WorkerGuard,
}

/// Log lines to standard error, as configured.
pub(crate) fn start(log: &Log) -> Result<Logging> {
    let level = log.level.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(level)
        .map_err(|e| Error::invalid("log.level", format!("{level:?} is not a log filter: {e}")))?;
    let (writer, thread) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING)
        .thread_name("log")
        .finish(std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // It would say so on standard error, by a macro that panics where that cannot be written.
        .log_internal_errors(false);
    let set = match log.format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|e| Error::internal(format!("The log could not be set up: {e}")))?;
    Ok(Logging { _thread: thread })
}

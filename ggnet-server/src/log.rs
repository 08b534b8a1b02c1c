//! The log: lines on standard error, written by a separate thread.
//!
//! Invariants: a line that cannot be written (closed pipe, full disk) is lost and has no other effect; a reader that hangs blocks no other
//! thread, because lines go into a bounded queue and are dropped if it is full; queued lines are written when the process ends; lost lines
//! are counted, and health reports them while more are being lost.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ggnet_core::{Error, Result};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// The most lines in the queue.
const QUEUE_LINES: usize = 8192;
/// How long health reports a lost line.
const REPORT_LOSS_FOR: Duration = Duration::from_secs(60);

/// Writes the queued lines when dropped.
#[must_use = "without it the last lines are lost"]
pub(crate) struct Logging {
    _thread: WorkerGuard,
}

/// The lost lines of this process. A static, because a process has one standard error.
static LOST: Lost = Lost::new();

struct Lost {
    /// Lines that could not be written.
    unwritten: AtomicU64,
    /// Counts the lines that were dropped because the queue was full.
    queue: OnceLock<ErrorCounter>,
    /// The last known count, and when it last increased.
    grown: Mutex<(u64, Option<Instant>)>,
}

impl Lost {
    const fn new() -> Self {
        Self { unwritten: AtomicU64::new(0), queue: OnceLock::new(), grown: Mutex::new((0, None)) }
    }

    fn total(&self) -> u64 {
        let dropped = self.queue.get().map_or(0, |queue| queue.dropped_lines() as u64);
        self.unwritten.load(Ordering::Relaxed) + dropped
    }

    /// Notes whether more lines are lost than before; called after each line.
    fn update(&self) {
        let total = self.total();
        if total == 0 {
            return;
        }
        let mut grown = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        if total > grown.0 {
            *grown = (total, Some(Instant::now()));
        }
    }

    fn losing(&self) -> Option<String> {
        let (total, at) = *self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        at.filter(|at| at.elapsed() < REPORT_LOSS_FOR).map(|_| {
            format!(
                "Lines of the log are lost, {total} so far: the reader of standard error has exited or hangs, or its disk is full"
            )
        })
    }
}

/// The number of lines lost since the start.
pub(crate) fn lost() -> u64 {
    LOST.total()
}

/// The problem to report while lines are being lost.
pub(crate) fn losing() -> Option<String> {
    LOST.losing()
}

/// Writes lines; a line that cannot be written is counted and is no error for the writing thread.
struct Counted<W> {
    to: W,
    lost: &'static Lost,
}

impl<W: Write> Write for Counted<W> {
    /// Each call gets one whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.to.write_all(line).is_err() {
            self.lost.unwritten.fetch_add(1, Ordering::Relaxed);
            self.lost.update();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The queue of the writing thread.
struct Queue(NonBlocking);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = self.0.write(line);
        LOST.update();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Starts the log on standard error, as configured.
pub(crate) fn start(log: &Log) -> Result<Logging> {
    let level = log.level.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(level)
        .map_err(|e| Error::invalid("log.level", format!("{level:?} is not a log filter: {e}")))?;
    let (writer, thread) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE_LINES)
        .thread_name("log")
        .finish(Counted { to: io::stderr(), lost: &LOST });
    // Set only once: a second log in the same process is refused below.
    let _ = LOST.queue.set(writer.error_counter());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Queue(writer.clone()))
        // It would report errors on standard error with a macro that panics if that cannot be written.
        .log_internal_errors(false);
    let set = match log.format {
        LogFormat::Human => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|e| Error::internal(format!("The log could not be set up: {e}")))?;
    Ok(Logging { _thread: thread })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_counted_once_and_no_error() {
        static LOST: Lost = Lost::new();
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut to = Counted { to: full, lost: &LOST };
        assert_eq!((LOST.total(), LOST.losing()), (0, None));
        for n in 1..=3 {
            to.write_all(b"a line\n").unwrap();
            assert_eq!(LOST.total(), n);
        }
        assert!(LOST.losing().unwrap().contains("3 so far"));
        let mut to = Counted { to: Vec::new(), lost: &LOST };
        to.write_all(b"a line\n").unwrap();
        assert_eq!((LOST.total(), to.to), (3, b"a line\n".to_vec()));
    }
}

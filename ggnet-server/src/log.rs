//! The log: lines on standard error, written by a thread of its own.
//!
//! Invariants: a line that cannot be written (nobody reads the pipe, the disk is full) is lost and nothing else is; a reader that hangs
//! holds up nobody, because lines wait in a bounded queue and those beyond it are dropped; what waits is written when the process ends;
//! every line that is lost is counted, and health says so while it goes on.

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

/// Lines that may wait for a reader.
const WAITING: usize = 8192;
/// For how long after a line was lost health says that lines are being lost.
const LOSING: Duration = Duration::from_secs(60);

/// Writes the last lines when dropped.
#[must_use = "without it the last lines are lost"]
pub(crate) struct Logging {
    _thread: WorkerGuard,
}

/// What this process lost of its log: it has one, as it has one standard error.
static LOST: Lost = Lost::new();

struct Lost {
    /// Lines that could not be written.
    unwritten: AtomicU64,
    /// Counts the lines that found no place in the queue.
    queue: OnceLock<ErrorCounter>,
    /// The count at the last look, and when it had grown.
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

    /// Whether there are more than before; after each line.
    fn look(&self) {
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
        at.filter(|at| at.elapsed() < LOSING).map(|_| {
            format!(
                "Lines of the log are lost, {total} so far: whoever reads standard error has ended or hangs, or its disk is full"
            )
        })
    }
}

/// How many lines were lost since the start.
pub(crate) fn lost() -> u64 {
    LOST.total()
}

/// What is wrong while lines are being lost.
pub(crate) fn losing() -> Option<String> {
    LOST.losing()
}

/// Where lines go; one that cannot be written is counted, and is no error for the thread that writes.
struct Counted<W> {
    to: W,
    lost: &'static Lost,
}

impl<W: Write> Write for Counted<W> {
    /// A whole line each time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.to.write_all(line).is_err() {
            self.lost.unwritten.fetch_add(1, Ordering::Relaxed);
            self.lost.look();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The queue before the thread that writes.
struct Queue(NonBlocking);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = self.0.write(line);
        LOST.look();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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
        .finish(Counted { to: io::stderr(), lost: &LOST });
    // Set once: a second log of one process is refused below.
    let _ = LOST.queue.set(writer.error_counter());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Queue(writer.clone()))
        // It would say so on standard error, by a macro that panics where that cannot be written.
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

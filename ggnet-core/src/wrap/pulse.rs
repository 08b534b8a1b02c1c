//! [`Pulse`]: how far a conversion is, whether it still gets on, and whether its caller has its result.
//!
//! ```text
//!   running ──the conversion ends──▶ ended: the caller has its result
//!      └─────the caller is let go──▶ given up: what it wrote means nothing, even if it succeeds after all
//! ```
//! Invariant: exactly one of the two happens, whatever the order in which the threads come.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::ports::Progress;

const RUNNING: u8 = 0;
const ENDED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// How long a conversion may take to end once it was cancelled.
const AFTER_CANCEL: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Pulse {
    last: Mutex<Instant>,
    state: AtomicU8,
    stalled: AtomicBool,
    wanted: CancellationToken,
    inner: CancellationToken,
}

impl Pulse {
    /// For a conversion that its caller cancels by `wanted`.
    pub(super) fn new(wanted: CancellationToken) -> Arc<Self> {
        let inner = wanted.child_token();
        Arc::new(Self {
            last: Mutex::new(Instant::now()),
            state: AtomicU8::new(RUNNING),
            stalled: AtomicBool::new(false),
            wanted,
            inner,
        })
    }

    /// What the backend is cancelled by.
    pub(super) fn token(&self) -> CancellationToken {
        self.inner.clone()
    }

    /// Passes progress on and takes note of it.
    pub(super) fn watch(self: &Arc<Self>, progress: Progress) -> Progress {
        let pulse = Arc::clone(self);
        Arc::new(move |part| {
            pulse.beat();
            progress(part);
        })
    }

    /// It gets on.
    pub(super) fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the caller has cancelled.
    pub(super) async fn cancelled(&self) {
        self.wanted.cancelled().await;
    }

    /// Cancels the conversion when it makes no progress for `stall`, and returns when it has then, or after its caller cancelled it or
    /// went away, not ended in time.
    pub(super) async fn silent(&self, stall: Duration) {
        loop {
            let last = self.last();
            tokio::select! {
                () = self.inner.cancelled() => break,
                () = tokio::time::sleep_until(last + stall) => {}
            }
            if self.last() == last {
                self.stalled.store(true, Ordering::Release);
                break;
            }
        }
        self.inner.cancel();
        tokio::time::sleep(AFTER_CANCEL).await;
    }

    /// Whether it was cancelled because it made no progress.
    pub(super) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// The caller lets go; false when the conversion has just ended.
    pub(super) fn give_up(&self) -> bool {
        self.state.compare_exchange(RUNNING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The conversion has ended. Changes nothing when it was given up before.
    pub(super) fn end(&self) {
        // Lost only to `give_up`, and then nobody wants its result any more.
        let _ = self.state.compare_exchange(RUNNING, ENDED, Ordering::AcqRel, Ordering::Acquire);
    }
}

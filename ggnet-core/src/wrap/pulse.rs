//! [`Pulse`]: the progress of a conversion, whether it still advances, and whether its caller has its result.
//!
//! ```text
//!   running ──the conversion ends──▶ ended: the caller has its result
//!      └─────the caller is let go──▶ given up: what it wrote means nothing, even if it succeeds after all
//! ```
//! Invariant: exactly one of the two happens, in whatever order the threads run.

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

/// How long a cancelled conversion may take to end.
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

    /// The token that cancels the backend.
    pub(super) fn token(&self) -> CancellationToken {
        self.inner.clone()
    }

    /// Passes progress on and records that there was some.
    pub(super) fn watch(self: &Arc<Self>, progress: Progress) -> Progress {
        let pulse = Arc::clone(self);
        Arc::new(move |part| {
            pulse.beat();
            progress(part);
        })
    }

    /// Records progress.
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

    /// Cancels the conversion when it makes no progress for `stall`. Returns if the conversion does not end in time after that, or after
    /// its caller cancelled it or went away.
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

    /// The caller gives up; false if the conversion has just ended.
    pub(super) fn give_up(&self) -> bool {
        self.state.compare_exchange(RUNNING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The conversion has ended. Changes nothing when it was given up before.
    pub(super) fn end(&self) {
        // Fails only after `give_up`, and then the result is not needed.
        let _ = self.state.compare_exchange(RUNNING, ENDED, Ordering::AcqRel, Ordering::Acquire);
    }
}

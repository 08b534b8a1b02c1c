//! Decides whether a write may run on the caller's thread.
//!
//! ```text
//!  free ── a write took long ──▶ paused ── the pause ends ──▶ one disk tries ── short ──▶ free
//!                                  ▲                              │
//!                                  └────── pause twice as long ───┘ long
//! ```
//!
//! The kernel blocks a thread that writes to the page cache when too many pages are dirty, and not every file system has a flag that
//! prevents this. The limit applies to the host and not to the file, so all disks of a folder share the result: if each disk had to find
//! out by itself, a hundred disks would block the threads that serve the network, one after the other.
//!
//! Invariant: while the host blocks writers, at most one write per pause is tried on a caller's thread, in addition to those that had
//! already started.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Maximum size of a write on the caller's thread, in bytes.
const MOST_BYTES: usize = 256 * 1024;
/// The duration above which such a write counts as long.
const LONG: Duration = Duration::from_millis(2);
/// The first and the longest pause, in milliseconds.
const PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 1600;

/// The state that the disks of a folder share.
pub(crate) struct Inline {
    start: Instant,
    /// Until this time, in milliseconds after `start`, no disk writes on the caller's thread; 0: free.
    not_before: AtomicU64,
    /// The next pause, in milliseconds.
    pause: AtomicU64,
}

impl Inline {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), not_before: AtomicU64::new(0), pause: AtomicU64::new(PAUSE_MS) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether a write of this size may run on the caller's thread.
    pub(crate) fn allows(&self, bytes: usize) -> bool {
        self.allows_at(bytes, || self.now())
    }

    fn allows_at(&self, bytes: usize, now: impl FnOnce() -> u64) -> bool {
        if bytes > MOST_BYTES {
            return false;
        }
        // Only times are stored here; no data depends on their order.
        let until = self.not_before.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = now();
        // The thread that advances the time is the one that tries.
        let next = now + self.pause.load(Ordering::Relaxed);
        now >= until
            && self.not_before.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Records the duration of a write on the caller's thread.
    pub(crate) fn took(&self, time: Duration) {
        self.took_at(time, || self.now());
    }

    fn took_at(&self, time: Duration, now: impl FnOnce() -> u64) {
        if time > LONG {
            let pause = self.pause.load(Ordering::Relaxed);
            self.not_before.store(now() + pause, Ordering::Relaxed);
            self.pause.store((pause * 2).min(LONGEST_PAUSE_MS), Ordering::Relaxed);
        } else if self.not_before.load(Ordering::Relaxed) != 0 {
            self.not_before.store(0, Ordering::Relaxed);
            self.pause.store(PAUSE_MS, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(20);
    const SLOW: Duration = Duration::from_millis(200);

    #[test]
    fn what_one_disk_finds_out_holds_for_all_and_one_of_them_tries_again() {
        let inline = Inline::new();
        let allows = |now| inline.allows_at(4096, || now);
        assert!(allows(0) && allows(0));
        inline.took_at(SLOW, || 1000);
        assert!(!allows(1000) && !allows(1099));
        assert_eq!((1100..1120).filter(|now| allows(*now)).count(), 1, "one disk tries");
        inline.took_at(SLOW, || 1300);
        assert!(!allows(1499), "a longer pause");
        assert!(allows(1500));
        inline.took_at(SHORT, || 1500);
        assert!(allows(1500) && allows(1500), "the storm is over");
        inline.took_at(SLOW, || 2000);
        assert!(!allows(2099) && allows(2100), "a pause is short again");
    }

    #[test]
    fn a_large_write_is_never_done_on_the_callers_thread() {
        let inline = Inline::new();
        assert!(inline.allows(MOST_BYTES) && !inline.allows(MOST_BYTES + 1));
    }
}

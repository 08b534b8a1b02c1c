//! The memory that all sessions together may hold for data in flight, and each session's part of it.
//!
//! ```text
//!  session: output buffer + copies for jobs + collected data ──▶ up to FREE: always
//!                                                           └──▶ beyond: a lease from the pool, at most a quarter of it
//! ```
//!
//! A session that gets no lease continues in smaller steps: it fetches and reads nothing more until what it holds has been sent, and a
//! command whose data must be collected first gets TASK SET FULL. So no session waits for memory that another one holds.
//!
//! Invariants: the sum of all leases never exceeds the pool; a lease is returned when its session is idle, and at the end of the session.
//! In addition to the pool, each session holds at most [`FREE`], one step of [`STEP`], and one incoming PDU.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that a session may hold without a lease.
pub(super) const FREE: usize = 256 << 10;
/// Maximum bytes of one step of a session without a lease; also the maximum of one Data-In PDU.
pub(super) const STEP: usize = 256 << 10;

/// The unit of leases; it is large, so that a session asks for memory rarely.
const GRAIN: usize = 256 << 10;

/// The memory that all sessions share.
#[derive(Debug)]
pub(super) struct Pool {
    size: usize,
    leased: AtomicUsize,
}

impl Pool {
    pub(super) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { size, leased: AtomicUsize::new(0) })
    }

    /// Bytes that are leased now.
    pub(super) fn leased(&self) -> usize {
        self.leased.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= self.size);
        // Only a count: nothing is published by it.
        self.leased.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.leased.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One session's part of the pool.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Lease {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool), bytes: 0 }
    }

    fn needed(held: usize) -> usize {
        held.saturating_sub(FREE).next_multiple_of(GRAIN)
    }

    /// Whether the session may hold this number of bytes; leases what is missing.
    pub(super) fn covers(&mut self, held: usize) -> bool {
        let needed = Self::needed(held);
        if needed <= self.bytes {
            return true;
        }
        let fits = needed <= self.pool.size / 4 && self.pool.take(needed - self.bytes);
        if fits {
            self.bytes = needed;
        }
        fits
    }

    /// Returns what is not needed to hold this number of bytes. As long as something is held, a little is kept for the next step.
    pub(super) fn settle(&mut self, held: usize) {
        let needed = Self::needed(held);
        let keep = if held == 0 { 0 } else { needed + GRAIN };
        if self.bytes > keep {
            self.pool.give(self.bytes - needed);
            self.bytes = needed;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_add_up_to_no_more_than_the_pool_and_one_of_them_to_a_quarter() {
        let pool = Pool::new(16 * GRAIN);
        let mut greedy = Lease::new(&pool);
        assert!(greedy.covers(FREE) && pool.leased() == 0, "so much is free");
        assert!(greedy.covers(FREE + 1) && pool.leased() == GRAIN);
        assert!(greedy.covers(FREE + 4 * GRAIN) && !greedy.covers(FREE + 4 * GRAIN + 1));
        let mut others: Vec<_> = (0..3).map(|_| Lease::new(&pool)).collect();
        assert!(others.iter_mut().all(|l| l.covers(FREE + 4 * GRAIN)));
        assert_eq!(pool.leased(), 16 * GRAIN);
        let mut late = Lease::new(&pool);
        assert!(late.covers(FREE) && !late.covers(FREE + 1), "the pool is empty");
        drop(others);
        assert!(late.covers(FREE + 1));
    }

    #[test]
    fn a_lease_is_given_back_when_less_is_held() {
        let pool = Pool::new(64 * GRAIN);
        let mut lease = Lease::new(&pool);
        assert!(lease.covers(FREE + 8 * GRAIN));
        lease.settle(FREE + 7 * GRAIN);
        assert_eq!(pool.leased(), 8 * GRAIN, "one grain is kept for what comes next");
        lease.settle(FREE + 2 * GRAIN);
        assert_eq!(pool.leased(), 2 * GRAIN);
        lease.settle(0);
        assert_eq!(pool.leased(), 0);
        assert!(lease.covers(FREE + GRAIN));
        drop(lease);
        assert_eq!(pool.leased(), 0);
    }
}

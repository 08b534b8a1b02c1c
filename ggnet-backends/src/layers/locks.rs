//! Locks on ranges of blocks: only the holder of a block's lock may change its state.
//!
//! Blocks are locked in groups of [`GROUP_BLOCKS`] (whole map words, so that a word in the hot map file has one writer at a time), and
//! groups share [`STRIPES`] mutexes. Invariant: stripes are always locked in ascending order, so there is no deadlock.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Blocks in a group: 2 MiB, so that a typical request locks one or two mutexes.
pub(crate) const GROUP_BLOCKS: u64 = 512;
/// Number of mutexes; also the maximum number of groups that one discard locks at a time.
pub(crate) const STRIPES: u64 = 64;

/// The locks of one disk.
pub(crate) struct RangeLocks(Box<[Mutex<()>]>);

/// The locks of a range, held until dropped.
pub(crate) struct Held<'a>(#[expect(dead_code, reason = "held for its Drop")] Vec<MutexGuard<'a, ()>>);

impl RangeLocks {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    /// Waits for the locks of blocks `first..end`.
    pub(crate) fn lock(&self, first: u64, end: u64) -> Held<'_> {
        // A poisoned lock guards no data itself; the states that it orders are atomics, which are always valid.
        Held(self.stripes(first, end).map(|m| m.lock().unwrap_or_else(PoisonError::into_inner)).collect())
    }

    /// Takes the locks of blocks `first..end` if all of them are free.
    pub(crate) fn try_lock(&self, first: u64, end: u64) -> Option<Held<'_>> {
        self.stripes(first, end)
            .map(|m| match m.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Held)
    }

    /// The mutexes of a range in ascending order, without duplicates.
    fn stripes(&self, first: u64, end: u64) -> impl Iterator<Item = &Mutex<()>> {
        let (low, high) = (first / GROUP_BLOCKS, end.div_ceil(GROUP_BLOCKS));
        let all = high - low >= STRIPES;
        let (a, b) = (low % STRIPES, high % STRIPES);
        self.0.iter().zip(0_u64..).filter_map(move |(mutex, i)| {
            let inside = if a < b { (a..b).contains(&i) } else { i >= a || i < b };
            (all || inside).then_some(mutex)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_excludes_exactly_the_ranges_that_share_a_group() {
        let locks = RangeLocks::new();
        let held = locks.lock(500, 513);
        assert!(locks.try_lock(0, 1).is_none());
        assert!(locks.try_lock(1023, 1024).is_none());
        assert!(locks.try_lock(1024, 1025).is_some());
        assert!(locks.try_lock(1024, STRIPES * GROUP_BLOCKS).is_some());
        assert!(locks.try_lock(1024, STRIPES * GROUP_BLOCKS + 1).is_none(), "wraps around to stripe 0");
        drop(held);
        assert!(locks.try_lock(0, 1 << 40).is_some());
        let _last = locks.lock(63 * GROUP_BLOCKS, 65 * GROUP_BLOCKS);
        assert!(locks.try_lock(63 * GROUP_BLOCKS, 63 * GROUP_BLOCKS + 1).is_none());
        assert!(locks.try_lock(0, 1).is_none());
        assert!(locks.try_lock(GROUP_BLOCKS, 63 * GROUP_BLOCKS).is_some());
    }
}

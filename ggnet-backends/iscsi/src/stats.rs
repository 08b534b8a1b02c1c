//! Counters of a session.
//!
//! Invariant: only the session's own task writes, so counting is a plain load and store without a locked instruction. Each value that
//! readers see is correct; values read together may differ by one request.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of the latency histogram: bucket *n* counts commands that took less than 2^n microseconds and are not in an earlier bucket; the
/// last one counts all others.
pub const LATENCY_BUCKETS: usize = 24;

/// A session's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Commands that read the medium.
    pub reads: u64,
    /// Commands that wrote it.
    pub writes: u64,
    /// All other SCSI commands.
    pub others: u64,
    /// Bytes sent from the medium.
    pub read_bytes: u64,
    /// Bytes received for the medium.
    pub write_bytes: u64,
    /// Commands that ended in CHECK CONDITION because the device failed.
    pub device_errors: u64,
    /// Commands that were answered with any status but GOOD.
    pub not_good: u64,
    /// Commands open now.
    pub queue_depth: u32,
    /// Time from a command's arrival to its status, in buckets of powers of two.
    pub latency: [u64; LATENCY_BUCKETS],
    /// The sum of those times, in microseconds.
    pub latency_sum: u64,
}

/// Live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    others: AtomicU64,
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    device_errors: AtomicU64,
    not_good: AtomicU64,
    queue_depth: AtomicU32,
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_sum: AtomicU64,
}

/// Adds without a locked instruction (see the header of this file). Returns the previous value.
fn add(counter: &AtomicU64, n: u64) -> u64 {
    let before = counter.load(Relaxed);
    counter.store(before.wrapping_add(n), Relaxed);
    before
}

impl Counters {
    /// Counts a read command; true for the first one.
    pub(crate) fn read(&self) -> bool {
        add(&self.reads, 1) == 0
    }

    /// Counts a write command; true for the first one.
    pub(crate) fn write(&self) -> bool {
        add(&self.writes, 1) == 0
    }

    pub(crate) fn other(&self) {
        add(&self.others, 1);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.read_bytes, bytes as u64);
    }

    pub(crate) fn taken(&self, bytes: usize) {
        add(&self.write_bytes, bytes as u64);
    }

    pub(crate) fn failed(&self, device: bool) {
        add(&self.not_good, 1);
        if device {
            add(&self.device_errors, 1);
        }
    }

    pub(crate) fn depth(&self, open: u32) {
        self.queue_depth.store(open, Relaxed);
    }

    pub(crate) fn latency(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (64 - micros.leading_zeros()) as usize;
        add(&self.latency[bucket.min(LATENCY_BUCKETS - 1)], 1);
        add(&self.latency_sum, micros);
    }

    pub(crate) fn snapshot(&self) -> CountersSnapshot {
        let mut latency = [0; LATENCY_BUCKETS];
        for (to, from) in latency.iter_mut().zip(&self.latency) {
            *to = from.load(Relaxed);
        }
        CountersSnapshot {
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            others: self.others.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            write_bytes: self.write_bytes.load(Relaxed),
            device_errors: self.device_errors.load(Relaxed),
            not_good: self.not_good.load(Relaxed),
            queue_depth: self.queue_depth.load(Relaxed),
            latency,
            latency_sum: self.latency_sum.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_buckets() {
        let c = Counters::default();
        assert!(c.read());
        assert!(!c.read());
        c.sent(4096);
        c.failed(true);
        for micros in [0, 1, 5, 1_000_000_000] {
            c.latency(Duration::from_micros(micros));
        }
        let s = c.snapshot();
        assert_eq!((s.reads, s.read_bytes, s.not_good, s.device_errors), (2, 4096, 1, 1));
        assert_eq!((s.latency[0], s.latency[1], s.latency[3], s.latency[LATENCY_BUCKETS - 1]), (1, 1, 1, 1));
        assert_eq!(s.latency_sum, 1_000_000_006);
    }
}

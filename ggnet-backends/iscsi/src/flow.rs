//! The path of the data of all commands of a session: the output, the jobs, and the memory that both hold.
//!
//! Invariant: everything that is held is covered by the session's lease, or it is the only step in flight of the session.

use std::sync::Arc;

use super::jobs::Jobs;
use super::memory::{Lease, Pool};
use super::outbox::Outbox;

/// Bytes copied for jobs, above which no more input is handled.
const JOB_BYTES_HIGH: usize = 8 << 20;
/// Bytes of collected data that a session may always hold.
const STAGED_ALWAYS: usize = 64 << 10;

/// A session's output, jobs and memory.
pub(super) struct Flow {
    pub(super) out: Outbox,
    pub(super) jobs: Jobs,
    /// Bytes of collected data.
    pub(super) staged: usize,
    max_staged: usize,
    /// The lease for the memory of output, jobs and collected data together.
    lease: Lease,
}

impl Flow {
    pub(super) fn new(out: Outbox, jobs: Jobs, memory: &Arc<Pool>, max_staged: usize) -> Self {
        Self { out, jobs, staged: 0, max_staged, lease: Lease::new(memory) }
    }

    /// Bytes of data in flight.
    fn held(&self) -> usize {
        self.out.buf.held() + self.jobs.bytes + self.staged
    }

    /// Whether the session may hold this number of additional bytes.
    pub(super) fn covers(&mut self, more: usize) -> bool {
        let held = self.held();
        self.lease.covers(held + more)
    }

    /// Whether the session may continue with this number of additional bytes: they are covered, or nothing else is in flight.
    pub(super) fn has_room(&mut self, more: usize) -> bool {
        self.covers(more) || self.nothing_waits()
    }

    /// Whether everything that was fetched or received has been passed on: then one more step is allowed, whatever other sessions hold.
    pub(super) fn nothing_waits(&mut self) -> bool {
        if self.out.buf.is_empty() {
            self.out.buf.shrink();
        }
        self.out.buf.is_empty() && self.jobs.bytes == 0
    }

    /// Whether more input may be handled.
    pub(super) fn may_read(&mut self) -> bool {
        !self.out.is_full() && self.jobs.bytes < JOB_BYTES_HIGH && self.has_room(0)
    }

    /// Whether this number of bytes of command data may be collected. A few always may, because a file system's TRIM is a short list.
    pub(super) fn may_collect(&mut self, want: usize) -> bool {
        let sum = self.staged + want;
        sum <= STAGED_ALWAYS || (sum <= self.max_staged && self.covers(want))
    }

    /// Returns the memory that is not needed any more.
    pub(super) fn settle(&mut self) {
        let held = self.held();
        self.lease.settle(held);
    }
}

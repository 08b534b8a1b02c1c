//! What the data of every command of a session goes through: the output and the jobs, and the memory that both hold.
//!
//! Invariant: what is held is covered by the session's lease, or nothing else of the session waits.

use std::sync::Arc;

use super::jobs::Jobs;
use super::memory::{Lease, Pool};
use super::outbox::Outbox;

/// Bytes copied for jobs beyond which no more input is handled.
const JOB_BYTES_HIGH: usize = 8 << 20;
/// Collected data that a session may always have.
const STAGED_ALWAYS: usize = 64 << 10;

/// A session's output, jobs and memory.
pub(super) struct Flow {
    pub(super) out: Outbox,
    pub(super) jobs: Jobs,
    /// Bytes of collected data.
    pub(super) staged: usize,
    max_staged: usize,
    /// For what the output, jobs and collected data hold together.
    lease: Lease,
}

impl Flow {
    pub(super) fn new(out: Outbox, jobs: Jobs, memory: &Arc<Pool>, max_staged: usize) -> Self {
        Self { out, jobs, staged: 0, max_staged, lease: Lease::new(memory) }
    }

    /// Bytes of data under way.
    fn held(&self) -> usize {
        self.out.buf.held() + self.jobs.bytes + self.staged
    }

    /// Whether the session may hold so many bytes more.
    pub(super) fn covers(&mut self, more: usize) -> bool {
        let held = self.held();
        self.lease.covers(held + more)
    }

    /// Whether it may go on with so many bytes more: they are covered, or nothing waits.
    pub(super) fn has_room(&mut self, more: usize) -> bool {
        self.covers(more) || self.nothing_waits()
    }

    /// Whether all that was fetched or heard has gone on its way: one more step is right then, whatever others hold.
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

    /// Whether so many bytes of command data may be collected. A few always may: what a file system trims is told in a short list.
    pub(super) fn may_collect(&mut self, want: usize) -> bool {
        let sum = self.staged + want;
        sum <= STAGED_ALWAYS || (sum <= self.max_staged && self.covers(want))
    }

    /// Gives back the memory that is not needed any more.
    pub(super) fn settle(&mut self) {
        let held = self.held();
        self.lease.settle(held);
    }
}

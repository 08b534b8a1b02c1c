//! Reads: from the device into the output buffer.
//!
//! ```text
//!  chunk by chunk into the output ─▶ last Data-In carries the status
//!        └─ device would wait ─▶ job ─▶ from its buffer into the output ─▶ (go on)
//! ```
//!
//! Invariants: data is sent in order, in PDUs of the size that the initiator accepts; the last one carries the status; nothing is fetched
//! while the output is full; if the device would wait, a job fetches up to 1 MiB, and the task continues from the job's buffer.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::flow::Flow;
use super::memory::STEP;
use super::scsi::Reply;
use super::task::{Done, ReadTask, log_failed};
use super::workers::Queue;

/// Maximum bytes that one job reads.
const JOB_READ: usize = 1 << 20;

/// The reads that wait for space in the output.
#[derive(Default)]
pub(super) struct Reads(VecDeque<ReadTask>);

impl Reads {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops all reads, because the session ends.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Starts a read: at once, or after those that wait.
    pub(super) fn begin(&mut self, flow: &mut Flow, task: ReadTask) {
        if self.0.is_empty() {
            self.step(flow, task);
        } else {
            self.0.push_back(task);
        }
    }

    /// Continues reads that wait for space in the output.
    pub(super) fn pump(&mut self, flow: &mut Flow) {
        while !flow.out.is_full()
            && let Some(task) = self.0.pop_front()
        {
            if !self.step(flow, task) {
                return;
            }
        }
    }

    /// Sends as much of a read as there is space for. False: there is no space, and the task waits.
    fn step(&mut self, flow: &mut Flow, mut task: ReadTask) -> bool {
        let block = task.unit.block_len();
        loop {
            if task.left == 0 && task.sent.pdus > 0 {
                return true;
            }
            if task.left == 0 {
                // Nothing to transfer: status alone.
                flow.out.answer(&task.command, Reply::good(), Some(task.asked));
                return true;
            }
            if flow.out.is_full() {
                self.0.push_front(task);
                return false;
            }
            // The chunk ends with the PDU, and inside a task on a block.
            let pdu = flow.out.pdu_room(&task.sent);
            let chunk = if task.left <= pdu { task.left } else { pdu - pdu % block };
            if chunk == 0 || chunk % block != 0 {
                return self.fetch(flow, task);
            }
            if !flow.has_room(flow.out.buf.growth(chunk)) {
                self.0.push_front(task);
                return false;
            }
            let out = &mut flow.out;
            let slot = out.buf.reserve(chunk);
            match task.unit.device.try_read_at(out.buf.data(slot), task.offset) {
                Ok(true) => {}
                Ok(false) => return self.fetch(flow, task),
                Err(e) => {
                    failed(flow, &task, &e);
                    return true;
                }
            }
            task.left -= chunk;
            task.offset += chunk as u64;
            let header = out.data_in_header(&task.command, &mut task.sent, chunk, task.left == 0, task.asked);
            out.buf.commit(slot, header);
            out.counters().sent(chunk);
        }
    }

    /// Reads the next part on the blocking pool. False: there is no space, and the task waits.
    fn fetch(&mut self, flow: &mut Flow, mut task: ReadTask) -> bool {
        let block = task.unit.block_len();
        // Whole blocks are read even where the transfer ends inside one.
        let mut len = task.left.next_multiple_of(block).min(JOB_READ);
        if !flow.covers(len) {
            if !flow.nothing_waits() {
                self.0.push_front(task);
                return false;
            }
            len = len.min(STEP);
        }
        task.fetching = len;
        let (ticket, cancel) = flow.jobs.ticket(&task.command);
        flow.jobs.bytes += len;
        let (unit, offset) = (Arc::clone(&task.unit), task.offset);
        flow.jobs.spawn(
            Queue::Data,
            Some(cancel),
            move || {
                let mut buf = vec![0; len];
                unit.device.read_at(&mut buf, offset).map(|()| buf)
            },
            move |result| Done::Read { ticket, task: Box::new(task), result },
        );
        true
    }

    /// A job has ended: its bytes are sent.
    pub(super) fn fetched(
        &mut self,
        flow: &mut Flow,
        ticket: u64,
        mut task: ReadTask,
        result: io::Result<Vec<u8>>,
    ) {
        flow.jobs.bytes = flow.jobs.bytes.saturating_sub(task.fetching);
        // A read that was cancelled is no failure of the device.
        let cancelled = flow.jobs.was_cancelled(ticket);
        if !flow.jobs.still_wanted(ticket) || cancelled {
            return;
        }
        let buf = match result {
            Ok(buf) => buf,
            Err(e) => return failed(flow, &task, &e),
        };
        let out = &mut flow.out;
        let mut rest = &buf[..buf.len().min(task.left)];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(out.pdu_room(&task.sent)));
            task.left -= now.len();
            task.offset += now.len() as u64;
            let header =
                out.data_in_header(&task.command, &mut task.sent, now.len(), task.left == 0, task.asked);
            out.buf.push(header, now);
            out.counters().sent(now.len());
            rest = later;
        }
        if task.left > 0 {
            self.0.push_back(task);
        }
    }

    /// Drops the reads of commands for which `f` is true, and adds the commands (tag, immediate) to `hit`.
    pub(super) fn abort(&mut self, f: impl Fn(u32, u16) -> bool, hit: &mut Vec<(u32, bool)>) {
        self.0.retain(|t| {
            let gone = f(t.command.itt, t.command.lun);
            if gone {
                hit.push((t.command.itt, t.command.immediate));
            }
            !gone
        });
    }
}

fn failed(flow: &mut Flow, task: &ReadTask, error: &io::Error) {
    log_failed(flow.out.me.id, task.command.lun, task.offset, "read", error);
    flow.out.answer_after(&task.command, Reply::read_failed(error), Some(0), task.sent.pdus);
}

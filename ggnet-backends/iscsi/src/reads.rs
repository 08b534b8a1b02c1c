//! Reads: from the device into the output buffer.
//!
//! Invariants: data goes out in order and in PDUs of what the initiator takes; the last one carries the status; nothing
//! is fetched while the output is full; where the device would wait, a job fetches up to a mebibyte and the task goes on
//! from its buffer.

use std::io;
use std::sync::Arc;

use super::answers::{Sent, residual};
use super::bytes::{index, sat32};
use super::memory::STEP;
use super::pdu::{Bhs, FINAL, NO_TAG, opcode};
use super::scsi::Reply;
use super::scsi::lu::LogicalUnit;
use super::session::{OUT_HIGH, Session};
use super::tasks::{Command, Done, JOB_READ, log_failed};
use super::workers::Queue;

/// A read that is not yet answered.
pub(super) struct ReadTask {
    pub(super) command: Command,
    pub(super) unit: Arc<LogicalUnit>,
    /// Where the next byte is on the device.
    pub(super) offset: u64,
    /// Bytes still to send.
    pub(super) left: usize,
    /// Bytes the CDB asked for, for the residual.
    pub(super) asked: u64,
    pub(super) sent: Sent,
    /// Bytes that its job fetches.
    pub(super) fetching: usize,
}

impl Session {
    /// Goes on with reads that wait for room in the output.
    pub(super) fn pump_reads(&mut self) {
        while self.out.len() < OUT_HIGH
            && let Some(task) = self.reads.pop_front()
        {
            if !self.step_read(task) {
                return;
            }
        }
    }

    /// Sends as much of a read as there is room for. False: there is no room, and the task waits.
    pub(super) fn step_read(&mut self, mut task: ReadTask) -> bool {
        let block = task.unit.block_len();
        loop {
            if task.left == 0 && task.sent.pdus > 0 {
                return true;
            }
            if task.left == 0 {
                // Nothing to transfer: status alone.
                let reply = Reply::good();
                self.answer(&task.command, reply, Some(task.asked));
                return true;
            }
            if self.out.len() >= OUT_HIGH {
                self.reads.push_front(task);
                return false;
            }
            // The chunk ends with the PDU, and inside a task on a block.
            let pdu = self.pdu_room(&task.sent);
            let chunk = if task.left <= pdu { task.left } else { pdu - pdu % block };
            if chunk == 0 || chunk % block != 0 {
                return self.read_job(task);
            }
            if !self.has_room(self.out.growth(chunk)) {
                self.reads.push_front(task);
                return false;
            }
            let slot = self.out.reserve(chunk);
            match task.unit.device.try_read_at(self.out.data(slot), task.offset) {
                Ok(true) => {}
                Ok(false) => return self.read_job(task),
                Err(e) => {
                    self.read_failed(&task, &e);
                    return true;
                }
            }
            task.left -= chunk;
            task.offset += chunk as u64;
            let header =
                self.data_in_header(&task.command, &mut task.sent, chunk, task.left == 0, task.asked);
            self.out.commit(slot, header);
            self.counters().sent(chunk);
        }
    }

    /// Room for data in the next Data-In PDU: what the initiator takes, and no more than a step.
    pub(super) fn pdu_room(&self, sent: &Sent) -> usize {
        index(u64::from(self.params.peer_max_data.min(self.params.max_burst - sent.in_burst))).min(STEP)
    }

    pub(super) fn read_failed(&mut self, task: &ReadTask, error: &io::Error) {
        log_failed(self.me.id, task.command.lun, task.offset, "read", error);
        self.answer_after(&task.command, Reply::read_failed(error), Some(0), task.sent.pdus);
    }

    /// Reads the next part on the blocking pool. False: there is no room, and the task waits.
    fn read_job(&mut self, mut task: ReadTask) -> bool {
        let block = task.unit.block_len();
        // Whole blocks are read even where the transfer ends inside one.
        let mut len = task.left.next_multiple_of(block).min(JOB_READ);
        if !self.covers(len) {
            if !self.nothing_waits() {
                self.reads.push_front(task);
                return false;
            }
            len = len.min(STEP);
        }
        task.fetching = len;
        let (ticket, cancel) = self.ticket(&task.command);
        self.job_bytes += len;
        let device = Arc::clone(&task.unit);
        let offset = task.offset;
        self.spawn(
            Queue::Data,
            Some(cancel),
            move || {
                let mut buf = vec![0; len];
                device.device.read_at(&mut buf, offset).map(|()| buf)
            },
            move |result| Done::Read { ticket, task: Box::new(task), result },
        );
        true
    }

    /// A job's bytes go out.
    pub(super) fn read_done(&mut self, mut task: ReadTask, result: io::Result<Vec<u8>>) {
        let buf = match result {
            Ok(buf) => buf,
            Err(e) => return self.read_failed(&task, &e),
        };
        let mut rest = &buf[..buf.len().min(task.left)];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.pdu_room(&task.sent)));
            task.left -= now.len();
            task.offset += now.len() as u64;
            let header =
                self.data_in_header(&task.command, &mut task.sent, now.len(), task.left == 0, task.asked);
            self.out.push(header, now);
            self.counters().sent(now.len());
            rest = later;
        }
        if task.left > 0 {
            self.reads.push_back(task);
        }
    }

    /// The header of a Data-In PDU; the last one carries the status and ends the command.
    pub(super) fn data_in_header(
        &mut self,
        command: &Command,
        sent: &mut Sent,
        len: usize,
        last: bool,
        asked: u64,
    ) -> Bhs {
        let len = sat32(len);
        let mut b = Bhs::new(opcode::DATA_IN, 0);
        b.set_word(16, command.itt);
        b.set_word(20, NO_TAG);
        b.set_word(36, sent.pdus);
        b.set_word(40, sent.bytes);
        sent.pdus += 1;
        sent.bytes = sent.bytes.wrapping_add(len);
        sent.in_burst += len;
        let burst_ends = sent.in_burst >= self.params.max_burst;
        if last {
            b.0[1] = FINAL | 1 | residual(&mut b, 44, command.expect_in, asked);
            self.ended(command);
        } else if burst_ends {
            b.0[1] = FINAL;
        }
        if burst_ends {
            sent.in_burst = 0;
        }
        self.number(&mut b, last);
        b
    }
}

//! Writes, and actions that need data: from the input buffer into the device.
//!
//! ```text
//!  write:  immediate, unsolicited, R2T by R2T ─▶ each piece to the device as it arrives ─▶ (flush) ─▶ status
//!                └─ device would wait ─▶ a job for the piece
//!  action: collect the data ─▶ run it
//! ```
//!
//! Invariants: data arrives in order (DataPDUInOrder and DataSequenceInOrder are always Yes), and a PDU out of order ends its command; at
//! most one R2T is open per command; of a stream, at most a part of one block is kept: whole blocks go to the device as they arrive; staged
//! bytes are counted.

use std::io;
use std::sync::{Arc, PoisonError, TryLockError};

use super::actions::{self, Collected};
use super::bytes::{index, sat16, sat32};
use super::flow::Flow;
use super::pdu::{Bhs, FINAL, NO_TAG, opcode};
use super::scsi::lu::LogicalUnit;
use super::scsi::nexus::Nexus;
use super::scsi::reservations::Access;
use super::scsi::sense::Sense;
use super::scsi::{Action, Reply, Units};
use super::task::{Command, Done, log_failed};
use super::workers::Queue;

/// Where a write's data goes.
pub(super) enum Sink {
    /// Directly to the device at this offset.
    Stream { offset: u64, flush: bool },
    /// Collected for an action.
    Collect(Action),
}

/// A command that waits for data.
pub(super) struct WriteTask {
    command: Command,
    unit: Arc<LogicalUnit>,
    nexus: Arc<Nexus>,
    sink: Sink,
    /// Bytes that are needed.
    want: usize,
    /// Bytes that the CDB requests, for the residual count.
    asked: u64,
    /// Bytes that were received.
    received: usize,
    /// Whether more unsolicited data will arrive.
    unsolicited: bool,
    /// End of the burst that the open R2T requests.
    r2t_end: Option<usize>,
    r2t_sn: u32,
    data_sn: u32,
    /// Collected data; for a stream: the received part of an incomplete block, always less than a block.
    buf: Vec<u8>,
    /// The number of pieces on the blocking pool.
    jobs: u32,
    failed: Option<Reply>,
}

impl WriteTask {
    /// For a command whose CDB requests `asked` bytes; `unsolicited`: more data follows without an R2T.
    pub(super) fn new(
        command: Command,
        unit: Arc<LogicalUnit>,
        nexus: Arc<Nexus>,
        sink: Sink,
        asked: u64,
        unsolicited: bool,
    ) -> Self {
        let want = index(asked.min(u64::from(command.expect_out)));
        Self {
            command,
            unit,
            nexus,
            sink,
            want,
            asked,
            received: 0,
            unsolicited,
            r2t_end: None,
            r2t_sn: 0,
            data_sn: 0,
            buf: Vec::new(),
            jobs: 0,
            failed: None,
        }
    }

    fn complete(&self) -> bool {
        self.received >= self.want && !self.unsolicited && self.r2t_end.is_none()
    }

    /// Bytes of it that count as staged.
    fn staged(&self) -> usize {
        if matches!(self.sink, Sink::Collect(_)) { self.want } else { 0 }
    }

    /// Writes all of a command's data and answers, if that needs no job. False: the command is not answered yet.
    fn write_inline(&self, flow: &mut Flow, data: &[u8]) -> bool {
        let Sink::Stream { offset, flush: false } = self.sink else { return false };
        if !data.len().is_multiple_of(self.unit.block_len()) {
            return false;
        }
        if !data.is_empty() {
            let Ok(gate) = self.unit.gate.try_read() else { return false };
            let written = self.unit.device.try_write_at(data, offset);
            drop(gate);
            match written {
                Ok(true) => {}
                Ok(false) => return false,
                Err(e) => {
                    let reply = write_failed(flow, self.command.lun, offset, &e);
                    flow.out.answer(&self.command, reply, Some(0));
                    return true;
                }
            }
        }
        flow.out.counters().taken(data.len());
        flow.out.answer(&self.command, Reply::good(), Some(self.asked));
        true
    }

    /// Handles the data of a Data-Out PDU, and detects data that was not requested. False: the PDU must be dropped.
    fn data_out(&mut self, flow: &mut Flow, tag: u32, bhs: &Bhs, data: &[u8]) -> bool {
        let solicited = bhs.ttt() != NO_TAG;
        let (data_sn, offset) = (bhs.word(36), index(u64::from(bhs.word(40))));
        let end = offset.saturating_add(data.len());
        let limit = match self.r2t_end {
            Some(end) if solicited => end,
            None if !solicited => index(u64::from(self.command.expect_out)),
            // Solicited data that nobody asked for.
            _ => return false,
        };
        if data_sn != self.data_sn || offset != self.received || end > limit {
            self.failed = Some(Reply::check(Sense::PROTOCOL_CRC));
            return true;
        }
        self.data_sn = self.data_sn.wrapping_add(1);
        if bhs.is_final() {
            self.data_sn = 0;
            if solicited {
                self.r2t_end = None;
            } else {
                self.unsolicited = false;
            }
        }
        self.take(flow, tag, data);
        true
    }

    /// Passes data on to its destination.
    fn take(&mut self, flow: &mut Flow, tag: u32, data: &[u8]) {
        let at = self.received;
        self.received += data.len();
        let useful = &data[..data.len().min(self.want.saturating_sub(at))];
        if useful.is_empty() || self.failed.is_some() {
            return;
        }
        let Sink::Stream { offset, .. } = self.sink else {
            self.buf.extend_from_slice(useful);
            return;
        };
        if at > 0
            && self.unit.is_reserved()
            && self.unit.with_reservations(|r| r.conflicts(&self.nexus.port, Access::Write))
        {
            // Somebody has reserved the unit since the command came.
            self.failed = Some(Reply::conflict());
            return;
        }
        let block = self.unit.block_len();
        let mut to = offset + (at - self.buf.len()) as u64;
        let mut rest = useful;
        if !self.buf.is_empty() {
            // The block that the last piece ended in is put together first.
            let (head, others) = rest.split_at(rest.len().min(block - self.buf.len()));
            self.buf.extend_from_slice(head);
            if self.buf.len() < block {
                return;
            }
            let whole = std::mem::take(&mut self.buf);
            self.put(flow, tag, to, &whole);
            to += block as u64;
            rest = others;
        }
        let (blocks, tail) = rest.split_at(rest.len() - rest.len() % block);
        if !blocks.is_empty() {
            self.put(flow, tag, to, blocks);
        }
        self.buf.extend_from_slice(tail);
    }

    /// Writes whole blocks of a stream to the device: at once, or in a job if the device would wait.
    fn put(&mut self, flow: &mut Flow, tag: u32, to: u64, blocks: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let written = match self.unit.gate.try_read() {
            Ok(_gate) => self.unit.device.try_write_at(blocks, to),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => Ok(false),
        };
        match written {
            Ok(true) => flow.out.counters().taken(blocks.len()),
            Ok(false) => {
                self.jobs += 1;
                let (unit, piece, bytes) = (Arc::clone(&self.unit), blocks.to_vec(), blocks.len());
                let (ticket, _) = flow.jobs.ticket(&self.command);
                flow.jobs.bytes += bytes;
                flow.jobs.spawn(
                    Queue::Data,
                    None,
                    move || {
                        let _writer = unit.gate.read().unwrap_or_else(PoisonError::into_inner);
                        unit.device.write_at(&piece, to)
                    },
                    move |result| Done::Piece { ticket, tag, offset: to, bytes, result },
                );
            }
            Err(e) => self.failed = Some(write_failed(flow, self.command.lun, to, &e)),
        }
    }

    /// Requests more data if some is missing. True: all data has arrived (or the command failed), and nothing is in flight.
    fn has_ended(&mut self, flow: &mut Flow, tag: u32) -> bool {
        if self.failed.is_some() || self.complete() {
            return self.jobs == 0;
        }
        if self.unsolicited || self.r2t_end.is_some() {
            return false;
        }
        let (offset, max_burst) = (self.received, index(u64::from(flow.out.params.max_burst)));
        let len = (self.want - offset).min(max_burst);
        self.r2t_end = Some(offset + len);
        self.data_sn = 0;
        let mut r = Bhs::new(opcode::R2T, FINAL);
        r.set(8, &lun_field(self.command.lun));
        r.set_word(16, self.command.itt);
        r.set_word(20, tag);
        r.set_word(36, self.r2t_sn);
        r.set_word(40, sat32(offset));
        r.set_word(44, sat32(len));
        self.r2t_sn += 1;
        flow.out.ask(r);
        false
    }

    /// The last step, when all data has arrived (or the command failed).
    fn end(self, flow: &mut Flow, units: &Units) {
        let staged = self.staged();
        let Self { command, unit, nexus, sink, asked, buf, failed, want, .. } = self;
        if let Some(reply) = failed {
            flow.staged -= staged;
            return flow.out.answer(&command, reply, Some(0));
        }
        match sink {
            Sink::Collect(action) => {
                let collected = Collected { data: buf, asked, staged };
                actions::run(flow, units, (unit, nexus), command, action, Some(collected));
            }
            Sink::Stream { flush: false, .. } if buf.is_empty() => {
                flow.out.answer(&command, Reply::good(), Some(asked));
            }
            Sink::Stream { offset, flush } => {
                let (ticket, _) = flow.jobs.ticket(&command);
                flow.out.counters().taken(buf.len());
                let session = flow.out.me.id;
                flow.jobs.spawn(
                    if flush { Queue::Flush } else { Queue::Data },
                    None,
                    move || match finish_stream(&unit, &buf, offset + (want - buf.len()) as u64, flush) {
                        Ok(()) => Reply::good(),
                        Err(e) => {
                            log_failed(session, command.lun, offset, "write or flush", &e);
                            Reply::write_failed(&e)
                        }
                    },
                    move |reply| Done::Replied { ticket, command, asked, staged: 0, reply },
                );
            }
        }
    }
}

/// The commands that wait for data, by target transfer tag.
#[derive(Default)]
pub(super) struct Writes {
    slots: Vec<(u16, Option<WriteTask>)>,
    free: Vec<usize>,
}

impl Writes {
    /// Starts a command with the data that arrived with it.
    pub(super) fn begin(&mut self, flow: &mut Flow, units: &Units, mut task: WriteTask, data: &[u8]) {
        // The common small write comes whole with its command and is done with it.
        if data.len() >= task.want && !task.unsolicited && task.write_inline(flow, &data[..task.want]) {
            return;
        }
        if matches!(task.sink, Sink::Collect(_)) {
            task.buf.reserve_exact(task.want);
        }
        let tag = self.insert(task);
        if let Some(task) = self.get(tag) {
            task.take(flow, tag, data);
        }
        self.advance(flow, units, tag);
    }

    /// Handles a Data-Out PDU.
    pub(super) fn data_out(&mut self, flow: &mut Flow, units: &Units, bhs: &Bhs, data: &[u8]) {
        let (itt, ttt) = (bhs.itt(), bhs.ttt());
        let tag =
            if ttt == NO_TAG { self.tag_where(|t| t.command.itt == itt && t.unsolicited) } else { Some(ttt) };
        // Data of a command that was answered or aborted meanwhile is dropped.
        let Some(tag) = tag else { return };
        let Some(task) = self.get(tag).filter(|t| t.command.itt == itt) else { return };
        if task.data_out(flow, tag, bhs, data) {
            self.advance(flow, units, tag);
        }
    }

    /// Handles the end of a piece's job.
    pub(super) fn piece_done(
        &mut self,
        flow: &mut Flow,
        units: &Units,
        (ticket, tag): (u64, u32),
        (offset, bytes): (u64, usize),
        result: io::Result<()>,
    ) {
        flow.jobs.bytes = flow.jobs.bytes.saturating_sub(bytes);
        if !flow.jobs.still_wanted(ticket) {
            return;
        }
        let task = self.get(tag);
        let failed = match result {
            Ok(()) => {
                flow.out.counters().taken(bytes);
                None
            }
            Err(e) => {
                let lun = task.as_ref().map_or(u16::MAX, |t| t.command.lun);
                Some(write_failed(flow, lun, offset, &e))
            }
        };
        let Some(task) = task else { return };
        task.jobs -= 1;
        if task.failed.is_none() {
            task.failed = failed;
        }
        self.advance(flow, units, tag);
    }

    /// Requests more data, or ends the command when it has all.
    fn advance(&mut self, flow: &mut Flow, units: &Units, tag: u32) {
        if self.get(tag).is_some_and(|task| task.has_ended(flow, tag))
            && let Some(task) = self.remove(tag)
        {
            task.end(flow, units);
        }
    }

    /// Drops the commands for which `f` is true, and adds them (tag, immediate) to `hit`.
    pub(super) fn abort(
        &mut self,
        flow: &mut Flow,
        f: impl Fn(u32, u16) -> bool,
        hit: &mut Vec<(u32, bool)>,
    ) {
        while let Some(tag) = self.tag_where(|t| f(t.command.itt, t.command.lun)) {
            let Some(task) = self.remove(tag) else { break };
            flow.staged -= task.staged();
            hit.push((task.command.itt, task.command.immediate));
        }
    }

    /// Drops the tasks whose data will never arrive, because the session ends. Tasks that have all data continue to their answer.
    pub(super) fn keep_complete(&mut self) {
        for (at, (_, task)) in self.slots.iter_mut().enumerate() {
            if task.take_if(|t| !t.complete()).is_some() {
                self.free.push(at);
            }
        }
    }

    fn insert(&mut self, task: WriteTask) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        let slot = &mut self.slots[at];
        // The upper half tells one use of a slot from the next and is never all ones, so that no tag is "no tag".
        slot.0 = (slot.0 + 1) % 0x7fff;
        slot.1 = Some(task);
        u32::from(slot.0) << 16 | u32::from(sat16(at))
    }

    fn at(tag: u32) -> (usize, u16) {
        (usize::from(u16::try_from(tag & 0xffff).unwrap_or(0)), u16::try_from(tag >> 16).unwrap_or(0))
    }

    fn get(&mut self, tag: u32) -> Option<&mut WriteTask> {
        let (at, generation) = Self::at(tag);
        self.slots.get_mut(at).filter(|s| s.0 == generation)?.1.as_mut()
    }

    fn remove(&mut self, tag: u32) -> Option<WriteTask> {
        let (at, generation) = Self::at(tag);
        let task = self.slots.get_mut(at).filter(|s| s.0 == generation)?.1.take()?;
        self.free.push(at);
        Some(task)
    }

    fn tag_where(&self, f: impl Fn(&WriteTask) -> bool) -> Option<u32> {
        self.slots.iter().enumerate().find_map(|(at, (generation, task))| {
            task.as_ref().filter(|t| f(t)).map(|_| u32::from(*generation) << 16 | u32::from(sat16(at)))
        })
    }
}

fn write_failed(flow: &Flow, lun: u16, offset: u64, error: &io::Error) -> Reply {
    log_failed(flow.out.me.id, lun, offset, "write", error);
    Reply::write_failed(error)
}

/// Writes the incomplete block at the end of a stream (the rest of that block is kept on the device) and flushes. `offset` is the block's.
pub(super) fn finish_stream(unit: &LogicalUnit, tail: &[u8], offset: u64, flush: bool) -> io::Result<()> {
    if !tail.is_empty() {
        // Reading, changing and writing it while nobody else writes.
        let _alone = unit.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut whole = vec![0; unit.block_len()];
        unit.device.read_at(&mut whole, offset)?;
        whole[..tail.len()].copy_from_slice(tail);
        unit.device.write_at(&whole, offset)?;
    }
    if flush { unit.device.flush() } else { Ok(()) }
}

/// A unit's number as a LUN field.
fn lun_field(lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    [if high == 0 { 0 } else { 0x40 | high }, low, 0, 0, 0, 0, 0, 0]
}

//! Writes, and actions that need data: from the input buffer into the device.
//!
//! Invariants: data arrives in order (DataPDUInOrder and DataSequenceInOrder are always Yes), and a PDU out of order ends
//! its command; at most one R2T is open per command; of a stream no more than a part of one block is ever kept: whole
//! blocks go to the device as they come; what is staged is counted.

use std::io;
use std::sync::{Arc, PoisonError, TryLockError};

use super::bytes::{index, sat16, sat32};
use super::pdu::{Bhs, FINAL, NO_TAG, opcode};
use super::scsi::lu::{LogicalUnit, Nexus};
use super::scsi::reserve::Access;
use super::scsi::sense::Sense;
use super::scsi::{Action, Reply};
use super::session::Session;
use super::tasks::{Command, Done, log_failed};
use super::workers::{Cancel, Queue};

/// What becomes of a write's data.
pub(super) enum Sink {
    /// Straight to the device at this offset.
    Stream { offset: u64, flush: bool },
    /// Collected for an action.
    Collect(Action),
}

/// A command that waits for data.
pub(super) struct WriteTask {
    pub(super) command: Command,
    pub(super) unit: Arc<LogicalUnit>,
    pub(super) nexus: Arc<Nexus>,
    pub(super) sink: Sink,
    /// Bytes we need.
    pub(super) want: usize,
    /// Bytes the CDB asked for, for the residual.
    pub(super) asked: u64,
    /// Bytes that have come.
    pub(super) received: usize,
    /// Unsolicited data is still to come.
    pub(super) unsolicited: bool,
    /// End of the burst asked for by the open R2T.
    pub(super) r2t_end: Option<usize>,
    pub(super) r2t_sn: u32,
    pub(super) data_sn: u32,
    /// Collected data; for a stream: the part of a block that came last, and always less than a block.
    pub(super) buf: Vec<u8>,
    /// Pieces on the blocking pool.
    pub(super) jobs: u32,
    pub(super) failed: Option<Reply>,
}

impl WriteTask {
    pub(super) fn complete(&self) -> bool {
        self.received >= self.want && !self.unsolicited && self.r2t_end.is_none()
    }
}

/// The write tasks by target transfer tag.
#[derive(Default)]
pub(super) struct WriteTable {
    pub(super) slots: Vec<(u16, Option<WriteTask>)>,
    pub(super) free: Vec<usize>,
}

impl WriteTable {
    pub(super) fn insert(&mut self, task: WriteTask) -> u32 {
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

    pub(super) fn at(tag: u32) -> (usize, u16) {
        (usize::from(u16::try_from(tag & 0xffff).unwrap_or(0)), u16::try_from(tag >> 16).unwrap_or(0))
    }

    pub(super) fn get(&mut self, tag: u32) -> Option<&mut WriteTask> {
        let (at, generation) = Self::at(tag);
        self.slots.get_mut(at).filter(|s| s.0 == generation)?.1.as_mut()
    }

    pub(super) fn remove(&mut self, tag: u32) -> Option<WriteTask> {
        let (at, generation) = Self::at(tag);
        let task = self.slots.get_mut(at).filter(|s| s.0 == generation)?.1.take()?;
        self.free.push(at);
        Some(task)
    }

    pub(super) fn tag_where(&self, f: impl Fn(&WriteTask) -> bool) -> Option<u32> {
        self.slots.iter().enumerate().find_map(|(at, (generation, task))| {
            task.as_ref().filter(|t| f(t)).map(|_| u32::from(*generation) << 16 | u32::from(sat16(at)))
        })
    }

    /// Forgets the tasks whose data will never come: the session ends. Those that have all of it go on to their answer.
    pub(super) fn keep_complete(&mut self) {
        for (at, (_, task)) in self.slots.iter_mut().enumerate() {
            if task.take_if(|t| !t.complete()).is_some() {
                self.free.push(at);
            }
        }
    }
}

impl Session {
    #[expect(clippy::too_many_arguments, reason = "the parts of one command, taken apart by the caller once")]
    pub(super) fn start_write(
        &mut self,
        bhs: &Bhs,
        data: &[u8],
        command: Command,
        unit: Arc<LogicalUnit>,
        nexus: Arc<Nexus>,
        sink: Sink,
        asked: u64,
    ) {
        let want = index(asked.min(u64::from(command.expect_out)));
        let mut task = WriteTask {
            command,
            unit,
            nexus,
            sink,
            want,
            asked,
            received: 0,
            unsolicited: !bhs.is_final(),
            r2t_end: None,
            r2t_sn: 0,
            data_sn: 0,
            buf: Vec::new(),
            jobs: 0,
            failed: None,
        };
        // The common small write comes whole with its command and is done with it.
        if data.len() >= want && !task.unsolicited && self.write_inline(&task, &data[..want]) {
            return;
        }
        if matches!(task.sink, Sink::Collect(_)) {
            task.buf.reserve_exact(want);
        }
        let tag = self.writes.insert(task);
        self.take_data(tag, data);
        self.advance(tag);
    }

    /// Writes all of a command's data and answers, where that needs no job. False: nothing was done.
    pub(super) fn write_inline(&mut self, task: &WriteTask, data: &[u8]) -> bool {
        let Sink::Stream { offset, flush: false } = task.sink else { return false };
        if !data.len().is_multiple_of(task.unit.block_len()) {
            return false;
        }
        if !data.is_empty() {
            let Ok(gate) = task.unit.gate.try_read() else { return false };
            let written = task.unit.device.try_write_at(data, offset);
            drop(gate);
            match written {
                Ok(true) => {}
                Ok(false) => return false,
                Err(e) => {
                    let reply = self.write_error(task.command.lun, offset, &e);
                    self.answer(&task.command, reply, Some(0));
                    return true;
                }
            }
        }
        self.counters().taken(data.len());
        self.answer(&task.command, Reply::good(), Some(task.asked));
        true
    }

    pub(super) fn write_error(&self, lun: u16, offset: u64, error: &io::Error) -> Reply {
        log_failed(self.me.id, lun, offset, "write", error);
        Reply::write_failed(error)
    }

    /// Takes a Data-Out PDU.
    pub(super) fn data_out(&mut self, bhs: &Bhs, data: &[u8]) {
        let (itt, ttt) = (bhs.itt(), bhs.ttt());
        let tag = if ttt == NO_TAG {
            self.writes.tag_where(|t| t.command.itt == itt && t.unsolicited)
        } else {
            Some(ttt)
        };
        // Data of a command that was answered or aborted meanwhile is dropped.
        let Some(tag) = tag else { return };
        let Some(task) = self.writes.get(tag).filter(|t| t.command.itt == itt) else { return };
        let (data_sn, offset) = (bhs.word(36), index(u64::from(bhs.word(40))));
        let end = offset.saturating_add(data.len());
        let limit = match task.r2t_end {
            Some(end) if ttt != NO_TAG => end,
            None if ttt == NO_TAG => index(u64::from(task.command.expect_out)),
            // Solicited data that nobody asked for.
            _ => return,
        };
        if data_sn != task.data_sn || offset != task.received || end > limit {
            task.failed = Some(Reply::check(Sense::PROTOCOL_CRC));
            return self.advance(tag);
        }
        task.data_sn = task.data_sn.wrapping_add(1);
        if bhs.is_final() {
            task.data_sn = 0;
            if ttt == NO_TAG {
                task.unsolicited = false;
            } else {
                task.r2t_end = None;
            }
        }
        self.take_data(tag, data);
        self.advance(tag);
    }

    /// Puts data where it belongs.
    pub(super) fn take_data(&mut self, tag: u32, data: &[u8]) {
        let Some(task) = self.writes.get(tag) else { return };
        let at = task.received;
        task.received += data.len();
        let useful = &data[..data.len().min(task.want.saturating_sub(at))];
        if useful.is_empty() || task.failed.is_some() {
            return;
        }
        let Sink::Stream { offset, .. } = task.sink else {
            task.buf.extend_from_slice(useful);
            return;
        };
        if at > 0
            && task.unit.is_reserved()
            && task.unit.with_reservations(|r| r.conflicts(&task.nexus.port, Access::Write))
        {
            // Somebody has reserved the unit since the command came.
            task.failed = Some(Reply::conflict());
            return;
        }
        let block = task.unit.block_len();
        let mut to = offset + (at - task.buf.len()) as u64;
        let mut rest = useful;
        if !task.buf.is_empty() {
            // The block that the last piece ended in is put together first.
            let (head, others) = rest.split_at(rest.len().min(block - task.buf.len()));
            task.buf.extend_from_slice(head);
            if task.buf.len() < block {
                return;
            }
            let whole = std::mem::take(&mut task.buf);
            self.put(tag, to, &whole);
            to += block as u64;
            rest = others;
        }
        let (blocks, tail) = rest.split_at(rest.len() - rest.len() % block);
        if !blocks.is_empty() {
            self.put(tag, to, blocks);
        }
        if let Some(task) = self.writes.get(tag).filter(|_| !tail.is_empty()) {
            task.buf.extend_from_slice(tail);
        }
    }

    /// Writes whole blocks of a stream to the device: at once, or by a job where the device would wait.
    fn put(&mut self, tag: u32, to: u64, blocks: &[u8]) {
        let Some(task) = self.writes.get(tag).filter(|t| t.failed.is_none()) else { return };
        let written = match task.unit.gate.try_read() {
            Ok(_gate) => task.unit.device.try_write_at(blocks, to),
            Err(TryLockError::Poisoned(_)) | Err(TryLockError::WouldBlock) => Ok(false),
        };
        match written {
            Ok(true) => self.me.counters.taken(blocks.len()),
            Ok(false) => {
                task.jobs += 1;
                let (unit, command, piece) = (Arc::clone(&task.unit), task.command, blocks.to_vec());
                let (ticket, _) = self.ticket(&command);
                let bytes = piece.len();
                self.job_bytes += bytes;
                self.spawn(
                    Queue::Data,
                    None,
                    move || {
                        let _writer = unit.gate.read().unwrap_or_else(PoisonError::into_inner);
                        unit.device.write_at(&piece, to)
                    },
                    move |result| Done::Piece { ticket, tag, offset: to, bytes, result },
                );
            }
            Err(e) => {
                let lun = task.command.lun;
                let reply = self.write_error(lun, to, &e);
                if let Some(task) = self.writes.get(tag) {
                    task.failed = Some(reply);
                }
            }
        }
    }

    /// Asks for more data, or ends the command when it has all.
    pub(super) fn advance(&mut self, tag: u32) {
        let Some(task) = self.writes.get(tag) else { return };
        if task.failed.is_some() || task.complete() {
            if task.jobs == 0 {
                self.end_write(tag);
            }
            return;
        }
        if task.unsolicited || task.r2t_end.is_some() {
            return;
        }
        let (offset, command) = (task.received, task.command);
        let max_burst = index(u64::from(self.params.max_burst));
        let Some(task) = self.writes.get(tag) else { return };
        let len = (task.want - offset).min(max_burst);
        task.r2t_end = Some(offset + len);
        task.data_sn = 0;
        let r2t_sn = task.r2t_sn;
        task.r2t_sn += 1;
        let mut r = Bhs::new(opcode::R2T, FINAL);
        r.set(8, &lun_field(command.lun));
        r.set_word(16, command.itt);
        r.set_word(20, tag);
        r.set_word(36, r2t_sn);
        r.set_word(40, sat32(offset));
        r.set_word(44, sat32(len));
        self.number(&mut r, false);
        self.out.push(r, &[]);
    }

    /// All data is there (or the command failed): the last step.
    pub(super) fn end_write(&mut self, tag: u32) {
        let Some(task) = self.writes.remove(tag) else { return };
        let WriteTask { command, unit, nexus, sink, asked, buf, failed, want, .. } = task;
        if let Some(reply) = failed {
            if matches!(sink, Sink::Collect(_)) {
                self.staged -= want;
            }
            return self.answer(&command, reply, Some(0));
        }
        match sink {
            Sink::Collect(action) => self.run_action(command, unit, nexus, action, buf, Some((asked, want))),
            Sink::Stream { flush: false, .. } if buf.is_empty() => {
                self.answer(&command, Reply::good(), Some(asked));
            }
            Sink::Stream { offset, flush } => {
                let (ticket, _) = self.ticket(&command);
                self.counters().taken(buf.len());
                let session = self.me.id;
                self.spawn(
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

    /// Runs an action; `collected` is what the CDB asked for and how much of it is staged.
    pub(super) fn run_action(
        &mut self,
        command: Command,
        unit: Arc<LogicalUnit>,
        nexus: Arc<Nexus>,
        action: Action,
        data: Vec<u8>,
        collected: Option<(u64, usize)>,
    ) {
        let (asked, staged) = collected.unwrap_or((0, 0));
        if action.quick() {
            self.staged -= staged;
            let reply = action.run(&unit, &nexus, &self.units, &data, &Cancel::default());
            return self.answer(&command, reply, collected.map(|(asked, _)| asked));
        }
        let ((ticket, cancel), units) = (self.ticket(&command), self.units.clone());
        let queue = match action {
            Action::Flush => Queue::Flush,
            Action::Verify { .. } | Action::WriteSame { .. } | Action::ExtendedCopy => Queue::Long,
            _ => Queue::Data,
        };
        self.spawn(
            queue,
            Some(cancel.clone()),
            move || action.run(&unit, &nexus, &units, &data, &cancel),
            move |reply| Done::Replied { ticket, command, asked, staged, reply },
        );
    }
}

/// Writes the part of a block that a stream ends with (the rest of that block is kept) and flushes. `offset` is the block's.
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

/// A number as a LUN field.
fn lun_field(lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    [if high == 0 { 0 } else { 0x40 | high }, low, 0, 0, 0, 0, 0, 0]
}

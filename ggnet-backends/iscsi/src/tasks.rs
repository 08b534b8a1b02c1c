//! SCSI tasks of a session: starts commands when they arrive, and continues when their jobs end.
//!
//! ```text
//!                ┌─▶ reads ───┐
//!  CDB ─ decode ─┼─▶ writes ──┼─▶ flow: output, jobs, memory ─▶ status
//!                └─▶ actions ─┘
//! ```
//!
//! Invariants: every command is answered exactly once or aborted; a job owns everything that it needs, so that the job of an aborted
//! command can end unobserved; staged bytes and bytes held by jobs are counted.

use std::sync::Arc;

use super::actions;
use super::attached::Attached;
use super::bytes::{index, sat16};
use super::flow::Flow;
use super::pdu::{Bhs, reject};
use super::reads::Reads;
use super::scsi::sense::Sense;
use super::scsi::{Plan, Reply, decode, lun_number, no_unit};
use super::task::{Command, ReadTask, Sent};
use super::writes::{Sink, WriteTask, Writes};
use super::{SessionEvent, SessionInfo, SessionObserver};

/// All tasks of a session, and what they share.
pub(super) struct Tasks {
    pub(super) attached: Attached,
    pub(super) flow: Flow,
    pub(super) reads: Reads,
    pub(super) writes: Writes,
    observer: Arc<dyn SessionObserver>,
}

impl Tasks {
    pub(super) fn new(attached: Attached, flow: Flow, observer: Arc<dyn SessionObserver>) -> Self {
        Self { attached, flow, reads: Reads::default(), writes: Writes::default(), observer }
    }

    /// Whether nothing is in flight.
    pub(super) fn idle(&self) -> bool {
        self.reads.is_empty() && self.flow.jobs.is_empty()
    }

    /// Handles a SCSI command.
    pub(super) fn command(&mut self, bhs: &Bhs, data: &[u8]) {
        let out = &mut self.flow.out;
        if bhs.immediate() && !out.accept_immediate() {
            return out.reject(bhs, reject::TOO_MANY_IMMEDIATE);
        }
        let (flags, edtl) = (bhs.flags(), bhs.word(20));
        let number = lun_number(&bhs.lun());
        let mut command = Command {
            itt: bhs.itt(),
            lun: number.map_or(u16::MAX, sat16),
            immediate: bhs.immediate(),
            expect_in: if flags & 0x40 != 0 { edtl } else { 0 },
            expect_out: if flags & 0x20 != 0 { edtl } else { 0 },
            started: out.now,
        };
        if flags & 0x60 == 0x60 {
            // Bidirectional: we have no such command; the length in the header is the outgoing one.
            command.expect_in = 0;
        }
        if !data.is_empty()
            && (!out.params.immediate_data || data.len() > index(u64::from(command.expect_out)))
        {
            // Not agreed on, or more than announced: nothing of it is used (the task fails for lack of data).
            out.reject(bhs, reject::PROTOCOL_ERROR);
            return out.command_ended(command.immediate);
        }
        let cdb = bhs.cdb();
        let units = &self.attached.units;
        let Some((unit, nexus)) = number.and_then(|n| self.attached.find(n)) else {
            let reply = no_unit(units, &cdb);
            out.counters().other();
            return out.answer(&command, reply, None);
        };
        match decode(unit, nexus, units, &cdb) {
            Plan::Read { offset, len } => {
                if out.counters().read() {
                    self.observe(SessionEvent::FirstRead);
                }
                let (unit, sent) = (Arc::clone(unit), Sent::default());
                let left = index(len.min(u64::from(command.expect_in)));
                let task = ReadTask { command, unit, offset, left, asked: len, sent, fetching: 0 };
                self.reads.begin(&mut self.flow, task);
            }
            Plan::Write { offset, len, flush } => {
                if out.counters().write() {
                    self.observe(SessionEvent::FirstWrite);
                }
                let (unit, nexus, sink) =
                    (Arc::clone(unit), Arc::clone(nexus), Sink::Stream { offset, flush });
                let task = WriteTask::new(command, unit, nexus, sink, len, !bhs.is_final());
                self.writes.begin(&mut self.flow, units, task, data);
            }
            Plan::Out { len, action } => {
                out.counters().other();
                if action.exact() && len as u64 != u64::from(command.expect_out) {
                    return out.answer(&command, Reply::check(Sense::cdb(0)), Some(0));
                }
                let want = len.min(index(u64::from(command.expect_out)));
                if !self.flow.may_collect(want) {
                    return self.flow.out.answer(&command, Reply::task_set_full(), None);
                }
                self.flow.staged += want;
                let (unit, nexus, sink) = (Arc::clone(unit), Arc::clone(nexus), Sink::Collect(action));
                let task = WriteTask::new(command, unit, nexus, sink, len as u64, !bhs.is_final());
                self.writes.begin(&mut self.flow, units, task, data);
            }
            Plan::Run(action) => {
                out.counters().other();
                let on = (Arc::clone(unit), Arc::clone(nexus));
                actions::run(&mut self.flow, units, on, command, action, None);
            }
            Plan::Reply(reply) => {
                out.counters().other();
                out.answer(&command, reply, None);
            }
        }
    }

    fn observe(&self, event: fn(SessionInfo) -> SessionEvent) {
        self.observer.observe(event(self.flow.out.me.info()));
    }

    /// Handles a Data-Out PDU.
    pub(super) fn data_out(&mut self, bhs: &Bhs, data: &[u8]) {
        self.writes.data_out(&mut self.flow, &self.attached.units, bhs, data);
    }

    /// Continues tasks that wait for space in the output.
    pub(super) fn pump(&mut self) {
        self.reads.pump(&mut self.flow);
    }

    /// Handles the end of an action, or of the last step of a write.
    pub(super) fn replied(
        &mut self,
        ticket: u64,
        command: &Command,
        (asked, staged): (u64, usize),
        reply: Reply,
    ) {
        self.flow.staged -= staged;
        if self.flow.jobs.still_wanted(ticket) {
            let moved = (command.expect_out > 0 || asked > 0).then_some(asked);
            self.flow.out.answer(command, reply, moved);
        }
    }

    /// Aborts the commands for which `f` (of task tag and unit) is true: they get no answer, and their jobs end unobserved. Returns their
    /// number, and the tickets of jobs that still run.
    pub(super) fn abort(&mut self, f: impl Fn(u32, u16) -> bool) -> (usize, Vec<u64>) {
        let mut hit = Vec::new();
        self.reads.abort(&f, &mut hit);
        self.writes.abort(&mut self.flow, &f, &mut hit);
        let tickets = self.flow.jobs.abort(&f, &mut hit);
        for (_, immediate) in &hit {
            self.flow.out.command_ended(*immediate);
        }
        (hit.len(), tickets)
    }
}

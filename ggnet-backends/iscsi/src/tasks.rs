//! SCSI tasks of a session: commands as they come, jobs as they end. Data moves in `reads` and `writes`, answers in
//! `answers`.
//!
//! ```text
//!  read:   decode ─▶ chunk by chunk into the output ─▶ last Data-In carries the status
//!                        └─ device would wait ─▶ job ─▶ from its buffer into the output ─▶ (go on)
//!  write:  decode ─▶ immediate, unsolicited, R2T by R2T ─▶ each piece to the device as it comes ─▶ (flush) ─▶ status
//!                        └─ device would wait ─▶ job per piece
//!  action: decode ─▶ collect the data ─▶ inline or job ─▶ status
//! ```
//!
//! Invariants: every command is answered exactly once or aborted; a job carries all it needs, so that an aborted command's
//! job can end unobserved; what is staged and what jobs hold is counted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::answers::Sent;
use super::bytes::{index, sat16};
use super::pdu::{Bhs, reject};
use super::reads::ReadTask;
use super::scsi::sense::Sense;
use super::scsi::{Plan, Reply, decode, is_busy, lun_number, no_unit};
use super::session::{Job, Session};
use super::workers::{Cancel, Queue};
use super::writes::Sink;
use super::{SessionEvent, SessionId};

/// Most bytes that one job reads.
pub(super) const JOB_READ: usize = 1 << 20;

/// Collected data that a session may always have.
const STAGED_ALWAYS: usize = 64 << 10;

/// What every task remembers of its command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) itt: u32,
    pub(super) lun: u16,
    pub(super) immediate: bool,
    /// Expected data transfer length, by direction.
    pub(super) expect_in: u32,
    pub(super) expect_out: u32,
    pub(super) started: Instant,
}

/// A command that has a job.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) ticket: u64,
    pub(super) itt: u32,
    pub(super) lun: u16,
    pub(super) immediate: bool,
    pub(super) aborted: bool,
    /// For its job, where that can end early.
    pub(super) cancel: Cancel,
}

/// The end of a job.
pub(super) enum Done {
    /// A read of the next bytes of a task.
    Read { ticket: u64, task: Box<ReadTask>, result: io::Result<Vec<u8>> },
    /// A piece of a write, of so many bytes at this place of the disk.
    Piece { ticket: u64, tag: u32, offset: u64, bytes: usize, result: io::Result<()> },
    /// An action, or the last step of a write.
    Replied { ticket: u64, command: Command, asked: u64, staged: usize, reply: Reply },
    /// Another session has ended its tasks for us.
    Acknowledged { tmf: u64 },
    /// The policy's answer to a discovery.
    Discovered { itt: u32, answer: Vec<u8>, targets: Vec<String> },
}

impl Session {
    /// Takes a SCSI command.
    pub(super) fn scsi_command(&mut self, bhs: &Bhs, data: &[u8]) {
        let (flags, edtl) = (bhs.flags(), bhs.word(20));
        let number = lun_number(&bhs.lun());
        let mut command = Command {
            itt: bhs.itt(),
            lun: number.map_or(u16::MAX, sat16),
            immediate: bhs.immediate(),
            expect_in: if flags & 0x40 != 0 { edtl } else { 0 },
            expect_out: if flags & 0x20 != 0 { edtl } else { 0 },
            started: self.now,
        };
        if flags & 0x60 == 0x60 {
            // Bidirectional: we have no such command; the length in the header is the outgoing one.
            command.expect_in = 0;
        }
        if !data.is_empty()
            && (!self.params.immediate_data || data.len() > index(u64::from(command.expect_out)))
        {
            // Not agreed on, or more than announced: nothing of it is used (the task fails for lack of data).
            self.reject(bhs, reject::PROTOCOL_ERROR);
            return self.command_ended(command.immediate);
        }
        let cdb = bhs.cdb();
        let found = number.and_then(|n| Some((self.units.get(n)?, self.nexuses.get(n)?.as_ref()?)));
        let Some((unit, nexus)) = found else {
            let reply = no_unit(&self.units, &cdb);
            self.counters().other();
            return self.answer(&command, reply, None);
        };
        match decode(unit, nexus, &self.units, &cdb) {
            Plan::Read { offset, len } => {
                let unit = Arc::clone(unit);
                if self.counters().read() {
                    self.observe(SessionEvent::FirstRead);
                }
                let left = index(len.min(u64::from(command.expect_in)));
                let task =
                    ReadTask { command, unit, offset, left, asked: len, sent: Sent::default(), fetching: 0 };
                if self.reads.is_empty() {
                    self.step_read(task);
                } else {
                    self.reads.push_back(task);
                }
            }
            Plan::Write { offset, len, flush } => {
                let (unit, nexus) = (Arc::clone(unit), Arc::clone(nexus));
                if self.counters().write() {
                    self.observe(SessionEvent::FirstWrite);
                }
                self.start_write(bhs, data, command, unit, nexus, Sink::Stream { offset, flush }, len);
            }
            Plan::Out { len, action } => {
                let (unit, nexus) = (Arc::clone(unit), Arc::clone(nexus));
                self.counters().other();
                if action.exact() && len as u64 != u64::from(command.expect_out) {
                    return self.answer(&command, Reply::check(Sense::cdb(0)), Some(0));
                }
                let want = len.min(index(u64::from(command.expect_out)));
                if !self.may_collect(want) {
                    return self.answer(&command, Reply::task_set_full(), None);
                }
                self.staged += want;
                self.start_write(bhs, data, command, unit, nexus, Sink::Collect(action), len as u64);
            }
            Plan::Run(action) => {
                let (unit, nexus) = (Arc::clone(unit), Arc::clone(nexus));
                self.counters().other();
                self.run_action(command, unit, nexus, action, Vec::new(), None);
            }
            Plan::Reply(reply) => {
                self.counters().other();
                self.answer(&command, reply, None);
            }
        }
    }

    /// Whether so many bytes of command data may be collected. A few always may: what a file system trims is told in a short list.
    fn may_collect(&mut self, want: usize) -> bool {
        let sum = self.staged + want;
        sum <= STAGED_ALWAYS || (sum <= self.around.limits.max_staged && self.covers(want))
    }

    pub(super) fn ticket(&mut self, command: &Command) -> (u64, Cancel) {
        self.next_ticket += 1;
        let Command { itt, lun, immediate, .. } = *command;
        let cancel = Cancel::default();
        let running =
            Running { ticket: self.next_ticket, itt, lun, immediate, aborted: false, cancel: cancel.clone() };
        self.running.push(running);
        (self.next_ticket, cancel)
    }

    /// Runs `work` on the blocking pool when its turn has come; not at all when it is cancelled before.
    pub(super) fn spawn<T: Send + LostJob + 'static>(
        &self,
        queue: Queue,
        cancel: Option<Cancel>,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(T) -> Done + Send + 'static,
    ) {
        let share = self.around.workers.clone();
        let job: Job = Box::pin(async move {
            let _turn = share.turn(queue).await;
            if cancel.is_some_and(|c| c.is_cancelled()) {
                return done(T::cancelled());
            }
            let result = tokio::task::spawn_blocking(work).await;
            done(result.unwrap_or_else(|e| T::lost(&e)))
        });
        self.jobs.push(job);
    }

    /// Collects the end of a job.
    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Read { ticket, task, result } => {
                self.job_bytes = self.job_bytes.saturating_sub(task.fetching);
                // A read that was cancelled is no failure of the device.
                let cancelled = self.running.iter().any(|r| r.ticket == ticket && r.cancel.is_cancelled());
                if self.still_wanted(ticket) && !cancelled {
                    self.read_done(*task, result);
                }
            }
            Done::Piece { ticket, tag, offset, bytes, result } => {
                self.job_bytes = self.job_bytes.saturating_sub(bytes);
                if self.still_wanted(ticket) {
                    let failed = match result {
                        Ok(()) => {
                            self.counters().taken(bytes);
                            None
                        }
                        Err(e) => {
                            let lun = self.writes.get(tag).map_or(u16::MAX, |t| t.command.lun);
                            Some(self.write_error(lun, offset, &e))
                        }
                    };
                    if let Some(task) = self.writes.get(tag) {
                        task.jobs -= 1;
                        if task.failed.is_none() {
                            task.failed = failed;
                        }
                        self.advance(tag);
                    }
                }
            }
            Done::Replied { ticket, command, asked, staged, reply } => {
                self.staged -= staged;
                if self.still_wanted(ticket) {
                    let moved = (command.expect_out > 0 || asked > 0).then_some(asked);
                    self.answer(&command, reply, moved);
                }
            }
            Done::Acknowledged { tmf } => self.tmf_acknowledged(tmf),
            Done::Discovered { itt, answer, targets } => self.discovered(itt, answer, &targets),
        }
        self.settle_tmf();
    }

    /// Forgets a job; false when its command was aborted meanwhile.
    pub(super) fn still_wanted(&mut self, ticket: u64) -> bool {
        let Some(at) = self.running.iter().position(|r| r.ticket == ticket) else { return false };
        !self.running.swap_remove(at).aborted
    }

    /// Aborts the commands for which `f` holds: no answer will come, their jobs end unobserved. Returns how many there
    /// were and the tickets of jobs that still run.
    pub(super) fn abort(&mut self, f: impl Fn(u32, u16) -> bool) -> (usize, Vec<u64>) {
        let mut hit = Vec::new();
        let reads = std::mem::take(&mut self.reads);
        let (gone, left): (VecDeque<_>, VecDeque<_>) =
            reads.into_iter().partition(|t| f(t.command.itt, t.command.lun));
        self.reads = left;
        hit.extend(gone.iter().map(|t| (t.command.itt, t.command.immediate)));
        while let Some(tag) = self.writes.tag_where(|t| f(t.command.itt, t.command.lun)) {
            let Some(task) = self.writes.remove(tag) else { break };
            if matches!(task.sink, Sink::Collect(_)) {
                self.staged -= task.want;
            }
            hit.push((task.command.itt, task.command.immediate));
        }
        let mut tickets = Vec::new();
        for running in self.running.iter_mut().filter(|r| !r.aborted && f(r.itt, r.lun)) {
            running.aborted = true;
            running.cancel.cancel();
            tickets.push(running.ticket);
            if !hit.iter().any(|(itt, _)| *itt == running.itt) {
                hit.push((running.itt, running.immediate));
            }
        }
        for (_, immediate) in &hit {
            self.command_ended(*immediate);
        }
        (hit.len(), tickets)
    }
}

/// Logs that the device failed. A busy device is no failure, and is asked again too often for a line each.
pub(super) fn log_failed(session: SessionId, lun: u16, offset: u64, what: &str, error: &io::Error) {
    let session = session.0;
    if is_busy(error) {
        tracing::debug!(session, lun, offset, what, %error, "the device is busy");
    } else {
        tracing::warn!(session, lun, offset, %error, "{what} failed");
    }
}

/// What a job that was lost (it panicked, or the runtime is going down) counts as: an error of the device.
pub(super) trait LostJob {
    fn lost(error: &tokio::task::JoinError) -> Self;

    /// The job was cancelled before its turn: nobody looks at this.
    fn cancelled() -> Self;
}

impl<T> LostJob for io::Result<T> {
    fn lost(error: &tokio::task::JoinError) -> Self {
        Err(io::Error::other(error.to_string()))
    }

    fn cancelled() -> Self {
        Err(io::ErrorKind::Interrupted.into())
    }
}

impl LostJob for Reply {
    fn lost(error: &tokio::task::JoinError) -> Self {
        tracing::error!(%error, "a device call was lost");
        Reply::check(Sense::WRITE_ERROR)
    }

    fn cancelled() -> Self {
        Reply::check(Sense::COMMAND_ABORTED)
    }
}

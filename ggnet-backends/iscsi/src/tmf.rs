//! Task management (RFC 7143 section 11.5).
//!
//! ```text
//!  request ──▶ abort here, ask the other sessions ──▶ wait for jobs and acknowledgements ──▶ effect ──▶ response
//! ```
//!
//! Invariant: the response goes out only when no aborted task can touch the medium any more, in this session and in
//! every other one that the function reaches.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::CloseReason;
use super::pdu::{Bhs, FINAL, opcode, reject};
use super::scsi::lu::Attention;
use super::scsi::lun_number;
use super::session::{Session, Stop};
use super::target::Control;
use super::tasks::Done;

/// Functions that may wait at once; one more is rejected.
const MAX_PENDING: usize = 16;

mod function {
    pub(super) const ABORT_TASK: u8 = 1;
    pub(super) const ABORT_TASK_SET: u8 = 2;
    pub(super) const CLEAR_ACA: u8 = 3;
    pub(super) const CLEAR_TASK_SET: u8 = 4;
    pub(super) const LUN_RESET: u8 = 5;
    pub(super) const WARM_RESET: u8 = 6;
    pub(super) const COLD_RESET: u8 = 7;
    pub(super) const TASK_REASSIGN: u8 = 8;
}

mod response {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_TASK: u8 = 1;
    pub(super) const NO_LUN: u8 = 2;
    pub(super) const NO_REASSIGN: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
    pub(super) const REJECTED: u8 = 255;
}

/// A function whose response waits.
pub(super) struct PendingTmf {
    id: u64,
    response: Option<Bhs>,
    /// Jobs of aborted tasks of this session.
    tickets: Vec<u64>,
    /// Other sessions that have not yet answered.
    sessions: usize,
    ack: Option<oneshot::Sender<()>>,
}

impl Session {
    pub(super) fn task_management(&mut self, bhs: &Bhs) -> Result<(), Stop> {
        self.request_ended(bhs);
        if self.tmf.len() >= MAX_PENDING {
            self.reject(bhs, reject::TOO_MANY_IMMEDIATE);
            return Ok(());
        }
        let (what, itt) = (bhs.flags() & 0x7f, bhs.itt());
        let lun = lun_number(&bhs.lun())
            .filter(|n| self.units.get(*n).is_some())
            .and_then(|n| u16::try_from(n).ok());
        let answer = |code: u8| {
            let mut r = Bhs::new(opcode::TASK_MANAGEMENT_RESPONSE, FINAL);
            r.0[2] = code;
            r.set_word(16, itt);
            r
        };
        let needs_lun = matches!(what, 1..=5);
        let code = match what {
            _ if needs_lun && lun.is_none() => response::NO_LUN,
            function::ABORT_TASK => {
                let referenced = bhs.ttt();
                let (found, tickets) = self.abort(|i, l| i == referenced && Some(l) == lun);
                if found > 0 {
                    self.wait_for(answer(response::COMPLETE), tickets, 0);
                    return Ok(());
                }
                response::NO_TASK
            }
            function::ABORT_TASK_SET => {
                let (_, tickets) = self.abort(|_, l| Some(l) == lun);
                self.wait_for(answer(response::COMPLETE), tickets, 0);
                return Ok(());
            }
            function::CLEAR_TASK_SET | function::LUN_RESET | function::WARM_RESET => {
                self.reset(what, lun, answer(response::COMPLETE));
                return Ok(());
            }
            function::COLD_RESET => {
                // Everybody logs in anew and is told of the reset then.
                self.units.iter().for_each(|u| u.reset(Attention::PowerOn));
                self.send_tmf(answer(response::COMPLETE));
                self.close_others();
                return Err(Stop::Close(CloseReason::TargetRemoved));
            }
            function::TASK_REASSIGN => response::NO_REASSIGN,
            function::CLEAR_ACA => response::NOT_SUPPORTED,
            _ => response::REJECTED,
        };
        self.send_tmf(answer(code));
        Ok(())
    }

    fn send_tmf(&mut self, mut r: Bhs) {
        self.number(&mut r, true);
        self.out.push(r, &[]);
    }

    /// Ends all tasks of a unit (or of all), here and in every other session of the target.
    fn reset(&mut self, what: u8, lun: Option<u16>, answer: Bhs) {
        let lun = lun.filter(|_| what != function::WARM_RESET);
        let (_, tickets) = self.abort(|_, l| lun.is_none_or(|lun| l == lun));
        for unit in self.units.iter().filter(|u| lun.is_none_or(|lun| u.number == lun)) {
            if what == function::CLEAR_TASK_SET {
                let me = self.nexuses.get(usize::from(unit.number)).cloned().flatten();
                unit.raise_where(Attention::CommandsCleared, |n| {
                    me.as_ref().is_none_or(|me| !std::ptr::eq(n, Arc::as_ptr(me)))
                });
            } else {
                unit.reset(Attention::Reset);
            }
        }
        let others = self.others();
        let id = self.wait_for(answer, tickets, others.len());
        for other in others {
            let (ack, acked) = oneshot::channel();
            // A session that is gone drops the sender, and that is an answer too.
            let _ = other.control.send(Control::Abort(lun, ack));
            self.jobs.push(Box::pin(async move {
                let _ = acked.await;
                Done::Acknowledged { tmf: id }
            }));
        }
        self.settle_tmf();
    }

    fn others(&self) -> Vec<Arc<super::target::SessionShared>> {
        let sessions = self.around.target.as_ref().map(|t| t.sessions()).unwrap_or_default();
        sessions.into_iter().filter(|s| !Arc::ptr_eq(s, &self.me)).collect()
    }

    fn close_others(&self) {
        self.others().iter().for_each(|s| s.ask_close(CloseReason::TargetRemoved));
    }

    /// Another session wants our tasks ended.
    pub(super) fn abort_from_outside(&mut self, lun: Option<u16>, ack: oneshot::Sender<()>) {
        let (_, tickets) = self.abort(|_, l| lun.is_none_or(|lun| l == lun));
        self.next_ticket += 1;
        self.tmf.push(PendingTmf {
            id: self.next_ticket,
            response: None,
            tickets,
            sessions: 0,
            ack: Some(ack),
        });
        self.settle_tmf();
    }

    fn wait_for(&mut self, response: Bhs, tickets: Vec<u64>, sessions: usize) -> u64 {
        self.next_ticket += 1;
        let id = self.next_ticket;
        self.tmf.push(PendingTmf { id, response: Some(response), tickets, sessions, ack: None });
        self.settle_tmf();
        id
    }

    pub(super) fn tmf_acknowledged(&mut self, id: u64) {
        if let Some(pending) = self.tmf.iter_mut().find(|p| p.id == id) {
            pending.sessions = pending.sessions.saturating_sub(1);
        }
    }

    /// Answers the functions that nothing keeps waiting any more.
    pub(super) fn settle_tmf(&mut self) {
        if self.tmf.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.tmf);
        for pending in &mut waiting {
            pending.tickets.retain(|t| self.running.iter().any(|r| r.ticket == *t));
        }
        let (settled, waiting): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|p| p.tickets.is_empty() && p.sessions == 0);
        self.tmf = waiting;
        for pending in settled {
            if let Some(response) = pending.response {
                self.send_tmf(response);
            }
            if let Some(ack) = pending.ack {
                let _ = ack.send(());
            }
        }
    }
}

//! Task management (RFC 7143 section 11.5).
//!
//! ```text
//!  request ──▶ abort here, ask the other sessions ──▶ wait for jobs and acknowledgements ──▶ effect ──▶ response
//! ```
//!
//! Invariant: the response is sent only when no aborted task can access the medium any more, in this session and in every other session
//! that the function reaches.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::CloseReason;
use super::flow::Flow;
use super::pdu::{Bhs, FINAL, opcode, reject};
use super::scsi::lun_number;
use super::scsi::nexus::Attention;
use super::target::{Control, SessionShared, Target};
use super::task::Done;
use super::tasks::Tasks;

/// Maximum number of functions that wait at the same time; one more is rejected.
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

/// A function whose response is not sent yet.
struct Pending {
    id: u64,
    response: Option<Bhs>,
    /// Jobs of aborted tasks of this session.
    tickets: Vec<u64>,
    /// The number of other sessions that have not answered yet.
    sessions: usize,
    ack: Option<oneshot::Sender<()>>,
}

/// The functions of a session whose responses are not sent yet.
#[derive(Default)]
pub(super) struct Functions {
    pending: Vec<Pending>,
    last_id: u64,
}

impl Functions {
    /// Handles a task management request.
    ///
    /// # Errors
    /// The session must end.
    pub(super) fn request(
        &mut self,
        tasks: &mut Tasks,
        target: &Target,
        bhs: &Bhs,
    ) -> Result<(), CloseReason> {
        tasks.flow.out.request_ended(bhs);
        if self.pending.len() >= MAX_PENDING {
            tasks.flow.out.reject(bhs, reject::TOO_MANY_IMMEDIATE);
            return Ok(());
        }
        let (what, itt) = (bhs.flags() & 0x7f, bhs.itt());
        let lun = lun_number(&bhs.lun())
            .filter(|n| tasks.attached.units.get(*n).is_some())
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
                let (found, tickets) = tasks.abort(|i, l| i == referenced && Some(l) == lun);
                if found > 0 {
                    self.wait_for(&mut tasks.flow, answer(response::COMPLETE), tickets, 0);
                    return Ok(());
                }
                response::NO_TASK
            }
            function::ABORT_TASK_SET => {
                let (_, tickets) = tasks.abort(|_, l| Some(l) == lun);
                self.wait_for(&mut tasks.flow, answer(response::COMPLETE), tickets, 0);
                return Ok(());
            }
            function::CLEAR_TASK_SET | function::LUN_RESET | function::WARM_RESET => {
                self.reset(tasks, target, what, lun, answer(response::COMPLETE));
                return Ok(());
            }
            function::COLD_RESET => {
                // Everybody logs in anew and is told of the reset then.
                tasks.attached.units.iter().for_each(|u| u.reset(Attention::PowerOn));
                let out = &mut tasks.flow.out;
                out.respond(answer(response::COMPLETE), &[]);
                others(target, &out.me).iter().for_each(|s| s.ask_close(CloseReason::TargetRemoved));
                return Err(CloseReason::TargetRemoved);
            }
            function::TASK_REASSIGN => response::NO_REASSIGN,
            function::CLEAR_ACA => response::NOT_SUPPORTED,
            _ => response::REJECTED,
        };
        tasks.flow.out.respond(answer(code), &[]);
        Ok(())
    }

    /// Aborts all tasks of a unit (or of all units), here and in every other session of the target.
    fn reset(&mut self, tasks: &mut Tasks, target: &Target, what: u8, lun: Option<u16>, answer: Bhs) {
        let lun = lun.filter(|_| what != function::WARM_RESET);
        let (_, tickets) = tasks.abort(|_, l| lun.is_none_or(|lun| l == lun));
        let attached = &tasks.attached;
        for unit in attached.units.iter().filter(|u| lun.is_none_or(|lun| u.number == lun)) {
            if what == function::CLEAR_TASK_SET {
                let me = attached.nexus(usize::from(unit.number));
                unit.raise_where(Attention::CommandsCleared, |n| {
                    me.is_none_or(|me| !std::ptr::eq(n, Arc::as_ptr(me)))
                });
            } else {
                unit.reset(Attention::Reset);
            }
        }
        let others = others(target, &tasks.flow.out.me);
        let id = self.wait_for(&mut tasks.flow, answer, tickets, others.len());
        for other in others {
            let (ack, acked) = oneshot::channel();
            // A session that is gone drops the sender, and that is an answer too.
            let _ = other.control.send(Control::Abort(lun, ack));
            tasks.flow.jobs.push(async move {
                let _ = acked.await;
                Done::Acknowledged { function: id }
            });
        }
        self.settle(&mut tasks.flow);
    }

    /// Aborts tasks of this session because another session requested it.
    pub(super) fn abort_from_outside(
        &mut self,
        tasks: &mut Tasks,
        lun: Option<u16>,
        ack: oneshot::Sender<()>,
    ) {
        let (_, tickets) = tasks.abort(|_, l| lun.is_none_or(|lun| l == lun));
        self.add(Pending { id: 0, response: None, tickets, sessions: 0, ack: Some(ack) });
        self.settle(&mut tasks.flow);
    }

    fn wait_for(&mut self, flow: &mut Flow, response: Bhs, tickets: Vec<u64>, sessions: usize) -> u64 {
        let id = self.add(Pending { id: 0, response: Some(response), tickets, sessions, ack: None });
        self.settle(flow);
        id
    }

    fn add(&mut self, pending: Pending) -> u64 {
        self.last_id += 1;
        self.pending.push(Pending { id: self.last_id, ..pending });
        self.last_id
    }

    /// Another session has aborted its tasks for this session.
    pub(super) fn acknowledged(&mut self, id: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|p| p.id == id) {
            pending.sessions = pending.sessions.saturating_sub(1);
        }
    }

    /// Answers the functions that wait for nothing any more.
    pub(super) fn settle(&mut self, flow: &mut Flow) {
        for pending in &mut self.pending {
            pending.tickets.retain(|t| flow.jobs.runs(*t));
        }
        for settled in self.pending.extract_if(.., |p| p.tickets.is_empty() && p.sessions == 0) {
            if let Some(response) = settled.response {
                flow.out.respond(response, &[]);
            }
            if let Some(ack) = settled.ack {
                let _ = ack.send(());
            }
        }
    }
}

/// The other sessions of the target.
fn others(target: &Target, me: &Arc<SessionShared>) -> Vec<Arc<SessionShared>> {
    let mut sessions = target.sessions();
    sessions.retain(|s| !Arc::ptr_eq(s, me));
    sessions
}

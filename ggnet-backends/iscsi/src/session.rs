//! The full feature phase of one session on its one connection.
//!
//! ```text
//!            bytes ──▶ frame ──▶ CmdSN check ──▶ opcode ──▶ tasks (SCSI), tmf, text, NOP, logout
//!                                                            │
//!   device inline, or a job on the blocking pool ◀───────────┘──▶ output buffer ──▶ one write for many PDUs
//!
//!  Running ── logout, EOF, error, asked to close ──▶ its end (`closing`)
//! ```
//!
//! Invariants:
//! * StatSN grows by one with every PDU that carries status; ExpCmdSN by one with every non-immediate command accepted;
//!   MaxCmdSN never shrinks, because open commands and the free window add up to the same number;
//! * input is parsed only while there is room for the answers: a peer that does not read stops being heard;
//! * the task ends only after every job it started has ended, whatever became of the connection.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::conn::{InBuf, OutBuf};
use super::login::Established;
use super::memory::{Lease, Pool};
use super::negotiate::Params;
use super::pdu::{BHS_LEN, Bhs, FINAL, FrameError, Framing, NO_TAG, frame, opcode, reject};
use super::reads::ReadTask;
use super::scsi::Units;
use super::scsi::lu::{Nexus, Port};
use super::stats::Counters;
use super::target::{Control, SessionShared};
use super::tasks::{Done, Running};
use super::text_requests::Texts;
use super::tmf::PendingTmf;
use super::workers::Share;
use super::writes::WriteTable;
use super::{CloseReason, Limits, LoginPolicy, LoginRequest, NOP_MISSES, SessionEvent, SessionObserver};

/// Output beyond which no more input is handled and no more data is fetched.
pub(super) const OUT_HIGH: usize = 512 << 10;
/// Bytes copied for jobs beyond which no more input is handled.
const JOB_BYTES_HIGH: usize = 8 << 20;
/// How often timers are looked at.
const TICK: Duration = Duration::from_secs(5);
/// A device call, a wait for another session, or a question to the policy.
pub(super) type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What the server gives every session.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) limits: Limits,
    pub(super) nop_interval: Option<Duration>,
    pub(super) workers: Share,
    pub(super) memory: Arc<Pool>,
    pub(super) observer: Arc<dyn SessionObserver>,
    pub(super) policy: Arc<dyn LoginPolicy>,
    /// What discovery tells as address of every target.
    pub(super) address: String,
    /// The login request, for discovery.
    pub(super) request: LoginRequest,
    /// The session's target, for task management that reaches other sessions.
    pub(super) target: Option<Arc<super::target::Target>>,
}

/// The end of a session, as far as parsing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Close for this reason.
    Close(CloseReason),
}

/// One session's state.
pub(super) struct Session {
    pub(super) me: Arc<SessionShared>,
    pub(super) around: Surroundings,
    pub(super) units: Units,
    pub(super) nexuses: Vec<Option<Arc<Nexus>>>,
    pub(super) params: Params,
    pub(super) cid: u16,
    pub(super) out: OutBuf,
    pub(super) exp_cmd_sn: u32,
    pub(super) stat_sn: u32,
    /// Commands in the window, and immediate ones beside it.
    pub(super) open: u32,
    open_immediate: u32,
    pub(super) writes: WriteTable,
    pub(super) reads: VecDeque<ReadTask>,
    pub(super) jobs: FuturesUnordered<Job>,
    pub(super) running: Vec<Running>,
    pub(super) job_bytes: usize,
    pub(super) staged: usize,
    /// For what the output, jobs and collected data hold together.
    lease: Lease,
    pub(super) next_ticket: u64,
    pub(super) tmf: Vec<PendingTmf>,
    /// When the input now being handled arrived: one look at the clock for many commands.
    pub(super) now: Instant,
    pub(super) texts: Texts,
    pub(super) logout: Option<Bhs>,
    ping: Ping,
}

/// Signs of life.
#[derive(Debug)]
struct Ping {
    heard: Instant,
    asked: Option<Instant>,
    answered_once: bool,
    missed: u32,
}

impl Session {
    /// A session after its login; attaches to the target's units.
    pub(super) fn new(me: Arc<SessionShared>, around: Surroundings, established: Established) -> Self {
        let units = around.target.as_ref().map(|t| t.units.clone()).unwrap_or_default();
        let port = Port { name: Arc::clone(&me.initiator), isid: me.isid };
        let mut nexuses: Vec<Option<Arc<Nexus>>> = vec![None; units.slots()];
        for unit in units.iter() {
            let nexus = Arc::new(Nexus::new(port.clone()));
            unit.attach(&nexus);
            nexuses[usize::from(unit.number)] = Some(nexus);
        }
        let mut out = OutBuf::default();
        out.set_digests(established.params.digests);
        let now = Instant::now();
        let lease = Lease::new(&around.memory);
        Self {
            me,
            around,
            units,
            nexuses,
            out,
            cid: established.cid,
            exp_cmd_sn: established.exp_cmd_sn,
            stat_sn: established.stat_sn,
            params: established.params,
            open: 0,
            open_immediate: 0,
            writes: WriteTable::default(),
            reads: VecDeque::new(),
            jobs: FuturesUnordered::new(),
            running: Vec::new(),
            job_bytes: 0,
            staged: 0,
            lease,
            next_ticket: 0,
            tmf: Vec::new(),
            now,
            texts: Texts::default(),
            logout: None,
            ping: Ping { heard: now, asked: None, answered_once: false, missed: 0 },
        }
    }

    /// Serves the connection until the session ends, and waits until nothing of it is in flight.
    pub(super) async fn run(
        mut self,
        stream: &mut TcpStream,
        input: &mut InBuf,
        mut control: mpsc::UnboundedReceiver<Control>,
    ) -> CloseReason {
        let me = Arc::clone(&self.me);
        let mut asked = pin!(me.close.cancelled());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            let need = match self.handle_input(input) {
                Ok(need) => need,
                Err(Stop::Close(reason)) => break reason,
            };
            self.pump_reads();
            self.lease.settle(self.held());
            if self.logout.is_some() && self.idle() {
                break CloseReason::Logout;
            }
            let can_read = self.may_read();
            let wake = poll_fn(|cx| {
                if asked.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Wake::Asked);
                }
                self.poll_io(cx, stream, input, &mut control, need, can_read)
                    .map(|wake| match wake {
                        Ok(true) => Wake::Progress,
                        Ok(false) | Err(_) => Wake::Lost,
                    })
                    .map_pending(|| tick.poll_tick(cx).is_ready().then_some(Wake::Tick))
            })
            .await;
            match wake {
                Wake::Progress => {}
                Wake::Tick => {
                    if let Some(reason) = self.on_tick() {
                        break reason;
                    }
                    input.shrink();
                    self.out.shrink();
                }
                Wake::Lost => break CloseReason::ConnectionLost,
                Wake::Asked => break me.reason().unwrap_or(CloseReason::Shutdown),
            }
        };
        self.finish(stream, &mut control, reason).await;
        reason
    }

    /// Whether nothing is under way.
    fn idle(&self) -> bool {
        self.reads.is_empty() && self.jobs.is_empty()
    }

    fn may_read(&mut self) -> bool {
        self.out.len() < OUT_HIGH
            && self.job_bytes < JOB_BYTES_HIGH
            && self.logout.is_none()
            && self.has_room(0)
    }

    /// Bytes of data under way.
    fn held(&self) -> usize {
        self.out.held() + self.job_bytes + self.staged
    }

    /// Whether the session may hold so many bytes more.
    pub(super) fn covers(&mut self, more: usize) -> bool {
        self.lease.covers(self.held() + more)
    }

    /// Whether it may go on with so many bytes more: they are covered, or nothing waits.
    pub(super) fn has_room(&mut self, more: usize) -> bool {
        self.covers(more) || self.nothing_waits()
    }

    /// Whether all that was fetched or heard has gone on its way: one more step is right then, whatever others hold.
    pub(super) fn nothing_waits(&mut self) -> bool {
        if self.out.is_empty() {
            self.out.shrink();
        }
        self.out.is_empty() && self.job_bytes == 0
    }

    /// Handles every whole PDU in the buffer; returns how many bytes the next one needs.
    fn handle_input(&mut self, input: &mut InBuf) -> Result<usize, Stop> {
        let max_data = usize::try_from(self.around.limits.max_data_segment).unwrap_or(usize::MAX);
        loop {
            if !self.may_read() {
                return Ok(BHS_LEN);
            }
            match frame(input.filled(), self.params.digests, max_data) {
                Ok(Framing::Need(need)) => return Ok(need),
                Ok(Framing::Pdu(f)) => {
                    let step = self.handle(&f.bhs, &input.filled()[f.data.clone()]);
                    input.consume(f.total);
                    step?;
                }
                Err(error) => {
                    tracing::debug!(session = self.me.id.0, %error, "closing: the stream cannot be followed");
                    if let FrameError::DataDigest(bhs) = error {
                        self.reject(&bhs, reject::DATA_DIGEST);
                    }
                    return Err(Stop::Close(CloseReason::ProtocolError));
                }
            }
        }
    }

    fn handle(&mut self, bhs: &Bhs, data: &[u8]) -> Result<(), Stop> {
        let op = bhs.opcode();
        if !matches!(op, opcode::DATA_OUT | opcode::SNACK) {
            let ahead = bhs.cmd_sn().wrapping_sub(self.exp_cmd_sn);
            if !bhs.immediate() {
                if ahead >= self.window() {
                    // Outside the window: silently ignored (RFC 7143 section 4.2.2.1).
                    return Ok(());
                }
                if ahead > 0 {
                    // A gap on the only connection never closes at error recovery level 0.
                    return Err(Stop::Close(CloseReason::ProtocolError));
                }
                self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
                self.open += 1;
                self.me.counters.depth(self.open);
            }
        }
        match op {
            opcode::SCSI_COMMAND if self.around.target.is_some() => {
                if bhs.immediate() {
                    if self.open_immediate >= self.around.limits.immediate_commands {
                        self.reject(bhs, reject::TOO_MANY_IMMEDIATE);
                        return Ok(());
                    }
                    self.open_immediate += 1;
                }
                self.scsi_command(bhs, data);
            }
            opcode::DATA_OUT if self.around.target.is_some() => self.data_out(bhs, data),
            opcode::TASK_MANAGEMENT if self.around.target.is_some() => self.task_management(bhs)?,
            opcode::NOP_OUT => self.nop_out(bhs, data),
            opcode::TEXT => self.text_request(bhs, data),
            opcode::LOGOUT => self.logout_request(bhs),
            opcode::SNACK => self.reject(bhs, reject::NOT_SUPPORTED),
            _ => {
                self.reject(bhs, reject::NOT_SUPPORTED);
                self.request_ended(bhs);
            }
        }
        Ok(())
    }

    /// Free places in the command window.
    fn window(&self) -> u32 {
        self.around.limits.queue_depth.saturating_sub(self.open)
    }

    /// A SCSI command has ended: its place in the window, or beside it, is free.
    pub(super) fn command_ended(&mut self, immediate: bool) {
        if immediate {
            self.open_immediate = self.open_immediate.saturating_sub(1);
        } else {
            self.open = self.open.saturating_sub(1);
            self.me.counters.depth(self.open);
        }
    }

    /// A request that is no SCSI command is dealt with. Immediate ones are not counted: they are answered at once, or have limits of
    /// their own.
    pub(super) fn request_ended(&mut self, bhs: &Bhs) {
        if !bhs.immediate() {
            self.command_ended(false);
        }
    }

    /// Fills in StatSN (advancing it when the PDU carries status), ExpCmdSN and MaxCmdSN.
    pub(super) fn number(&mut self, bhs: &mut Bhs, carries_status: bool) {
        bhs.set_word(24, self.stat_sn);
        if carries_status {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        bhs.set_word(28, self.exp_cmd_sn);
        bhs.set_word(32, self.exp_cmd_sn.wrapping_add(self.window()).wrapping_sub(1));
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.me.counters
    }

    pub(super) fn observe(&self, event: fn(super::SessionInfo) -> SessionEvent) {
        self.around.observer.observe(event(self.me.info()));
    }

    /// Rejects a PDU, sending its header back.
    pub(super) fn reject(&mut self, bhs: &Bhs, reason: u8) {
        let mut r = Bhs::new(opcode::REJECT, FINAL);
        r.0[2] = reason;
        r.set_word(16, NO_TAG);
        self.number(&mut r, true);
        self.out.push(r, &bhs.0);
    }

    fn nop_out(&mut self, bhs: &Bhs, data: &[u8]) {
        self.ping.asked = None;
        if bhs.itt() == NO_TAG {
            // The answer to our own question (or a ping that wants none).
            self.ping.answered_once = true;
            self.ping.missed = 0;
        } else {
            self.request_ended(bhs);
            let mut r = Bhs::new(opcode::NOP_IN, FINAL);
            r.set(8, &bhs.lun());
            r.set_word(16, bhs.itt());
            r.set_word(20, NO_TAG);
            self.number(&mut r, true);
            let most = usize::try_from(self.params.peer_max_data).unwrap_or(usize::MAX);
            self.out.push(r, &data[..data.len().min(most)]);
        }
    }

    fn logout_request(&mut self, bhs: &Bhs) {
        let (reason, cid) = (bhs.flags() & 0x7f, u16::from_be_bytes([bhs.0[20], bhs.0[21]]));
        let response = match reason {
            0 => 0,
            1 if cid == self.cid => 0,
            // No such connection.
            1 => 1,
            // Connection recovery is not supported.
            _ => 2,
        };
        self.request_ended(bhs);
        let mut r = Bhs::new(opcode::LOGOUT_RESPONSE, FINAL);
        r.0[2] = response;
        r.set_word(16, bhs.itt());
        if response == 0 {
            // Answered when everything under way has ended.
            self.logout = Some(r);
        } else {
            self.number(&mut r, true);
            self.out.push(r, &[]);
        }
    }

    /// Timers. A reason ends the session.
    fn on_tick(&mut self) -> Option<CloseReason> {
        let interval = self.around.nop_interval?;
        let now = Instant::now();
        let silent_since = self.ping.asked.unwrap_or(self.ping.heard).max(self.ping.heard);
        if now.duration_since(silent_since) < interval || !self.out.is_empty() {
            return None;
        }
        if self.ping.asked.is_some() && self.ping.answered_once {
            self.ping.missed += 1;
            if self.ping.missed >= NOP_MISSES {
                return Some(CloseReason::Silent);
            }
        } else if self.ping.asked.is_some() {
            // It has never answered a ping: it is not held to this one, and not flooded either.
            return None;
        }
        self.ping.asked = Some(now);
        let mut nop = Bhs::new(opcode::NOP_IN, FINAL);
        nop.set_word(16, NO_TAG);
        nop.set_word(20, 1);
        self.number(&mut nop, false);
        self.out.push(nop, &[]);
        None
    }

    /// Moves bytes and collects what has ended. `Ok(true)`: something moved; `Ok(false)`: the peer has closed.
    fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
        input: &mut InBuf,
        control: &mut mpsc::UnboundedReceiver<Control>,
        need: usize,
        can_read: bool,
    ) -> Poll<io::Result<bool>> {
        let mut progress = false;
        while !self.out.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, self.out.pending()) {
                Poll::Ready(Ok(n)) => {
                    self.out.sent(n);
                    progress = true;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        while !self.jobs.is_empty() {
            let Poll::Ready(Some(done)) = self.jobs.poll_next_unpin(cx) else { break };
            self.on_done(done);
            progress = true;
        }
        while let Poll::Ready(Some(Control::Abort(lun, ack))) = control.poll_recv(cx) {
            self.abort_from_outside(lun, ack);
            progress = true;
        }
        if can_read {
            // Nothing is held for a silent peer: wait for bytes before taking memory for them.
            if input.filled().is_empty() && stream.poll_read_ready(cx)?.is_pending() {
                return if progress { Poll::Ready(Ok(true)) } else { Poll::Pending };
            }
            let mut buf = ReadBuf::new(input.space(need));
            match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) => {
                    let n = buf.filled().len();
                    if n == 0 {
                        return Poll::Ready(Ok(false));
                    }
                    input.filled_by(n);
                    self.now = Instant::now();
                    self.ping.heard = self.now;
                    progress = true;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {}
            }
        }
        if progress { Poll::Ready(Ok(true)) } else { Poll::Pending }
    }
}

/// Why the loop goes round.
enum Wake {
    Progress,
    Tick,
    Lost,
    Asked,
}

/// `Poll` that may be replaced when pending.
trait MapPending<T> {
    fn map_pending(self, f: impl FnOnce() -> Option<T>) -> Poll<T>;
}

impl<T> MapPending<T> for Poll<T> {
    fn map_pending(self, f: impl FnOnce() -> Option<T>) -> Poll<T> {
        match self {
            Poll::Ready(t) => Poll::Ready(t),
            Poll::Pending => f().map_or(Poll::Pending, Poll::Ready),
        }
    }
}

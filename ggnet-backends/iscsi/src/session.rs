//! The full feature phase of one session on its one connection.
//!
//! ```text
//!            bytes ──▶ frame ──▶ CmdSN check ──▶ opcode ──▶ tasks (SCSI), tmf, text, ping, logout
//!                                                            │
//!   device inline, or a job on the blocking pool ◀───────────┘──▶ output buffer ──▶ one write for many PDUs
//!
//!  Running ── logout, EOF, error, asked to close ──▶ Draining (jobs end) ──▶ Leaving (detached from every unit)
//!                                                ──▶ Flushing (answers out, the logout's last) ──▶ closed
//! ```
//!
//! Invariants:
//! * input is parsed only while there is space for the answers: nothing more is read from a peer that does not read its answers;
//! * the task ends only after every job that it started has ended, whatever happened to the connection: then nothing of the session is in
//!   flight;
//! * when the initiator reads the answer to a logout, the session is already detached from the units (RFC 7143 section 11.15.1: the session
//!   was closed).

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::attached::Attached;
use super::bytes::index;
use super::conn::InBuf;
use super::flow::Flow;
use super::jobs::Jobs;
use super::login::Established;
use super::memory::Pool;
use super::outbox::Outbox;
use super::pdu::{BHS_LEN, Bhs, FINAL, FrameError, Framing, frame, opcode, reject};
use super::ping::Ping;
use super::scsi::nexus::Port;
use super::target::{Control, SessionShared, Target};
use super::task::Done;
use super::tasks::Tasks;
use super::text_requests::{Asked, Texts};
use super::tmf::Functions;
use super::workers::Share;
use super::{CloseReason, Limits, LoginPolicy, LoginRequest, SessionObserver};

/// How often timers are checked.
const TICK: Duration = Duration::from_secs(5);
/// How long the last answers of a closing session may take to be sent.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What a session gets from the server.
pub(super) struct Surroundings {
    pub(super) limits: Limits,
    pub(super) nop_interval: Option<Duration>,
    pub(super) workers: Share,
    pub(super) memory: Arc<Pool>,
    pub(super) observer: Arc<dyn SessionObserver>,
    pub(super) policy: Arc<dyn LoginPolicy>,
    /// The address that discovery reports for every target.
    pub(super) address: String,
    /// The login request, for discovery.
    pub(super) request: LoginRequest,
    /// The session's target; none for discovery.
    pub(super) target: Option<Arc<Target>>,
}

/// One session's parts.
pub(super) struct Session {
    me: Arc<SessionShared>,
    /// For task management functions that reach other sessions.
    target: Option<Arc<Target>>,
    tasks: Tasks,
    functions: Functions,
    texts: Texts,
    ping: Ping,
    /// The answer to a logout; it waits until everything in flight has ended.
    pub(super) logout: Option<Bhs>,
    cid: u16,
    /// Longest data segment that the target accepts.
    max_data: usize,
}

impl Session {
    /// A session after its login; it attaches to the target's units.
    pub(super) fn new(me: Arc<SessionShared>, around: Surroundings, established: Established) -> Self {
        let Surroundings {
            limits,
            nop_interval,
            workers,
            memory,
            observer,
            policy,
            address,
            request,
            target,
        } = around;
        let units = target.as_ref().map(|t| t.units.clone()).unwrap_or_default();
        let port = Port { name: Arc::clone(&me.initiator), isid: me.isid };
        let attached = Attached::new(units.clone(), &port);
        let cid = established.cid;
        let out = Outbox::new(Arc::clone(&me), units, &limits, established);
        let ping = Ping::new(nop_interval, out.now);
        let flow = Flow::new(out, Jobs::new(workers), &memory, limits.max_staged);
        Self {
            me,
            target,
            tasks: Tasks::new(attached, flow, observer),
            functions: Functions::default(),
            texts: Texts::new(Asked { policy, request, address, max_text: limits.max_text }),
            ping,
            logout: None,
            cid,
            max_data: index(u64::from(limits.max_data_segment)),
        }
    }

    /// Serves the connection until the session ends, and waits until nothing of the session is in flight.
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
                Err(reason) => break reason,
            };
            self.tasks.pump();
            self.tasks.flow.settle();
            if self.logout.is_some() && self.tasks.idle() {
                break CloseReason::Logout;
            }
            let can_read = self.may_read();
            let wake = poll_fn(|cx| {
                if asked.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Wake::Asked);
                }
                match self.poll_io(cx, stream, input, &mut control, need, can_read) {
                    Poll::Ready(Ok(true)) => Poll::Ready(Wake::Progress),
                    Poll::Ready(Ok(false) | Err(_)) => Poll::Ready(Wake::Lost),
                    Poll::Pending => tick.poll_tick(cx).map(|_| Wake::Tick),
                }
            })
            .await;
            match wake {
                Wake::Progress => {}
                Wake::Tick => {
                    if let Some(reason) = self.ping.tick(&mut self.tasks.flow.out) {
                        break reason;
                    }
                    input.shrink();
                    self.tasks.flow.out.buf.shrink();
                }
                Wake::Lost => break CloseReason::ConnectionLost,
                Wake::Asked => break me.reason().unwrap_or(CloseReason::Shutdown),
            }
        };
        self.finish(stream, &mut control, reason).await;
        reason
    }

    fn may_read(&mut self) -> bool {
        self.logout.is_none() && self.tasks.flow.may_read()
    }

    /// Handles every complete PDU in the buffer; returns how many bytes the next one needs.
    ///
    /// # Errors
    /// The session must end.
    fn handle_input(&mut self, input: &mut InBuf) -> Result<usize, CloseReason> {
        loop {
            if !self.may_read() {
                return Ok(BHS_LEN);
            }
            match frame(input.filled(), self.tasks.flow.out.params.digests, self.max_data) {
                Ok(Framing::Need(need)) => return Ok(need),
                Ok(Framing::Pdu(f)) => {
                    let step = self.handle(&f.bhs, &input.filled()[f.data.clone()]);
                    input.consume(f.total);
                    step?;
                }
                Err(error) => {
                    tracing::debug!(session = self.me.id.0, %error, "closing: the stream cannot be followed");
                    if let FrameError::DataDigest(bhs) = error {
                        self.tasks.flow.out.reject(&bhs, reject::DATA_DIGEST);
                    }
                    return Err(CloseReason::ProtocolError);
                }
            }
        }
    }

    fn handle(&mut self, bhs: &Bhs, data: &[u8]) -> Result<(), CloseReason> {
        let Self { target, tasks, functions, texts, ping, .. } = self;
        if !tasks.flow.out.accept(bhs)? {
            return Ok(());
        }
        match (bhs.opcode(), target) {
            (opcode::SCSI_COMMAND, Some(_)) => tasks.command(bhs, data),
            (opcode::DATA_OUT, Some(_)) => tasks.data_out(bhs, data),
            (opcode::TASK_MANAGEMENT, Some(target)) => functions.request(tasks, target, bhs)?,
            (opcode::NOP_OUT, _) => ping.nop_out(&mut tasks.flow.out, bhs, data),
            (opcode::TEXT, _) => texts.request(&mut tasks.flow, bhs, data),
            (opcode::LOGOUT, _) => self.logout_request(bhs),
            (opcode::SNACK, _) => tasks.flow.out.reject(bhs, reject::NOT_SUPPORTED),
            _ => {
                tasks.flow.out.reject(bhs, reject::NOT_SUPPORTED);
                tasks.flow.out.request_ended(bhs);
            }
        }
        Ok(())
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
        let out = &mut self.tasks.flow.out;
        out.request_ended(bhs);
        let mut r = Bhs::new(opcode::LOGOUT_RESPONSE, FINAL);
        r.0[2] = response;
        r.set_word(16, bhs.itt());
        if response == 0 {
            self.logout = Some(r);
        } else {
            out.respond(r, &[]);
        }
    }

    /// Handles the end of a job.
    fn on_done(&mut self, done: Done) {
        let Tasks { attached, flow, reads, writes, .. } = &mut self.tasks;
        match done {
            Done::Read { ticket, task, result } => reads.fetched(flow, ticket, *task, result),
            Done::Piece { ticket, tag, offset, bytes, result } => {
                writes.piece_done(flow, &attached.units, (ticket, tag), (offset, bytes), result);
            }
            Done::Replied { ticket, command, asked, staged, reply } => {
                self.tasks.replied(ticket, &command, (asked, staged), reply);
            }
            Done::Acknowledged { function } => self.functions.acknowledged(function),
            Done::Discovered { itt, answer, targets } => {
                self.texts.discovered(&mut flow.out, itt, answer, &targets);
            }
        }
        self.functions.settle(&mut self.tasks.flow);
    }

    /// Sends and receives bytes, and handles what has ended. `Ok(true)`: there was progress; `Ok(false)`: the peer has closed the
    /// connection.
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
        let out = &mut self.tasks.flow.out;
        while !out.buf.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, out.buf.pending()) {
                Poll::Ready(Ok(n)) => {
                    out.buf.sent(n);
                    progress = true;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(done) = self.tasks.flow.jobs.poll_ended(cx) {
            self.on_done(done);
            progress = true;
        }
        while let Poll::Ready(Some(Control::Abort(lun, ack))) = control.poll_recv(cx) {
            self.functions.abort_from_outside(&mut self.tasks, lun, ack);
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
                    let now = Instant::now();
                    self.tasks.flow.out.now = now;
                    self.ping.heard(now);
                    progress = true;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {}
            }
        }
        if progress { Poll::Ready(Ok(true)) } else { Poll::Pending }
    }

    /// Ends the session: drains it, detaches it, and sends its last answers.
    pub(super) async fn finish<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        control: &mut mpsc::UnboundedReceiver<Control>,
        reason: CloseReason,
    ) {
        self.drain(control, reason).await;
        self.tasks.attached.leave();
        let out = &mut self.tasks.flow.out;
        if let Some(r) = self.logout.take() {
            out.respond(r, &[]);
        }
        if reason != CloseReason::ConnectionLost {
            // A peer that does not read its last answers does not keep the session alive.
            let _ = tokio::time::timeout(LAST_ANSWERS, out.buf.flush(stream)).await;
        }
    }

    async fn drain(&mut self, control: &mut mpsc::UnboundedReceiver<Control>, reason: CloseReason) {
        self.tasks.reads.clear();
        self.tasks.writes.keep_complete();
        if reason == CloseReason::ConnectionLost {
            // Nobody will read what they find. Writes that have all their data go on. In every other end answers still go out, and
            // a command that was cut short would be answered with an error.
            self.tasks.flow.jobs.cancel_all();
        }
        // Another session that closes too may wait for our tasks to end, as we may for its: it is heard to the last.
        let mut heard = true;
        while !self.tasks.flow.jobs.is_empty() {
            tokio::select! {
                Some(done) = self.tasks.flow.jobs.ended() => self.on_done(done),
                asked = control.recv(), if heard => match asked {
                    Some(Control::Abort(lun, ack)) => {
                        self.functions.abort_from_outside(&mut self.tasks, lun, ack);
                    }
                    None => heard = false,
                },
            }
        }
    }
}

/// Why the loop runs again.
enum Wake {
    Progress,
    Tick,
    Lost,
    Asked,
}

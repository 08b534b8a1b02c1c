//! One connection from `accept` to its end: login, session, and the events of both.
//!
//! ```text
//!  login machine ⇄ policy ─▶ attach ─▶ (older session drained) ─▶ final response ─▶ session ─▶ detach
//! ```
//!
//! Invariants: a session is listed before its initiator gets the final login response, and unlisted when its last request has ended; it is
//! detached and marked done even if its task panics.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::chap::Chap;
use super::conn::InBuf;
use super::login::{LoginMachine, Names, Status, Step};
use super::negotiate::Wishes;
use super::pdu::{BHS_LEN, Bhs, Digests, Framing, frame, opcode, padded};
use super::places::{Place, Standing};
use super::session::{Session, Surroundings};
use super::shared::Shared;
use super::target::{Control, SessionParts, SessionShared, Target};
use super::{
    CloseReason, Exclusivity, LoginAbort, LoginDecision, LoginInfo, LoginRequest, ServerConfig, SessionEvent,
};

/// Longest data segment in the login phase (RFC 7143: 8192 until declared otherwise).
const LOGIN_DATA: usize = 8192;
/// Our MaxBurstLength and FirstBurstLength.
const MAX_BURST: u32 = 1 << 20;
const FIRST_BURST: u32 = 256 << 10;

/// A listed session; it is unlisted and marked done when dropped.
struct Listed {
    shared: Arc<Shared>,
    target: Option<Arc<Target>>,
    session: Arc<SessionShared>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.sessions().remove(&self.session.id);
        // Let go of before `done`: who waits for that counts on the devices being free.
        if let Some(target) = self.target.take() {
            target.detach(&self.session);
        }
        self.session.done.cancel();
    }
}

/// A login that has succeeded.
struct LoggedIn {
    listed: Listed,
    control: UnboundedReceiver<Control>,
    machine: LoginMachine,
    request: LoginRequest,
}

/// The progress of a login, for the event of a login that did not finish.
#[derive(Debug, Default)]
struct Progress {
    /// The names, once the policy has accepted them.
    names: Option<Names>,
    /// Whether the authentication is complete.
    proved: bool,
}

impl Progress {
    /// The event of a login that reached its time limit in this state; none if it had authenticated, or asked for discovery.
    fn stalled(self, peer: SocketAddr) -> Option<SessionEvent> {
        let target = match self.names {
            _ if self.proved => return None,
            Some(Names { target: None, .. }) => return None,
            Some(Names { target, .. }) => target,
            None => None,
        };
        Some(SessionEvent::LoginStalled { peer, target })
    }
}

/// Serves one connection to its end.
pub(super) async fn connection(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    peer: SocketAddr,
    mut place: Place,
) {
    let Ok(local) = stream.local_addr() else { return };
    if let Err(error) = prepare(&stream, &shared.config) {
        tracing::debug!(%peer, %error, "socket options");
    }
    let mut input = InBuf::default();
    let go = place.go();
    let mut progress = Progress::default();
    let login = login(&shared, &mut stream, &mut input, (peer, local), &mut place, &mut progress);
    let logged_in = tokio::select! {
        () = shared.stop.cancelled() => return,
        () = go.cancelled() => return tracing::debug!(%peer, "closed before its login: others wait, too"),
        logged_in = tokio::time::timeout(shared.config.limits.login_timeout, login) => logged_in,
    };
    let LoggedIn { listed, control, machine, request } = match logged_in {
        Ok(Ok(Some(logged_in))) => logged_in,
        Ok(Ok(None)) => return,
        // Ours, not one of the socket: those bear the system's number.
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
            tracing::debug!(%peer, "login proved nothing in time");
            progress.stalled(peer).into_iter().for_each(|event| shared.observer.observe(event));
            return;
        }
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "login broke off"),
        Err(_) => {
            if let Some(left_out) = shared.refusals.line() {
                tracing::info!(%peer, left_out, "login took too long");
            }
            progress.stalled(peer).into_iter().for_each(|event| shared.observer.observe(event));
            return;
        }
    };
    let me = Arc::clone(&listed.session);
    let around = Surroundings {
        limits: shared.config.limits,
        nop_interval: shared.config.nop_interval,
        workers: shared.workers.share(),
        memory: Arc::clone(&shared.memory),
        observer: Arc::clone(&shared.observer),
        policy: Arc::clone(&shared.policy),
        address: format!(
            "{},{}",
            shared.config.advertise.clone().unwrap_or_else(|| local.to_string()),
            shared.config.portal_group
        ),
        request,
        target: listed.target.clone(),
    };
    let normal = me.target.is_some();
    if normal {
        if let Some(left_out) = shared.logins.line() {
            tracing::info!(session = me.id.0, initiator = %me.initiator, target = me.target.as_deref(), %peer, left_out, "logged in");
        }
        shared.observer.observe(SessionEvent::LoggedIn(me.info()));
    }
    let session = Session::new(Arc::clone(&me), around, machine.established());
    let run = session.run(&mut stream, &mut input, control);
    let reason = if normal {
        run.await
    } else {
        // A discovery is a question and its answer; dropped half-way it touches no device.
        tokio::time::timeout(shared.config.limits.discovery_timeout, run).await.unwrap_or(CloseReason::Silent)
    };
    drop(listed);
    if normal {
        if let Some(left_out) = shared.ends.line() {
            tracing::info!(session = me.id.0, ?reason, left_out, "disconnected");
        }
        shared.observer.observe(SessionEvent::Disconnected { session: me.info(), reason });
    }
}

fn prepare(stream: &TcpStream, config: &ServerConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let k = config.keepalive;
    let keepalive = TcpKeepalive::new().with_time(k.idle).with_interval(k.interval).with_retries(k.probes);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Runs the login machine; `None` if the login was refused.
async fn login(
    shared: &Arc<Shared>,
    stream: &mut TcpStream,
    input: &mut InBuf,
    (peer, local): (SocketAddr, SocketAddr),
    place: &mut Place,
    progress: &mut Progress,
) -> io::Result<Option<LoggedIn>> {
    let limits = &shared.config.limits;
    let wishes = Wishes { max_data: limits.max_data_segment, max_burst: MAX_BURST, first_burst: FIRST_BURST };
    let mut machine =
        LoginMachine::new(wishes, shared.config.portal_group, limits.queue_depth, limits.max_text);
    let mut admitted: Option<Admitted> = None;
    let mut listed = None;
    let mut step = None;
    loop {
        let next = match step.take() {
            Some(step) => step,
            None => {
                // Each of them anew: a machine on a flooded network sends one again and again until it comes through.
                let request = read_login_pdu(stream, input);
                let request = tokio::time::timeout(limits.proof_timeout, request).await;
                let (bhs, data) = request.map_err(|_| io::ErrorKind::TimedOut)??;
                if bhs.opcode() != opcode::LOGIN {
                    // Nothing but login requests before the full feature phase: close without a word.
                    return Ok(None);
                }
                machine.request(&bhs, &data)
            }
        };
        match next {
            Step::Reply(bhs, data) => send(stream, &bhs, &data).await?,
            Step::Fail(bhs) => {
                let names = machine.names();
                if let Some(left_out) = shared.refusals.line() {
                    tracing::info!(%peer, initiator = names.map(|n| n.initiator.as_str()), target = names.and_then(|n| n.target.as_deref()),
                        why = Status(bhs.0[36], bhs.0[37]).words(), left_out, "login refused");
                }
                send(stream, &bhs, &[]).await?;
                let _ = stream.shutdown().await;
                return Ok(None);
            }
            Step::Decide => {
                let decided = decide(shared, &machine, peer, local).await;
                step = Some(match decided {
                    Ok(admission) => {
                        let chap = admission.chap.clone();
                        progress.names = machine.names().cloned();
                        admitted = Some(admission);
                        machine.decided(Ok(chap))
                    }
                    Err(status) => machine.decided(Err(status)),
                });
            }
            Step::Commit => {
                progress.proved = true;
                let Some(admission) = &admitted else { return Ok(None) };
                let proven = matches!(admission.chap, Chap::OneWay(_) | Chap::Mutual { .. });
                if !place.stand(if proven { Standing::Proven } else { Standing::Open }) {
                    if let Some(left_out) = shared.refusals.line() {
                        tracing::warn!(%peer, initiator = %admission.request.initiator, left_out, "login put off: too many sessions");
                    }
                    step = Some(machine.committed(Err(Status::UNAVAILABLE)));
                    continue;
                }
                step = Some(match admission.commit(shared, &machine).await {
                    Ok(done) => {
                        let tsih = done.0.session.tsih;
                        listed = Some(done);
                        machine.committed(Ok(tsih))
                    }
                    Err(status) => machine.committed(Err(status)),
                });
            }
            Step::Done(bhs, data) => {
                let (Some((listed, control)), Some(Admitted { request, .. })) = (listed, admitted) else {
                    return Ok(None);
                };
                send(stream, &bhs, &data).await?;
                return Ok(Some(LoggedIn { listed, control, machine, request }));
            }
        }
    }
}

/// Asks the policy and finds the target.
async fn decide(
    shared: &Shared,
    machine: &LoginMachine,
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<Admitted, Status> {
    let names = machine.names().ok_or(Status::TARGET_ERROR)?.clone();
    let request = LoginRequest { target: names.target, initiator: names.initiator, peer, local };
    match shared.policy.decide(&request).await {
        LoginDecision::NotReady => Err(Status::UNAVAILABLE),
        LoginDecision::NotFound => Err(Status::NOT_FOUND),
        LoginDecision::Refused => Err(Status::AUTHORIZATION),
        LoginDecision::Accept { chap, exclusivity } => {
            let target = match &request.target {
                None => None,
                Some(iqn) => Some(shared.target(iqn).ok_or(Status::NOT_FOUND)?),
            };
            // One connection per session: a second one cannot join.
            if machine.asked_tsih() != 0 {
                return Err(if shared.has_tsih(machine.asked_tsih()) {
                    Status::TOO_MANY_CONNECTIONS
                } else {
                    Status::NO_SESSION
                });
            }
            Ok(Admitted { request, chap, exclusivity, target })
        }
    }
}

/// A login that the policy accepted, before the authentication.
struct Admitted {
    request: LoginRequest,
    chap: Chap,
    exclusivity: Exclusivity,
    target: Option<Arc<Target>>,
}

impl Admitted {
    /// The last step of a login, after the authentication.
    async fn commit(
        &self,
        shared: &Arc<Shared>,
        machine: &LoginMachine,
    ) -> Result<(Listed, UnboundedReceiver<Control>), Status> {
        let id = shared.next_session();
        if self.target.is_some() {
            let chap_user = match &self.chap {
                Chap::None => None,
                Chap::OneWay(pair) | Chap::Mutual { initiator: pair, .. } => Some(pair.user.clone()),
            };
            let info =
                LoginInfo { session: id, request: self.request.clone(), isid: machine.isid(), chap_user };
            shared.policy.authenticated(&info).await.map_err(|abort| match abort {
                LoginAbort::Retry => Status::UNAVAILABLE,
                LoginAbort::Refuse => Status::AUTHORIZATION,
            })?;
        }
        let (session, control) = SessionShared::new(SessionParts {
            id,
            tsih: shared.next_tsih(),
            target: self.target.as_ref().map(|t| Arc::clone(&t.iqn)),
            initiator: self.request.initiator.as_str().into(),
            isid: machine.isid(),
            peer: self.request.peer,
            local: self.request.local,
        });
        let replaced = match &self.target {
            None => Vec::new(),
            // Removed since the decision.
            Some(target) => target.attach(&session, self.exclusivity).map_err(|_| Status::UNAVAILABLE)?,
        };
        shared.sessions().insert(id, Arc::clone(&session));
        let listed = Listed { shared: Arc::clone(shared), target: self.target.clone(), session };
        if shared.stop.is_cancelled() {
            // Listed too late to be asked by `shutdown`.
            listed.session.ask_close(CloseReason::Shutdown);
        }
        for old in replaced {
            old.done.cancelled().await;
        }
        if listed.session.close.is_cancelled() {
            // Replaced or removed while it waited.
            return Err(Status::UNAVAILABLE);
        }
        Ok((listed, control))
    }
}

/// Reads one PDU of the login phase; no digests yet.
async fn read_login_pdu(stream: &mut TcpStream, input: &mut InBuf) -> io::Result<(Bhs, Vec<u8>)> {
    loop {
        let need = match frame(input.filled(), Digests::default(), LOGIN_DATA).map_err(io::Error::other)? {
            Framing::Pdu(f) => {
                let data = input.filled()[f.data.clone()].to_vec();
                input.consume(f.total);
                return Ok((f.bhs, data));
            }
            Framing::Need(need) => need,
        };
        let n = stream.read(input.space_for(need)).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.filled_by(n);
    }
}

async fn send(stream: &mut TcpStream, bhs: &Bhs, data: &[u8]) -> io::Result<()> {
    let mut wire = Vec::with_capacity(BHS_LEN + padded(data.len()));
    wire.extend_from_slice(&bhs.0);
    wire.extend_from_slice(data);
    wire.resize(BHS_LEN + padded(data.len()), 0);
    stream.write_all(&wire).await
}

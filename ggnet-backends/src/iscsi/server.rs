//! The server: listeners, the registry of targets, limits, and the life of a connection.
//!
//! ```text
//!  accept ─▶ limits ─▶ login machine ⇄ policy ─▶ attach ─▶ (older session drained) ─▶ final response ─▶ session ─▶ detach
//! ```
//!
//! Invariants: the registry is looked up at login only; its locks are never held across an await; every connection's
//! task is tracked, and [`IscsiServer::shutdown`] returns only after all of them have ended (or the grace is over); a
//! session is detached and marked done even when its task panics.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::chap::Chap;
use super::conn::InBuf;
use super::login::{LoginMachine, Names, Status, Step, valid_name};
use super::memory::Pool;
use super::negotiate::Wishes;
use super::pdu::{BHS_LEN, Bhs, Digests, Framing, frame, opcode, padded};
use super::places::{Occupancy, Place, Places, Standing};
use super::scsi::Units;
use super::scsi::lu::LogicalUnit;
use super::session::{Session, Surroundings};
use super::target::{SessionParts, SessionShared, Target};
use super::workers::Workers;
use super::{
    CloseReason, Exclusivity, LoginAbort, LoginDecision, LoginInfo, LoginPolicy, LoginRequest, ServerConfig,
    SessionEvent, SessionId, SessionInfo, SessionObserver, TargetConfig,
};
use crate::log_budget::LogBudget;

/// Lines of the log a second about logins that were refused or put off; more are counted and not written.
const REFUSALS_A_SECOND: u32 = 10;
/// Of sessions that began, and of those that ended: a room that boots at once fits.
const SESSIONS_A_SECOND: u32 = 100;

/// Longest data segment in the login phase (RFC 7143: 8192 until declared otherwise).
const LOGIN_DATA: usize = 8192;
/// Our MaxBurstLength and FirstBurstLength.
const MAX_BURST: u32 = 1 << 20;
const FIRST_BURST: u32 = 256 << 10;
/// Connections that wait for `accept`.
const BACKLOG: i32 = 1024;
/// Pause after an `accept` that failed for lack of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// A target could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// There is one of that name.
    #[error("target {0} exists")]
    Exists(String),
    /// Not an iSCSI name.
    #[error("not an iSCSI name: {0}")]
    BadName(String),
    /// A unit's number is above 255 or there twice.
    #[error("logical unit number {0} is out of range or used twice")]
    BadLun(u16),
    /// A device whose logical block is neither 512 nor 4096 bytes, or whose size is no multiple of it.
    #[error("logical unit {0}: unsupported block length or size")]
    BadDevice(u16),
}

/// What to do with live sessions of a target that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Fail with [`RemoveError::Busy`] when there is one.
    IfIdle,
    /// Close them: requests in flight end, devices are flushed, connections close.
    Force,
}

/// A target was not removed as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// That many sessions are live; nothing was changed.
    #[error("{sessions} live session(s)")]
    Busy {
        /// How many.
        sessions: usize,
    },
    /// The target is gone, but a device could not be flushed.
    #[error("logical unit {lun} could not be flushed: {source}")]
    Flush {
        /// Which.
        lun: u16,
        /// Why.
        source: io::Error,
    },
}

/// A running iSCSI target server. Clones are handles to the same one; dropping the last handle stops nothing, see
/// [`shutdown`](IscsiServer::shutdown).
#[derive(Clone)]
pub struct IscsiServer(Arc<Inner>);

struct Inner {
    config: ServerConfig,
    policy: Arc<dyn LoginPolicy>,
    observer: Arc<dyn SessionObserver>,
    local: Vec<SocketAddr>,
    targets: RwLock<HashMap<Arc<str>, Arc<Target>>>,
    sessions: Mutex<HashMap<SessionId, Arc<SessionShared>>>,
    places: Arc<Places>,
    next_session: AtomicU64,
    next_tsih: AtomicU16,
    workers: Workers,
    memory: Arc<Pool>,
    /// Lines of the log about logins that were refused or put off.
    refusals: LogBudget,
    /// Lines about sessions that began, and about those that ended.
    logins: LogBudget,
    ends: LogBudget,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every step under these locks leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IscsiServer {
    /// Opens all listeners and begins to accept; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The first address that cannot be listened on; none is then.
    pub fn bind(
        config: ServerConfig,
        policy: Arc<dyn LoginPolicy>,
        observer: Arc<dyn SessionObserver>,
    ) -> Result<Self, BindError> {
        let (server, accepting) = Self::listen(config, policy, observer)?;
        for listener in accepting {
            #[expect(clippy::disallowed_methods, reason = "whoever wants them watched calls `listen`")]
            server.0.tasks.spawn(listener.run());
        }
        Ok(server)
    }

    /// As [`bind`](IscsiServer::bind), and accepts nothing: that is for whoever runs what it returns, and watches it.
    ///
    /// # Errors
    /// As [`bind`](IscsiServer::bind).
    pub fn listen(
        config: ServerConfig,
        policy: Arc<dyn LoginPolicy>,
        observer: Arc<dyn SessionObserver>,
    ) -> Result<(Self, Vec<Accepting>), BindError> {
        let mut listeners = Vec::new();
        for &address in &config.listen {
            listeners.push(listen(address).map_err(|source| BindError { address, source })?);
        }
        let local = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        let workers = Workers::new(config.limits.blocking_jobs);
        let places = Places::new(&config.limits);
        let memory = Pool::new(config.limits.memory);
        let inner = Arc::new(Inner {
            config,
            policy,
            observer,
            local,
            targets: RwLock::default(),
            sessions: Mutex::default(),
            places,
            next_session: AtomicU64::new(1),
            next_tsih: AtomicU16::new(1),
            workers,
            memory,
            refusals: LogBudget::new(REFUSALS_A_SECOND),
            logins: LogBudget::new(SESSIONS_A_SECOND),
            ends: LogBudget::new(SESSIONS_A_SECOND),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let accepting = |listener| Accepting { inner: Arc::clone(&inner), listener: Arc::new(listener) };
        let accepting = listeners.into_iter().map(accepting).collect();
        Ok((Self(inner), accepting))
    }

    /// Cancelled when the server stops.
    pub fn stopping(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// The addresses listened on, with the ports that the system chose.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.0.local
    }

    /// Adds a target; logins to it may come at once.
    ///
    /// # Errors
    /// See [`AddError`]; nothing is added then.
    pub fn add_target(&self, config: TargetConfig) -> Result<(), AddError> {
        let name = config.iqn.to_lowercase();
        if !valid_name(&name) {
            return Err(AddError::BadName(config.iqn));
        }
        let mut seen = [false; 256];
        for lun in &config.luns {
            match seen.get_mut(usize::from(lun.number)) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(AddError::BadLun(lun.number)),
            }
            let info = lun.device.info();
            let block = u64::from(info.logical_block);
            if !matches!(block, 512 | 4096) || info.size_bytes % block != 0 {
                return Err(AddError::BadDevice(lun.number));
            }
        }
        let iqn: Arc<str> = name.into();
        let units = config.luns.into_iter().map(|l| LogicalUnit::new(l, Arc::clone(&iqn))).collect();
        let target = Arc::new(Target::new(Arc::clone(&iqn), Units::new(units)));
        let mut targets = self.0.targets.write().unwrap_or_else(PoisonError::into_inner);
        if targets.contains_key(&iqn) {
            return Err(AddError::Exists(iqn.to_string()));
        }
        targets.insert(iqn, target);
        Ok(())
    }

    /// Removes a target. Removing what is not there is success. Under [`Removal::Force`] this returns when the last
    /// request in flight has ended and every device is flushed: nobody writes to them through us afterwards.
    ///
    /// Dropped half-way: the target is removed and its sessions close all the same, only nobody waits for them, and the
    /// flush may not have happened.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub async fn remove_target(&self, iqn: &str, removal: Removal) -> Result<(), RemoveError> {
        let name = iqn.to_lowercase();
        let (target, sessions) = {
            let mut targets = self.0.targets.write().unwrap_or_else(PoisonError::into_inner);
            let Some(target) = targets.get(name.as_str()).cloned() else { return Ok(()) };
            let sessions = target
                .retire(removal == Removal::IfIdle)
                .map_err(|sessions| RemoveError::Busy { sessions })?;
            targets.remove(name.as_str());
            (target, sessions)
        };
        for session in &sessions {
            session.ask_close(CloseReason::TargetRemoved);
        }
        for session in &sessions {
            session.done.cancelled().await;
        }
        if removal == Removal::Force { self.0.flush(&target).await } else { Ok(()) }
    }

    /// The names of all targets, sorted.
    pub fn targets(&self) -> Vec<String> {
        let targets = self.0.targets.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = targets.keys().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    /// Whether there is such a target.
    pub fn has_target(&self, iqn: &str) -> bool {
        self.0.target(&iqn.to_lowercase()).is_some()
    }

    /// All live sessions, oldest first.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions: Vec<SessionInfo> = lock(&self.0.sessions).values().map(|s| s.info()).collect();
        sessions.sort_unstable_by_key(|s| s.id);
        sessions
    }

    /// The live sessions of one target.
    pub fn sessions_of(&self, iqn: &str) -> Vec<SessionInfo> {
        let target = self.0.target(&iqn.to_lowercase());
        target.map(|t| t.sessions().iter().map(|s| s.info()).collect()).unwrap_or_default()
    }

    /// How many connections there are, by what they have shown, and how many were turned away.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy { leased: self.0.memory.leased(), ..self.0.places.occupancy() }
    }

    /// Looks at the sizes of a target's devices again and tells every initiator of those that have changed.
    pub fn resized(&self, iqn: &str) {
        if let Some(target) = self.0.target(&iqn.to_lowercase()) {
            target.units.iter().for_each(|u| u.resized());
        }
    }

    /// Stops: no new connections, requests in flight end, answers go out, connections close, devices are flushed.
    /// Returns false when that took longer than `grace` (the rest then goes on in the background).
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.0.stop.cancel();
        self.0.tasks.close();
        for session in lock(&self.0.sessions).values() {
            session.ask_close(CloseReason::Shutdown);
        }
        let stop = async {
            self.0.tasks.wait().await;
            let targets: Vec<_> =
                self.0.targets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            let mut clean = true;
            for target in targets {
                if let Err(error) = self.0.flush(&target).await {
                    tracing::error!(target = %target.iqn, %error, "flush at shutdown failed");
                    clean = false;
                }
            }
            clean
        };
        tokio::time::timeout(grace, stop).await.unwrap_or(false)
    }
}

impl Inner {
    fn target(&self, iqn: &str) -> Option<Arc<Target>> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).get(iqn).cloned()
    }

    async fn flush(&self, target: &Target) -> Result<(), RemoveError> {
        for unit in target.units.iter().filter(|u| !u.read_only()) {
            let (unit, lun) = (Arc::clone(unit), unit.number);
            let flushed = tokio::task::spawn_blocking(move || unit.device.flush()).await;
            flushed
                .unwrap_or_else(|e| Err(io::Error::other(e)))
                .map_err(|source| RemoveError::Flush { lun, source })?;
        }
        Ok(())
    }

    fn next_tsih(&self) -> u16 {
        loop {
            let tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed);
            // Zero means "new session"; a handle in use is not given twice.
            if tsih != 0 && !lock(&self.sessions).values().any(|s| s.tsih == tsih) {
                return tsih;
            }
        }
    }
}

/// Opens a listener with SO_REUSEADDR, so that a restart need not wait for old connections to expire.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A listener whose connections are to be accepted. It is open until this is dropped.
pub struct Accepting {
    inner: Arc<Inner>,
    listener: Arc<TcpListener>,
}

impl Accepting {
    /// Accepts until the server stops. Dropped or panicked half-way: the listener stays open, and connections wait for the next run.
    pub fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        accept(Arc::clone(&self.inner), Arc::clone(&self.listener))
    }
}

async fn accept(inner: Arc<Inner>, listener: Arc<TcpListener>) {
    loop {
        let accepted = tokio::select! {
            () = inner.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = inner.places.take(peer.ip());
                #[expect(clippy::disallowed_methods, reason = "one connection, tracked")]
                inner.tasks.spawn(connection(Arc::clone(&inner), stream, peer, place));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A listed session; unlisted, and marked done, when dropped.
struct Listed {
    inner: Arc<Inner>,
    target: Option<Arc<Target>>,
    session: Arc<SessionShared>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.inner.sessions).remove(&self.session.id);
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
    control: tokio::sync::mpsc::UnboundedReceiver<super::target::Control>,
    machine: LoginMachine,
    request: LoginRequest,
}

/// How far a login has come: what remains to be said of one that did not end.
#[derive(Debug, Default)]
struct Progress {
    /// The names, once the policy has let them in.
    names: Option<Names>,
    /// Whether nothing is left to be proved.
    proved: bool,
}

impl Progress {
    /// The event of a login that ran into its time limit here; none for one that had proved what it must, or asked for discovery.
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

async fn connection(inner: Arc<Inner>, mut stream: TcpStream, peer: SocketAddr, mut place: Place) {
    let Ok(local) = stream.local_addr() else { return };
    if let Err(error) = prepare(&stream, &inner.config) {
        tracing::debug!(%peer, %error, "socket options");
    }
    let mut input = InBuf::default();
    let go = place.go();
    let mut progress = Progress::default();
    let login = login(&inner, &mut stream, &mut input, (peer, local), &mut place, &mut progress);
    let logged_in = tokio::select! {
        () = inner.stop.cancelled() => return,
        () = go.cancelled() => return tracing::debug!(%peer, "closed before its login: others wait, too"),
        logged_in = tokio::time::timeout(inner.config.limits.login_timeout, login) => logged_in,
    };
    let LoggedIn { listed, control, machine, request } = match logged_in {
        Ok(Ok(Some(logged_in))) => logged_in,
        Ok(Ok(None)) => return,
        // Ours, not one of the socket: those bear the system's number.
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
            tracing::debug!(%peer, "login proved nothing in time");
            progress.stalled(peer).into_iter().for_each(|event| inner.observer.observe(event));
            return;
        }
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "login broke off"),
        Err(_) => {
            if let Some(left_out) = inner.refusals.line() {
                tracing::info!(%peer, left_out, "login took too long");
            }
            progress.stalled(peer).into_iter().for_each(|event| inner.observer.observe(event));
            return;
        }
    };
    let me = Arc::clone(&listed.session);
    let around = Surroundings {
        limits: inner.config.limits,
        nop_interval: inner.config.nop_interval,
        workers: inner.workers.share(),
        memory: Arc::clone(&inner.memory),
        observer: Arc::clone(&inner.observer),
        policy: Arc::clone(&inner.policy),
        address: format!(
            "{},{}",
            inner.config.advertise.clone().unwrap_or_else(|| local.to_string()),
            inner.config.portal_group
        ),
        request,
        target: listed.target.clone(),
    };
    let normal = me.target.is_some();
    if normal {
        if let Some(left_out) = inner.logins.line() {
            tracing::info!(session = me.id.0, initiator = %me.initiator, target = me.target.as_deref(), %peer, left_out, "logged in");
        }
        inner.observer.observe(SessionEvent::LoggedIn(me.info()));
    }
    let session = Session::new(Arc::clone(&me), around, machine.established());
    let run = session.run(&mut stream, &mut input, control);
    let reason = if normal {
        run.await
    } else {
        // A discovery is a question and its answer; dropped half-way it touches no device.
        tokio::time::timeout(inner.config.limits.discovery_timeout, run).await.unwrap_or(CloseReason::Silent)
    };
    drop(listed);
    if normal {
        if let Some(left_out) = inner.ends.line() {
            tracing::info!(session = me.id.0, ?reason, left_out, "disconnected");
        }
        inner.observer.observe(SessionEvent::Disconnected { session: me.info(), reason });
    }
}

fn prepare(stream: &TcpStream, config: &ServerConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let k = config.keepalive;
    let keepalive = TcpKeepalive::new().with_time(k.idle).with_interval(k.interval).with_retries(k.probes);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Drives the login machine; `None` when the login was refused.
async fn login(
    inner: &Arc<Inner>,
    stream: &mut TcpStream,
    input: &mut InBuf,
    (peer, local): (SocketAddr, SocketAddr),
    place: &mut Place,
    progress: &mut Progress,
) -> io::Result<Option<LoggedIn>> {
    let limits = &inner.config.limits;
    let proof_by = Instant::now() + limits.proof_timeout;
    let wishes = Wishes { max_data: limits.max_data_segment, max_burst: MAX_BURST, first_burst: FIRST_BURST };
    let mut machine =
        LoginMachine::new(wishes, inner.config.portal_group, limits.queue_depth, limits.max_text);
    let mut accepted: Option<(LoginRequest, Chap, Exclusivity, Option<Arc<Target>>)> = None;
    let mut listed = None;
    let mut step = None;
    loop {
        let next = match step.take() {
            Some(step) => step,
            None => {
                let request = read_login_pdu(stream, input);
                let request = tokio::time::timeout_at(proof_by, request).await;
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
                if let Some(left_out) = inner.refusals.line() {
                    tracing::info!(%peer, initiator = names.map(|n| n.initiator.as_str()), target = names.and_then(|n| n.target.as_deref()),
                        why = Status(bhs.0[36], bhs.0[37]).words(), left_out, "login refused");
                }
                send(stream, &bhs, &[]).await?;
                let _ = stream.shutdown().await;
                return Ok(None);
            }
            Step::Decide => {
                let decided = decide(inner, &machine, peer, local).await;
                step = Some(match decided {
                    Ok(all) => {
                        let chap = all.1.clone();
                        progress.names = machine.names().cloned();
                        accepted = Some(all);
                        machine.decided(Ok(chap))
                    }
                    Err(status) => machine.decided(Err(status)),
                });
            }
            Step::Commit => {
                progress.proved = true;
                let Some((request, chap, exclusivity, target)) = &accepted else { return Ok(None) };
                let proven = matches!(chap, Chap::OneWay(_) | Chap::Mutual { .. });
                if !place.stand(if proven { Standing::Proven } else { Standing::Open }) {
                    if let Some(left_out) = inner.refusals.line() {
                        tracing::warn!(%peer, initiator = %request.initiator, left_out, "login put off: too many sessions");
                    }
                    step = Some(machine.committed(Err(Status::UNAVAILABLE)));
                    continue;
                }
                let commit = Commit { request, chap, exclusivity: *exclusivity, target: target.clone() };
                step = Some(match commit.run(inner, &machine).await {
                    Ok(done) => {
                        let tsih = done.0.session.tsih;
                        listed = Some(done);
                        machine.committed(Ok(tsih))
                    }
                    Err(status) => machine.committed(Err(status)),
                });
            }
            Step::Done(bhs, data) => {
                let (Some((listed, control)), Some((request, ..))) = (listed, accepted) else {
                    return Ok(None);
                };
                send(stream, &bhs, &data).await?;
                return Ok(Some(LoggedIn { listed, control, machine, request }));
            }
        }
    }
}

/// Asks the policy, and finds the target.
async fn decide(
    inner: &Inner,
    machine: &LoginMachine,
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<(LoginRequest, Chap, Exclusivity, Option<Arc<Target>>), Status> {
    let names = machine.names().ok_or(Status::TARGET_ERROR)?.clone();
    let request = LoginRequest { target: names.target, initiator: names.initiator, peer, local };
    match inner.policy.decide(&request).await {
        LoginDecision::NotReady => Err(Status::UNAVAILABLE),
        LoginDecision::NotFound => Err(Status::NOT_FOUND),
        LoginDecision::Refused => Err(Status::AUTHORIZATION),
        LoginDecision::Accept { chap, exclusivity } => {
            let target = match &request.target {
                None => None,
                Some(iqn) => Some(inner.target(iqn).ok_or(Status::NOT_FOUND)?),
            };
            // One connection per session: a second one cannot join.
            if machine.asked_tsih() != 0 {
                let known = lock(&inner.sessions).values().any(|s| s.tsih == machine.asked_tsih());
                return Err(if known { Status::TOO_MANY_CONNECTIONS } else { Status::NO_SESSION });
            }
            Ok((request, chap, exclusivity, target))
        }
    }
}

/// The last step of a login: everything is proved.
struct Commit<'a> {
    request: &'a LoginRequest,
    chap: &'a Chap,
    exclusivity: Exclusivity,
    target: Option<Arc<Target>>,
}

impl Commit<'_> {
    async fn run(
        self,
        inner: &Arc<Inner>,
        machine: &LoginMachine,
    ) -> Result<(Listed, tokio::sync::mpsc::UnboundedReceiver<super::target::Control>), Status> {
        let id = SessionId(inner.next_session.fetch_add(1, Ordering::Relaxed));
        if self.target.is_some() {
            let chap_user = match self.chap {
                Chap::None => None,
                Chap::OneWay(pair) | Chap::Mutual { initiator: pair, .. } => Some(pair.user.clone()),
            };
            let info =
                LoginInfo { session: id, request: self.request.clone(), isid: machine.isid(), chap_user };
            inner.policy.authenticated(&info).await.map_err(|abort| match abort {
                LoginAbort::Retry => Status::UNAVAILABLE,
                LoginAbort::Refuse => Status::AUTHORIZATION,
            })?;
        }
        let (session, control) = SessionShared::new(SessionParts {
            id,
            tsih: inner.next_tsih(),
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
        lock(&inner.sessions).insert(id, Arc::clone(&session));
        let listed = Listed { inner: Arc::clone(inner), target: self.target, session };
        if inner.stop.is_cancelled() {
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

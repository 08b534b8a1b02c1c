//! The server: listeners, the registry of targets, and limits.
//!
//! ```text
//!  accept ─▶ limits ─▶ connection (login, session)
//! ```
//!
//! Invariants: the registry is read at login only; its locks are never held across an await; every connection's task is tracked, and
//! [`IscsiServer::shutdown`] returns only after all of them have ended (or the grace period is over).

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::connection::connection;
use super::login::valid_name;
use super::places::Occupancy;
use super::scsi::lu::LogicalUnit;
use super::scsi::{Units, is_busy};
use super::shared::Shared;
use super::target::Target;
use super::{CloseReason, LoginPolicy, ServerConfig, SessionInfo, SessionObserver, TargetConfig};

/// The length of the queue of connections that wait for `accept`.
const BACKLOG: i32 = 1024;
/// Pause after an `accept` that failed because of a lack of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the last flush is tried on a device that is busy, and the pause between two attempts.
const FLUSH_TRIES: u32 = 20;
const FLUSH_PAUSE: Duration = Duration::from_millis(100);

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
    /// A target of this name already exists.
    #[error("target {0} exists")]
    Exists(String),
    /// The name is not an iSCSI name.
    #[error("not an iSCSI name: {0}")]
    BadName(String),
    /// The number of a logical unit is above 255 or used twice.
    #[error("logical unit number {0} is out of range or used twice")]
    BadLun(u16),
    /// The device's logical block is neither 512 nor 4096 bytes long, or its size is not a multiple of the block.
    #[error("logical unit {0}: unsupported block length or size")]
    BadDevice(u16),
}

/// What to do with live sessions of a target that is being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// If there are any, fail with [`RemoveError::Busy`].
    IfIdle,
    /// Close them: requests in flight end, devices are flushed, connections are closed.
    Force,
}

/// A target was not removed as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// This number of sessions is live; nothing was changed.
    #[error("{sessions} live session(s)")]
    Busy {
        /// The number of sessions.
        sessions: usize,
    },
    /// The target is gone, but a device could not be flushed.
    #[error("logical unit {lun} could not be flushed: {source}")]
    Flush {
        /// Its number.
        lun: u16,
        /// Why.
        source: io::Error,
    },
}

/// A running iSCSI target server. Clones are handles of the same server. Dropping the last handle does not stop it: call
/// [`shutdown`](IscsiServer::shutdown).
#[derive(Clone)]
pub struct IscsiServer(Arc<Shared>);

impl IscsiServer {
    /// Opens all listeners and starts to accept connections. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`] with the first address that cannot be opened; then none is open.
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

    /// Like [`bind`](IscsiServer::bind), but accepts no connections: the caller runs the returned values, and can supervise them.
    ///
    /// # Errors
    /// Like [`bind`](IscsiServer::bind).
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
        let shared = Arc::new(Shared::new(config, policy, observer, local));
        let accepting = |listener| Accepting { shared: Arc::clone(&shared), listener: Arc::new(listener) };
        let accepting = listeners.into_iter().map(accepting).collect();
        Ok((Self(shared), accepting))
    }

    /// A token that is cancelled when the server stops.
    pub fn stopping(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// The addresses on which it listens, with the ports that the system chose.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.0.local
    }

    /// Adds a target. Initiators can log in at once.
    ///
    /// # Errors
    /// See [`AddError`]; then nothing is added.
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

    /// Removes a target; removing a target that does not exist succeeds. Under [`Removal::Force`] this returns when the last request in
    /// flight has ended and every device is flushed (a busy device is tried for two seconds): nothing is written to them through this
    /// server afterwards. Under [`Removal::IfIdle`] there is no session, and nothing is flushed.
    ///
    /// If the future is dropped half-way, the target is removed and its sessions close all the same, but the flush may not happen.
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
        if removal == Removal::Force { flush(&target).await } else { Ok(()) }
    }

    /// The names of all targets, sorted.
    pub fn targets(&self) -> Vec<String> {
        let targets = self.0.targets.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = targets.keys().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    /// Whether a target of this name exists.
    pub fn has_target(&self, iqn: &str) -> bool {
        self.0.target(&iqn.to_lowercase()).is_some()
    }

    /// All live sessions, the oldest first.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions: Vec<SessionInfo> = self.0.sessions().values().map(|s| s.info()).collect();
        sessions.sort_unstable_by_key(|s| s.id);
        sessions
    }

    /// The live sessions of one target.
    pub fn sessions_of(&self, iqn: &str) -> Vec<SessionInfo> {
        let target = self.0.target(&iqn.to_lowercase());
        target.map(|t| t.sessions().iter().map(|s| s.info()).collect()).unwrap_or_default()
    }

    /// The number of connections by state, and of rejected ones.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy { leased: self.0.memory.leased(), ..self.0.places.occupancy() }
    }

    /// Stops the server: accepts no new connections, waits for requests in flight, sends their answers, closes the connections and flushes
    /// the devices. Returns false if that took longer than `grace`; the rest then continues in the background.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.0.stop.cancel();
        self.0.tasks.close();
        for session in self.0.sessions().values() {
            session.ask_close(CloseReason::Shutdown);
        }
        let stop = async {
            self.0.tasks.wait().await;
            let targets: Vec<_> =
                self.0.targets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            let mut clean = true;
            for target in targets {
                if let Err(error) = flush(&target).await {
                    tracing::error!(target = %target.iqn, %error, "flush at shutdown failed");
                    clean = false;
                }
            }
            clean
        };
        tokio::time::timeout(grace, stop).await.unwrap_or(false)
    }
}

/// Flushes all of a target's devices. No initiator is left that could repeat the flush of a busy device, so it is repeated here.
async fn flush(target: &Target) -> Result<(), RemoveError> {
    for unit in target.units.iter().filter(|u| !u.read_only()) {
        let lun = unit.number;
        let mut tries = 0;
        loop {
            let unit = Arc::clone(unit);
            let flushed = tokio::task::spawn_blocking(move || unit.device.flush()).await;
            match flushed.unwrap_or_else(|e| Err(io::Error::other(e))) {
                Ok(()) => break,
                Err(e) if is_busy(&e) && tries < FLUSH_TRIES => {
                    tries += 1;
                    tokio::time::sleep(FLUSH_PAUSE).await;
                }
                Err(source) => return Err(RemoveError::Flush { lun, source }),
            }
        }
    }
    Ok(())
}

/// Opens a listener with SO_REUSEADDR, so that a restart does not have to wait until old connections expire.
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

/// A listener whose connections are not accepted yet. It stays open until this is dropped.
pub struct Accepting {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
}

impl Accepting {
    /// Accepts connections until the server stops. If the future is dropped or panics, the listener stays open, and connections wait for
    /// the next run.
    pub fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        accept(Arc::clone(&self.shared), Arc::clone(&self.listener))
    }
}

async fn accept(shared: Arc<Shared>, listener: Arc<TcpListener>) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = shared.places.take(peer.ip());
                #[expect(clippy::disallowed_methods, reason = "one connection, tracked")]
                shared.tasks.spawn(connection(Arc::clone(&shared), stream, peer, place));
            }
            Err(error) => {
                if let Some(left_out) = shared.not_accepted.line() {
                    tracing::warn!(%error, left_out, "accept failed");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

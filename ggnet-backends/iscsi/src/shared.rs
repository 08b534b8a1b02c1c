//! What all connections of a server share: its configuration, the registry of targets, the list of sessions, and the limits.
//!
//! Invariants: the registry is read at login only; its locks are never held across an await; a handle (TSIH) in use is not assigned twice.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::log_budget::LogBudget;
use super::memory::Pool;
use super::places::Places;
use super::target::{SessionShared, Target};
use super::workers::Workers;
use super::{LoginPolicy, ServerConfig, SessionId, SessionObserver};

/// Log lines per second about logins that were refused or delayed; further ones are counted and not written.
const REFUSALS_A_SECOND: u32 = 10;
/// The same for sessions that begin, and for sessions that end: enough for a room that boots at the same time.
const SESSIONS_A_SECOND: u32 = 100;

/// A server, as its connections use it.
pub(super) struct Shared {
    pub(super) config: ServerConfig,
    pub(super) policy: Arc<dyn LoginPolicy>,
    pub(super) observer: Arc<dyn SessionObserver>,
    /// The addresses on which it listens.
    pub(super) local: Vec<SocketAddr>,
    pub(super) targets: RwLock<HashMap<Arc<str>, Arc<Target>>>,
    sessions: Mutex<HashMap<SessionId, Arc<SessionShared>>>,
    pub(super) places: Arc<Places>,
    next_session: AtomicU64,
    next_tsih: AtomicU16,
    pub(super) workers: Workers,
    pub(super) memory: Arc<Pool>,
    /// Log lines about logins that were refused or delayed.
    pub(super) refusals: LogBudget,
    /// Log lines about sessions that begin, and about sessions that end.
    pub(super) logins: LogBudget,
    pub(super) ends: LogBudget,
    /// Log lines about connections that could not be accepted.
    pub(super) not_accepted: LogBudget,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        config: ServerConfig,
        policy: Arc<dyn LoginPolicy>,
        observer: Arc<dyn SessionObserver>,
        local: Vec<SocketAddr>,
    ) -> Self {
        Self {
            workers: Workers::new(config.limits.blocking_jobs),
            places: Places::new(&config.limits),
            memory: Pool::new(config.limits.memory),
            config,
            policy,
            observer,
            local,
            targets: RwLock::default(),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(1),
            next_tsih: AtomicU16::new(1),
            refusals: LogBudget::new(REFUSALS_A_SECOND),
            logins: LogBudget::new(SESSIONS_A_SECOND),
            ends: LogBudget::new(SESSIONS_A_SECOND),
            not_accepted: LogBudget::new(1),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn target(&self, iqn: &str) -> Option<Arc<Target>> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).get(iqn).cloned()
    }

    /// The live sessions.
    pub(super) fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<SessionShared>>> {
        // Every step under it leaves a valid list.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn next_tsih(&self) -> u16 {
        loop {
            let tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed);
            // Zero means "new session"; a handle in use is not given twice.
            if tsih != 0 && !self.has_tsih(tsih) {
                return tsih;
            }
        }
    }

    /// Whether a session has this handle.
    pub(super) fn has_tsih(&self, tsih: u16) -> bool {
        self.sessions().values().any(|s| s.tsih == tsih)
    }
}

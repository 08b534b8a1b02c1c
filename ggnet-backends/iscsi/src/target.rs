//! A target and its live sessions: which sessions may exist at the same time.
//!
//! ```text
//!  session:   attached ──▶ (login response) ──▶ live ──▶ close asked ──▶ drained ──▶ done
//! ```
//!
//! Invariants: a session is listed from before its final login response until its last request in flight has ended; a removed target lists
//! no new session; of two logins that exclude each other, the later one stays. The lock of the list is never held across an await.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::scsi::Units;
use super::stats::Counters;
use super::{CloseReason, Exclusivity, SessionId, SessionInfo};

/// What one session can request from another.
#[derive(Debug)]
pub(crate) enum Control {
    /// End all tasks of this unit (none: of all units), then drop the sender as the answer.
    Abort(Option<u16>, oneshot::Sender<()>),
}

/// A session, as other tasks see it.
#[derive(Debug)]
pub(crate) struct SessionShared {
    pub(crate) id: SessionId,
    pub(crate) tsih: u16,
    pub(crate) target: Option<Arc<str>>,
    pub(crate) initiator: Arc<str>,
    pub(crate) isid: [u8; 6],
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) started: Instant,
    pub(crate) counters: Counters,
    /// Cancelled when the session is asked to close.
    pub(crate) close: CancellationToken,
    reason: OnceLock<CloseReason>,
    /// Cancelled when the session is closed and nothing of it is in flight.
    pub(crate) done: CancellationToken,
    pub(crate) control: mpsc::UnboundedSender<Control>,
}

/// The fields of a new session.
pub(crate) struct SessionParts {
    pub(crate) id: SessionId,
    pub(crate) tsih: u16,
    pub(crate) target: Option<Arc<str>>,
    pub(crate) initiator: Arc<str>,
    pub(crate) isid: [u8; 6],
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl SessionShared {
    /// A session, and the receiver of requests from other sessions.
    pub(crate) fn new(parts: SessionParts) -> (Arc<Self>, mpsc::UnboundedReceiver<Control>) {
        let (control, receiver) = mpsc::unbounded_channel();
        let SessionParts { id, tsih, target, initiator, isid, peer, local } = parts;
        let session = Self {
            id,
            tsih,
            target,
            initiator,
            isid,
            peer,
            local,
            started: Instant::now(),
            counters: Counters::default(),
            close: CancellationToken::new(),
            reason: OnceLock::new(),
            done: CancellationToken::new(),
            control,
        };
        (Arc::new(session), receiver)
    }

    /// Asks the session to close; the first reason is kept.
    pub(crate) fn ask_close(&self, reason: CloseReason) {
        let _ = self.reason.set(reason);
        self.close.cancel();
    }

    /// The reason for which it was asked to close.
    pub(crate) fn reason(&self) -> Option<CloseReason> {
        self.reason.get().copied()
    }

    pub(crate) fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.id,
            target: self.target.as_deref().map(str::to_owned),
            initiator: self.initiator.as_ref().to_owned(),
            isid: self.isid,
            peer: self.peer,
            local: self.local,
            age: self.started.elapsed(),
            counters: self.counters.snapshot(),
        }
    }
}

/// A target.
pub(crate) struct Target {
    pub(crate) iqn: Arc<str>,
    pub(crate) units: Units,
    removed: AtomicBool,
    sessions: Mutex<Vec<Arc<SessionShared>>>,
}

/// The target was removed during the login.
#[derive(Debug)]
pub(crate) struct Removed;

impl Target {
    pub(crate) fn new(iqn: Arc<str>, units: Units) -> Self {
        Self { iqn, units, removed: AtomicBool::new(false), sessions: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<SessionShared>>> {
        // Every step leaves a valid list.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a session and returns the sessions that it replaces, which are already asked to close.
    pub(crate) fn attach(
        &self,
        session: &Arc<SessionShared>,
        exclusivity: Exclusivity,
    ) -> Result<Vec<Arc<SessionShared>>, Removed> {
        let mut sessions = self.lock();
        if self.removed.load(Ordering::Acquire) {
            return Err(Removed);
        }
        let replaced = |old: &&Arc<SessionShared>| {
            old.initiator == session.initiator
                && (exclusivity == Exclusivity::ByInitiatorName || old.isid == session.isid)
        };
        let old: Vec<_> = sessions.iter().filter(replaced).cloned().collect();
        sessions.push(Arc::clone(session));
        drop(sessions);
        old.iter().for_each(|s| s.ask_close(CloseReason::Replaced));
        Ok(old)
    }

    pub(crate) fn detach(&self, session: &Arc<SessionShared>) {
        self.lock().retain(|s| !Arc::ptr_eq(s, session));
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<SessionShared>> {
        self.lock().clone()
    }

    /// Accepts no new sessions from here on. With `only_if_idle` it fails if there are sessions, and returns their number.
    pub(crate) fn retire(&self, only_if_idle: bool) -> Result<Vec<Arc<SessionShared>>, usize> {
        let sessions = self.lock();
        if only_if_idle && !sessions.is_empty() {
            return Err(sessions.len());
        }
        self.removed.store(true, Ordering::Release);
        Ok(sessions.clone())
    }
}

//! [`Presence`]: which sessions have an initiator logged in, as the targets say it and as logins are seen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::shared::Shared;
use crate::{
    error::Result,
    nouns::{MacAddr, Session, SessionId},
};

/// Between two looks at who is online: no pause yet, whatever the interval; a busy host is late by as much.
const SHORT_PAUSE: Duration = Duration::from_secs(5);

/// Which live sessions have an initiator, and when each was last seen with one.
pub struct Presence {
    shared: Arc<Shared>,
    sessions: Mutex<HashMap<SessionId, Seen>>,
    /// When the targets last said who is online.
    looked: Mutex<Option<Instant>>,
    /// When each machine last asked for its boot script; small, and only for the suspicion of Secure Boot.
    scripts: Mutex<HashMap<MacAddr, Instant>>,
}

#[derive(Clone, Copy)]
struct Seen {
    online: bool,
    last: Instant,
}

impl Presence {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sessions: Mutex::default(), looked: Mutex::default(), scripts: Mutex::default() }
    }

    /// An initiator of the session has logged in.
    pub(super) fn seen(&self, session: SessionId) {
        self.update(session, true);
    }

    /// Marks the session online or not; going or staying offline keeps the time it was last online. Returns for how long it has
    /// been offline.
    pub(super) fn update(&self, session: SessionId, online: bool) -> Duration {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let entry = sessions.entry(session).or_insert(Seen { online, last: now });
        entry.online = online;
        if online {
            entry.last = now;
        }
        now - entry.last
    }

    /// The targets have said who is online, as they do every `interval`. After a much longer pause (the server was suspended, or they did
    /// not answer) the time that sessions have been offline begins anew: it was ours, and their machines need some to come back.
    pub(super) fn looked(&self, interval: Duration) {
        let now = Instant::now();
        let before = self.looked.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        if before.is_some_and(|before| now - before > (interval * 3).max(SHORT_PAUSE)) {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.values_mut().for_each(|presence| presence.last = now);
        }
    }

    /// How many live sessions have an initiator logged in.
    #[must_use]
    pub fn online_count(&self) -> u64 {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.values().filter(|p| p.online).count() as u64
    }

    /// Whether an initiator of this session is, or was within the last reconcile, logged in.
    #[must_use]
    pub fn is_online(&self, session: SessionId) -> bool {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&session).is_some_and(|p| p.online)
    }

    /// The machine asks for its boot script.
    pub(super) fn script_asked(&self, mac: MacAddr) {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if scripts.len() > 10_000 {
            scripts.retain(|_, at| at.elapsed() < Duration::from_secs(300));
        }
        scripts.insert(mac, Instant::now());
    }

    pub(super) fn script_asked_after(&self, mac: MacAddr, since: Instant) -> bool {
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        scripts.get(&mac).is_some_and(|at| *at >= since)
    }

    /// The session has ended.
    pub(super) fn forget(&self, session: SessionId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }

    /// Whether an initiator is logged in to any of the session's targets, right now.
    pub(super) async fn has_initiator(&self, session: &Session) -> Result<bool> {
        let targets: Vec<_> = session.generations().map(|g| session.target(g)).collect();
        Ok(self.shared.ports.target().connections().await?.iter().any(|c| targets.contains(&c.target)))
    }
}

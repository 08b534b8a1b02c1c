//! Who may log in to which target: the specs' access rules, then the gate's verdict.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use async_trait::async_trait;
use ggnet_core::{
    nouns::{Iqn, ResourceId},
    ports::{Access, Login, LoginGate, LoginVerdict, NullObserver, Observation, Observer, SpecDigest},
};

use crate::iscsi::{
    Chap, ChapPair, CloseReason, Exclusivity, LoginAbort, LoginDecision, LoginInfo, LoginPolicy,
    LoginRequest, Secret, SessionEvent, SessionInfo, SessionObserver,
};

/// A target as it is served.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) id: ResourceId,
    /// Of the whole spec.
    pub(super) digest: SpecDigest,
    /// Of the disks alone.
    pub(super) disks: SpecDigest,
    pub(super) access: Access,
}

/// The access rules of every target that is served, by name.
#[derive(Default)]
pub(super) struct Targets {
    served: RwLock<HashMap<String, Served>>,
    gate: OnceLock<Arc<dyn LoginGate>>,
    observer: OnceLock<Arc<dyn Observer>>,
}

impl Targets {
    pub(super) fn attach(&self, gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>) {
        // The port's contract: once.
        let _ = self.gate.set(gate);
        let _ = self.observer.set(observer);
    }

    pub(super) fn observer(&self) -> Arc<dyn Observer> {
        self.observer.get().cloned().unwrap_or_else(|| Arc::new(NullObserver))
    }

    pub(super) fn get(&self, iqn: &Iqn) -> Option<Served> {
        self.named(iqn.as_str())
    }

    pub(super) fn set(&self, iqn: &Iqn, served: Served) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).insert(iqn.to_string(), served);
    }

    pub(super) fn forget(&self, iqn: &Iqn) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).remove(iqn.as_str());
    }

    fn named(&self, iqn: &str) -> Option<Served> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).get(iqn).cloned()
    }
}

fn pair(pair: &ggnet_core::nouns::ChapPair) -> ChapPair {
    ChapPair { user: pair.user.clone(), secret: Secret::new(pair.secret.expose()) }
}

#[async_trait]
impl LoginPolicy for Targets {
    async fn decide(&self, request: &LoginRequest) -> LoginDecision {
        if !self.gate.get().is_some_and(|g| g.serving()) {
            return LoginDecision::NotReady;
        }
        let Some(target) = &request.target else {
            // Discovery: what is told depends on the name alone and is worth nothing without the secret.
            return LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared };
        };
        match self.named(target).map(|t| t.access) {
            None => LoginDecision::NotFound,
            Some(Access::Shared) => {
                LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared }
            }
            Some(Access::Initiator { name, .. }) if name.as_str() != request.initiator => {
                LoginDecision::Refused
            }
            Some(Access::Initiator { chap, mutual, .. }) => LoginDecision::Accept {
                chap: match (chap.as_ref().map(pair), mutual.as_ref().map(pair)) {
                    (Some(initiator), Some(target)) => Chap::Mutual { initiator, target },
                    (Some(initiator), None) => Chap::OneWay(initiator),
                    // What has no secret of the initiator has none of the target: `Access::check`.
                    (None, _) => Chap::None,
                },
                exclusivity: Exclusivity::ByInitiatorName,
            },
        }
    }

    async fn authenticated(&self, login: &LoginInfo) -> Result<(), LoginAbort> {
        // Discovery has no target and commits nothing.
        let Some(target) = &login.request.target else { return Ok(()) };
        let (Some(gate), Some(served)) = (self.gate.get(), self.named(target)) else {
            return Err(LoginAbort::Retry);
        };
        let login =
            Login { target: served.id, initiator: login.request.initiator.clone(), peer: login.request.peer };
        match gate.login(login).await {
            LoginVerdict::Accept => Ok(()),
            LoginVerdict::Retry => Err(LoginAbort::Retry),
            LoginVerdict::Refuse => Err(LoginAbort::Refuse),
        }
    }

    async fn discover(&self, request: &LoginRequest) -> Vec<String> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let may = |t: &Served| match &t.access {
            Access::Shared => true,
            Access::Initiator { name, .. } => name.as_str() == request.initiator,
        };
        let mut names: Vec<String> =
            served.iter().filter(|(_, t)| may(t)).map(|(iqn, _)| iqn.clone()).collect();
        names.sort_unstable();
        names
    }
}

impl SessionObserver for Targets {
    fn observe(&self, event: SessionEvent) {
        let Some(observer) = self.observer.get() else { return };
        let id = |s: &SessionInfo| s.target.as_deref().and_then(|t| self.named(t)).map(|t| t.id);
        let seen = match &event {
            SessionEvent::LoggedIn(s) => id(s)
                .zip(s.initiator.parse().ok())
                .map(|(target, initiator)| Observation::LoggedIn { target, initiator, peer: s.peer }),
            SessionEvent::FirstRead(s) => id(s).map(|target| Observation::FirstRead { target }),
            SessionEvent::FirstWrite(s) => id(s).map(|target| Observation::FirstWrite { target }),
            // The machine is on: its own newer login took the place.
            SessionEvent::Disconnected { reason: CloseReason::Replaced, .. } => None,
            SessionEvent::Disconnected { session, reason } => {
                id(session).map(|target| Observation::Disconnected { target, reason: format!("{reason:?}") })
            }
        };
        if let Some(seen) = seen {
            observer.observe(seen);
        }
    }
}

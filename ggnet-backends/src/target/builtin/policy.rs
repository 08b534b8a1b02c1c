//! Decides who may log in to which target: the access rules of the spec, then the verdict of the gate. Also finds the target of an
//! initiator that disconnected before it sent a name.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use async_trait::async_trait;
use ggnet_core::{
    nouns::Iqn,
    ports::{
        Access, Login, LoginGate, LoginVerdict, NullObserver, Observation, Observer, SpecDigest, TargetSpec,
    },
};
use ggnet_iscsi::{
    Chap, ChapPair, CloseReason, Exclusivity, LoginAbort, LoginDecision, LoginInfo, LoginPolicy,
    LoginRequest, Secret, SessionEvent, SessionInfo, SessionObserver,
};

use super::gone::Gone;

/// A served target.
#[derive(Clone)]
pub(super) struct ServedTarget {
    pub(super) spec: TargetSpec,
    /// The digest of the whole spec.
    pub(super) digest: SpecDigest,
    /// The digest of the disks only.
    pub(super) disks: SpecDigest,
}

/// The last session of a target.
#[derive(Clone, Copy)]
struct Last {
    address: IpAddr,
    /// The number of current sessions.
    sessions: usize,
}

/// The access rules of all served targets, by name.
#[derive(Default)]
pub(super) struct Targets {
    served: RwLock<HashMap<String, ServedTarget>>,
    /// Served targets that had a session.
    last: Mutex<HashMap<String, Last>>,
    gone: Gone,
    gate: OnceLock<Arc<dyn LoginGate>>,
    observer: OnceLock<Arc<dyn Observer>>,
}

impl Targets {
    pub(super) fn attach(&self, gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>) {
        // Only once, according to the port's contract.
        let _ = self.gate.set(gate);
        let _ = self.observer.set(observer);
    }

    pub(super) fn observer(&self) -> Arc<dyn Observer> {
        self.observer.get().cloned().unwrap_or_else(|| Arc::new(NullObserver))
    }

    pub(super) fn get(&self, iqn: &Iqn) -> Option<ServedTarget> {
        self.named(iqn.as_str())
    }

    pub(super) fn set(&self, iqn: &Iqn, served: ServedTarget) {
        self.gone.forget(iqn.as_str());
        self.served.write().unwrap_or_else(PoisonError::into_inner).insert(iqn.to_string(), served);
    }

    pub(super) fn forget(&self, iqn: &Iqn) {
        let served = self.served.write().unwrap_or_else(PoisonError::into_inner).remove(iqn.as_str());
        if let Some(served) = served {
            let initiator = match served.spec.access {
                Access::Initiator { name, .. } => Some(name.to_string()),
                Access::Shared => None,
            };
            self.gone.add(iqn.as_str(), served.spec.id, initiator);
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(iqn.as_str());
    }

    /// Remembers a session. Nothing is remembered for a target that is no longer served.
    fn remember(&self, session: &SessionInfo, begins: bool) {
        let Some(target) = session.target.as_deref() else { return };
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if begins && served.contains_key(target) {
            let entry =
                last.entry(target.to_owned()).or_insert(Last { address: session.peer.ip(), sessions: 0 });
            *entry = Last { address: session.peer.ip(), sessions: entry.sessions + 1 };
        } else if let Some(entry) = last.get_mut(target) {
            entry.sessions = entry.sessions.saturating_sub(1);
        }
    }

    /// The target to which this address was logged in and no longer is; `None` if there are several (machines behind one router).
    fn lost_by(&self, address: IpAddr) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lost = last.iter().filter(|(_, l)| l.address == address && l.sessions == 0);
        let (target, _) = lost.next()?;
        lost.next().is_none().then(|| target.clone())
    }

    fn named(&self, iqn: &str) -> Option<ServedTarget> {
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
            // Discovery: the response depends only on the name and is of no use without the secret.
            return LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared };
        };
        match self.named(target).map(|t| t.spec.access) {
            None => {
                if let (Some(target), Some(observer)) =
                    (self.gone.asked_for(target, &request.initiator), self.observer.get())
                {
                    observer.observe(Observation::LoginTooLate { target, peer: request.peer });
                }
                LoginDecision::NotFound
            }
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
                    // Without a secret of the initiator there is no secret of the target: see `Access::check`.
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
        let login = Login {
            target: served.spec.id,
            initiator: login.request.initiator.clone(),
            peer: login.request.peer,
        };
        match gate.login(login).await {
            LoginVerdict::Accept => Ok(()),
            LoginVerdict::Retry => Err(LoginAbort::Retry),
            LoginVerdict::Refuse => Err(LoginAbort::Refuse),
        }
    }

    async fn discover(&self, request: &LoginRequest) -> Vec<String> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let may = |t: &ServedTarget| match &t.spec.access {
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
        match &event {
            SessionEvent::LoggedIn(session) => self.remember(session, true),
            SessionEvent::Disconnected { session, .. } => self.remember(session, false),
            _ => {}
        }
        let Some(observer) = self.observer.get() else { return };
        let id = |s: &SessionInfo| s.target.as_deref().and_then(|t| self.named(t)).map(|t| t.spec.id);
        let seen = match &event {
            SessionEvent::LoggedIn(s) => id(s)
                .zip(s.initiator.parse().ok())
                .map(|(target, initiator)| Observation::LoggedIn { target, initiator, peer: s.peer }),
            SessionEvent::FirstRead(s) => id(s).map(|target| Observation::FirstRead { target }),
            SessionEvent::FirstWrite(s) => id(s).map(|target| Observation::FirstWrite { target }),
            // The machine is running: its own newer login replaced the session.
            SessionEvent::Disconnected { reason: CloseReason::Replaced, .. } => None,
            SessionEvent::Disconnected { session, reason } => {
                id(session).map(|target| Observation::Disconnected { target, reason: format!("{reason:?}") })
            }
            // iscsid disconnects before it sends anything: then only the address identifies the target.
            SessionEvent::LoginStalled { peer, target } => target
                .clone()
                .or_else(|| self.lost_by(peer.ip()))
                .and_then(|target| self.named(&target))
                .map(|target| Observation::LoginStalled { target: target.spec.id, peer: *peer }),
        };
        if let Some(seen) = seen {
            observer.observe(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use ggnet_core::nouns::ResourceId;

    use super::*;
    use ggnet_iscsi::SessionId;

    fn name(n: u8) -> Iqn {
        format!("iqn.2026-01.org.example:{n}").parse().unwrap()
    }

    fn shared(id: &ResourceId, iqn: Iqn) -> TargetSpec {
        TargetSpec { id: id.clone(), iqn, luns: vec![], access: Access::Shared }
    }

    fn session(n: u8, address: &str) -> SessionInfo {
        let peer: SocketAddr = format!("{address}:4000").parse().unwrap();
        SessionInfo {
            id: SessionId(n.into()),
            target: Some(name(n).to_string()),
            initiator: "iqn.2026-01.org.example:pc".to_owned(),
            isid: [0; 6],
            peer,
            local: peer,
            age: Duration::ZERO,
            counters: Default::default(),
        }
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<Observation>>);

    impl Observer for Heard {
        fn observe(&self, what: Observation) {
            self.0.lock().unwrap().push(what);
        }
    }

    struct Open;

    #[async_trait]
    impl LoginGate for Open {
        fn serving(&self) -> bool {
            true
        }

        async fn login(&self, _: Login) -> LoginVerdict {
            LoginVerdict::Accept
        }
    }

    #[tokio::test]
    async fn whoever_asks_for_a_target_that_is_gone_is_told_of_once() {
        let (targets, heard) = (Targets::default(), Arc::new(Heard::default()));
        targets.attach(Arc::new(Open), Arc::clone(&heard) as _);
        let digest = SpecDigest::of(std::iter::empty());
        let id: ResourceId = "t1".parse().unwrap();
        targets.set(&name(1), ServedTarget { spec: shared(&id, name(1)), digest, disks: digest });
        let peer: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let asks = async |n: u8| {
            let target = Some(name(n).to_string());
            let initiator = "iqn.2026-01.org.example:pc".to_owned();
            targets.decide(&LoginRequest { target, initiator, peer, local: peer }).await
        };
        assert!(matches!(asks(1).await, LoginDecision::Accept { .. }));
        targets.forget(&name(1));
        for _ in 0..10 {
            assert!(matches!(asks(1).await, LoginDecision::NotFound));
            assert!(matches!(asks(2).await, LoginDecision::NotFound), "never heard of it");
        }
        let heard = heard.0.lock().unwrap();
        assert!(
            matches!(&heard[..], [Observation::LoginTooLate { target, peer: p }] if *target == id && *p == peer)
        );
    }

    #[test]
    fn a_silent_login_is_of_the_only_target_that_its_address_has_lost() {
        let targets = Targets::default();
        let digest = SpecDigest::of(std::iter::empty());
        for n in 1..=3 {
            let id = format!("t{n}").parse().unwrap();
            targets.set(&name(n), ServedTarget { spec: shared(&id, name(n)), digest, disks: digest });
        }
        let (here, there) = (session(1, "192.0.2.1"), session(2, "192.0.2.2"));
        let begins = |s: &SessionInfo| targets.observe(SessionEvent::LoggedIn(s.clone()));
        let ends = |s: &SessionInfo, reason| {
            targets.observe(SessionEvent::Disconnected { session: s.clone(), reason });
        };
        let lost_by = |address: &str| targets.lost_by(address.parse().unwrap());
        begins(&here);
        begins(&there);
        assert_eq!(lost_by("192.0.2.1"), None, "it is logged in");
        // The newer login replaces the session before the older one ends.
        begins(&here);
        ends(&here, CloseReason::Replaced);
        assert_eq!(lost_by("192.0.2.1"), None);
        ends(&here, CloseReason::ConnectionLost);
        assert_eq!(lost_by("192.0.2.1"), Some(name(1).to_string()));
        assert_eq!(lost_by("192.0.2.3"), None);
        // Behind one router it is unknown which of the two machines it is.
        let neighbour = session(3, "192.0.2.1");
        begins(&neighbour);
        ends(&neighbour, CloseReason::ConnectionLost);
        assert_eq!(lost_by("192.0.2.1"), None);
        targets.forget(&name(3));
        assert_eq!(lost_by("192.0.2.1"), Some(name(1).to_string()));
        targets.forget(&name(1));
        // A session that ends after its target was removed is not remembered again.
        ends(&here, CloseReason::TargetRemoved);
        begins(&here);
        assert_eq!(lost_by("192.0.2.1"), None);
        assert_eq!(targets.last.lock().unwrap().len(), 1);
    }
}

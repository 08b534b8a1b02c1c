//! Observations become boot stages, and who is online is remembered.
//!
//! Backends call [`Observer::observe`] from their data paths, so it only puts the observation into a bounded queue
//! ([`super::observation_queue`]); one task writes the queue to the store, many observations in one transaction. What finds no place is
//! dropped and counted: a boot timeline with a hole is better than a disk that waits.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Inner, Orchestrator, observation_queue::Seen};
use crate::{
    error::Result,
    nouns::{
        BootStage, Diagnosis, EventKind, Firmware, MacAddr, Machine, MachineId, NewEvent, ResourceId,
        SeenMachine, SessionId, SessionState, Timestamp,
    },
    ports::{Batch, Login, LoginGate, LoginVerdict, Observation, Observer, Write},
};

/// Longest diagnosis, in characters: it may quote what a packet claims.
const DIAGNOSIS: usize = 400;

/// How often a timeline explains a login that the same initiator tries again and again.
const EXPLAINED_EVERY: Duration = Duration::from_secs(3600);
const STALLED: &str = "The machine connected to its disk again and stopped in its login. Most often its iscsid waits for OpenSSL's \
    configuration, a file on this very disk; within two minutes its root is read-only. Put the guest kit into its image \
    (`ggnet guest-kit debian --help`) and start it again. On a trusted network session.chap = \"off\" in the server's configuration is \
    another cure";
/// Of a machine whose login asks for no CHAP, which needs no OpenSSL.
const STALLED_WITHOUT_CHAP: &str = "The machine connected to its disk again and stopped in its login, which asks for no CHAP. Look \
    whether it still runs, and whether the network loses packets";

/// Between two looks at who is online: no pause yet, whatever the interval; a busy host is late by as much.
const SHORT_PAUSE: Duration = Duration::from_secs(5);

/// When each live session was last seen with an initiator.
#[derive(Default)]
pub(super) struct OnlineSince {
    sessions: Mutex<HashMap<SessionId, Presence>>,
    /// When the targets last said who is online.
    looked: Mutex<Option<Instant>>,
    /// When a login was last explained. Only of registered machines.
    explained: Mutex<HashMap<Explained, Instant>>,
    /// When each machine last asked for its boot script; small, and only for the suspicion of Secure Boot.
    scripts: Mutex<HashMap<MacAddr, Instant>>,
}

/// What a timeline explains at most once in [`EXPLAINED_EVERY`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Explained {
    /// That the session's machine stalls in its login.
    Stalled(SessionId),
    /// That somebody asks for a disk that the machine lost.
    TooLate(MachineId),
}

#[derive(Clone, Copy)]
struct Presence {
    online: bool,
    last: Instant,
}

impl OnlineSince {
    pub(super) fn seen(&self, session: SessionId) {
        self.update(session, true);
    }

    /// Marks the session online or not; going or staying offline keeps the time it was last online. Returns for how long it has
    /// been offline.
    pub(super) fn update(&self, session: SessionId, online: bool) -> Duration {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let entry = sessions.entry(session).or_insert(Presence { online, last: now });
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

    /// Whether it may be explained now; then not again for [`EXPLAINED_EVERY`].
    fn may_explain(&self, what: Explained) -> bool {
        let mut explained = self.explained.lock().unwrap_or_else(PoisonError::into_inner);
        explained.retain(|_, at| at.elapsed() < EXPLAINED_EVERY);
        let may = !explained.contains_key(&what);
        if may {
            explained.insert(what, Instant::now());
        }
        may
    }

    pub(super) fn count(&self) -> u64 {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.values().filter(|p| p.online).count() as u64
    }

    pub(super) fn is_online(&self, session: SessionId) -> bool {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&session).is_some_and(|p| p.online)
    }

    pub(super) fn script_asked(&self, mac: MacAddr) {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if scripts.len() > 10_000 {
            scripts.retain(|_, at| at.elapsed() < Duration::from_secs(300));
        }
        scripts.insert(mac, Instant::now());
    }

    fn script_asked_after(&self, mac: MacAddr, since: Instant) -> bool {
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        scripts.get(&mac).is_some_and(|at| *at >= since)
    }

    pub(super) fn forget(&self, session: SessionId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }
}

/// What backends hold of the orchestrator, which holds them: weak, so that the two do not keep each other alive for ever.
struct Handle {
    inner: Weak<Inner>,
}

impl Handle {
    fn orchestrator(&self) -> Option<Orchestrator> {
        self.inner.upgrade().map(|inner| Orchestrator { inner })
    }
}

impl Observer for Handle {
    fn observe(&self, what: Observation) {
        if let Some(orchestrator) = self.orchestrator() {
            orchestrator.observe(what);
        }
    }
}

#[async_trait]
impl LoginGate for Handle {
    fn serving(&self) -> bool {
        self.orchestrator().is_some_and(|o| o.is_serving())
    }

    async fn login(&self, login: Login) -> LoginVerdict {
        match self.orchestrator() {
            Some(orchestrator) => orchestrator.login(login).await,
            None => LoginVerdict::Retry,
        }
    }
}

impl Observer for Orchestrator {
    fn observe(&self, what: Observation) {
        if !self.inner.observations.push(Seen { at: self.now(), what }) {
            self.inner.ports.metrics().observation_dropped();
        }
    }
}

/// How long after its own request for an address a machine's loader is taken for fetched by itself.
const OWN_TRACE: Duration = Duration::from_secs(60);

/// What machines that are about to boot have done. Only of registered ones.
#[derive(Default)]
struct Waiting {
    /// When a machine was offered an address. Anybody can fetch a file that is named after it; only it asks for an address in its name.
    offered: HashMap<MacAddr, Instant>,
    /// Machines that got their loader and have not asked for a script yet.
    loaded: HashMap<MacAddr, Loaded>,
}

/// A machine that got its loader.
struct Loaded {
    /// When; from the moment its loader asks for an address, that moment.
    since: Instant,
    machine: MachineId,
    /// Whether the loader is one for UEFI, which Secure Boot may have refused to start.
    efi: bool,
    /// Whether the loader has asked for an address: it runs.
    runs: bool,
}

impl Orchestrator {
    /// Attaches to the backends and starts the task that writes observations.
    pub(super) fn attach(&self) {
        let p = &self.inner.ports;
        let handle = || Arc::new(Handle { inner: Arc::downgrade(&self.inner) });
        p.target().attach(handle(), handle());
        p.dhcp().attach(handle());
        p.boot_files().attach(handle());
        let writer = self.clone();
        self.inner.long_lived.keep("the writer of observations", move || {
            let (writer, cut) = (writer.clone(), writer.inner.cut.clone());
            async move {
                cut.run_until_cancelled_owned(writer.write_observations()).await;
            }
        });
    }

    async fn write_observations(&self) {
        let mut waiting = Waiting::default();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut many = Vec::with_capacity(256);
        loop {
            let mut batch = Batch::new();
            let mut first = None;
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = self.inner.observations.take(&mut many, 256) => {
                    // Held until the batch is recorded: see `answer_unknown`.
                    first = Some(self.inner.seen_lock.lock().await);
                    for seen in many.drain(..) {
                        match self.translate(seen, &mut waiting).await {
                            Ok((event, write)) => {
                                // The store does not know yet what this batch is about to tell it.
                                let told = event.as_ref().is_some_and(|e| {
                                    matches!(e.kind, EventKind::MachineSeen { .. })
                                        && batch.events.iter().any(|b| b.kind == e.kind)
                                });
                                batch.events.extend(event.filter(|e| !told && self.may_be_recorded(e)));
                                batch.writes.extend(write);
                            }
                            Err(e) => tracing::warn!(error = %e.report(), "observation lost"),
                        }
                    }
                }
                _ = tick.tick() => self.suspect_secure_boot(&mut waiting, &mut batch),
            }
            if (!batch.events.is_empty() || !batch.writes.is_empty())
                && let Err(e) = self.record(batch).await
            {
                tracing::warn!(error = %e.report(), "observations lost");
            }
            drop(first);
        }
    }

    /// What disks have trouble with is told once for each trouble; all else can be caused by a packet.
    fn may_be_recorded(&self, event: &NewEvent) -> bool {
        match event.machine {
            Some(machine) if !matches!(event.kind, EventKind::DiskTrouble { .. }) => {
                self.inner.strangers.of_machine(machine)
            }
            _ => true,
        }
    }

    async fn translate(
        &self,
        seen: Seen,
        waiting: &mut Waiting,
    ) -> Result<(Option<NewEvent>, Option<Write>)> {
        let at = seen.at;
        let stage = |stage| EventKind::BootStage { stage, generation: None };
        let of_machine = |machine: &Machine, kind| Some(NewEvent::new(at, kind).machine(machine.id));
        Ok(match seen.what {
            Observation::AddressOffered { mac, ipxe, .. } => match self.machine_of(mac).await? {
                Some(machine) => match waiting.loaded.get_mut(&mac) {
                    // The loader asks again, for the script's URL; the machine was offered its address once. A card whose
                    // own ROM is iPXE asks like this first, with no loader before it.
                    Some(loaded) if ipxe => {
                        if !loaded.runs {
                            (loaded.since, loaded.runs) = (Instant::now(), true);
                        }
                        (None, None)
                    }
                    _ => {
                        waiting.loaded.remove(&mac);
                        waiting.offered.insert(mac, Instant::now());
                        (of_machine(&machine, stage(BootStage::AddressOffered)), None)
                    }
                },
                None => (None, None),
            },
            Observation::UnknownAsked { .. } if !self.inner.strangers.unknown() => (None, None),
            Observation::UnknownAsked { mac, firmware } => self.unknown_seen(mac, firmware, None, at).await?,
            Observation::NotAnswered { mac, reason } => match self.machine_of(mac).await? {
                Some(machine) => {
                    let message: String = reason.chars().take(DIAGNOSIS).collect();
                    let diagnosis = Diagnosis::not_answered(&message);
                    (of_machine(&machine, diagnosed(diagnosis, message)), None)
                }
                None => (None, None),
            },
            Observation::BootFileSent { mac: Some(mac), path, .. } => match self.machine_of(mac).await? {
                Some(machine) => {
                    let own = waiting.offered.remove(&mac).is_some_and(|at| at.elapsed() < OWN_TRACE);
                    // Who does not hear the requests for addresses cannot tell the machine from somebody else.
                    if own || !self.inner.ports.dhcp().capabilities().observes {
                        let efi = path.ends_with(".efi");
                        let loaded = Loaded { since: Instant::now(), machine: machine.id, efi, runs: false };
                        waiting.loaded.insert(mac, loaded);
                    }
                    (of_machine(&machine, stage(BootStage::LoaderSent)), None)
                }
                None => (None, None),
            },
            Observation::BootFileSent { mac: None, .. } => (None, None),
            Observation::LoggedIn { target, .. } => {
                (self.disk_stage(at, &target, BootStage::IscsiLogin).await?, None)
            }
            Observation::FirstRead { target } => {
                (self.disk_stage(at, &target, BootStage::FirstRead).await?, None)
            }
            Observation::FirstWrite { target } => {
                (self.disk_stage(at, &target, BootStage::FirstWrite).await?, None)
            }
            Observation::Disconnected { target, .. } => {
                (self.disk_stage(at, &target, BootStage::Disconnected).await?, None)
            }
            Observation::LoginStalled { target, .. } => (self.login_stalled(at, &target).await?, None),
            Observation::LoginTooLate { target, peer } => {
                (self.login_too_late(at, &target, peer).await?, None)
            }
            Observation::DiskTrouble { target, message } => match target.owner() {
                Some((machine, _)) => {
                    (Some(NewEvent::new(at, EventKind::DiskTrouble { message }).machine(machine)), None)
                }
                None => (Some(NewEvent::new(at, EventKind::DiskTrouble { message })), None),
            },
        })
    }

    async fn disk_stage(
        &self,
        at: Timestamp,
        target: &ResourceId,
        stage: BootStage,
    ) -> Result<Option<NewEvent>> {
        let Some((machine, generation)) = target.owner() else { return Ok(None) };
        let mut event = NewEvent::new(at, EventKind::BootStage { stage, generation }).machine(machine);
        if let Some(session) = self.inner.ports.store().live_session(machine).await? {
            event = event.session(session.id).image(session.current.system().image);
        }
        Ok(Some(event))
    }

    /// A machine that had its disk and does not get it back: none when the target is not the one that it runs on.
    async fn login_stalled(&self, at: Timestamp, target: &ResourceId) -> Result<Option<NewEvent>> {
        let Some((machine, Some(number))) = target.owner() else { return Ok(None) };
        let Some(session) = self.inner.ports.store().live_session(machine).await? else { return Ok(None) };
        let current = &session.current;
        if session.state != SessionState::Active || current.number != number || current.committed_at.is_none()
        {
            return Ok(None);
        }
        // Whoever stops in a login while the machine has its disk is not that machine.
        if self.has_initiator(&session).await?
            || !self.inner.online.may_explain(Explained::Stalled(session.id))
        {
            return Ok(None);
        }
        let (diagnosis, message) = match &current.chap {
            Some(_) => (Diagnosis::login_stalled(), STALLED),
            None => (Diagnosis::login_stalled_without_chap(), STALLED_WITHOUT_CHAP),
        };
        let event = NewEvent::new(at, diagnosed(diagnosis, message.to_owned()));
        Ok(Some(event.machine(machine).session(session.id).image(current.system().image)))
    }

    /// Somebody still runs on a disk that a later boot, or a stop, took away. Told once an hour for a machine.
    async fn login_too_late(
        &self,
        at: Timestamp,
        target: &ResourceId,
        peer: SocketAddr,
    ) -> Result<Option<NewEvent>> {
        let Some((machine, Some(number))) = target.owner() else { return Ok(None) };
        let store = self.inner.ports.store();
        if store.machine(machine).await?.is_none() {
            return Ok(None);
        }
        let from = peer.ip();
        let (diagnosis, message) = match store.live_session(machine).await? {
            Some(session) if number < session.current.number && self.inner.online.is_online(session.id) => {
                let current = session.current.number;
                let message = format!(
                    "{from} still asks for the disk of boot {number}, and this machine runs on that of boot {current}: most \
                     likely two machines boot with one MAC address, and the one at {from} has lost its disk"
                );
                (Diagnosis::disk_taken_over(from, number, current), message)
            }
            // It is about to start, or was cut short: nobody else has its place.
            Some(_) => return Ok(None),
            None => {
                let message = format!(
                    "{from} still asks for its disk, and its session was stopped: the machine still runs, or thinks so. Switch it \
                     off or start it anew"
                );
                (Diagnosis::session_was_stopped(from), message)
            }
        };
        if !self.inner.online.may_explain(Explained::TooLate(machine)) {
            return Ok(None);
        }
        Ok(Some(NewEvent::new(at, diagnosed(diagnosis, message)).machine(machine)))
    }

    async fn machine_of(&self, mac: MacAddr) -> Result<Option<Machine>> {
        self.inner.ports.store().machine_by_mac(mac).await
    }

    /// Remembers an unknown machine; the first sight is an event.
    pub(super) async fn unknown_seen(
        &self,
        mac: MacAddr,
        firmware: Firmware,
        address: Option<String>,
        at: Timestamp,
    ) -> Result<(Option<NewEvent>, Option<Write>)> {
        let known = self.inner.ports.store().seen_machine(mac).await?.is_some();
        let event = (!known && self.inner.strangers.first_sight())
            .then(|| NewEvent::new(at, EventKind::MachineSeen { mac }));
        let seen = SeenMachine { mac, firmware, address, first_seen: at, last_seen: at, count: 1 };
        Ok((event, Some(Write::Seen(seen))))
    }

    fn suspect_secure_boot(&self, waiting: &mut Waiting, batch: &mut Batch) {
        let deadline = self.inner.config.script_deadline;
        waiting.offered.retain(|_, at| at.elapsed() < OWN_TRACE);
        waiting.loaded.retain(|mac, loaded| {
            if self.inner.online.script_asked_after(*mac, loaded.since) {
                return false;
            }
            if loaded.since.elapsed() < deadline {
                return true;
            }
            let seconds = deadline.as_secs();
            let (diagnosis, message) = if loaded.runs {
                let message = format!(
                    "The loader of {mac} started and asked for no boot script within {seconds} s: it probably does not \
                     reach the HTTP server. Look whether a firewall closes its port"
                );
                (Diagnosis::http_not_reached(mac, seconds), message)
            } else if loaded.efi {
                let message = format!(
                    "{mac} fetched its UEFI loader and asked for no boot script within {seconds} s: Secure Boot is probably \
                     on. Switch it off in the firmware's setup, or give this machine a signed loader"
                );
                (Diagnosis::secure_boot_likely(mac, seconds), message)
            } else {
                return false;
            };
            batch.events.push(self.event(diagnosed(diagnosis, message)).machine(loaded.machine));
            false
        });
    }
}

const fn diagnosed(diagnosis: Diagnosis, message: String) -> EventKind {
    EventKind::BootDiagnosis { message, diagnosis: Some(diagnosis) }
}

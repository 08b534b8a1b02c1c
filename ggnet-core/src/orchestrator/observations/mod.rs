//! [`Observations`] become boot stages.
//!
//! Backends call [`Observer::observe`] from their data paths, so it only puts the observation into a bounded queue
//! ([`queue`]); one task writes the queue to the store, many observations in one transaction. What finds no place is
//! dropped and counted: a boot timeline with a hole is better than a disk that waits.

mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use self::queue::{ObservationQueue, Seen};
use super::{
    diagnoses::{Diagnoses, diagnosed},
    presence::Presence,
    shared::Shared,
};
use crate::{
    error::Result,
    nouns::{BootStage, Diagnosis, EventKind, MacAddr, Machine, MachineId, NewEvent, ResourceId, Timestamp},
    ports::{Batch, Observation, Observer, Write},
};

/// Longest diagnosis, in characters: it may quote what a packet claims.
const DIAGNOSIS: usize = 400;

/// What backends hold of us, who hold them: weak, so that the two do not keep each other alive for ever.
struct Handle(Weak<Observations>);

impl Observer for Handle {
    fn observe(&self, what: Observation) {
        if let Some(observations) = self.0.upgrade() {
            observations.observe(what);
        }
    }
}

/// The way of observations from the backends to the store.
pub(super) struct Observations {
    shared: Arc<Shared>,
    presence: Arc<Presence>,
    diagnoses: Arc<Diagnoses>,
    queue: ObservationQueue,
}

impl Observer for Observations {
    fn observe(&self, what: Observation) {
        if !self.queue.push(Seen { at: self.shared.now(), what }) {
            self.shared.ports.metrics().observation_dropped();
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

impl Observations {
    pub(super) fn new(shared: Arc<Shared>, presence: Arc<Presence>, diagnoses: Arc<Diagnoses>) -> Self {
        Self { shared, presence, diagnoses, queue: ObservationQueue::default() }
    }

    /// What a backend is given, to tell what it observes.
    pub(super) fn observer(self: &Arc<Self>) -> Arc<dyn Observer> {
        Arc::new(Handle(Arc::downgrade(self)))
    }

    /// Writes what is observed, until the shutdown.
    pub(super) async fn write_until_shutdown(&self) {
        let mut waiting = Waiting::default();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut many = Vec::with_capacity(256);
        loop {
            let mut batch = Batch::new();
            let mut first = None;
            tokio::select! {
                () = self.shared.cancel.cancelled() => return,
                () = self.queue.take(&mut many, 256) => {
                    // Held until the batch is recorded: see `answer_unknown`.
                    first = Some(self.diagnoses.lock_sights().await);
                    for seen in many.drain(..) {
                        match self.translate(seen, &mut waiting).await {
                            Ok((event, write)) => {
                                // The store does not know yet what this batch is about to tell it.
                                let told = event.as_ref().is_some_and(|e| {
                                    matches!(e.kind, EventKind::MachineSeen { .. })
                                        && batch.events.iter().any(|b| b.kind == e.kind)
                                });
                                batch.events.extend(event.filter(|e| !told && self.diagnoses.may_be_recorded(e)));
                                batch.writes.extend(write);
                            }
                            Err(e) => tracing::warn!(error = %e.report(), "observation lost"),
                        }
                    }
                }
                _ = tick.tick() => self.suspect_secure_boot(&mut waiting, &mut batch),
            }
            if (!batch.events.is_empty() || !batch.writes.is_empty())
                && let Err(e) = self.shared.record(batch).await
            {
                tracing::warn!(error = %e.report(), "observations lost");
            }
            drop(first);
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
            Observation::UnknownAsked { .. } if !self.diagnoses.may_record_sight() => (None, None),
            Observation::UnknownAsked { mac, firmware } => {
                self.diagnoses.unknown_seen(mac, firmware, None, at).await?
            }
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
                    if own || !self.shared.ports.dhcp().capabilities().observes {
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
            Observation::LoginStalled { target, .. } => {
                (self.diagnoses.login_stalled(at, &target).await?, None)
            }
            Observation::LoginTooLate { target, peer } => {
                (self.diagnoses.login_too_late(at, &target, peer).await?, None)
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
        if let Some(session) = self.shared.store().live_session(machine).await? {
            event = event.session(session.id).image(session.current.system().image);
        }
        Ok(Some(event))
    }

    async fn machine_of(&self, mac: MacAddr) -> Result<Option<Machine>> {
        self.shared.store().machine_by_mac(mac).await
    }

    fn suspect_secure_boot(&self, waiting: &mut Waiting, batch: &mut Batch) {
        let deadline = self.shared.config.script_deadline;
        waiting.offered.retain(|_, at| at.elapsed() < OWN_TRACE);
        waiting.loaded.retain(|mac, loaded| {
            if self.presence.script_asked_after(*mac, loaded.since) {
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
            batch.events.push(self.shared.event(diagnosed(diagnosis, message)).machine(loaded.machine));
            false
        });
    }
}

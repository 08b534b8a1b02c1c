//! [`Diagnoses`]: what a machine's timeline explains to people, and how much of what strangers cause is written down.

mod strangers;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::MutexGuard, time::Instant};

use self::strangers::Strangers;
use super::{presence::Presence, shared::Shared};
use crate::{
    error::{Error, Result},
    nouns::{
        Diagnosis, EventKind, Firmware, MacAddr, MachineId, NewEvent, ResourceId, SeenMachine, SessionId,
        SessionState, Timestamp,
    },
    ports::{Batch, Write},
};

/// How often a timeline explains a login that the same initiator tries again and again.
const EXPLAINED_EVERY: Duration = Duration::from_secs(3600);
const STALLED: &str = "The machine connected to its disk again and stopped in its login. Most often its iscsid waits for OpenSSL's \
    configuration, a file on this very disk; within two minutes its root is read-only. Put the guest kit into its image \
    (`ggnet guest-kit debian --help`) and start it again. On a trusted network session.chap = \"off\" in the server's configuration is \
    another cure";
/// Of a machine whose login asks for no CHAP, which needs no OpenSSL.
const STALLED_WITHOUT_CHAP: &str = "The machine connected to its disk again and stopped in its login, which asks for no CHAP. Look \
    whether it still runs, and whether the network loses packets";

/// What a timeline explains at most once in [`EXPLAINED_EVERY`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Explained {
    /// That the session's machine stalls in its login.
    Stalled(SessionId),
    /// That somebody asks for a disk that the machine lost.
    TooLate(MachineId),
}

/// What is explained, and what may be written.
pub struct Diagnoses {
    shared: Arc<Shared>,
    presence: Arc<Presence>,
    strangers: Strangers,
    /// When something was last explained. Only of registered machines.
    explained: Mutex<HashMap<Explained, Instant>>,
    /// Held from looking whether a MAC address was seen before until its sight is recorded.
    seen_lock: tokio::sync::Mutex<()>,
}

impl Diagnoses {
    pub(super) fn new(shared: Arc<Shared>, presence: Arc<Presence>) -> Self {
        Self {
            shared,
            presence,
            strangers: Strangers::default(),
            explained: Mutex::default(),
            seen_lock: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the sight of an unknown machine may be written.
    pub(super) fn may_record_sight(&self) -> bool {
        self.strangers.unknown()
    }

    /// Whether an event that a machine, or somebody in its name, has caused may be written.
    pub(super) fn may_record_of(&self, machine: MachineId) -> bool {
        self.strangers.of_machine(machine)
    }

    /// While it is held, of two sights of one MAC address only one is the first. Held until the sight is recorded.
    pub(super) async fn lock_sights(&self) -> MutexGuard<'_, ()> {
        self.seen_lock.lock().await
    }

    /// A failure that a machine's iPXE reports: an event, nothing else.
    pub async fn boot_failed(&self, mac: MacAddr, stage: String, errno: String) -> Result<()> {
        let machine = self.shared.store().machine_by_mac(mac).await?;
        let Some(machine) = machine else { return Err(Error::not_found("machine", mac)) };
        if !self.strangers.of_machine(machine.id) {
            return Ok(());
        }
        let event = self.shared.event(EventKind::BootFailed { stage, errno }).machine(machine.id);
        self.shared.record(Batch::new().event(event)).await.map(|_| ())
    }

    /// What disks have trouble with is told once for each trouble; all else can be caused by a packet.
    pub(super) fn may_be_recorded(&self, event: &NewEvent) -> bool {
        match event.machine {
            Some(machine) if !matches!(event.kind, EventKind::DiskTrouble { .. }) => {
                self.strangers.of_machine(machine)
            }
            _ => true,
        }
    }

    /// Remembers an unknown machine; the first sight is an event.
    pub(super) async fn unknown_seen(
        &self,
        mac: MacAddr,
        firmware: Firmware,
        address: Option<String>,
        at: Timestamp,
    ) -> Result<(Option<NewEvent>, Option<Write>)> {
        let known = self.shared.store().seen_machine(mac).await?.is_some();
        let event = (!known && self.strangers.first_sight())
            .then(|| NewEvent::new(at, EventKind::MachineSeen { mac }));
        let seen = SeenMachine { mac, firmware, address, first_seen: at, last_seen: at, count: 1 };
        Ok((event, Some(Write::Seen(seen))))
    }

    /// A machine that had its disk and does not get it back: none when the target is not the one that it runs on.
    pub(super) async fn login_stalled(&self, at: Timestamp, target: &ResourceId) -> Result<Option<NewEvent>> {
        let Some((machine, Some(number))) = target.owner() else { return Ok(None) };
        let Some(session) = self.shared.store().live_session(machine).await? else { return Ok(None) };
        let current = &session.current;
        if session.state != SessionState::Active || current.number != number || current.committed_at.is_none()
        {
            return Ok(None);
        }
        // Whoever stops in a login while the machine has its disk is not that machine.
        if self.presence.has_initiator(&session).await? || !self.may_explain(Explained::Stalled(session.id)) {
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
    pub(super) async fn login_too_late(
        &self,
        at: Timestamp,
        target: &ResourceId,
        peer: SocketAddr,
    ) -> Result<Option<NewEvent>> {
        let Some((machine, Some(number))) = target.owner() else { return Ok(None) };
        let store = self.shared.store();
        if store.machine(machine).await?.is_none() {
            return Ok(None);
        }
        let from = peer.ip();
        let (diagnosis, message) = match store.live_session(machine).await? {
            Some(session) if number < session.current.number && self.presence.is_online(session.id) => {
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
        if !self.may_explain(Explained::TooLate(machine)) {
            return Ok(None);
        }
        Ok(Some(NewEvent::new(at, diagnosed(diagnosis, message)).machine(machine)))
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
}

/// A diagnosis, as an event.
pub(super) const fn diagnosed(diagnosis: Diagnosis, message: String) -> EventKind {
    EventKind::BootDiagnosis { message, diagnosis: Some(diagnosis) }
}

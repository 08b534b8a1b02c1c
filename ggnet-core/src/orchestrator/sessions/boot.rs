//! The answer to a machine that asks for its boot script: [`decide`] is the rule, [`Sessions::boot`] carries it out.
//!
//! The HTTP server only translates it: a script, a retry, or 404 for no answer (which never happens to a known machine).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{
    Sessions,
    boot_request::{Advertised, BootAnswer, BootRequest},
    locked_machine::LockedMachine,
    pending::Turn,
};
use crate::{
    authorization::{Command, authorize},
    boot_text::{
        Host, SanUri,
        templates::{DeclinedScript, FirstScript, MachineScript, UnknownScript},
    },
    error::{Error, ErrorKind, Result, code},
    nouns::{
        BootStage, Diagnosis, EventKind, Generation, Machine, MachineId, MachineState, Name, NewEvent,
        Principal, Session, SessionState,
    },
    ports::{Batch, TargetEndpoint},
};

/// Why a known machine is sent to its next boot device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Declined {
    /// Its state is not active.
    NotActive(MachineState),
    /// No image is assigned.
    NoImage,
    /// It has no session, and auto start is off.
    NoAutoStart,
    /// What it should boot cannot be booted now; the reason is shown on its screen.
    NotReady(String),
}

impl Declined {
    /// The text for the machine's screen and the event.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::NotActive(state) => format!("this machine is set to {}", state.as_str()),
            Self::NoImage => "no image is assigned to this machine".to_owned(),
            Self::NoAutoStart => "no session is started for this machine, and auto start is off".to_owned(),
            Self::NotReady(why) => why.clone(),
        }
    }

    fn diagnosis(&self) -> Diagnosis {
        match self {
            Self::NotActive(state) => Diagnosis::set_to(state.as_str()),
            Self::NoImage => Diagnosis::no_image(),
            Self::NoAutoStart => Diagnosis::no_auto_start(),
            Self::NotReady(why) => Diagnosis::not_ready(why),
        }
    }
}

/// The result of [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is not registered: show its MAC address, record it, next boot device.
    Unknown,
    /// Next boot device.
    Declined(Declined),
    /// A start or stop is in progress: retry.
    Wait,
    /// Start a session.
    Start,
    /// Its live session's script: of the current generation if that is unused, otherwise of the next one.
    Continue,
}

/// The rule. `session` is the machine's live session.
#[must_use]
pub fn decide(machine: Option<&Machine>, session: Option<&Session>) -> Decision {
    let Some(machine) = machine else { return Decision::Unknown };
    if machine.state != MachineState::Active {
        return Decision::Declined(Declined::NotActive(machine.state));
    }
    match session.map(|s| s.state) {
        Some(SessionState::Starting | SessionState::Stopping) => Decision::Wait,
        // A live session boots the image that it was started with, also on a machine without an assigned image.
        Some(SessionState::Active) => Decision::Continue,
        Some(SessionState::Stopped | SessionState::Failed) | None if machine.image.is_none() => {
            Decision::Declined(Declined::NoImage)
        }
        Some(SessionState::Stopped | SessionState::Failed) | None if !machine.auto_start => {
            Decision::Declined(Declined::NoAutoStart)
        }
        Some(SessionState::Stopped | SessionState::Failed) | None => Decision::Start,
    }
}

impl Sessions {
    /// Answers a request for a boot script. Concurrent requests of one machine share one answer. A dropped request stops nothing.
    pub async fn boot(self: &Arc<Self>, request: BootRequest) -> Result<BootAnswer> {
        if !self.shared.is_serving() {
            return Ok(BootAnswer::Retry(Duration::from_secs(2)));
        }
        let wait = self.shared.config.boot_wait;
        let answer = async {
            match self.pending.turn(&request) {
                Turn::Make(making) => {
                    let this = Arc::clone(self);
                    // In a task of its own: after `boot_wait` the machine retries while the start continues.
                    let made = self.shared.run(async move {
                        let answer = this.answer(&request).await?;
                        making.done(&answer);
                        Ok(answer)
                    });
                    made.await
                }
                // The request that makes the answer gets its error.
                Turn::Wait(waiting) => {
                    Ok(waiting.answer().await.unwrap_or(BootAnswer::Retry(Duration::from_secs(1))))
                }
            }
        };
        match tokio::time::timeout(wait, answer).await {
            Ok(answer) => answer,
            Err(_) => Ok(BootAnswer::Retry(Duration::from_secs(2))),
        }
    }

    /// The first-stage script, for iPXE that does not have its MAC address in the URL.
    pub fn first_script(&self, advertised: &Advertised) -> Result<String> {
        self.templates.first(&FirstScript { server_url: advertised.http_url.clone() })
    }

    async fn answer(self: &Arc<Self>, request: &BootRequest) -> Result<BootAnswer> {
        let store = self.shared.store();
        let Some(found) = store.machine_by_mac(request.mac).await? else {
            return self.answer_unknown(request).await;
        };
        if request.prepare {
            self.presence.script_asked(request.mac);
        }
        // Held to the end: a start, or the preparation of a generation, must not interleave with a stop.
        let locked = self.lock_machine(found.id).await;
        // Again under the lock: it may have been changed or deleted meanwhile.
        let Some(machine) = store.machine(found.id).await? else { return self.answer_unknown(request).await };
        let session = store.live_session(machine.id).await?;
        if session.as_ref().is_some_and(|session| !self.shared.owns(session)) {
            return Ok(BootAnswer::Retry(Duration::from_secs(5)));
        }
        match (decide(Some(&machine), session.as_ref()), session) {
            (Decision::Unknown, _) => self.answer_unknown(request).await,
            (Decision::Declined(why), _) => self.answer_declined(request, &machine, &why).await,
            // No task works on it, because we hold the lock: the reconciler will undo or finish it shortly.
            (Decision::Wait, _) => Ok(BootAnswer::Retry(Duration::from_secs(2))),
            (Decision::Start, _) if !request.prepare => Ok(BootAnswer::Retry(Duration::from_secs(1))),
            (Decision::Start, _) => locked.answer_start(request, machine).await,
            (Decision::Continue, Some(session)) => locked.answer_continue(request, machine, session).await,
            (Decision::Continue, None) => Err(Error::internal("There is no session to continue")),
        }
    }

    /// The event that a machine has read its script, if the budget allows recording it.
    fn script_read(&self, machine: MachineId, generation: u32) -> Option<EventKind> {
        let kind = EventKind::BootStage { stage: BootStage::ScriptRead, generation: Some(generation) };
        self.diagnoses.may_record_of(machine).then_some(kind)
    }

    async fn answer_unknown(&self, request: &BootRequest) -> Result<BootAnswer> {
        if request.prepare && self.diagnoses.may_record_sight() {
            // Held until it is recorded: only one of two concurrent requests can be the first sighting.
            let _first = self.diagnoses.lock_sights().await;
            let (event, write) = self
                .diagnoses
                .unknown_seen(request.mac, request.firmware, request.peer.clone(), self.shared.now())
                .await?;
            let batch = Batch {
                writes: write.into_iter().collect(),
                events: event.into_iter().collect(),
                ..Batch::new()
            };
            self.shared.record(batch).await?;
        }
        let script = self
            .templates
            .unknown(&UnknownScript { mac: request.mac, server_url: request.advertised.http_url.clone() })?;
        Ok(BootAnswer::Script(script))
    }

    async fn answer_declined(
        &self,
        request: &BootRequest,
        machine: &Machine,
        why: &Declined,
    ) -> Result<BootAnswer> {
        let reason = why.reason();
        if request.prepare && self.diagnoses.may_record_of(machine.id) {
            let kind = EventKind::BootDeclined { reason: reason.clone(), diagnosis: Some(why.diagnosis()) };
            let event = NewEvent::new(self.shared.now(), kind).machine(machine.id);
            self.shared.record(Batch::new().event(event)).await?;
        }
        let script = DeclinedScript { machine: machine.name.clone(), mac: request.mac, reason };
        Ok(BootAnswer::Script(self.templates.declined(&script)?))
    }

    /// The boot script of a live session as the machine would get it now; prepares nothing. `Conflict` if the session is no longer active.
    pub async fn current_script(
        self: &Arc<Self>,
        session: &Session,
        advertised: &Advertised,
        by: &Principal,
    ) -> Result<(String, SanUri)> {
        authorize(by, Command::SessionScript)?;
        let (this, id, advertised) = (Arc::clone(self), session.id, advertised.clone());
        let machine = session.machine;
        self.shared
            .run(async move {
                // Missing objects are created; during a stop, that would create again what the stop removed.
                let locked = this.lock_machine(machine).await;
                let store = this.shared.store();
                let session = store.session(id).await?.ok_or_else(|| Error::not_found("session", id))?;
                this.shared.check_owner(&session)?;
                if session.state != SessionState::Active {
                    return Err(Error::new(
                        code::session_not_active(id, session.state.as_str()),
                        format!("Session {id} is {}, not active", session.state.as_str()),
                    )
                    .with_hint("Start a new session"));
                }
                let machine =
                    store.machine(machine).await?.ok_or_else(|| Error::not_found("machine", machine))?;
                let generation = session.next.as_ref().unwrap_or(&session.current);
                let endpoint = locked.endpoint_of(&session, generation).await?;
                let uri = this.san_uri(&session, generation, &endpoint, &advertised)?;
                let boots = this.boots(generation).await?;
                Ok((this.script(&machine, (&session, generation), boots, &endpoint, &advertised)?, uri))
            })
            .await
    }

    /// Where a generation's disk is, for a machine that reaches us under `advertised`.
    pub fn san_uri(
        &self,
        session: &Session,
        generation: &Generation,
        endpoint: &TargetEndpoint,
        advertised: &Advertised,
    ) -> Result<SanUri> {
        Ok(SanUri {
            server: advertised.portal.clone(),
            port: port_at(&advertised.portal, &endpoint.listen),
            lun: endpoint.lun,
            target: self.target_iqn(session, generation)?,
        })
    }

    /// What a generation boots.
    async fn boots(&self, generation: &Generation) -> Result<Boots> {
        let store = self.shared.store();
        let system = generation.system();
        let image = store.image(system.image).await?;
        let image = image.ok_or_else(|| Error::not_found("image", system.image))?;
        let version = store.version(system.version).await?;
        Ok(Boots { image: image.name, version: version.map_or(0, |v| v.number) })
    }

    fn script(
        &self,
        machine: &Machine,
        (session, generation): (&Session, &Generation),
        boots: Boots,
        endpoint: &TargetEndpoint,
        advertised: &Advertised,
    ) -> Result<String> {
        let mac = machine.primary_mac()?;
        self.templates.machine(&MachineScript {
            machine: machine.name.clone(),
            mac,
            image: boots.image,
            version: boots.version,
            san: self.san_uri(session, generation, endpoint, advertised)?,
            initiator: session.initiator.clone(),
            chap: generation.chap.clone(),
            report_url: advertised.http_url.join(&format!("boot/{}/report", mac.hyphenated()))?,
        })
    }
}

impl LockedMachine<'_> {
    async fn answer_start(&self, request: &BootRequest, machine: Machine) -> Result<BootAnswer> {
        // The cause of a failed start is rarely fixed within seconds, and each attempt is recorded.
        if let Some(wait) = self.failed_starts.wait(machine.id) {
            return Ok(BootAnswer::Retry(wait));
        }
        let id = machine.id;
        let by = Principal::machine(request.mac).at(request.peer.clone()).asking(request.request_id.clone());
        authorize(&by, Command::Boot)?;
        let prepared = match self.prepare_start(machine.clone(), None, Vec::new()).await {
            Ok(prepared) => prepared,
            // The image is not ready, or the kept writeback belongs to another image: waiting does not help the machine.
            Err(e) if e.kind() == ErrorKind::Conflict => {
                let why = Declined::NotReady(e.explain());
                return self.answer_declined(request, &machine, &why).await;
            }
            Err(e) => return Err(e),
        };
        // It has its script as soon as the session is active: one synced write for both.
        let generation = prepared.generation().number;
        let read = || self.script_read(id, generation);
        let started = match self.perform_start(prepared, &by, read).await {
            Ok(started) => {
                self.failed_starts.forget(id);
                started
            }
            Err(e) => {
                self.failed_starts.add(id);
                return Err(e);
            }
        };
        let generation = &started.session.current;
        let boots = Boots { image: started.image.name, version: started.version.number };
        let script = self.script(
            &started.machine,
            (&started.session, generation),
            boots,
            &started.endpoint,
            &request.advertised,
        );
        Ok(BootAnswer::Script(script?))
    }

    async fn answer_continue(
        &self,
        request: &BootRequest,
        machine: Machine,
        mut session: Session,
    ) -> Result<BootAnswer> {
        let (generation, made) = if request.prepare {
            self.commit_before_boot(&mut session).await?;
            self.generation_for_boot(&machine, &mut session).await?
        } else {
            (session.next.clone().unwrap_or_else(|| session.current.clone()), None)
        };
        let endpoint = match made {
            Some(endpoint) => endpoint,
            None => self.endpoint_of(&session, &generation).await?,
        };
        if request.prepare
            && let Some(read) = self.script_read(session.machine, generation.number)
        {
            let event = self.shared.session_event(&session, read);
            self.shared.record(Batch::new().event(event)).await?;
        }
        let boots = self.boots(&generation).await?;
        let of = (&session, &generation);
        Ok(BootAnswer::Script(self.script(&machine, of, boots, &endpoint, &request.advertised)?))
    }
}

/// What the script shows on the machine's screen about the boot.
struct Boots {
    image: Name,
    version: u32,
}

/// The port of the portal at this address: the one that listens there, or on every address. If none listens at this address, it is
/// forwarded to us, as a virtual machine's host does: then the first port.
fn port_at(advertised: &Host, listen: &[SocketAddr]) -> u16 {
    let at = |ip: IpAddr| listen.iter().find(|l| l.ip() == ip);
    let there = match advertised {
        Host::Ip(ip @ IpAddr::V4(_)) => at(*ip).or_else(|| at(Ipv4Addr::UNSPECIFIED.into())),
        Host::Ip(ip @ IpAddr::V6(_)) => at(*ip).or_else(|| at(Ipv6Addr::UNSPECIFIED.into())),
        Host::Name(_) => None,
    };
    there.or(listen.first()).map_or(3260, SocketAddr::port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_the_port_of_the_portal_at_the_address_it_knows() {
        let listen = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let several = listen(&["127.0.0.1:3261", "10.77.0.2:3262", "[::]:3263", "0.0.0.0:3264"]);
        for (advertised, port) in [("10.77.0.2", 3262), ("10.77.0.1", 3264), ("fec0::7", 3263)] {
            assert_eq!(port_at(&Host::Ip(advertised.parse().unwrap()), &several), port, "{advertised}");
        }
        // QEMU's user network forwards 10.0.2.2 to the host's loopback.
        assert_eq!(port_at(&Host::Ip("10.0.2.2".parse().unwrap()), &listen(&["127.0.0.1:3265"])), 3265);
    }
}

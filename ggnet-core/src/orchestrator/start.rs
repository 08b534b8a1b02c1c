//! Start: validate → record `starting` → writeback → target → boot files → DHCP → record `active`; a step that fails undoes the
//! earlier ones in reverse.

use serde_json::json;
use tokio::sync::RwLockReadGuard;

use super::{ChapPolicy, Orchestrator, locked_machine::LockedMachine};
use crate::{
    authorization::{Command, authorize},
    error::{Error, ErrorKind, Result, code},
    nouns::{
        AuditAction, AuditSubject, ChapPair, EventKind, Generation, Image, ImageId, ImageVersion,
        ImageVersionId, Iqn, Machine, MachineId, MachineState, Principal, ResourceId, Session, SessionId,
        SessionState, StopReason, WritebackPolicy,
    },
    ports::{Removal, TargetEndpoint, WritebackListed},
};

/// What to start.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The machine.
    pub machine: MachineId,
    /// The image; none: the one that the machine is assigned to.
    pub image: Option<ImageId>,
    /// Who wants it.
    pub by: Principal,
}

/// A started session.
#[derive(Clone, Debug)]
pub struct Started {
    /// The session, active.
    pub session: Session,
    /// Its machine.
    pub machine: Machine,
    /// The image that it boots.
    pub image: Image,
    /// The version of it.
    pub version: ImageVersion,
    /// How its target is reached.
    pub endpoint: TargetEndpoint,
}

/// What a machine boots next.
pub(super) struct Choice {
    pub(super) image: Image,
    pub(super) version: ImageVersion,
    /// Whether there is a kept writeback already, even one that was cut short.
    keeps_already: bool,
}

/// A start that was validated and is not recorded yet. While it lives nobody may delete its version.
pub(super) struct Prepared<'a> {
    machine: Machine,
    session: Session,
    image: Image,
    version: ImageVersion,
    keeps_already: bool,
    image_guard: RwLockReadGuard<'a, ()>,
}

impl Orchestrator {
    /// Starts a session. When it returns the machine can boot.
    ///
    /// Errors: `NotFound` (machine, image); `Conflict` for a machine that is not active, has a live session, or has nothing ready to
    /// boot, each with a hint; any error of a backend, after everything was undone. Cancellation: the start goes on without its
    /// caller.
    pub async fn start(&self, request: StartRequest) -> Result<Started> {
        authorize(&request.by, Command::SessionStart)?;
        let this = self.clone();
        self.run(async move {
            // Held to the end: nobody else may touch this machine's session half-way.
            let locked = this.lock_machine(request.machine).await;
            let machine = locked.startable().await?;
            let prepared = locked.prepare_start(machine, request.image).await?;
            locked.perform_start(prepared, &request.by).await
        })
        .await
    }

    pub(super) fn new_generation(
        &self,
        machine: &Machine,
        policy: WritebackPolicy,
        number: u32,
        image: ImageId,
        version: ImageVersionId,
    ) -> Result<Generation> {
        let asks =
            self.inner.config.chap == ChapPolicy::Required && self.inner.ports.target().capabilities().chap;
        Ok(Generation {
            number,
            chap: asks.then(|| ChapPair::random(machine.name.as_str())).transpose()?,
            writeback: Self::writeback_id(machine, policy, number),
            image,
            version,
            prepared_at: self.now(),
            committed_at: None,
        })
    }

    /// The version that a machine boots next. A kept writeback means something only over the version it was made for, so it
    /// decides; an image that was assigned since is a conflict that the operator must solve.
    pub(super) async fn version_to_boot(
        &self,
        machine: &Machine,
        wanted: Option<ImageId>,
        policy: WritebackPolicy,
    ) -> Result<Choice> {
        let store = self.inner.ports.store();
        let image = wanted.or(machine.image).ok_or_else(|| {
            Error::new(
                code::machine_without_image(&machine.name),
                format!("Machine {} has no image", machine.name),
            )
            .with_hint("Assign one, or name one in the request")
        })?;
        let record = store.image(image).await?.ok_or_else(|| Error::not_found("image", image))?;
        let kept = match policy {
            // Also one that was cut short.
            WritebackPolicy::Keep => self.kept(machine).await?,
            WritebackPolicy::Discard => None,
        };
        let keeps_already = kept.is_some();
        if let Some(below) = kept.and_then(|kept| kept.base) {
            let version = self.below_kept(machine, image, below).await?;
            return Ok(Choice { image: record, version, keeps_already });
        }
        let pinned = machine.pinned_version.filter(|_| machine.image == Some(image));
        let version = pinned.or(record.current).ok_or_else(|| {
            Error::new(
                code::image_without_version(&record.name),
                format!("Image {} has no version that is ready", record.name),
            )
            .with_hint("Wait until its import has ended, or import a version")
        })?;
        let version = self.ready_version(version).await?;
        Ok(Choice { image: record, version, keeps_already })
    }

    async fn kept(&self, machine: &Machine) -> Result<Option<WritebackListed>> {
        self.inner.ports.writeback().get(&ResourceId::machine(machine.id)).await
    }

    /// That a machine's kept writeback, of which `get` says that there is none, is not listed either.
    async fn check_nothing_kept(&self, machine: &Machine) -> Result<()> {
        let (id, writebacks) = (ResourceId::machine(machine.id), self.inner.ports.writeback());
        if writebacks.list().await?.iter().all(|listed| listed.id != id) {
            return Ok(());
        }
        let message =
            format!("The kept disk of machine {} is listed, and said not to be there", machine.name);
        Err(Error::new(ErrorKind::Corrupt, message)
            .with_backend(writebacks.name())
            .with_hint("The backend's get and list disagree: nothing is started, so that nothing kept is lost. Mend the backend"))
    }

    /// That what the machine has kept is over a version of `image`, if it has kept anything. `Conflict` when it is of another image.
    pub(super) async fn check_kept(&self, machine: &Machine, image: ImageId) -> Result<()> {
        match self.kept(machine).await?.and_then(|kept| kept.base) {
            Some(below) => self.below_kept(machine, image, below).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// The version below kept writes, which must be of `image`.
    async fn below_kept(
        &self,
        machine: &Machine,
        image: ImageId,
        below: ImageVersionId,
    ) -> Result<ImageVersion> {
        let below = self.inner.ports.store().version(below).await?.ok_or_else(|| {
            Error::new(
                code::kept_writes_without_version(&machine.name),
                format!("Machine {} keeps writes over a lost version", machine.name),
            )
        })?;
        if below.image == image {
            return Ok(below);
        }
        Err(Error::new(
            code::kept_writes_of_other_image(&machine.name, below.number),
            format!("Machine {} keeps writes over version {} of another image", machine.name, below.number),
        )
        .with_hint("Discard its kept writeback first, or assign that image again"))
    }
}

impl LockedMachine<'_> {
    /// A machine that has no live session. The caller holds its lock.
    async fn startable(&self) -> Result<Machine> {
        let (store, id) = (self.inner.ports.store(), self.id());
        let machine = store.machine(id).await?.ok_or_else(|| Error::not_found("machine", id))?;
        if let Some(live) = store.live_session(machine.id).await? {
            return Err(Error::new(
                code::machine_has_session(&machine.name),
                format!("Machine {} already has session {} ({})", machine.name, live.id, live.state.as_str()),
            )
            .with_hint("Stop that session first"));
        }
        Ok(machine)
    }

    /// Validates and makes the session's record, not yet stored. The caller holds the machine's lock, and has seen that the machine has no
    /// live session.
    pub(super) async fn prepare_start(
        &self,
        machine: Machine,
        wanted: Option<ImageId>,
    ) -> Result<Prepared<'_>> {
        if machine.state != MachineState::Active {
            return Err(Error::new(
                code::machine_not_active(&machine.name, machine.state.as_str()),
                format!("Machine {} is {}, not active", machine.name, machine.state.as_str()),
            )
            .with_hint("Set its state to active first"));
        }
        let store = self.inner.ports.store();
        let image_guard = self.inner.image_lock.read().await;
        let Choice { image, version, keeps_already } =
            self.version_to_boot(&machine, wanted, machine.writeback).await?;
        let last = store.last_session(machine.id).await?;
        // It may have been discarded since; asked once more, for a failed start removes what it takes for its own.
        if !keeps_already
            && [machine.writeback, last.as_ref().map_or(WritebackPolicy::Discard, |s| s.policy)]
                == [WritebackPolicy::Keep; 2]
        {
            self.check_nothing_kept(&machine).await?;
        }
        let number = last.map_or(1, |s| s.highest_generation().saturating_add(1));
        let now = self.now();
        let session = Session {
            id: SessionId::generate(),
            machine: machine.id,
            state: SessionState::Starting,
            policy: machine.writeback,
            chosen_image: wanted,
            initiator: Iqn::initiator(&self.inner.config.iqn_prefix, machine.primary_mac()?)?,
            current: self.new_generation(&machine, machine.writeback, number, image.id, version.id)?,
            next: None,
            last_generation: number,
            started_at: now,
            active_at: None,
            ended_at: None,
            stop_reason: None,
            stop_forced: false,
            owner: Some(self.inner.config.server.clone()),
            epoch: 0,
            error: None,
            failure: None,
            revision: 0,
        };
        Ok(Prepared { machine, session, image, version, keeps_already, image_guard })
    }

    /// Does the steps.
    pub(super) async fn perform_start(&self, prepared: Prepared<'_>, by: &Principal) -> Result<Started> {
        let Prepared { machine, mut session, image, version, keeps_already, image_guard } = prepared;
        let row = self.audit(by, AuditAction::SessionStart, AuditSubject::Session(session.id));
        let row = row.after(json!({ "machine": machine.id, "image": image.id, "version": version.id }));
        self.record_session(&mut session, EventKind::SessionStarting, Some(row)).await?;
        // From here on the record keeps the version from being deleted.
        drop(image_guard);
        let deadline = self.inner.config.start_deadline;
        let steps = tokio::time::timeout(deadline, self.start_steps(&machine, &session, &version)).await;
        let failure = match steps {
            Ok(Ok(endpoint)) => {
                session.state = SessionState::Active;
                session.active_at = Some(self.now());
                let recorded = self.record_session(&mut session, EventKind::SessionActive, None).await;
                match recorded {
                    Ok(()) => return Ok(Started { session, machine, image, version, endpoint }),
                    Err(e) => {
                        // Whatever the store holds now is what counts: read it before undoing.
                        match self.inner.ports.store().session(session.id).await {
                            Ok(Some(s)) if s.state == SessionState::Active => {
                                return Ok(Started { session: s, machine, image, version, endpoint });
                            }
                            _ => {
                                session.state = SessionState::Starting;
                                session.active_at = None;
                                e
                            }
                        }
                    }
                }
            }
            Ok(Err(e)) => e,
            Err(_) => Error::new(
                code::start_too_long(format_args!("{deadline:?}")),
                format!("The start took longer than {deadline:?}"),
            ),
        };
        tracing::warn!(session = %session.id, machine = %machine.name, error = %failure.report(), "start failed; undoing");
        self.undo_start(&machine, session, keeps_already, &failure).await;
        Err(failure)
    }

    async fn start_steps(
        &self,
        machine: &Machine,
        session: &Session,
        version: &ImageVersion,
    ) -> Result<TargetEndpoint> {
        let endpoint = self.ensure_generation_over(session, &session.current, version).await?;
        self.settle_boot(machine, true).await?;
        Ok(endpoint)
    }

    /// Undoes in reverse and records `failed`. What cannot be undone now is the reconciler's: a failed session owns nothing, so all
    /// that is left of it is an orphan.
    pub(super) async fn undo_start(
        &self,
        machine: &Machine,
        mut session: Session,
        keep_writeback: bool,
        why: &Error,
    ) {
        let p = &self.inner.ports;
        let mut trouble = Vec::new();
        if let Err(e) = self.settle_boot(machine, false).await {
            trouble.push(e.report());
        }
        match p.target().remove(&session.target(&session.current), Removal::Force).await {
            // The writeback goes only once nothing serves it.
            Ok(()) if !keep_writeback => {
                if let Err(e) = p.writeback().remove(&session.current.writeback, Removal::Force).await {
                    trouble.push(e.report());
                }
            }
            Ok(()) => {}
            Err(e) => trouble.push(e.report()),
        }
        if !trouble.is_empty() {
            tracing::warn!(session = %session.id, ?trouble, "undo incomplete; the reconciler goes on");
        }
        session.state = SessionState::Failed;
        session.ended_at = Some(self.now());
        session.stop_reason = Some(StopReason::StartFailed);
        let (reason, failure) = (why.report(), Some(why.into()));
        session.error = Some(reason.clone());
        session.failure.clone_from(&failure);
        let kind = EventKind::SessionFailed { reason, failure };
        if let Err(e) = self.record_session(&mut session, kind, None).await {
            // The reconciler finds a `starting` that nobody works on and undoes it again.
            tracing::error!(session = %session.id, error = %e.report(), "could not record the failed start");
        }
    }
}

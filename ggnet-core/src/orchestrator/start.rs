//! Start: validate → record `starting` → writeback → target → boot files → DHCP → record `active`; a step that fails undoes the
//! earlier ones in reverse.

use serde_json::json;

use super::{ChapPolicy, Orchestrator};
use crate::{
    error::{Error, Result, code},
    nouns::{
        Actor, ChapPair, EventKind, Generation, ImageId, ImageVersionId, Iqn, Machine, MachineId,
        MachineState, ResourceId, Session, SessionId, SessionState, StopReason, WritebackPolicy,
    },
    ports::{Removal, TargetEndpoint},
};

/// What to start.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The machine.
    pub machine: MachineId,
    /// The image; none: the one that the machine is assigned to.
    pub image: Option<ImageId>,
    /// Who wants it.
    pub actor: Actor,
}

/// A started session.
#[derive(Clone, Debug)]
pub struct Started {
    /// The session, active.
    pub session: Session,
    /// Its machine.
    pub machine: Machine,
    /// How its target is reached.
    pub endpoint: TargetEndpoint,
}

impl Orchestrator {
    /// Starts a session. When it returns the machine can boot.
    ///
    /// Errors: `NotFound` (machine, image); `Conflict` for a machine that is not active, has a live session, or has nothing ready to
    /// boot, each with a hint; any error of a backend, after everything was undone. Cancellation: the start goes on without its
    /// caller.
    pub async fn start(&self, request: StartRequest) -> Result<Started> {
        let this = self.clone();
        self.run(async move {
            // Held to the end: nobody else may touch this machine's session half-way.
            let _guard = this.inner.locks.lock(&request.machine).await;
            let (machine, session) = this.prepare_start(&request).await?;
            this.perform_start(machine, session, &request.actor).await
        })
        .await
    }

    /// Validates and makes the session's record, not yet stored. The caller holds the machine's lock.
    pub(super) async fn prepare_start(&self, request: &StartRequest) -> Result<(Machine, Session)> {
        let store = self.inner.ports.store();
        let machine = store
            .machine(request.machine)
            .await?
            .ok_or_else(|| Error::not_found("machine", request.machine))?;
        if machine.state != MachineState::Active {
            return Err(Error::new(
                code::machine_not_active(&machine.name, machine.state.as_str()),
                format!("Machine {} is {}, not active", machine.name, machine.state.as_str()),
            )
            .with_hint("Set its state to active first"));
        }
        if let Some(live) = store.live_session(machine.id).await? {
            return Err(Error::new(
                code::machine_has_session(&machine.name),
                format!("Machine {} already has session {} ({})", machine.name, live.id, live.state.as_str()),
            )
            .with_hint("Stop that session first"));
        }
        let (image, version) = self.version_to_boot(&machine, request.image, machine.writeback).await?;
        let last = store.last_session(machine.id).await?;
        let number = last.map_or(1, |s| s.highest_generation().saturating_add(1));
        let now = self.now();
        let session = Session {
            id: SessionId::generate(),
            machine: machine.id,
            state: SessionState::Starting,
            policy: machine.writeback,
            chosen_image: request.image,
            initiator: Iqn::initiator(&self.inner.config.iqn_prefix, machine.primary_mac()?)?,
            current: self.new_generation(&machine, machine.writeback, number, image, version)?,
            next: None,
            last_generation: number,
            started_at: now,
            active_at: None,
            ended_at: None,
            stop_reason: None,
            stop_forced: false,
            error: None,
            failure: None,
            revision: 0,
        };
        Ok((machine, session))
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
    ) -> Result<(ImageId, ImageVersionId)> {
        let store = self.inner.ports.store();
        let image = wanted.or(machine.image).ok_or_else(|| {
            Error::new(
                code::machine_without_image(&machine.name),
                format!("Machine {} has no image", machine.name),
            )
            .with_hint("Assign one, or name one in the request")
        })?;
        if policy == WritebackPolicy::Keep
            && let Some(kept) = self.kept_over(machine, image).await?
        {
            return Ok((image, kept));
        }
        let record = store.image(image).await?.ok_or_else(|| Error::not_found("image", image))?;
        let pinned = machine.pinned_version.filter(|_| machine.image == Some(image));
        let version = pinned.or(record.current).ok_or_else(|| {
            Error::new(
                code::image_without_version(&record.name),
                format!("Image {} has no version that is ready", record.name),
            )
            .with_hint("Wait until its import has ended, or import a version")
        })?;
        self.base(version).await?;
        Ok((image, version))
    }

    /// The version of `image` that the machine has kept writes over; none: it has kept none. `Conflict` when it is of another image.
    pub(super) async fn kept_over(
        &self,
        machine: &Machine,
        image: ImageId,
    ) -> Result<Option<ImageVersionId>> {
        // Also one that was cut short.
        let kept = self.inner.ports.writeback().get(&ResourceId::machine(machine.id)).await?;
        let Some(kept) = kept.and_then(|w| w.base) else { return Ok(None) };
        let below = self.inner.ports.store().version(kept).await?.ok_or_else(|| {
            Error::new(
                code::kept_writes_without_version(&machine.name),
                format!("Machine {} keeps writes over a lost version", machine.name),
            )
        })?;
        if below.image == image {
            return Ok(Some(kept));
        }
        Err(Error::new(
            code::kept_writes_of_other_image(&machine.name, below.number),
            format!("Machine {} keeps writes over version {} of another image", machine.name, below.number),
        )
        .with_hint("Discard its kept writeback first, or assign that image again"))
    }

    /// Does the steps. The caller holds the machine's lock.
    pub(super) async fn perform_start(
        &self,
        machine: Machine,
        mut session: Session,
        actor: &Actor,
    ) -> Result<Started> {
        let keeps_already = session.policy == WritebackPolicy::Keep
            && self.inner.ports.writeback().get(&session.current.writeback).await?.is_some();
        let row = self.audit(
            actor,
            "session.start",
            ("session", session.id.to_string()),
            json!({ "machine": machine.id, "image": session.current.image, "version": session.current.version }),
        );
        {
            // Between choosing a version and recording the session nobody may delete that version.
            let _image = self.inner.image_lock.read().await;
            self.base(session.current.version).await?;
            self.record_session(&mut session, EventKind::SessionStarting, Some(row)).await?;
        }
        let deadline = self.inner.config.start_deadline;
        let steps = tokio::time::timeout(deadline, self.start_steps(&machine, &session)).await;
        let failure = match steps {
            Ok(Ok(endpoint)) => {
                session.state = SessionState::Active;
                session.active_at = Some(self.now());
                let recorded = self.record_session(&mut session, EventKind::SessionActive, None).await;
                match recorded {
                    Ok(()) => return Ok(Started { session, machine, endpoint }),
                    Err(e) => {
                        // Whatever the store holds now is what counts: read it before undoing.
                        match self.inner.ports.store().session(session.id).await {
                            Ok(Some(s)) if s.state == SessionState::Active => {
                                return Ok(Started { session: s, machine, endpoint });
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

    async fn start_steps(&self, machine: &Machine, session: &Session) -> Result<TargetEndpoint> {
        let endpoint = self.ensure_generation(session, &session.current).await?;
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

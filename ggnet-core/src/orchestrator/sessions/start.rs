//! Start: validate → record `starting` → writebacks → target → boot files → DHCP → record `active`; a step that fails undoes the
//! earlier ones in reverse.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::RwLockReadGuard;

use super::{
    Sessions,
    disks_to_boot::{Choice, DiskToBoot},
    locked_machine::LockedMachine,
};
use crate::{
    authorization::{Command, authorize},
    error::{Error, Result, code},
    nouns::{
        AuditAction, AuditSubject, DataDisk, EventKind, Generation, Image, ImageId, ImageVersion, Iqn,
        Machine, MachineId, MachineState, Principal, ResourceId, Session, SessionId, SessionState,
        StopReason, WritebackPolicy,
    },
    ports::{Removal, TargetEndpoint},
};

/// What to start.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The machine.
    pub machine: MachineId,
    /// The image; `None`: the image that the machine is assigned to.
    pub image: Option<ImageId>,
    /// Disks in addition to the system disk, for each boot of the session.
    pub data_disks: Vec<DataDisk>,
    /// Who requests it.
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
    /// The version of that image: the version of the system disk.
    pub version: ImageVersion,
    /// How its target is reached.
    pub endpoint: TargetEndpoint,
}

/// A start that is validated but not recorded yet. While it lives, its versions cannot be deleted.
pub(super) struct Prepared<'a> {
    machine: Machine,
    session: Session,
    image: Image,
    version: ImageVersion,
    /// The versions of the data disks.
    data: Vec<ImageVersion>,
    /// The kept writebacks that already exist.
    kept: Vec<ResourceId>,
    image_guard: RwLockReadGuard<'a, ()>,
}

impl Prepared<'_> {
    /// What will be booted.
    pub(super) const fn generation(&self) -> &Generation {
        &self.session.current
    }
}

impl Sessions {
    /// Starts a session. When it returns, the machine can boot.
    ///
    /// Errors: `NotFound` (machine, image); `Conflict` for a machine that is not active, has a live session, or has nothing ready to boot,
    /// each with a hint; `Invalid` and `Unsupported` for data disks that cannot be served; any error of a backend, after everything was
    /// undone. Cancellation: the start continues without its caller.
    pub async fn start(self: &Arc<Self>, request: StartRequest) -> Result<Started> {
        authorize(&request.by, Command::SessionStart)?;
        let this = Arc::clone(self);
        self.shared
            .run(async move {
                // Held to the end: nothing else may change this machine's session half-way.
                let locked = this.lock_machine(request.machine).await;
                let machine = locked.startable().await?;
                let prepared = locked.prepare_start(machine, request.image, request.data_disks).await?;
                locked.perform_start(prepared, &request.by, || None).await
            })
            .await
    }
}

impl LockedMachine<'_> {
    /// The machine, if a session can be started for it. The caller holds its lock.
    async fn startable(&self) -> Result<Machine> {
        let (store, id) = (self.shared.store(), self.id());
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
        data_disks: Vec<DataDisk>,
    ) -> Result<Prepared<'_>> {
        if machine.state != MachineState::Active {
            return Err(Error::new(
                code::machine_not_active(&machine.name, machine.state.as_str()),
                format!("Machine {} is {}, not active", machine.name, machine.state.as_str()),
            )
            .with_hint("Set its state to active first"));
        }
        let data_disks = self.check_data_disks(data_disks)?;
        let (store, policy) = (self.shared.store(), machine.writeback);
        let image_guard = self.versions.hold().await;
        let Choice { image, version, kept } = self.version_to_boot(&machine, wanted, policy).await?;
        let (mut disks, mut kept) = (vec![DiskToBoot::system(&version)], Vec::from_iter(kept));
        let mut data = Vec::with_capacity(data_disks.len());
        for disk in &data_disks {
            let choice = self.data_to_boot(&machine, disk, policy).await?;
            disks.push(DiskToBoot::data(disk, &choice.version));
            kept.extend(choice.kept);
            data.push(choice.version);
        }
        let last = store.last_session(machine.id).await?;
        let last_policy = last.as_ref().map_or(WritebackPolicy::Discard, |s| s.policy);
        let number = last.map_or(1, |s| s.highest_generation().saturating_add(1));
        let current = self.new_generation(&machine, policy, number, &disks)?;
        // It may have been discarded since. Checked once more, because a failed start removes every writeback that it considers its own.
        let new: Vec<_> = current.disks.writebacks().filter(|id| !kept.contains(id)).collect();
        if !new.is_empty() && [policy, last_policy] == [WritebackPolicy::Keep; 2] {
            self.check_not_kept(&machine, &new).await?;
        }
        let now = self.shared.now();
        let session = Session {
            id: SessionId::generate(),
            machine: machine.id,
            state: SessionState::Starting,
            policy,
            chosen_image: wanted,
            data_disks,
            initiator: Iqn::initiator(&self.shared.config.iqn_prefix, machine.primary_mac()?)?,
            current,
            next: None,
            last_generation: number,
            started_at: now,
            active_at: None,
            ended_at: None,
            stop_reason: None,
            stop_forced: false,
            owner: Some(self.shared.config.server.clone()),
            epoch: 0,
            error: None,
            failure: None,
            revision: 0,
        };
        Ok(Prepared { machine, session, image, version, data, kept, image_guard })
    }

    /// Performs the steps. `besides` is called when they are done: it can return one more event, which is recorded when the session becomes
    /// active.
    pub(super) async fn perform_start(
        &self,
        prepared: Prepared<'_>,
        by: &Principal,
        besides: impl FnOnce() -> Option<EventKind> + Send,
    ) -> Result<Started> {
        let Prepared { machine, mut session, image, version, data, kept, image_guard } = prepared;
        let row = self.shared.audit(by, AuditAction::SessionStart, AuditSubject::Session(session.id));
        let row = row.after(json!({ "machine": machine.id, "image": image.id, "version": version.id }));
        self.shared.record_session(&mut session, EventKind::SessionStarting, Some(row)).await?;
        // From here on the record keeps the versions from being deleted.
        drop(image_guard);
        let versions: Vec<_> = std::iter::once(version.clone()).chain(data).collect();
        let deadline = self.shared.config.start_deadline;
        let steps = tokio::time::timeout(deadline, self.start_steps(&machine, &session, &versions)).await;
        let failure = match steps {
            Ok(Ok(endpoint)) => {
                session.state = SessionState::Active;
                session.active_at = Some(self.shared.now());
                let active = EventKind::SessionActive;
                let recorded = self.shared.record_session_and(&mut session, active, None, besides()).await;
                match recorded {
                    Ok(()) => return Ok(Started { session, machine, image, version, endpoint }),
                    Err(e) => {
                        // The state in the store is what counts: read it before undoing.
                        match self.shared.store().session(session.id).await {
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
        self.undo_start(&machine, session, &kept, &failure).await;
        Err(failure)
    }

    async fn start_steps(
        &self,
        machine: &Machine,
        session: &Session,
        versions: &[ImageVersion],
    ) -> Result<TargetEndpoint> {
        let endpoint = self.ensure_generation_over(session, &session.current, versions).await?;
        self.settle_boot(machine, true).await?;
        Ok(endpoint)
    }

    /// Undoes in reverse and records `failed`; the writebacks in `kept` stay. The reconciler removes what cannot be undone now: a failed
    /// session owns nothing, so everything left of it is an orphan.
    pub(in crate::orchestrator) async fn undo_start(
        &self,
        machine: &Machine,
        mut session: Session,
        kept: &[ResourceId],
        why: &Error,
    ) {
        let mut trouble = Vec::new();
        if let Err(e) = self.settle_boot(machine, false).await {
            trouble.push(e.report());
        }
        match self.targets.remove_target(&session.target(&session.current), Removal::Force).await {
            // The writebacks are removed only once nothing serves them.
            Ok(()) => {
                for writeback in session.current.disks.writebacks().filter(|id| !kept.contains(id)) {
                    if let Err(e) = self.shared.ports.writeback().remove(writeback, Removal::Force).await {
                        trouble.push(e.report());
                    }
                }
            }
            Err(e) => trouble.push(e.report()),
        }
        if !trouble.is_empty() {
            tracing::warn!(session = %session.id, ?trouble, "undo incomplete; the reconciler goes on");
        }
        session.state = SessionState::Failed;
        session.ended_at = Some(self.shared.now());
        session.stop_reason = Some(StopReason::StartFailed);
        let (reason, failure) = (why.report(), Some(why.into()));
        session.error = Some(reason.clone());
        session.failure.clone_from(&failure);
        let kind = EventKind::SessionFailed { reason, failure };
        if let Err(e) = self.shared.record_session(&mut session, kind, None).await {
            // The reconciler finds a `starting` session without a task and undoes it again.
            tracing::error!(session = %session.id, error = %e.report(), "could not record the failed start");
        }
    }
}

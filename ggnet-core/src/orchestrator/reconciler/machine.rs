//! A machine's round: its session, its boot files, and what backends have of it that nobody wants. Under the machine's lock.

use std::{collections::HashSet, time::Duration};

use super::{Having, Looked, ReconcileReport, Reconciler, World};
use crate::{
    error::{Error, Result, code},
    nouns::{
        Generation, Machine, Principal, ResourceId, Session, SessionState, StopReason, SystemPart,
        WritebackPolicy,
    },
    orchestrator::sessions::{LockedMachine, Sessions, StopRequest},
    ports::Removal,
};

impl Reconciler {
    /// All but the DHCP server.
    pub(super) async fn reconcile_locked(
        &self,
        locked: &LockedMachine<'_>,
        world: &World,
        report: &mut ReconcileReport,
    ) -> Result<Looked> {
        let (store, id) = (self.shared.store(), locked.id());
        let machine = store.machine(id).await?;
        let mut session = store.live_session(id).await?;
        if session.as_ref().is_some_and(|session| !self.shared.owns(session)) {
            return Ok(Looked::Elsewhere);
        }
        match (&machine, session.take()) {
            (Some(machine), Some(live)) => {
                session = self.reconcile_session(locked, machine, live, world, report).await?;
            }
            (None, Some(live)) => {
                Self::end(locked, live, StopReason::MachineGone).await?;
                report.ended += 1;
            }
            (_, None) => {}
        }
        let wanted =
            machine.as_ref().filter(|machine| Sessions::wants_boot(machine, session.is_some())).cloned();
        if let Some(machine) = &wanted {
            self.reconcile_boot_files(locked, machine, world, report).await?;
        }
        // What cannot be removed keeps no machine from booting.
        let removed = self.remove_orphans(locked, machine.as_ref(), session.as_ref(), world, report).await;
        report.note(&format!("machine {id}"), removed);
        Ok(Looked::Ours { wanted: wanted.map(Box::new) })
    }

    /// Returns the session if it is still live.
    async fn reconcile_session(
        &self,
        locked: &LockedMachine<'_>,
        machine: &Machine,
        mut session: Session,
        world: &World,
        report: &mut ReconcileReport,
    ) -> Result<Option<Session>> {
        match session.state {
            // The lock is ours, so nobody works on it: our process died in the middle.
            SessionState::Starting => {
                let why = Error::new(
                    code::start_interrupted(),
                    "The server was interrupted while it started the session",
                );
                let kept: Vec<_> = match session.policy {
                    WritebackPolicy::Keep => session.current.disks.writebacks().cloned().collect(),
                    WritebackPolicy::Discard => Vec::new(),
                };
                locked.undo_start(machine, session, &kept, &why).await;
                report.ended += 1;
                Ok(None)
            }
            SessionState::Stopping => {
                let session = locked.carry_out_stop(session, Some(machine)).await?;
                if session.state.is_live() {
                    report.made += 1;
                    return Ok(Some(session));
                }
                report.ended += 1;
                Ok(None)
            }
            SessionState::Active => {
                if let Some(online) = &world.online {
                    locked.commit_polled(&mut session, online).await?;
                }
                let in_use = session.next.as_ref().is_some_and(|next| {
                    world.online.as_ref().is_none_or(|online| online.contains(&session.target(next)))
                });
                if locked.expire_next(&mut session, in_use).await? {
                    report.removed += 1;
                }
                for generation in session.generations() {
                    let having = self.having_target(&session, generation, world)?;
                    if having != Having::Same {
                        locked.ensure_generation(&session, generation).await?;
                    }
                    report.made += u64::from(having == Having::Other);
                }
                if self.is_idle_too_long(&session, world) {
                    Self::end(locked, session, StopReason::Timeout).await?;
                    report.ended += 1;
                    return Ok(None);
                }
                Ok(Some(session))
            }
            SessionState::Stopped | SessionState::Failed => Ok(None),
        }
    }

    async fn end(locked: &LockedMachine<'_>, session: Session, reason: StopReason) -> Result<()> {
        let request = StopRequest {
            session: session.id,
            force: reason == StopReason::MachineGone,
            reason,
            by: Principal::system(SystemPart::Reconciler),
        };
        locked.perform_stop(session, &request).await.map(|_| ())
    }

    async fn reconcile_boot_files(
        &self,
        locked: &LockedMachine<'_>,
        machine: &Machine,
        world: &World,
        report: &mut ReconcileReport,
    ) -> Result<()> {
        let bundle = locked.boot_bundle(machine)?;
        let having = Having::of(world.boot_files.as_ref(), &ResourceId::machine(machine.id), bundle.digest());
        if having != Having::Same {
            self.shared.ports.boot_files().ensure(&bundle).await?;
        }
        report.made += u64::from(having == Having::Other);
        Ok(())
    }

    /// Removes what backends have of this machine and nobody wants: targets before writebacks, so that no disk is taken from under
    /// a target.
    async fn remove_orphans(
        &self,
        locked: &LockedMachine<'_>,
        machine: Option<&Machine>,
        session: Option<&Session>,
        world: &World,
        report: &mut ReconcileReport,
    ) -> Result<()> {
        let (p, id) = (&self.shared.ports, locked.id());
        let of_machine = |r: &&ResourceId| r.owner().is_some_and(|(m, _)| m == id);
        let targets: HashSet<ResourceId> =
            session.into_iter().flat_map(|s| s.generations().map(|g| s.target(g))).collect();
        let writebacks: HashSet<ResourceId> =
            session.into_iter().flat_map(|s| s.writebacks().cloned()).collect();
        for orphan in
            world.targets.iter().flat_map(|t| t.keys()).filter(of_machine).filter(|r| !targets.contains(*r))
        {
            self.targets.remove_target(orphan, Removal::Force).await?;
            report.removed += 1;
        }
        for orphan in
            world.writebacks.iter().flatten().filter(of_machine).filter(|r| !writebacks.contains(*r))
        {
            // A kept writeback outlives its sessions; only the operator, or the machine's deletion, ends it.
            let kept = orphan.owner().is_some_and(|(_, generation)| generation.is_none());
            if kept && (machine.is_some() || self.versions.is_being_published(orphan).await?) {
                continue;
            }
            p.writeback().remove(orphan, Removal::Force).await?;
            report.removed += 1;
        }
        if machine.is_some_and(|m| Sessions::wants_boot(m, session.is_some())) {
            return Ok(());
        }
        let whole = ResourceId::machine(id);
        if world.boot_files.as_ref().is_some_and(|b| b.contains_key(&whole)) {
            p.boot_files().remove(&whole).await?;
            report.removed += 1;
        }
        Ok(())
    }

    fn having_target(&self, session: &Session, generation: &Generation, world: &World) -> Result<Having> {
        let spec = self.sessions.target_spec(session, generation)?;
        Ok(Having::of(world.targets.as_ref(), &spec.id, spec.digest()))
    }

    fn is_idle_too_long(&self, session: &Session, world: &World) -> bool {
        let Some(online) = &world.online else { return false };
        let connected = session.generations().any(|g| online.contains(&session.target(g)));
        let offline: Duration = self.presence.update(session.id, connected);
        session.policy == WritebackPolicy::Discard && !connected && offline >= self.shared.config.idle_timeout
    }
}

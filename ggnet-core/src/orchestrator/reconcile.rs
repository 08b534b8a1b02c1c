//! The reconciler: compares what should exist with what every `list()` says, removes orphans, and makes what a live session lacks.
//!
//! At start-up and on a timer it lists first, reads the store second, and acts under the machine's lock after reading the session again
//! there; so whatever was made after the list is never taken for an orphan, and whatever went since is not made again. A list that
//! fails means *unknown*: that backend is left alone this time.
//!
//! Only what this server owns is looked after: a machine whose session another server serves is left alone, whole.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};

use super::{Orchestrator, StopRequest, locked_machine::LockedMachine, pruning::Pruning};
use crate::{
    error::{Error, ErrorKind, Result, code},
    nouns::{
        EventKind, Generation, Machine, MachineId, Principal, ResourceId, Session, SessionState, StopReason,
        SystemPart, WritebackPolicy,
    },
    ports::{
        Batch, Completeness, DhcpChange, DhcpHost, Listed, LoginVisibility, MachineFilter, PageRequest,
        Removal, SpecDigest,
    },
};

/// How many machines are worked on at once.
const PARALLEL: usize = 16;
/// How soon a first round that could not see the store or the targets is tried again; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// What a round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReconcileReport {
    /// Objects that nobody owned and that were removed.
    pub removed: u64,
    /// Objects that a live session or a machine lacked and that were made.
    pub made: u64,
    /// Sessions that were stopped or undone, and jobs that nobody worked on.
    pub ended: u64,
    /// What could not be done, and will be tried again.
    pub trouble: Vec<String>,
}

impl ReconcileReport {
    fn add(&mut self, other: Self) {
        self.removed += other.removed;
        self.made += other.made;
        self.ended += other.ended;
        self.trouble.extend(other.trouble);
    }

    fn note(&mut self, what: &str, result: Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(e) => {
                self.trouble.push(format!("{what}: {}", e.report()));
                false
            }
        }
    }
}

/// Objects of one backend.
type Objects = HashMap<ResourceId, Listed>;

/// What the backends say they have; `None`: unknown.
#[derive(Default)]
struct World {
    targets: Option<Objects>,
    writebacks: Option<HashSet<ResourceId>>,
    boot_files: Option<Objects>,
    dhcp: Option<Objects>,
    /// Targets with a live initiator.
    online: Option<HashSet<ResourceId>>,
}

/// What a look at a machine found.
enum Looked {
    /// Another server serves its session: nothing of it is ours to change.
    Elsewhere,
    /// It is ours to look after.
    Ours {
        /// The machine, if DHCP should know it.
        wanted: Option<Box<Machine>>,
    },
}

/// How an object is beside what it should be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Having {
    /// There, and from this spec; or unknown.
    Same,
    /// There and whole, but the backend cannot tell from which spec: only `ensure` can.
    Untold,
    /// Not there, cut short, or from another spec.
    Other,
}

impl Having {
    fn of(objects: Option<&Objects>, id: &ResourceId, digest: SpecDigest) -> Self {
        let Some(objects) = objects else { return Self::Same };
        match objects.get(id).map(|l| (l.completeness, l.digest)) {
            Some((Completeness::Whole, Some(have))) if have == digest => Self::Same,
            Some((Completeness::Whole, None)) => Self::Untold,
            _ => Self::Other,
        }
    }
}

impl Orchestrator {
    pub(super) async fn reconcile_until_shutdown(&self) {
        // Not when it is started again: jobs of our own are under way then.
        if !self.inner.swept.initialized() {
            self.interrupted_imports().await;
        }
        let interval = self.inner.config.reconcile_interval;
        let mut wait = FIRST_WAIT.min(interval);
        let mut pruning = Pruning::default();
        loop {
            let (report, knew) = self.round().await;
            for trouble in &report.trouble {
                tracing::warn!(%trouble, "reconcile");
            }
            // A login to a target that is still to be made again would get a status that open-iscsi takes for final.
            if knew && !self.is_serving() {
                tracing::info!(
                    made = report.made,
                    removed = report.removed,
                    ended = report.ended,
                    "first reconcile done"
                );
                self.inner.serving.store(true, std::sync::atomic::Ordering::Release);
            }
            if self.is_serving() {
                wait = interval;
                self.forget_the_old(&mut pruning).await;
            }
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(interval);
        }
    }

    /// One round. Also called by tests and by an operator who does not want to wait.
    pub async fn reconcile(&self) -> ReconcileReport {
        self.round().await.0
    }

    /// Also says whether the store and the targets were known, so that every live session was looked after.
    async fn round(&self) -> (ReconcileReport, bool) {
        let mut report = ReconcileReport::default();
        let world = self.look(&mut report).await;
        let store = self.inner.ports.store();
        let sessions = match store.live_sessions().await {
            Ok(sessions) => sessions,
            Err(e) => {
                report.trouble.push(format!("live sessions: {}", e.report()));
                return (report, false);
            }
        };
        let machines = match self.all_machines().await {
            Ok(machines) => machines,
            Err(e) => {
                report.trouble.push(format!("machines: {}", e.report()));
                return (report, false);
            }
        };
        // Every machine that has a session, should be known to DHCP, or of which a backend has something.
        let (ours, others): (Vec<_>, Vec<_>) = sessions.iter().partition(|session| self.owns(session));
        let mut work: HashSet<MachineId> = ours.iter().map(|s| s.machine).collect();
        work.extend(machines.iter().filter(|m| Self::wants_boot(m, false)).map(|m| m.id));
        work.extend(world.owners());
        // Two servers that publish one session's disk would be two writers.
        others.iter().for_each(|session| _ = work.remove(&session.machine));
        if self.inner.swept.initialized() {
            for (what, ended) in
                [("jobs", self.reconcile_jobs().await), ("imports", self.fail_abandoned_imports().await)]
            {
                match ended {
                    Ok(ended) => report.ended += ended,
                    Err(e) => report.trouble.push(format!("{what}: {}", e.report())),
                }
            }
        }
        let world = &world;
        let rounds =
            stream::iter(work).map(|machine| async move { self.reconcile_machine(machine, world).await });
        let rounds: Vec<_> = rounds.buffer_unordered(PARALLEL).collect().await;
        let mut untold = Vec::new();
        for (machine, done, is_untold) in rounds {
            report.add(done);
            untold.extend(is_untold.then_some(machine));
        }
        self.reconcile_dhcp(untold, world, &mut report).await;
        self.reconcile_manual_targets(world, &mut report).await;
        if report.made + report.removed + report.ended > 0 && self.is_serving() {
            let action = format!("made {}, removed {}, ended {}", report.made, report.removed, report.ended);
            let event = self.event(EventKind::Reconciled { action });
            let recorded = self.record(Batch::new().event(event)).await.map(|_| ());
            report.note("event", recorded);
        }
        (report, world.targets.is_some())
    }

    pub(super) async fn all_machines(&self) -> Result<Vec<Machine>> {
        let mut all = Vec::new();
        for page in 1.. {
            let request = PageRequest { page, per_page: 1000 };
            let got = self.inner.ports.store().machines(&MachineFilter::default(), request).await?;
            all.extend(got.items);
            if all.len() as u64 >= got.total || page == u32::MAX {
                break;
            }
        }
        Ok(all)
    }

    async fn look(&self, report: &mut ReconcileReport) -> World {
        let p = &self.inner.ports;
        let by_id = |list: Vec<Listed>| list.into_iter().map(|l| (l.id.clone(), l)).collect();
        let mut world = World::default();
        match p.target().list().await {
            Ok(list) => world.targets = Some(by_id(list)),
            Err(e) => report.trouble.push(format!("list of targets unknown: {}", e.report())),
        }
        match p.writeback().list().await {
            Ok(list) => world.writebacks = Some(list.into_iter().map(|w| w.id).collect()),
            Err(e) => report.trouble.push(format!("list of writebacks unknown: {}", e.report())),
        }
        match p.boot_files().list().await {
            Ok(list) => world.boot_files = Some(by_id(list)),
            Err(e) => report.trouble.push(format!("list of boot files unknown: {}", e.report())),
        }
        match p.dhcp().list().await {
            Ok(list) => world.dhcp = Some(by_id(list)),
            Err(e) => report.trouble.push(format!("list of DHCP entries unknown: {}", e.report())),
        }
        match p.target().connections().await {
            Ok(list) => {
                self.inner.online.looked(self.inner.config.reconcile_interval);
                world.online = Some(list.into_iter().map(|c| c.target).collect());
            }
            Err(e) => report.trouble.push(format!("connections unknown: {}", e.report())),
        }
        world
    }

    /// Also says whether DHCP has to be told of this machine.
    async fn reconcile_machine(&self, id: MachineId, world: &World) -> (MachineId, ReconcileReport, bool) {
        let mut report = ReconcileReport::default();
        let Some(locked) = self.lock_to_reconcile(id).await else { return (id, report, false) };
        let done = locked.reconcile_locked(world, &mut report).await;
        let is_untold = match &done {
            Ok(Looked::Ours { wanted }) => {
                world.having_dhcp(id, wanted.as_deref().map(Self::dhcp_host).as_ref()) != Having::Same
            }
            Ok(Looked::Elsewhere) | Err(_) => false,
        };
        report.note(&format!("machine {id}"), done.map(|_| ()));
        (id, report, is_untold)
    }

    /// A lock that is held means that somebody is at work on this machine: next time. But the first round is waited for.
    async fn lock_to_reconcile(&self, id: MachineId) -> Option<LockedMachine<'_>> {
        match self.try_lock_machine(id) {
            None if !self.is_serving() => Some(self.lock_machine(id).await),
            guard => guard,
        }
    }

    fn having_target(&self, session: &Session, generation: &Generation, world: &World) -> Result<Having> {
        let spec = self.target_spec(session, generation)?;
        Ok(Having::of(world.targets.as_ref(), &spec.id, spec.digest()))
    }

    fn is_idle_too_long(&self, session: &Session, world: &World) -> bool {
        let Some(online) = &world.online else { return false };
        let connected = session.generations().any(|g| online.contains(&session.target(g)));
        let offline: Duration = self.inner.online.update(session.id, connected);
        session.policy == WritebackPolicy::Discard && !connected && offline >= self.inner.config.idle_timeout
    }

    /// Tells DHCP of these machines in one set, under the locks of all of them: a daemon that must be restarted is restarted once.
    async fn reconcile_dhcp(&self, machines: Vec<MachineId>, world: &World, report: &mut ReconcileReport) {
        let (mut locked, mut changes, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for id in machines {
            // Nobody waits for a second machine's lock while holding one, so these may be taken one after the other.
            let Some(machine) = self.lock_to_reconcile(id).await else { continue };
            // Again under the lock: it may have been changed, started or stopped meanwhile.
            let wanted = match self.wanted_in_dhcp(id).await {
                Ok(wanted) => wanted,
                Err(e) => {
                    report.note(&format!("machine {id}"), Err(e));
                    continue;
                }
            };
            let having = world.having_dhcp(id, wanted.as_ref());
            if having == Having::Same {
                continue;
            }
            names.push((id, wanted.is_some(), having));
            let whole = ResourceId::machine(id);
            changes.push(wanted.map_or(DhcpChange::Remove(whole), DhcpChange::Ensure));
            locked.push(machine);
        }
        if changes.is_empty() {
            return;
        }
        let outcomes = self.change_all_dhcp(locked.iter().zip(changes).collect()).await;
        drop(locked);
        for ((id, wanted, having), outcome) in names.into_iter().zip(outcomes) {
            if report.note(&format!("machine {id}"), outcome) {
                report.made += u64::from(wanted && having == Having::Other);
                report.removed += u64::from(!wanted);
            }
        }
    }

    async fn wanted_in_dhcp(&self, id: MachineId) -> Result<Option<DhcpHost>> {
        let store = self.inner.ports.store();
        let Some(machine) = store.machine(id).await? else { return Ok(None) };
        let live = store.live_session(id).await?.is_some();
        Ok(Self::wants_boot(&machine, live).then(|| Self::dhcp_host(&machine)))
    }

    async fn reconcile_manual_targets(&self, world: &World, report: &mut ReconcileReport) {
        let Some(listed) = &world.targets else { return };
        let wanted = match self.inner.ports.store().targets().await {
            Ok(wanted) => wanted,
            Err(e) => return report.trouble.push(format!("manual targets: {}", e.report())),
        };
        for target in &wanted {
            let having = match self.manual_target_spec(target) {
                Ok(spec) => Having::of(Some(listed), &spec.id, spec.digest()),
                Err(e) => {
                    report.note(&format!("target {}", target.name), Err(e));
                    continue;
                }
            };
            if having == Having::Same {
                continue;
            }
            let made = self.ensure_manual_target(target).await.map(|_| ());
            if report.note(&format!("target {}", target.name), made) {
                report.made += u64::from(having == Having::Other);
            }
        }
        let keep: HashSet<_> = wanted.iter().map(|t| ResourceId::manual(t.id)).collect();
        for orphan in listed.keys().filter(|r| r.owner().is_none() && !keep.contains(*r)) {
            // One may have been made since the list; the store decides.
            if self.manual_target_exists(orphan).await {
                continue;
            }
            let removed = self.remove_target(orphan, Removal::Force).await;
            if report.note(&format!("target {orphan}"), removed) {
                report.removed += 1;
            }
        }
    }

    async fn manual_target_exists(&self, id: &ResourceId) -> bool {
        // Unknown counts as existing: nothing is removed on a guess.
        let targets = self.inner.ports.store().targets().await;
        targets.map_or(true, |t| t.iter().any(|t| ResourceId::manual(t.id) == *id))
    }
}

impl LockedMachine<'_> {
    /// All but the DHCP server.
    async fn reconcile_locked(&self, world: &World, report: &mut ReconcileReport) -> Result<Looked> {
        let (store, id) = (self.inner.ports.store(), self.id());
        let machine = store.machine(id).await?;
        let mut session = store.live_session(id).await?;
        if session.as_ref().is_some_and(|session| !self.owns(session)) {
            return Ok(Looked::Elsewhere);
        }
        match (&machine, session.take()) {
            (Some(machine), Some(live)) => {
                session = self.reconcile_session(machine, live, world, report).await?;
            }
            (None, Some(live)) => {
                self.end(live, StopReason::MachineGone).await?;
                report.ended += 1;
            }
            (_, None) => {}
        }
        let wanted =
            machine.as_ref().filter(|machine| Orchestrator::wants_boot(machine, session.is_some())).cloned();
        if let Some(machine) = &wanted {
            self.reconcile_boot_files(machine, world, report).await?;
        }
        // What cannot be removed keeps no machine from booting.
        let removed = self.remove_orphans(machine.as_ref(), session.as_ref(), world, report).await;
        report.note(&format!("machine {id}"), removed);
        Ok(Looked::Ours { wanted: wanted.map(Box::new) })
    }

    /// Returns the session if it is still live.
    async fn reconcile_session(
        &self,
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
                self.undo_start(machine, session, &kept, &why).await;
                report.ended += 1;
                Ok(None)
            }
            SessionState::Stopping => {
                let session = self.carry_out_stop(session, Some(machine)).await?;
                if session.state.is_live() {
                    report.made += 1;
                    return Ok(Some(session));
                }
                report.ended += 1;
                Ok(None)
            }
            SessionState::Active => {
                if let Some(online) = &world.online {
                    self.commit_polled(&mut session, online).await?;
                }
                if self.expire_next(&mut session, world).await? {
                    report.removed += 1;
                }
                for generation in session.generations() {
                    let having = self.having_target(&session, generation, world)?;
                    if having != Having::Same {
                        self.ensure_generation(&session, generation).await?;
                    }
                    report.made += u64::from(having == Having::Other);
                }
                if self.is_idle_too_long(&session, world) {
                    self.end(session, StopReason::Timeout).await?;
                    report.ended += 1;
                    return Ok(None);
                }
                Ok(Some(session))
            }
            SessionState::Stopped | SessionState::Failed => Ok(None),
        }
    }

    async fn end(&self, session: Session, reason: StopReason) -> Result<()> {
        let request = StopRequest {
            session: session.id,
            force: reason == StopReason::MachineGone,
            reason,
            by: Principal::system(SystemPart::Reconciler),
        };
        self.perform_stop(session, &request).await.map(|_| ())
    }

    /// Before a boot is answered by a backend whose logins are only polled: what the last round could not see yet.
    pub(super) async fn commit_before_boot(&self, session: &mut Session) -> Result<()> {
        if self.inner.ports.target().capabilities().logins != LoginVisibility::Polled {
            return Ok(());
        }
        let online = self.inner.ports.target().connections().await?;
        self.commit_polled(session, &online.into_iter().map(|c| c.target).collect()).await.map(|_| ())
    }

    /// Where logins are only polled, a connection to a generation that nobody has used commits it.
    async fn commit_polled(&self, session: &mut Session, online: &HashSet<ResourceId>) -> Result<bool> {
        if self.inner.ports.target().capabilities().logins != LoginVisibility::Polled {
            return Ok(false);
        }
        if session.next.as_ref().is_some_and(|next| online.contains(&session.target(next))) {
            self.commit_next(session).await?;
            return Ok(true);
        }
        if session.current.committed_at.is_none() && online.contains(&session.target(&session.current)) {
            self.commit_current(session).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn expire_next(&self, session: &mut Session, world: &World) -> Result<bool> {
        let Some(next) = &session.next else { return Ok(false) };
        let waited = self.inner.unused.waited(session.id, next.number);
        let in_use = world.online.as_ref().is_none_or(|o| o.contains(&session.target(next)));
        if waited < self.inner.config.generation_ttl || in_use {
            return Ok(false);
        }
        // Who is online was read before: where logins are only polled, somebody may have come since.
        match self.drop_next(session, Removal::IfIdle).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Busy => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn reconcile_boot_files(
        &self,
        machine: &Machine,
        world: &World,
        report: &mut ReconcileReport,
    ) -> Result<()> {
        let bundle = self.boot_bundle(machine)?;
        let having = Having::of(world.boot_files.as_ref(), &ResourceId::machine(machine.id), bundle.digest());
        if having != Having::Same {
            self.inner.ports.boot_files().ensure(&bundle).await?;
        }
        report.made += u64::from(having == Having::Other);
        Ok(())
    }

    /// Removes what backends have of this machine and nobody wants: targets before writebacks, so that no disk is taken from under
    /// a target.
    async fn remove_orphans(
        &self,
        machine: Option<&Machine>,
        session: Option<&Session>,
        world: &World,
        report: &mut ReconcileReport,
    ) -> Result<()> {
        let (p, id) = (&self.inner.ports, self.id());
        let of_machine = |r: &&ResourceId| r.owner().is_some_and(|(m, _)| m == id);
        let targets: HashSet<ResourceId> =
            session.into_iter().flat_map(|s| s.generations().map(|g| s.target(g))).collect();
        let writebacks: HashSet<ResourceId> =
            session.into_iter().flat_map(|s| s.writebacks().cloned()).collect();
        for orphan in
            world.targets.iter().flat_map(|t| t.keys()).filter(of_machine).filter(|r| !targets.contains(*r))
        {
            self.remove_target(orphan, Removal::Force).await?;
            report.removed += 1;
        }
        for orphan in
            world.writebacks.iter().flatten().filter(of_machine).filter(|r| !writebacks.contains(*r))
        {
            // A kept writeback outlives its sessions; only the operator, or the machine's deletion, ends it.
            let kept = orphan.owner().is_some_and(|(_, generation)| generation.is_none());
            if kept && (machine.is_some() || self.is_being_published(orphan).await?) {
                continue;
            }
            p.writeback().remove(orphan, Removal::Force).await?;
            report.removed += 1;
        }
        if machine.is_some_and(|m| Orchestrator::wants_boot(m, session.is_some())) {
            return Ok(());
        }
        let whole = ResourceId::machine(id);
        if world.boot_files.as_ref().is_some_and(|b| b.contains_key(&whole)) {
            p.boot_files().remove(&whole).await?;
            report.removed += 1;
        }
        Ok(())
    }
}

impl World {
    /// How DHCP has a machine beside how it should have it; none: not at all.
    fn having_dhcp(&self, id: MachineId, wanted: Option<&DhcpHost>) -> Having {
        let whole = ResourceId::machine(id);
        match wanted {
            Some(host) => Having::of(self.dhcp.as_ref(), &whole, host.digest()),
            None if self.dhcp.as_ref().is_some_and(|dhcp| dhcp.contains_key(&whole)) => Having::Other,
            None => Having::Same,
        }
    }

    fn owners(&self) -> HashSet<MachineId> {
        let ids = self.targets.iter().flat_map(|t| t.keys());
        let ids = ids.chain(self.writebacks.iter().flatten());
        let ids = ids.chain(self.boot_files.iter().flat_map(|b| b.keys()));
        let ids = ids.chain(self.dhcp.iter().flat_map(|d| d.keys()));
        ids.filter_map(|id| id.owner()).map(|(machine, _)| machine).collect()
    }
}

//! [`Reconciler`]: compares what should exist with what every `list()` says, removes orphans, and makes what a live session lacks.
//!
//! At start-up and on a timer it lists first, reads the store second, and acts under the machine's lock after reading the session again
//! there; so whatever was made after the list is never taken for an orphan, and whatever went since is not made again. A list that
//! fails means *unknown*: that backend is left alone this time.
//!
//! Only what this server owns is looked after: a machine whose session another server serves is left alone, whole.

mod machine;
mod pruning;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};

use self::pruning::Pruning;
use super::{
    Services,
    images::Images,
    job_runner::{EndReason, JobRunner},
    jobs::Jobs,
    presence::Presence,
    sessions::{LockedMachine, Sessions},
    shared::Shared,
    targets::Targets,
    versions::Versions,
};
use crate::{
    error::Result,
    nouns::{EventKind, Machine, MachineId, ResourceId},
    ports::{Batch, Completeness, DhcpChange, DhcpHost, Listed, Removal, SpecDigest},
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

/// Brings what is to what should be.
pub(super) struct Reconciler {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    targets: Arc<Targets>,
    presence: Arc<Presence>,
    sessions: Arc<Sessions>,
    runner: Arc<JobRunner>,
    images: Arc<Images>,
    jobs: Arc<Jobs>,
    /// Whether the clock may be wrong, so that nothing is pruned.
    clock_doubted: AtomicBool,
}

impl Reconciler {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            shared: Arc::clone(&services.shared),
            versions: Arc::clone(&services.versions),
            targets: Arc::clone(&services.targets),
            presence: Arc::clone(&services.presence),
            sessions: Arc::clone(&services.sessions),
            runner: Arc::clone(&services.runner),
            images: Arc::clone(&services.images),
            jobs: Arc::clone(&services.jobs),
            clock_doubted: AtomicBool::new(false),
        }
    }

    pub(super) async fn reconcile_until_shutdown(&self) {
        // Not when it is started again: jobs of our own are under way then.
        if !self.runner.is_swept() {
            self.sweep().await;
        }
        let interval = self.shared.config.reconcile_interval;
        let mut wait = FIRST_WAIT.min(interval);
        let mut pruning = Pruning::default();
        loop {
            let (report, knew) = self.round().await;
            for trouble in &report.trouble {
                tracing::warn!(%trouble, "reconcile");
            }
            // A login to a target that is still to be made again would get a status that open-iscsi takes for final.
            if knew && !self.shared.is_serving() {
                tracing::info!(
                    made = report.made,
                    removed = report.removed,
                    ended = report.ended,
                    "first reconcile done"
                );
                self.shared.serve();
            }
            if self.shared.is_serving() {
                wait = interval;
                self.forget_the_old(&mut pruning).await;
            }
            tokio::select! {
                () = self.shared.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(interval);
        }
    }

    /// What an earlier process left half done is ended, and bytes that no version explains go.
    async fn sweep(&self) {
        // One that cannot be ended now stays live, and its version `importing`; the rounds go on with it.
        if let Err(e) = self.jobs.end_abandoned(EndReason::ServerEnded).await {
            tracing::warn!(error = %e.report(), "an interrupted job is left as it is");
        }
        if let Err(e) = self.images.sweep().await {
            tracing::warn!(error = %e.report(), "clean-up of interrupted imports");
        }
        self.runner.set_swept();
    }

    /// One round. Also called by tests and by an operator who does not want to wait.
    pub(super) async fn reconcile(&self) -> ReconcileReport {
        self.round().await.0
    }

    /// Also says whether the store and the targets were known, so that every live session was looked after.
    async fn round(&self) -> (ReconcileReport, bool) {
        let mut report = ReconcileReport::default();
        let world = self.look(&mut report).await;
        let store = self.shared.store();
        let sessions = match store.live_sessions().await {
            Ok(sessions) => sessions,
            Err(e) => {
                report.trouble.push(format!("live sessions: {}", e.report()));
                return (report, false);
            }
        };
        let machines = match self.shared.all_machines().await {
            Ok(machines) => machines,
            Err(e) => {
                report.trouble.push(format!("machines: {}", e.report()));
                return (report, false);
            }
        };
        // Every machine that has a session, should be known to DHCP, or of which a backend has something.
        let (ours, others): (Vec<_>, Vec<_>) = sessions.iter().partition(|session| self.shared.owns(session));
        let mut work: HashSet<MachineId> = ours.iter().map(|s| s.machine).collect();
        work.extend(machines.iter().filter(|m| Sessions::wants_boot(m, false)).map(|m| m.id));
        work.extend(world.owners());
        // Two servers that publish one session's disk would be two writers.
        others.iter().for_each(|session| _ = work.remove(&session.machine));
        if self.runner.is_swept() {
            for (what, ended) in
                [("jobs", self.jobs.reconcile().await), ("imports", self.images.fail_abandoned().await)]
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
        if report.made + report.removed + report.ended > 0 && self.shared.is_serving() {
            let action = format!("made {}, removed {}, ended {}", report.made, report.removed, report.ended);
            let event = self.shared.event(EventKind::Reconciled { action });
            let recorded = self.shared.record(Batch::new().event(event)).await.map(|_| ());
            report.note("event", recorded);
        }
        (report, world.targets.is_some())
    }

    async fn look(&self, report: &mut ReconcileReport) -> World {
        let p = &self.shared.ports;
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
                self.presence.looked(self.shared.config.reconcile_interval);
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
        let done = self.reconcile_locked(&locked, world, &mut report).await;
        let is_untold = match &done {
            Ok(Looked::Ours { wanted }) => {
                world.having_dhcp(id, wanted.as_deref().map(Sessions::dhcp_host).as_ref()) != Having::Same
            }
            Ok(Looked::Elsewhere) | Err(_) => false,
        };
        report.note(&format!("machine {id}"), done.map(|_| ()));
        (id, report, is_untold)
    }

    /// A lock that is held means that somebody is at work on this machine: next time. But the first round is waited for.
    async fn lock_to_reconcile(&self, id: MachineId) -> Option<LockedMachine<'_>> {
        match self.sessions.try_lock_machine(id) {
            None if !self.shared.is_serving() => Some(self.sessions.lock_machine(id).await),
            guard => guard,
        }
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
        let outcomes = self.sessions.change_all_dhcp(locked.iter().zip(changes).collect()).await;
        drop(locked);
        for ((id, wanted, having), outcome) in names.into_iter().zip(outcomes) {
            if report.note(&format!("machine {id}"), outcome) {
                report.made += u64::from(wanted && having == Having::Other);
                report.removed += u64::from(!wanted);
            }
        }
    }

    async fn wanted_in_dhcp(&self, id: MachineId) -> Result<Option<DhcpHost>> {
        let store = self.shared.store();
        let Some(machine) = store.machine(id).await? else { return Ok(None) };
        let live = store.live_session(id).await?.is_some();
        Ok(Sessions::wants_boot(&machine, live).then(|| Sessions::dhcp_host(&machine)))
    }

    async fn reconcile_manual_targets(&self, world: &World, report: &mut ReconcileReport) {
        let Some(listed) = &world.targets else { return };
        let wanted = match self.shared.store().targets().await {
            Ok(wanted) => wanted,
            Err(e) => return report.trouble.push(format!("manual targets: {}", e.report())),
        };
        for target in &wanted {
            let having = match self.targets.manual_target_spec(target) {
                Ok(spec) => Having::of(Some(listed), &spec.id, spec.digest()),
                Err(e) => {
                    report.note(&format!("target {}", target.name), Err(e));
                    continue;
                }
            };
            if having == Having::Same {
                continue;
            }
            let made = self.targets.ensure_manual_target(target).await.map(|_| ());
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
            let removed = self.targets.remove_target(orphan, Removal::Force).await;
            if report.note(&format!("target {orphan}"), removed) {
                report.removed += 1;
            }
        }
    }

    async fn manual_target_exists(&self, id: &ResourceId) -> bool {
        // Unknown counts as existing: nothing is removed on a guess.
        let targets = self.shared.store().targets().await;
        targets.map_or(true, |t| t.iter().any(|t| ResourceId::manual(t.id) == *id))
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

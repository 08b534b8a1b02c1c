//! [`MemoryStore`]: the `Store` in memory, with the same results as a database: constraints, revisions, counters, order.
//!
//! A batch is applied to a copy of the tables, which replaces them when every change of it held: whole or not at all. The logs
//! (events, audit) only grow, so they are appended after that and not copied.
//!
//! The tables live in a [`StoreWorld`] that outlives a store: [`MemoryStore::over`] opens it again as after a crash of our process,
//! and calls on the earlier store fail from then on. Clones of a store are one store.

mod tables;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;

use self::tables::Tables;
use crate::{
    error::{Error, ErrorKind, Result},
    nouns::{
        AuditRow, Cursor, Event, Image, ImageId, ImageVersion, ImageVersionId, Job, JobId, MacAddr, Machine,
        MachineId, ManualTarget, Name, SeenMachine, Session, SessionId, TargetId, Timestamp, VersionState,
    },
    ports::{
        Batch, Health, JobFilter, MachineFilter, Page, PageRequest, SessionCounts, SessionFilter, Store,
    },
};

const BACKEND: &str = "memory";
const MAX_SEARCH: usize = 2000;

#[derive(Default)]
struct State {
    tables: Tables,
    /// The events that are kept, each with its number.
    events: Vec<(u64, Event)>,
    last_event: u64,
    audit: Vec<AuditRow>,
    /// Which store of this world may still be used.
    life: u64,
    /// Only its reserve is left.
    full: bool,
}

/// What outlives a store: its records.
#[derive(Clone, Default)]
pub struct StoreWorld {
    state: Arc<Mutex<State>>,
}

impl StoreWorld {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves whole tables: they are swapped, never changed in place.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process that lives in it, as `kill -9` would, without starting another.
    pub fn kill(&self) {
        self.lock().life += 1;
    }

    /// Sets whether its disk is full from now on: while it is, only batches [`from_reserve`](Batch::from_reserve()) are accepted.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }
}

/// The `Store` in memory.
#[derive(Clone)]
pub struct MemoryStore {
    world: StoreWorld,
    life: u64,
    closed: Arc<AtomicBool>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store in a world of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&StoreWorld::default())
    }

    /// A store over the state of `world`, as after a crash of our process: calls on the earlier store of that world fail from now on.
    #[must_use]
    pub fn over(world: &StoreWorld) -> Self {
        let mut state = world.lock();
        state.life += 1;
        Self { world: world.clone(), life: state.life, closed: Arc::default() }
    }

    /// The world it lives in.
    #[must_use]
    pub fn world(&self) -> StoreWorld {
        self.world.clone()
    }

    fn state(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        let state = self.world.lock();
        if self.closed.load(Ordering::Acquire) || state.life != self.life {
            return Err(Error::new(ErrorKind::Unavailable, "The store is shut down")
                .retryable(false)
                .with_backend(BACKEND)
                .with_operation(operation));
        }
        Ok(state)
    }

    fn read<T>(&self, operation: &'static str, read: impl FnOnce(&State) -> T) -> Result<T> {
        Ok(read(&*self.state(operation)?))
    }
}

fn page<'a, T: Clone + 'a>(request: PageRequest, all: impl Iterator<Item = &'a T>) -> Page<T> {
    let all: Vec<&T> = all.collect();
    let per_page = usize::try_from(request.per_page).unwrap_or(usize::MAX);
    let skip = usize::try_from(request.page - 1).unwrap_or(usize::MAX).saturating_mul(per_page);
    Page {
        items: all.iter().skip(skip).take(per_page).map(|t| (*t).clone()).collect(),
        total: all.len() as u64,
        page: request.page,
        per_page: request.per_page,
    }
}

fn check_page(request: PageRequest) -> Result<()> {
    if request.page == 0 {
        return Err(Error::invalid("page", "Pages are counted from 1"));
    }
    if !(1..=1000).contains(&request.per_page) {
        return Err(Error::invalid(
            "per_page",
            format!("A page has 1 to 1000 items, not {}", request.per_page),
        ));
    }
    Ok(())
}

fn found_by(needle: &str, m: &Machine) -> bool {
    m.name.as_str().contains(needle)
        || m.description.to_lowercase().contains(needle)
        || m.macs.iter().any(|mac| {
            [mac.to_string(), mac.hyphenated(), mac.compact()]
                .iter()
                .any(|spelling| spelling.contains(needle))
        })
}

#[async_trait]
impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        BACKEND
    }

    async fn commit(&self, batch: Batch) -> Result<Vec<Event>> {
        let mut state = self.state("commit")?;
        if state.full && !batch.from_reserve {
            return Err(Error::new(ErrorKind::Full, "Only the reserve is left").with_backend(BACKEND));
        }
        for fence in &batch.fences {
            state.tables.check(*fence).map_err(|e| e.with_backend(BACKEND).with_operation("commit"))?;
        }
        let mut tables = state.tables.clone();
        for write in batch.writes {
            tables.apply(write).map_err(|e| e.with_backend(BACKEND).with_operation("commit"))?;
        }
        state.tables = tables;
        let mut events = Vec::with_capacity(batch.events.len());
        for event in batch.events {
            state.last_event += 1;
            let recorded = Event { cursor: Cursor::numbered(state.last_event), event };
            let number = state.last_event;
            state.events.push((number, recorded.clone()));
            events.push(recorded);
        }
        state.audit.extend(batch.audit);
        Ok(events)
    }

    async fn machine(&self, id: MachineId) -> Result<Option<Machine>> {
        self.read("machine", |s| s.tables.machines.get(&id).cloned())
    }

    async fn machine_by_mac(&self, mac: MacAddr) -> Result<Option<Machine>> {
        self.read("machine_by_mac", |s| s.tables.machines.values().find(|m| m.macs.contains(&mac)).cloned())
    }

    async fn machine_by_name(&self, name: &Name) -> Result<Option<Machine>> {
        self.read("machine_by_name", |s| s.tables.machines.values().find(|m| m.name == *name).cloned())
    }

    async fn machines(&self, filter: &MachineFilter, request: PageRequest) -> Result<Page<Machine>> {
        check_page(request)?;
        if filter.search.as_ref().is_some_and(|s| s.len() > MAX_SEARCH) {
            return Err(Error::invalid("search", format!("A search is at most {MAX_SEARCH} bytes long")));
        }
        let needle = filter.search.as_ref().map(|s| s.to_lowercase());
        self.read("machines", |s| {
            let mut found: Vec<&Machine> = s
                .tables
                .machines
                .values()
                .filter(|m| filter.state.is_none_or(|state| m.state == state))
                .filter(|m| filter.group.as_ref().is_none_or(|g| m.groups.contains(g)))
                .filter(|m| filter.image.is_none_or(|i| m.image == Some(i)))
                .filter(|m| needle.as_ref().is_none_or(|n| found_by(n, m)))
                .collect();
            found.sort_by(|a, b| a.name.cmp(&b.name));
            page(request, found.into_iter())
        })
    }

    async fn image(&self, id: ImageId) -> Result<Option<Image>> {
        self.read("image", |s| s.tables.images.get(&id).cloned())
    }

    async fn image_by_name(&self, name: &Name) -> Result<Option<Image>> {
        self.read("image_by_name", |s| s.tables.images.values().find(|i| i.name == *name).cloned())
    }

    async fn images(&self, request: PageRequest) -> Result<Page<Image>> {
        check_page(request)?;
        self.read("images", |s| {
            let mut all: Vec<&Image> = s.tables.images.values().collect();
            all.sort_by(|a, b| a.name.cmp(&b.name));
            page(request, all.into_iter())
        })
    }

    async fn version(&self, id: ImageVersionId) -> Result<Option<ImageVersion>> {
        self.read("version", |s| s.tables.versions.get(&id).cloned())
    }

    async fn versions(&self, image: ImageId) -> Result<Vec<ImageVersion>> {
        self.read("versions", |s| {
            let mut all: Vec<_> = s.tables.versions.values().filter(|v| v.image == image).cloned().collect();
            all.sort_by_key(|v| v.number);
            all
        })
    }

    async fn importing_versions(&self) -> Result<Vec<ImageVersion>> {
        self.read("importing_versions", |s| {
            let importing = |v: &&ImageVersion| v.state == VersionState::Importing;
            let mut all: Vec<_> = s.tables.versions.values().filter(importing).cloned().collect();
            all.sort_by_key(|v| (v.image, v.number));
            all
        })
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.read("session", |s| {
            let place = s.tables.session_places.get(&id)?;
            s.tables.sessions.get(place).cloned()
        })
    }

    async fn live_session(&self, machine: MachineId) -> Result<Option<Session>> {
        self.read("live_session", |s| s.tables.live().find(|o| o.machine == machine).cloned())
    }

    async fn last_session(&self, machine: MachineId) -> Result<Option<Session>> {
        self.read("last_session", |s| {
            s.tables.sessions.values().rev().find(|o| o.machine == machine).cloned()
        })
    }

    async fn live_sessions(&self) -> Result<Vec<Session>> {
        self.read("live_sessions", |s| s.tables.live().rev().cloned().collect())
    }

    async fn sessions(&self, filter: &SessionFilter, request: PageRequest) -> Result<Page<Session>> {
        check_page(request)?;
        self.read("sessions", |s| {
            let found = s
                .tables
                .sessions
                .values()
                .rev()
                .filter(|s| filter.state.is_none_or(|state| s.state == state))
                .filter(|s| filter.machine.is_none_or(|m| s.machine == m))
                .filter(|s| filter.image.is_none_or(|i| s.current.system().image == i))
                .filter(|s| filter.live.is_none_or(|live| s.state.is_live() == live));
            let mut page = page(request, found);
            for session in &mut page.items {
                session.current.chap = None;
                session.next.iter_mut().for_each(|next| next.chap = None);
            }
            page
        })
    }

    async fn session_counts(&self) -> Result<SessionCounts> {
        self.read("session_counts", |s| s.tables.counts)
    }

    async fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.read("job", |s| s.tables.job(id).cloned())
    }

    async fn live_jobs(&self) -> Result<Vec<Job>> {
        self.read("live_jobs", |s| {
            s.tables.jobs.values().filter(|job| job.state.is_live()).cloned().collect()
        })
    }

    async fn jobs(&self, filter: &JobFilter, request: PageRequest) -> Result<Page<Job>> {
        check_page(request)?;
        self.read("jobs", |s| {
            let found = s
                .tables
                .jobs
                .values()
                .rev()
                .filter(|job| filter.state.is_none_or(|state| job.state == state))
                .filter(|job| filter.live.is_none_or(|live| job.state.is_live() == live))
                .filter(|job| filter.subject.is_none_or(|subject| job.subject == subject));
            page(request, found)
        })
    }

    async fn target(&self, id: TargetId) -> Result<Option<ManualTarget>> {
        self.read("target", |s| s.tables.targets.get(&id).cloned())
    }

    async fn targets(&self) -> Result<Vec<ManualTarget>> {
        self.read("targets", |s| {
            let mut all: Vec<_> = s.tables.targets.values().cloned().collect();
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all
        })
    }

    async fn seen_machine(&self, mac: MacAddr) -> Result<Option<SeenMachine>> {
        self.read("seen_machine", |s| s.tables.seen.get(&mac).cloned())
    }

    async fn seen(&self, request: PageRequest) -> Result<Page<SeenMachine>> {
        check_page(request)?;
        self.read("seen", |s| {
            let mut all: Vec<&SeenMachine> = s.tables.seen.values().collect();
            all.sort_by_key(|m| (std::cmp::Reverse(m.last_seen.as_microsecond()), m.mac));
            page(request, all.into_iter())
        })
    }

    async fn events(
        &self,
        after: Option<Cursor>,
        limit: u32,
        machine: Option<MachineId>,
    ) -> Result<Vec<Event>> {
        self.read("events", |s| -> Result<Vec<Event>> {
            let forgotten = s.events.first().map_or(s.last_event, |(number, _)| number - 1);
            let after = match after {
                Some(cursor) => cursor.number_within(forgotten, s.last_event)?,
                None => 0,
            };
            let after = s.events.partition_point(|(number, _)| *number <= after);
            let found = s.events[after..].iter().map(|(_, event)| event);
            let found = found.filter(|e| machine.is_none_or(|m| e.event.machine == Some(m)));
            Ok(found.take(usize::try_from(limit).unwrap_or(usize::MAX)).cloned().collect())
        })?
    }

    async fn newest_events(&self, limit: u32, machine: Option<MachineId>) -> Result<Vec<Event>> {
        self.read("newest_events", |s| {
            let found = s.events.iter().rev().map(|(_, event)| event);
            let found = found.filter(|e| machine.is_none_or(|m| e.event.machine == Some(m)));
            let mut newest: Vec<_> =
                found.take(usize::try_from(limit).unwrap_or(usize::MAX)).cloned().collect();
            newest.reverse();
            newest
        })
    }

    async fn audit(&self, request: PageRequest) -> Result<Page<AuditRow>> {
        check_page(request)?;
        self.read("audit", |s| page(request, s.audit.iter().rev()))
    }

    async fn setting(&self, key: &str) -> Result<Option<String>> {
        self.read("setting", |s| s.tables.settings.get(key).cloned())
    }

    async fn prune(&self, before: Timestamp) -> Result<u64> {
        let before = before.as_microsecond();
        let mut state = self.state("prune")?;
        let rows = state.events.len() + state.audit.len();
        state.events.retain(|(_, e)| e.event.at.as_microsecond() >= before);
        state.audit.retain(|row| row.at.as_microsecond() >= before);
        let kept = state.events.len() + state.audit.len();
        Ok((rows - kept) as u64 + state.tables.prune(before))
    }

    async fn health(&self) -> Health {
        match self.state("health") {
            Ok(_) => Health::Up,
            Err(e) => Health::Down(e.message().to_owned()),
        }
    }

    async fn shutdown(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::{MemoryStore, StoreWorld};
    use crate::{ErrorKind, ports::Store, testkit::suite::Fixture};

    #[derive(Default)]
    struct Memory(StoreWorld);

    #[async_trait]
    impl Fixture<dyn Store> for Memory {
        async fn fresh(&self) -> Arc<dyn Store> {
            Arc::new(MemoryStore::over(&self.0))
        }
        async fn reopen(&self) -> Arc<dyn Store> {
            Arc::new(MemoryStore::over(&self.0))
        }
    }

    crate::store_behaviour!(behaviour, Memory::default());

    #[tokio::test]
    async fn an_earlier_process_cannot_write_any_more() {
        let first = MemoryStore::new();
        let second = MemoryStore::over(&first.world());
        assert_eq!(first.clone().session_counts().await.unwrap_err().kind(), ErrorKind::Unavailable);
        second.session_counts().await.unwrap();
    }
}

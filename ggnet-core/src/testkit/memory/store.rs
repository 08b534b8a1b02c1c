//! [`MemoryStore`]: the `Store` in memory, with the very same answers as a database: constraints, revisions, counters, order.
//!
//! A batch is applied to a copy of the tables, which replaces them when every change of it held: whole or not at all. The logs
//! (events, audit) only grow, so they are appended after that and not copied.
//!
//! The tables live in a [`StoreWorld`] that outlives a store: [`MemoryStore::over`] opens it again as after a crash of our process,
//! and calls on the earlier store fail from then on. Clones of a store are one store.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind, Result},
    nouns::{
        AuditRow, Event, Firmware, Image, ImageId, ImageVersion, ImageVersionId, MacAddr, Machine, MachineId,
        ManualTarget, Name, SeenMachine, Session, SessionId, SessionState, TargetId, Timestamp, VersionState,
    },
    ports::{
        Batch, Health, MAX_SEEN, MachineFilter, Page, PageRequest, SessionCounts, SessionFilter, Store, Write,
    },
};

const BACKEND: &str = "memory";
const MAX_SEARCH: usize = 2000;

/// What is constrained, and may have to be taken back.
#[derive(Clone, Default)]
struct Tables {
    machines: BTreeMap<MachineId, Machine>,
    images: BTreeMap<ImageId, Image>,
    versions: BTreeMap<ImageVersionId, ImageVersion>,
    /// In the order in which they were recorded.
    sessions: BTreeMap<u64, Session>,
    session_places: BTreeMap<SessionId, u64>,
    last_place: u64,
    targets: BTreeMap<TargetId, ManualTarget>,
    seen: BTreeMap<MacAddr, SeenMachine>,
    settings: BTreeMap<String, String>,
    counts: SessionCounts,
}

#[derive(Default)]
struct State {
    tables: Tables,
    events: Vec<Event>,
    last_event: i64,
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

    /// From now on its disk is full, or has room again: while it is full, only batches [`from_reserve`](Batch::from_reserve()) are taken.
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

    /// A store over what is in `world`, as after a crash of our process: calls on the earlier store of that world fail from now on.
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

fn conflict(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, message).with_hint("Read the records again and repeat the change")
}

/// The revision that a record gets, or why it may not be written.
fn next_revision(what: &str, which: &str, over: u64, stored: Option<u64>) -> Result<u64> {
    match (over, stored) {
        (0, None) => Ok(1),
        (0, Some(_)) => Err(conflict(format!("The {what} {which} exists already"))),
        (_, None) => Err(Error::not_found(what, which)),
        (over, Some(now)) if over == now => Ok(over + 1),
        (over, Some(now)) => Err(conflict(format!(
            "The {what} {which} was changed by somebody else: it is at revision {now}, this change was made over \
             revision {over}"
        ))
        .with_subject(which)),
    }
}

impl Tables {
    fn apply(&mut self, write: Write) -> Result<()> {
        match write {
            Write::Machine(m) => self.machine(m),
            Write::DeleteMachine(id) => self.delete_machine(id),
            Write::Image(i) => self.image(i),
            Write::DeleteImage(id) => self.delete_image(id),
            Write::Version(v) => self.version(v),
            Write::DeleteVersion(id) => self.delete_version(id),
            Write::Session(s) => self.session(*s),
            Write::Target(t) => self.target(t),
            Write::DeleteTarget(id) => {
                self.targets.remove(&id).map(|_| ()).ok_or_else(|| Error::not_found("target", id))
            }
            Write::Seen(s) => {
                self.see(s);
                Ok(())
            }
            Write::DeleteSeen(mac) => {
                self.seen.remove(&mac);
                Ok(())
            }
            Write::Setting { key, value } => {
                self.settings.insert(key, value);
                Ok(())
            }
        }
    }

    fn live(&self) -> impl DoubleEndedIterator<Item = &Session> {
        self.sessions.values().filter(|s| s.state.is_live())
    }

    fn machine_name(&self, id: MachineId) -> String {
        self.machines.get(&id).map_or_else(|| id.to_string(), |m| m.name.to_string())
    }

    /// A version that must be one of an image's.
    fn refers(&self, who: &str, image: ImageId, version: Option<ImageVersionId>) -> Result<()> {
        if !self.images.contains_key(&image) {
            return Err(conflict(format!("{who} refers to the image {image}, which does not exist")));
        }
        match version {
            Some(v) if self.versions.get(&v).is_none_or(|found| found.image != image) => {
                Err(conflict(format!("{who} refers to the version {v}, which is not a version of its image")))
            }
            _ => Ok(()),
        }
    }

    fn machine(&mut self, mut m: Machine) -> Result<()> {
        m.validate()?;
        let stored = self.machines.get(&m.id).map(|old| old.revision);
        m.revision = next_revision("machine", &m.id.to_string(), m.revision, stored)?;
        for other in self.machines.values().filter(|o| o.id != m.id) {
            if other.name == m.name {
                return Err(conflict(format!("The name {} is already used by another machine", m.name)));
            }
            if let Some(mac) = m.macs.iter().find(|mac| other.macs.contains(mac)) {
                return Err(conflict(format!(
                    "The MAC address {mac} is already used by the machine {}",
                    other.name
                )));
            }
        }
        if let Some(image) = m.image {
            self.refers(&format!("The machine {}", m.name), image, m.pinned_version)?;
        }
        self.machines.insert(m.id, m);
        Ok(())
    }

    fn delete_machine(&mut self, id: MachineId) -> Result<()> {
        if self.live().any(|s| s.machine == id) {
            let name = self.machine_name(id);
            return Err(
                conflict(format!("The machine {name} has a live session")).with_subject(id.to_string())
            );
        }
        self.machines.remove(&id).map(|_| ()).ok_or_else(|| Error::not_found("machine", id))
    }

    fn image(&mut self, mut i: Image) -> Result<()> {
        let stored = self.images.get(&i.id).map(|old| old.revision);
        i.revision = next_revision("image", &i.id.to_string(), i.revision, stored)?;
        if self.images.values().any(|o| o.id != i.id && o.name == i.name) {
            return Err(conflict(format!("The name {} is already used by another image", i.name)));
        }
        if let Some(v) = i.current
            && self.versions.get(&v).is_none_or(|found| found.image != i.id)
        {
            return Err(conflict(format!(
                "The image {} refers to the version {v}, which is not a version of its image",
                i.name
            )));
        }
        self.images.insert(i.id, i);
        Ok(())
    }

    fn delete_image(&mut self, id: ImageId) -> Result<()> {
        let mut users: Vec<String> = self
            .machines
            .values()
            .filter(|m| m.image == Some(id))
            .map(|m| format!("the machine {}", m.name))
            .collect();
        users.extend(
            self.live()
                .filter(|s| s.generations().any(|g| g.image == id))
                .map(|s| format!("the live session of {}", self.machine_name(s.machine))),
        );
        users.extend(
            self.targets
                .values()
                .filter(|t| self.versions.get(&t.version).is_some_and(|v| v.image == id))
                .map(|t| format!("the target {}", t.name)),
        );
        in_use("image", &id.to_string(), &users)?;
        self.versions.retain(|_, v| v.image != id);
        self.images.remove(&id).map(|_| ()).ok_or_else(|| Error::not_found("image", id))
    }

    fn version(&mut self, v: ImageVersion) -> Result<()> {
        if !self.images.contains_key(&v.image) {
            return Err(conflict(format!(
                "The version {} refers to the image {}, which does not exist",
                v.id, v.image
            )));
        }
        if self.versions.get(&v.id).is_some_and(|old| old.image != v.image) {
            return Err(conflict(format!("The version {} belongs to another image than {}", v.id, v.image)));
        }
        if self.versions.values().any(|o| o.id != v.id && o.image == v.image && o.number == v.number) {
            return Err(conflict(format!(
                "The version number {} is already used in the image {}",
                v.number, v.image
            )));
        }
        self.versions.insert(v.id, v);
        Ok(())
    }

    fn delete_version(&mut self, id: ImageVersionId) -> Result<()> {
        let mut users: Vec<String> = self
            .live()
            .filter(|s| s.generations().any(|g| g.version == id))
            .map(|s| format!("the live session of {}", self.machine_name(s.machine)))
            .collect();
        let pinned = self.machines.values().filter(|m| m.pinned_version == Some(id));
        users.extend(pinned.map(|m| format!("the pinned machine {}", m.name)));
        let served = self.targets.values().filter(|t| t.version == id);
        users.extend(served.map(|t| format!("the target {}", t.name)));
        let current = self.images.values().filter(|i| i.current == Some(id));
        users.extend(current.map(|i| format!("being the current version of the image {}", i.name)));
        in_use("version", &id.to_string(), &users)?;
        self.versions.remove(&id).map(|_| ()).ok_or_else(|| Error::not_found("version", id))
    }

    fn session(&mut self, mut s: Session) -> Result<()> {
        let place = self.session_places.get(&s.id).copied();
        let old = place.and_then(|p| self.sessions.get(&p));
        let old_state = old.map(|o| o.state);
        s.revision = next_revision("session", &s.id.to_string(), s.revision, old.map(|o| o.revision))?;
        if s.state.is_live() {
            if self.live().any(|o| o.machine == s.machine && o.id != s.id) {
                let name = self.machine_name(s.machine);
                return Err(conflict(format!("The machine {name} already has a live session"))
                    .with_subject(s.machine.to_string()));
            }
            if !self.machines.contains_key(&s.machine) {
                return Err(conflict(format!(
                    "The session {} refers to the machine {}, which does not exist",
                    s.id, s.machine
                )));
            }
            for generation in s.generations() {
                self.refers(&format!("The session {}", s.id), generation.image, Some(generation.version))?;
            }
        }
        if let Some(state) = old_state {
            *self.count(state) -= 1;
        }
        *self.count(s.state) += 1;
        let place = place.unwrap_or_else(|| {
            self.last_place += 1;
            self.last_place
        });
        self.session_places.insert(s.id, place);
        self.sessions.insert(place, s);
        Ok(())
    }

    fn count(&mut self, state: SessionState) -> &mut u64 {
        match state {
            SessionState::Starting => &mut self.counts.starting,
            SessionState::Active => &mut self.counts.active,
            SessionState::Stopping => &mut self.counts.stopping,
            SessionState::Stopped => &mut self.counts.stopped,
            SessionState::Failed => &mut self.counts.failed,
        }
    }

    fn target(&mut self, t: ManualTarget) -> Result<()> {
        if self.targets.contains_key(&t.id) {
            return Err(conflict(format!("The target {} exists already", t.id)));
        }
        if self.targets.values().any(|o| o.name == t.name) {
            return Err(conflict(format!("The name {} is already used by another target", t.name)));
        }
        if !self.versions.contains_key(&t.version) {
            return Err(conflict(format!(
                "The target {} refers to the version {}, which does not exist",
                t.name, t.version
            )));
        }
        self.targets.insert(t.id, t);
        Ok(())
    }

    /// The first sight and the best known firmware and address stay; the count adds up.
    fn see(&mut self, new: SeenMachine) {
        let record = match self.seen.get(&new.mac) {
            None => new,
            Some(old) => SeenMachine {
                mac: old.mac,
                firmware: if new.firmware == Firmware::Unknown { old.firmware } else { new.firmware },
                address: new.address.or_else(|| old.address.clone()),
                first_seen: old.first_seen.min(new.first_seen),
                last_seen: old.last_seen.max(new.last_seen),
                count: old.count.saturating_add(new.count.max(1)),
            },
        };
        self.seen.insert(record.mac, record);
        if self.seen.len() > MAX_SEEN {
            let oldest =
                self.seen.values().min_by_key(|s| (s.last_seen, std::cmp::Reverse(s.mac))).map(|s| s.mac);
            oldest.and_then(|mac| self.seen.remove(&mac));
        }
    }

    /// Deletes ended sessions older than `before`, but not the newest of a machine that exists.
    fn prune(&mut self, before: i64) -> u64 {
        let mut newest: BTreeMap<MachineId, u64> = BTreeMap::new();
        for (place, session) in &self.sessions {
            newest.insert(session.machine, *place);
        }
        let old: Vec<(u64, SessionId, SessionState)> = self
            .sessions
            .iter()
            .filter(|(place, s)| {
                !s.state.is_live()
                    && s.ended_at.unwrap_or(s.started_at).as_microsecond() < before
                    && (newest.get(&s.machine) != Some(*place) || !self.machines.contains_key(&s.machine))
            })
            .map(|(place, s)| (*place, s.id, s.state))
            .collect();
        for (place, id, state) in &old {
            self.sessions.remove(place);
            self.session_places.remove(id);
            *self.count(*state) -= 1;
        }
        old.len() as u64
    }
}

fn in_use(what: &str, id: &str, users: &[String]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    Err(conflict(format!("The {what} {id} is in use by {}", users.join(", "))).with_subject(id))
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
        let mut tables = state.tables.clone();
        for write in batch.writes {
            tables.apply(write).map_err(|e| e.with_backend(BACKEND).with_operation("commit"))?;
        }
        state.tables = tables;
        let mut events = Vec::with_capacity(batch.events.len());
        for event in batch.events {
            state.last_event += 1;
            events.push(Event { seq: state.last_event, event });
        }
        state.events.extend(events.iter().cloned());
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
                .filter(|s| filter.image.is_none_or(|i| s.current.image == i))
                .filter(|s| filter.live.is_none_or(|live| s.state.is_live() == live));
            page(request, found)
        })
    }

    async fn session_counts(&self) -> Result<SessionCounts> {
        self.read("session_counts", |s| s.tables.counts)
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

    async fn events(&self, cursor: i64, limit: u32, machine: Option<MachineId>) -> Result<Vec<Event>> {
        self.read("events", |s| {
            let after = s.events.partition_point(|e| e.seq <= cursor);
            s.events[after..]
                .iter()
                .filter(|e| machine.is_none_or(|m| e.event.machine == Some(m)))
                .take(usize::try_from(limit).unwrap_or(usize::MAX))
                .cloned()
                .collect()
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
        state.events.retain(|e| e.event.at.as_microsecond() >= before);
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

//! [`Tables`]: the records with their constraints, and the changes of them.

use std::collections::BTreeMap;

use crate::{
    error::{Error, ErrorKind, Result, code},
    nouns::{
        Firmware, Image, ImageId, ImageVersion, ImageVersionId, Job, JobId, MacAddr, Machine, MachineId,
        ManualTarget, SeenMachine, Session, SessionId, SessionState, TargetId,
    },
    ports::{Fence, MAX_SEEN, SessionCounts, Write},
};

/// The constrained records, whose changes may have to be reverted.
#[derive(Clone, Default)]
pub(super) struct Tables {
    pub(super) machines: BTreeMap<MachineId, Machine>,
    pub(super) images: BTreeMap<ImageId, Image>,
    pub(super) versions: BTreeMap<ImageVersionId, ImageVersion>,
    /// In the order in which they were recorded.
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) session_places: BTreeMap<SessionId, u64>,
    last_place: u64,
    /// In the order in which they were recorded.
    pub(super) jobs: BTreeMap<u64, Job>,
    job_places: BTreeMap<JobId, u64>,
    last_job: u64,
    pub(super) targets: BTreeMap<TargetId, ManualTarget>,
    pub(super) seen: BTreeMap<MacAddr, SeenMachine>,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) counts: SessionCounts,
}

fn conflict(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, message).with_hint("Read the records again and repeat the change")
}

/// The revision that a record gets, or the error why it may not be written.
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
    /// Makes one change. Works on a copy: a rejected change is discarded with the copy.
    pub(super) fn apply(&mut self, write: Write) -> Result<()> {
        match write {
            Write::Machine(m) => self.machine(m),
            Write::DeleteMachine(id) => self.delete_machine(id),
            Write::Image(i) => self.image(i),
            Write::DeleteImage(id) => self.delete_image(id),
            Write::Version(v) => self.version(v),
            Write::DeleteVersion(id) => self.delete_version(id),
            Write::Session(s) => self.session(*s),
            Write::Job(j) => self.put_job(*j),
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

    /// Checks that a fence still holds.
    pub(super) fn check(&self, fence: Fence) -> Result<()> {
        let place = self.session_places.get(&fence.session);
        let session = place.and_then(|place| self.sessions.get(place));
        let session = session.ok_or_else(|| Error::not_found("session", fence.session))?;
        if session.epoch == fence.epoch {
            return Ok(());
        }
        let message = format!(
            "Session {} was taken over: it is in epoch {}, this change was made in epoch {}",
            session.id, session.epoch, fence.epoch
        );
        Err(Error::new(code::session_taken_over(session.id, session.epoch), message))
    }

    /// The live sessions, in the order in which they were recorded.
    pub(super) fn live(&self) -> impl DoubleEndedIterator<Item = &Session> {
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
                .filter(|s| s.generations().flat_map(|g| g.disks.iter()).any(|d| d.image == id))
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
            .filter(|s| s.versions().any(|v| v == id))
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
            for disk in s.generations().flat_map(|g| g.disks.iter()) {
                self.refers(&format!("The session {}", s.id), disk.image, Some(disk.version))?;
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

    pub(super) fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(self.job_places.get(&id)?)
    }

    fn put_job(&mut self, mut job: Job) -> Result<()> {
        let stored = self.job(job.id).map(|old| old.revision);
        job.revision = next_revision("job", &job.id.to_string(), job.revision, stored)?;
        let live = |other: &Job| other.state.is_live() && other.id != job.id && other.subject == job.subject;
        if job.state.is_live() && self.jobs.values().any(live) {
            let message = format!("Another job works on {} already", job.subject);
            return Err(Error::new(code::job_under_way(job.subject), message)
                .with_subject(job.id.to_string())
                .with_hint("Wait for its end, or cancel it"));
        }
        let place = self.job_places.get(&job.id).copied().unwrap_or_else(|| {
            self.last_job += 1;
            self.last_job
        });
        self.job_places.insert(job.id, place);
        self.jobs.insert(place, job);
        Ok(())
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

    /// Deletes ended jobs and ended sessions older than `before`, but not the newest session of a machine that exists.
    pub(super) fn prune(&mut self, before: i64) -> u64 {
        let jobs = self.jobs.len();
        self.jobs.retain(|_, job| {
            job.state.is_live() || job.finished_at.unwrap_or(job.created_at).as_microsecond() >= before
        });
        self.job_places.retain(|_, place| self.jobs.contains_key(place));
        let jobs = jobs - self.jobs.len();
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
        (old.len() + jobs) as u64
    }
}

fn in_use(what: &str, id: &str, users: &[String]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    Err(conflict(format!("The {what} {id} is in use by {}", users.join(", "))).with_subject(id))
}

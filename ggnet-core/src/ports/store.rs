//! [`Store`]: the persistent records. Reads are plain; every change is one [`Batch`], applied whole or not at all.
//!
//! Invariants that the store holds, not a check before a write: names and MAC addresses are unique; at most one live session per
//! machine and one live job per subject; a version in use by a live session, a pin or a manual target cannot be deleted; a record changes
//! only over the revision it was read with. A batch that would break one is `Conflict` and changes nothing.

use std::collections::HashMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Health;
use crate::{
    error::Result,
    nouns::{
        AuditRow, Cursor, Event, Image, ImageId, ImageVersion, ImageVersionId, Job, JobId, JobState,
        JobSubject, MacAddr, Machine, MachineId, MachineState, ManualTarget, Name, NewEvent, SeenMachine,
        Session, SessionId, SessionState, TargetId,
    },
};

/// The maximum number of unknown machines that a store keeps. It is limited because anyone can send packets with invented addresses.
pub const MAX_SEEN: usize = 1000;

/// One change. Records with a `revision`: 0 inserts; any other value is the revision it was read with, and the stored record gets
/// the next one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Write {
    /// Inserts or updates a machine.
    Machine(Machine),
    /// Deletes a machine; `Conflict` while it has a live session.
    DeleteMachine(MachineId),
    /// Inserts or updates an image.
    Image(Image),
    /// Deletes an image with its versions; `Conflict` while a machine is assigned to it or a version is in use.
    DeleteImage(ImageId),
    /// Inserts or replaces a version.
    Version(ImageVersion),
    /// Deletes a version; `Conflict` while it is in use.
    DeleteVersion(ImageVersionId),
    /// Inserts or updates a session with its credentials.
    Session(Box<Session>),
    /// Inserts or updates a job; `Conflict` while another live job works on its subject.
    Job(Box<Job>),
    /// Inserts a manual target.
    Target(ManualTarget),
    /// Deletes a manual target.
    DeleteTarget(TargetId),
    /// Records that an unknown machine was seen: inserts it, or counts the sighting and updates its time. At most [`MAX_SEEN`] are kept:
    /// beyond that, the one that was seen the longest ago is deleted.
    Seen(SeenMachine),
    /// Forgets an unknown machine.
    DeleteSeen(MacAddr),
    /// Sets a named value of the installation (the token's hash, the instance id).
    Setting {
        /// Its name.
        key: String,
        /// Its value.
        value: String,
    },
}

/// A condition: the session is still in this epoch, so no other server has taken it over since it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u64,
}

/// Changes that happen together, with their events and audit rows.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The changes, in order.
    pub writes: Vec<Write>,
    /// The events to publish.
    pub events: Vec<NewEvent>,
    /// The audit rows.
    pub audit: Vec<AuditRow>,
    /// Whether it may use what the store keeps in reserve for a full disk: see [`Batch::from_reserve()`].
    pub from_reserve: bool,
    /// Conditions that must still hold; otherwise nothing is applied.
    pub fences: Vec<Fence>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks a batch that frees space or records how something ended: on a full disk it may use the store's reserve. Other changes may not,
    /// so that the reserve is there when it is needed.
    #[must_use]
    pub const fn from_reserve(mut self) -> Self {
        self.from_reserve = true;
        self
    }

    /// Applied only while this session is in the epoch that it was read in; else `Conflict`, and `NotFound` when it is not there.
    #[must_use]
    pub fn fenced(mut self, session: &Session) -> Self {
        self.fences.push(Fence { session: session.id, epoch: session.epoch });
        self
    }

    /// Adds a change.
    #[must_use]
    pub fn write(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    /// Adds an event.
    #[must_use]
    pub fn event(mut self, event: NewEvent) -> Self {
        self.events.push(event);
        self
    }

    /// Adds an audit row.
    #[must_use]
    pub fn audit(mut self, row: AuditRow) -> Self {
        self.audit.push(row);
        self
    }
}

/// Which page of a list: `page` from 1 on, `per_page` 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest {
    /// From 1 on.
    pub page: u32,
    /// 1 to 1000.
    pub per_page: u32,
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { page: 1, per_page: 100 }
    }
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// How many there are in all pages.
    pub total: u64,
    /// The number of this page.
    pub page: u32,
    /// The number of items per page.
    pub per_page: u32,
}

/// Which machines; every given condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFilter {
    /// In this state.
    pub state: Option<MachineState>,
    /// In this group.
    pub group: Option<Name>,
    /// Assigned to this image.
    pub image: Option<ImageId>,
    /// With this text in its name, description or a MAC address, ignoring case.
    pub search: Option<String>,
}

/// Which sessions; every given condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFilter {
    /// In this state.
    pub state: Option<SessionState>,
    /// Of this machine.
    pub machine: Option<MachineId>,
    /// Of this image.
    pub image: Option<ImageId>,
    /// Live ones only, or ended ones only.
    pub live: Option<bool>,
}

/// Which jobs; every given condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// Live ones only (queued, running), or ended ones only.
    pub live: Option<bool>,
    /// That work on this.
    pub subject: Option<JobSubject>,
}

/// How many sessions there are in each state; kept as counters, no scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Being started.
    pub starting: u64,
    /// Active.
    pub active: u64,
    /// Being stopped.
    pub stopping: u64,
    /// Stopped.
    pub stopped: u64,
    /// Failed.
    pub failed: u64,
}

/// Names of machines and images, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Of machines.
    pub machines: HashMap<MachineId, Name>,
    /// Of images.
    pub images: HashMap<ImageId, Name>,
}

/// Persistence. A method that is added later has a default implementation that calls the others. Lists are ordered: machines, images and
/// targets by name, versions by number, sessions and jobs newest first, seen machines by last sighting (newest first), events in the order
/// of their commits.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The store's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Applies a batch in one durable transaction and returns its events with their places. When it returns, a power cut loses
    /// nothing of it. Dropped half-way: applied whole or not at all. `Full` when there is no room: a store keeps some in reserve for
    /// batches that are [`Batch::from_reserve()`].
    ///
    /// Commits that wait at the same time may share one transaction if each keeps these promises: a batch that is refused leaves no trace and
    /// does not affect the others, and no commit returns before the transaction is durable.
    async fn commit(&self, batch: Batch) -> Result<Vec<Event>>;

    /// How many transactions the store has made durable since it was opened; `None` if it does not count them. The number is smaller than
    /// that of successful commits if commits share transactions.
    fn synced_commits(&self) -> Option<u64> {
        None
    }

    /// A machine.
    async fn machine(&self, id: MachineId) -> Result<Option<Machine>>;
    /// The machine with this MAC address.
    async fn machine_by_mac(&self, mac: MacAddr) -> Result<Option<Machine>>;
    /// The machine with this name.
    async fn machine_by_name(&self, name: &Name) -> Result<Option<Machine>>;
    /// Machines.
    async fn machines(&self, filter: &MachineFilter, page: PageRequest) -> Result<Page<Machine>>;

    /// An image.
    async fn image(&self, id: ImageId) -> Result<Option<Image>>;
    /// The image with this name.
    async fn image_by_name(&self, name: &Name) -> Result<Option<Image>>;
    /// Images.
    async fn images(&self, page: PageRequest) -> Result<Page<Image>>;
    /// A version.
    async fn version(&self, id: ImageVersionId) -> Result<Option<ImageVersion>>;
    /// The versions of an image.
    async fn versions(&self, image: ImageId) -> Result<Vec<ImageVersion>>;
    /// The versions of these images, grouped by image and ordered by number: for a page that shows them, so for at most 1000 images. The
    /// default makes one read for each image; a store that can read all of them at once should do so.
    async fn versions_of(&self, images: &[ImageId]) -> Result<Vec<ImageVersion>> {
        let mut all = Vec::new();
        for image in images {
            all.extend(self.versions(*image).await?);
        }
        Ok(all)
    }
    /// Versions being imported, of every image.
    async fn importing_versions(&self) -> Result<Vec<ImageVersion>>;

    /// A session, with its credentials.
    async fn session(&self, id: SessionId) -> Result<Option<Session>>;
    /// The machine's live session.
    async fn live_session(&self, machine: MachineId) -> Result<Option<Session>>;
    /// The machine's newest session, live or not.
    async fn last_session(&self, machine: MachineId) -> Result<Option<Session>>;
    /// Every live session.
    async fn live_sessions(&self) -> Result<Vec<Session>>;
    /// Sessions, for a list that shows them: *without* their credentials (`chap` is `None`), so they must never be written back.
    async fn sessions(&self, filter: &SessionFilter, page: PageRequest) -> Result<Page<Session>>;
    /// The counters.
    async fn session_counts(&self) -> Result<SessionCounts>;

    /// The names of these machines and images, for a page that shows them; those that do not exist are left out. At most one page (1000) of
    /// each. The default makes one read for each; a store that can read all of them at once should do so.
    async fn names(&self, machines: &[MachineId], images: &[ImageId]) -> Result<Names> {
        let mut names = Names::default();
        for id in machines {
            names.machines.extend(self.machine(*id).await?.map(|machine| (*id, machine.name)));
        }
        for id in images {
            names.images.extend(self.image(*id).await?.map(|image| (*id, image.name)));
        }
        Ok(names)
    }

    /// A job.
    async fn job(&self, id: JobId) -> Result<Option<Job>>;
    /// Every live job, oldest first: the order in which they run.
    async fn live_jobs(&self) -> Result<Vec<Job>>;
    /// Jobs.
    async fn jobs(&self, filter: &JobFilter, page: PageRequest) -> Result<Page<Job>>;

    /// A manual target.
    async fn target(&self, id: TargetId) -> Result<Option<ManualTarget>>;
    /// Manual targets.
    async fn targets(&self) -> Result<Vec<ManualTarget>>;

    /// The unknown machine with this MAC address, if it was seen.
    async fn seen_machine(&self, mac: MacAddr) -> Result<Option<SeenMachine>>;
    /// Unknown machines that were seen.
    async fn seen(&self, page: PageRequest) -> Result<Page<SeenMachine>>;

    /// Events after `after` (`None`: from the first that is still kept), oldest first, at most `limit`; if `machine` is given, only its own.
    ///
    /// `NotFound` for a cursor after which events were pruned, and for a cursor of events that this store never had; `Invalid` for a text
    /// that is not a cursor of this store. [`Cursor::number_within`] makes these checks for a store that numbers its events.
    async fn events(
        &self,
        after: Option<Cursor>,
        limit: u32,
        machine: Option<MachineId>,
    ) -> Result<Vec<Event>>;
    /// The newest `limit` events, oldest first; if `machine` is given, only its own.
    async fn newest_events(&self, limit: u32, machine: Option<MachineId>) -> Result<Vec<Event>>;
    /// The newest audit rows first.
    async fn audit(&self, page: PageRequest) -> Result<Page<AuditRow>>;

    /// A named value.
    async fn setting(&self, key: &str) -> Result<Option<String>>;

    /// Deletes events, audit rows, ended jobs and ended sessions older than `before`, but never a machine's newest session. Returns the
    /// number of deleted rows.
    async fn prune(&self, before: crate::nouns::Timestamp) -> Result<u64>;

    /// The store's health.
    async fn health(&self) -> Health;

    /// Finishes writing and closes.
    async fn shutdown(&self);
}

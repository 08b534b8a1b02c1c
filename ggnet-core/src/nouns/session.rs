//! [`Session`]: one machine using one image version, from start to stop, through its generations.
//!
//! ```text
//!             start                     all steps done             stop
//!   (none) ──────────▶ starting ─────▶ active ───────────────▶ stopping ─────▶ stopped
//!                         │  step failed: undo in reverse           │  step failed: stays stopping,
//!                         ▼                                         ▼  the reconciler keeps trying
//!                       failed                                   stopping
//! ```
//! Invariants: at most one *live* session (starting, active, stopping) per machine, held by the store; `next` exists only while
//! `active` and only after the current generation has seen a login; generation numbers only grow for a machine, over sessions too;
//! every generation has a system disk, as LUN 0 ([`Disks`]).

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::{
    ChapPair, Failure, ImageId, ImageVersionId, Iqn, MachineId, ResourceId, ServerId, SessionId, Timestamp,
    WritebackPolicy,
};
use crate::error::{Error, ErrorKind, Result};

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// It is being started.
    Starting,
    /// Everything it needs exists.
    Active,
    /// It is being stopped.
    Stopping,
    /// It has ended, and nothing of it is left.
    Stopped,
    /// It ended because of an error; the reconciler removes what may be left.
    Failed,
}

impl SessionState {
    /// Whether the session holds its machine.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Active | Self::Stopping)
    }

    /// Every state, in the order of life.
    pub const ALL: [Self; 5] = [Self::Starting, Self::Active, Self::Stopping, Self::Stopped, Self::Failed];

    /// The state's name in the API and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// An operator stopped it.
    Operator,
    /// It was offline longer than `session.idle_timeout`.
    Timeout,
    /// Its start failed, or took longer than its deadline.
    StartFailed,
    /// Replaced by another session of the same machine (another image).
    Replaced,
    /// Its machine was deleted, or switched off.
    MachineGone,
}

/// Where the writes to a disk of a session go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "access", rename_all = "snake_case")]
pub enum DiskAccess {
    /// To a writeback over the version, which only this session writes to.
    CopyOnWrite {
        /// The writeback: it belongs to the generation under `discard`, and to the machine under `keep`.
        writeback: ResourceId,
    },
    /// Nowhere: the disk is read-only, and many sessions read the same version.
    Shared,
}

/// A disk of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDisk {
    /// Its LUN.
    pub lun: u8,
    /// Its image.
    pub image: ImageId,
    /// The version that its writeback is based on, or the shared version. When the image gets a new current version, the next generation
    /// uses it.
    pub version: ImageVersionId,
    /// Where writes go.
    #[serde(flatten)]
    pub access: DiskAccess,
}

impl SessionDisk {
    /// Its writeback; `None` if it is shared.
    #[must_use]
    pub const fn writeback(&self) -> Option<&ResourceId> {
        match &self.access {
            DiskAccess::CopyOnWrite { writeback } => Some(writeback),
            DiskAccess::Shared => None,
        }
    }
}

/// The disks of a generation, by LUN.
///
/// Invariants: LUN numbers are different and in ascending order; the first disk is LUN 0, the system disk, and copy-on-write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<SessionDisk>")]
pub struct Disks(Vec<SessionDisk>);

impl Disks {
    /// These disks.
    ///
    /// # Errors
    /// `Invalid` (field `disks`) for disks that break an invariant.
    pub fn new(disks: Vec<SessionDisk>) -> Result<Self> {
        if disks.first().is_none_or(|first| first.lun != 0 || first.writeback().is_none()) {
            let message = "The first disk of a session must be the system disk: LUN 0, copy-on-write";
            return Err(Error::invalid("disks", message));
        }
        if !disks.is_sorted_by(|a, b| a.lun < b.lun) {
            let luns: Vec<_> = disks.iter().map(|disk| disk.lun.to_string()).collect();
            let message = format!(
                "The LUNs of a session must be different and in ascending order, but are {}",
                luns.join(", ")
            );
            return Err(Error::invalid("disks", message));
        }
        Ok(Self(disks))
    }

    /// A system disk and no other.
    #[must_use]
    pub fn of_system(image: ImageId, version: ImageVersionId, writeback: ResourceId) -> Self {
        Self(vec![SessionDisk { lun: 0, image, version, access: DiskAccess::CopyOnWrite { writeback } }])
    }

    /// The disk that the machine boots from.
    #[must_use]
    pub fn system(&self) -> &SessionDisk {
        // There is always one: see the invariants.
        &self.0[0]
    }

    /// The writebacks, that of the system disk first.
    pub fn writebacks(&self) -> impl Iterator<Item = &ResourceId> {
        self.0.iter().filter_map(SessionDisk::writeback)
    }
}

impl Deref for Disks {
    type Target = [SessionDisk];

    fn deref(&self) -> &[SessionDisk] {
        &self.0
    }
}

impl TryFrom<Vec<SessionDisk>> for Disks {
    type Error = Error;

    fn try_from(disks: Vec<SessionDisk>) -> Result<Self> {
        Self::new(disks)
    }
}

/// Whether a data disk can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataAccess {
    /// To a writeback of this session; a reboot treats it like the system disk's writeback ([`Session::policy`]).
    CopyOnWrite,
    /// Read-only, shared with every session that uses it.
    Shared,
}

/// A disk that was requested for a session in addition to its system disk. Each of its boots has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDisk {
    /// Its LUN: from 1.
    pub lun: u8,
    /// The image.
    pub image: ImageId,
    /// The version; `None`: the version that is current at each boot.
    #[serde(default)]
    pub version: Option<ImageVersionId>,
    /// Whether it can be written to.
    pub access: DataAccess,
}

/// One boot's worth of target name, credentials and disks. A request for a boot script prepares the next one; the first
/// authenticated login to it makes it current.
///
/// Serialised without its credentials: the store encrypts and stores them separately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "GenerationRecord")]
pub struct Generation {
    /// Its number; part of the target's name.
    pub number: u32,
    /// The CHAP pair with which its initiator must authenticate.
    #[serde(skip)]
    pub chap: Option<ChapPair>,
    /// Its disks.
    pub disks: Disks,
    /// When it was prepared.
    pub prepared_at: Timestamp,
    /// When an authenticated login first used it.
    pub committed_at: Option<Timestamp>,
}

impl Generation {
    /// The disk that it boots from.
    #[must_use]
    pub fn system(&self) -> &SessionDisk {
        self.disks.system()
    }
}

/// A generation as it is stored. Before sessions had a list of disks, it had the image, the version and the writeback of the system disk
/// instead.
#[derive(Deserialize)]
struct GenerationRecord {
    number: u32,
    disks: Option<Disks>,
    image: Option<ImageId>,
    version: Option<ImageVersionId>,
    writeback: Option<ResourceId>,
    prepared_at: Timestamp,
    #[serde(default)]
    committed_at: Option<Timestamp>,
}

impl TryFrom<GenerationRecord> for Generation {
    type Error = Error;

    fn try_from(record: GenerationRecord) -> Result<Self> {
        let disks = match (record.disks, record.image, record.version, record.writeback) {
            (Some(disks), ..) => disks,
            (None, Some(image), Some(version), Some(writeback)) => {
                Disks::of_system(image, version, writeback)
            }
            _ => {
                let message = format!("Generation {} has no disks", record.number);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
        };
        Ok(Self {
            number: record.number,
            chap: None,
            disks,
            prepared_at: record.prepared_at,
            committed_at: record.committed_at,
        })
    }
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The machine it holds.
    pub machine: MachineId,
    /// Its state.
    pub state: SessionState,
    /// What happens to its writes at a reboot; fixed for the session's life.
    pub policy: WritebackPolicy,
    /// The image that the operator named at the start; every boot of the session uses it. `None`: each boot uses the image that the machine
    /// is assigned to at that time.
    #[serde(default)]
    pub chosen_image: Option<ImageId>,
    /// The disks that were requested in addition to the system disk, by LUN.
    #[serde(default)]
    pub data_disks: Vec<DataDisk>,
    /// The initiator name that its targets accept.
    pub initiator: Iqn,
    /// The generation in use, or waiting for its first login.
    pub current: Generation,
    /// The generation that the next boot will use, once prepared.
    #[serde(default)]
    pub next: Option<Generation>,
    /// The highest generation number that was ever prepared, used or not. A number is never reused, so that a name, or a disk that could
    /// not be removed, never becomes that of another generation.
    #[serde(default)]
    pub last_generation: u32,
    /// When the start was recorded.
    pub started_at: Timestamp,
    /// When it became active.
    #[serde(default)]
    pub active_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Why it ended, or is ending.
    #[serde(default)]
    pub stop_reason: Option<StopReason>,
    /// Whether it is being stopped even with a live initiator. A stop that could not finish is finished as it was requested.
    #[serde(default)]
    pub stop_forced: bool,
    /// What failed, as text for people.
    #[serde(default)]
    pub error: Option<String>,
    /// Which failure that was, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The server that serves it; only this server may change it. `None` in a record from before servers had ids: any server that finds it.
    #[serde(default)]
    pub owner: Option<ServerId>,
    /// Grows whenever another server takes it over: decisions from an earlier epoch must no longer be carried out.
    #[serde(default)]
    pub epoch: u64,
    /// Grows with every change; updates are conditional on it.
    pub revision: u64,
}

impl Session {
    /// The target resource of generation `n`.
    #[must_use]
    pub fn target(&self, generation: &Generation) -> ResourceId {
        ResourceId::generation(self.machine, generation.number)
    }

    /// The generations that exist: current, and next when prepared.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        std::iter::once(&self.current).chain(self.next.as_ref())
    }

    /// The versions that its generations use.
    pub fn versions(&self) -> impl Iterator<Item = ImageVersionId> {
        self.generations().flat_map(|generation| generation.disks.iter()).map(|disk| disk.version)
    }

    /// The writebacks of its generations. Under `keep`, both generations have the same.
    pub fn writebacks(&self) -> impl Iterator<Item = &ResourceId> {
        self.generations().flat_map(|generation| generation.disks.writebacks())
    }

    /// Whether this server is its owner.
    #[must_use]
    pub fn is_of(&self, server: &ServerId) -> bool {
        self.owner.as_ref().is_none_or(|owner| owner == server)
    }

    /// The highest generation number that this session has used.
    #[must_use]
    pub fn highest_generation(&self) -> u32 {
        self.generations().map(|g| g.number).fold(self.last_generation, u32::max)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disk(lun: u8, writeback: Option<&str>) -> SessionDisk {
        let access = writeback
            .map_or(DiskAccess::Shared, |id| DiskAccess::CopyOnWrite { writeback: id.parse().unwrap() });
        SessionDisk { lun, image: ImageId::generate(), version: ImageVersionId::generate(), access }
    }

    #[test]
    fn disks_have_a_system_disk_and_ascending_luns() {
        let good = vec![disk(0, Some("a")), disk(1, None), disk(255, Some("b"))];
        let disks = Disks::new(good.clone()).unwrap();
        assert_eq!((disks.system(), &disks[..]), (&good[0], &good[..]));
        let ids: Vec<_> = disks.writebacks().map(ResourceId::as_str).collect();
        assert_eq!(ids, ["a", "b"]);
        for bad in [
            vec![],
            vec![disk(1, Some("a"))],
            vec![disk(0, None)],
            vec![disk(1, None), disk(0, Some("a"))],
            vec![disk(0, Some("a")), disk(0, Some("b"))],
            vec![disk(0, Some("a")), disk(2, None), disk(2, None)],
            vec![disk(0, Some("a")), disk(2, None), disk(1, None)],
        ] {
            let written = serde_json::to_value(&bad).unwrap();
            assert_eq!(Disks::new(bad).unwrap_err().field(), Some("disks"), "{written}");
            assert!(serde_json::from_value::<Disks>(written.clone()).is_err(), "{written}");
        }
    }

    #[test]
    fn a_generation_is_written_with_its_disks_and_read_as_it_was_before_there_was_a_list() {
        let (system, data) = (disk(0, Some("a.1")), disk(3, None));
        let generation = Generation {
            number: 1,
            chap: None,
            disks: Disks::new(vec![system.clone(), data.clone()]).unwrap(),
            prepared_at: Timestamp::UNIX_EPOCH,
            committed_at: Some(Timestamp::UNIX_EPOCH),
        };
        let written = serde_json::to_value(&generation).unwrap();
        let expected = json!([
            {
                "lun": 0, "image": system.image, "version": system.version, "access": "copy_on_write",
                "writeback": "a.1"
            },
            { "lun": 3, "image": data.image, "version": data.version, "access": "shared" },
        ]);
        assert_eq!(written["disks"], expected);
        assert_eq!(serde_json::from_value::<Generation>(written).unwrap(), generation);

        let before = json!({
            "number": 1, "writeback": "a.1", "image": system.image, "version": system.version,
            "prepared_at": "1970-01-01T00:00:00Z", "committed_at": "1970-01-01T00:00:00Z"
        });
        let read: Generation = serde_json::from_value(before.clone()).unwrap();
        assert_eq!(read, Generation { disks: Disks::new(vec![system]).unwrap(), ..generation });
        for lacking in ["writeback", "image", "version", "number", "prepared_at"] {
            let mut cut = before.clone();
            cut.as_object_mut().unwrap().remove(lacking);
            assert!(serde_json::from_value::<Generation>(cut).is_err(), "without {lacking}");
        }
    }
}

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
//! `active` and only after the current generation has seen a login; generation numbers only grow for a machine, over sessions too.

use serde::{Deserialize, Serialize};

use super::{
    ChapPair, Failure, ImageId, ImageVersionId, Iqn, MachineId, ResourceId, ServerId, SessionId, Timestamp,
    WritebackPolicy,
};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Its steps are being done.
    Starting,
    /// Everything it needs exists.
    Active,
    /// Its steps are being undone.
    Stopping,
    /// Over, nothing left.
    Stopped,
    /// Over by an error; what may be left is the reconciler's to remove.
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
    /// A start that outlived its deadline, or failed.
    StartFailed,
    /// Replaced by another session of the same machine (another image).
    Replaced,
    /// Its machine was deleted, or switched off.
    MachineGone,
}

/// One boot's worth of target name and credentials. A request for a boot script prepares the next one; the first
/// authenticated login to it makes it current.
///
/// Serialised without its credentials: the store seals them apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number; part of the target's name.
    pub number: u32,
    /// The CHAP pair that its initiator must know.
    #[serde(skip)]
    pub chap: Option<ChapPair>,
    /// The writeback it serves: its own under `discard`, the machine's under `keep`.
    pub writeback: ResourceId,
    /// The image it boots.
    pub image: ImageId,
    /// The version below its writeback. A machine whose image moved on boots the new version with its next generation.
    pub version: ImageVersionId,
    /// When it was prepared.
    pub prepared_at: Timestamp,
    /// When an authenticated login first used it.
    #[serde(default)]
    pub committed_at: Option<Timestamp>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The machine it holds.
    pub machine: MachineId,
    /// Where it stands.
    pub state: SessionState,
    /// What a reboot does to its writes; fixed for the session's life.
    pub policy: WritebackPolicy,
    /// The image that its operator named at the start; every boot of the session is of this image. None: each boot is of the image that
    /// the machine is assigned to by then.
    #[serde(default)]
    pub chosen_image: Option<ImageId>,
    /// The initiator name that its targets accept.
    pub initiator: Iqn,
    /// The generation in use, or waiting for its first login.
    pub current: Generation,
    /// The generation that the next boot will use, once prepared.
    #[serde(default)]
    pub next: Option<Generation>,
    /// The highest generation number that was ever prepared, used or not: a number is never given twice, so that a name, or a disk that
    /// could not be removed, never comes back as another generation's.
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
    /// Whether it is being stopped also with a live initiator. A stop that could not finish is finished as it was asked for.
    #[serde(default)]
    pub stop_forced: bool,
    /// What failed, for people.
    #[serde(default)]
    pub error: Option<String>,
    /// Which failure that was, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The server that serves it, and alone may change it. None, in a record from before servers had ids: whichever finds it.
    #[serde(default)]
    pub owner: Option<ServerId>,
    /// Grows whenever another server takes it over: what was decided in an earlier epoch must not be carried out any more.
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

    /// Whether this server is its owner.
    #[must_use]
    pub fn is_of(&self, server: &ServerId) -> bool {
        self.owner.as_ref().is_none_or(|owner| owner == server)
    }

    /// The highest generation number this session has given out.
    #[must_use]
    pub fn highest_generation(&self) -> u32 {
        self.generations().map(|g| g.number).fold(self.last_generation, u32::max)
    }
}

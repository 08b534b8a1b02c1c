//! [`Event`]: what happened. The order of cursors never changes. The events API returns events in this order; `subscribe()` sends them
//! approximately in it.

use serde::{Deserialize, Serialize};

use super::{Cursor, Diagnosis, Failure, ImageId, JobId, JobState, MacAddr, MachineId, SessionId, Timestamp};

/// The observed stages of a boot, in their usual order; together a machine's boot timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootStage {
    /// We answered its DHCP request.
    AddressOffered,
    /// It fetched a loader over TFTP or HTTP.
    LoaderSent,
    /// It fetched its boot script.
    ScriptRead,
    /// Its initiator logged in.
    IscsiLogin,
    /// It read a block.
    FirstRead,
    /// It wrote a block.
    FirstWrite,
    /// Its last connection closed.
    Disconnected,
}

impl BootStage {
    /// Every stage in its usual order.
    pub const ALL: [Self; 7] = [
        Self::AddressOffered,
        Self::LoaderSent,
        Self::ScriptRead,
        Self::IscsiLogin,
        Self::FirstRead,
        Self::FirstWrite,
        Self::Disconnected,
    ];
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum EventKind {
    /// A machine was registered.
    MachineCreated,
    /// A machine was changed.
    MachineUpdated,
    /// A machine was deleted.
    MachineDeleted,
    /// An unregistered MAC address asked for a boot script or an address for the first time.
    MachineSeen {
        /// The address.
        mac: MacAddr,
    },
    /// An unknown machine that was seen was forgotten.
    MachineForgotten {
        /// Its MAC address.
        mac: MacAddr,
    },
    /// A machine that may not boot, or has nothing to boot, was sent to its next boot device.
    BootDeclined {
        /// Why.
        reason: String,
        /// Which reason that is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diagnosis: Option<Diagnosis>,
    },
    /// The machine's iPXE reported a failure.
    BootFailed {
        /// What it was doing ("sanboot").
        stage: String,
        /// iPXE's error number, as it gave it.
        errno: String,
    },
    /// A boot stage was observed.
    BootStage {
        /// The stage.
        stage: BootStage,
        /// The generation it belongs to, where that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        generation: Option<u32>,
    },
    /// Something about a boot that an operator should know, with a likely cause.
    BootDiagnosis {
        /// The explanation, as text for people.
        message: String,
        /// Which explanation that is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diagnosis: Option<Diagnosis>,
    },
    /// An image was created.
    ImageCreated,
    /// An image was changed.
    ImageUpdated,
    /// An image was deleted.
    ImageDeleted,
    /// An import began.
    VersionImporting,
    /// A version became ready.
    VersionReady,
    /// An import failed.
    VersionFailed {
        /// Why.
        reason: String,
        /// Which failure it was; none in events of older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
    },
    /// A version was deleted.
    VersionDeleted,
    /// A session is being started.
    SessionStarting,
    /// A session became active.
    SessionActive,
    /// The next generation of a session was prepared for its next boot.
    GenerationPrepared {
        /// Its number.
        number: u32,
    },
    /// A generation became current: its first authenticated login.
    GenerationCommitted {
        /// Its number.
        number: u32,
    },
    /// An unused generation was removed.
    GenerationExpired {
        /// Its number.
        number: u32,
    },
    /// A session is being stopped.
    SessionStopping,
    /// A session ended.
    SessionStopped,
    /// A session failed.
    SessionFailed {
        /// Why.
        reason: String,
        /// Which failure it was; none in events of older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
    },
    /// The reconciler removed an object without an owner, or created an object that a live session lacked.
    Reconciled {
        /// What it did.
        action: String,
    },
    /// A backend's disk of a machine had an error that an operator must act on.
    DiskTrouble {
        /// What happened.
        message: String,
    },
    /// A manual target was created.
    TargetCreated,
    /// A manual target was deleted.
    TargetDeleted,
    /// The state of a job changed, or its cancellation was requested.
    JobChanged {
        /// The job.
        job: JobId,
        /// Its state now.
        state: JobState,
    },
}

/// An event about to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// The machine it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// The session it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The image it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
}

impl NewEvent {
    /// An event about nothing in particular yet.
    #[must_use]
    pub const fn new(at: Timestamp, kind: EventKind) -> Self {
        Self { at, kind, machine: None, session: None, image: None }
    }

    /// About this machine.
    #[must_use]
    pub const fn machine(mut self, id: MachineId) -> Self {
        self.machine = Some(id);
        self
    }

    /// About this session.
    #[must_use]
    pub const fn session(mut self, id: SessionId) -> Self {
        self.session = Some(id);
        self
    }

    /// About this image.
    #[must_use]
    pub const fn image(mut self, id: ImageId) -> Self {
        self.image = Some(id);
        self
    }
}

/// A recorded event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The position after it: pass it to ask for every event since.
    pub cursor: Cursor,
    /// What happened.
    #[serde(flatten)]
    pub event: NewEvent,
}

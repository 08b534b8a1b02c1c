//! The nouns of diskless boot, one file each, as newtypes that cannot hold a bad value: a parsed value is a proof.

pub mod audit;
pub mod diagnosis;
pub mod event;
pub mod failure;
pub mod id;
pub mod image;
pub mod iqn;
pub mod job;
pub mod mac;
pub mod machine;
pub mod name;
pub mod secret;
pub mod seen;
pub mod session;
pub mod target;
pub mod user;

pub use audit::AuditRow;
pub use diagnosis::Diagnosis;
pub use event::{BootStage, Event, EventKind, NewEvent};
pub use failure::Failure;
pub use id::{
    ImageId, ImageVersionId, InstanceId, JobId, MachineId, ResourceId, ServerId, SessionId, TargetId,
};
pub use image::{Image, ImageFormat, ImageState, ImageVersion, VersionSource, VersionState};
pub use iqn::Iqn;
pub use job::{Claim, ImportJob, Job, JobKind, JobState, JobSubject};
pub use mac::MacAddr;
pub use machine::{DeviceType, Firmware, Machine, MachineState, WritebackPolicy};
pub use name::Name;
pub use secret::{ChapPair, Secret};
pub use seen::SeenMachine;
pub use session::{Generation, Session, SessionState, StopReason};
pub use target::ManualTarget;
pub use user::Actor;

/// A moment in UTC; the wire form is RFC 3339.
pub type Timestamp = jiff::Timestamp;

//! The nouns of diskless boot, one file each, as newtypes that cannot hold an invalid value: a parsed value is valid.

pub mod audit;
pub mod cursor;
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
pub mod principal;
pub mod secret;
pub mod seen;
pub mod session;
pub mod target;

pub use audit::{AuditAction, AuditRow, AuditSubject};
pub use cursor::Cursor;
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
pub use principal::{Principal, PrincipalKind, RequestId, Role, SystemPart};
pub use secret::{ChapPair, Secret};
pub use seen::SeenMachine;
pub use session::{
    DataAccess, DataDisk, DiskAccess, Disks, Generation, Session, SessionDisk, SessionState, StopReason,
};
pub use target::ManualTarget;

/// A moment in UTC; the wire form is RFC 3339.
pub type Timestamp = jiff::Timestamp;

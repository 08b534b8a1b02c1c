//! Wire types of the HTTP API `/api/v1`, shared by the server and the CLI: serde only, no HTTP.
//!
//! Nouns are sent as they are; a response adds the values that are computed for it (whether a session is online, the progress of an
//! import).

pub mod images;
pub mod machines;
pub mod problem;
pub mod sessions;
pub mod system;
pub mod targets;

pub use images::{ImageResponse, ImportImageRequest, ImportResponse, VersionResponse};
pub use machines::{CreateMachineRequest, UpdateMachineRequest};
pub use problem::Problem;
pub use sessions::{
    BootScriptResponse, IscsiDetails, SessionListResponse, SessionResponse, SessionStartRequest,
    SessionStartResponse, SessionStatsResponse, SessionStopRequest, TargetInfo,
};
pub use system::{BackendHealth, EventListResponse, HealthResponse, ServerInfo};
pub use targets::{CreateTargetRequest, TargetResponse};

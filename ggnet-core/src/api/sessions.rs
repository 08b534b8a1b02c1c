//! Sessions on the wire.

use serde::{Deserialize, Serialize};

use crate::nouns::{ImageId, Iqn, MachineId, Name, Session};

/// `POST /api/v1/sessions/start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionStartRequest {
    /// The machine.
    pub machine_id: MachineId,
    /// The image; if left out, the image that the machine is assigned to.
    #[serde(default)]
    pub image_id: Option<ImageId>,
}

/// `POST /api/v1/sessions/{id}/stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionStopRequest {
    /// Stops it even with a live initiator: the disk is flushed and the connections are closed.
    #[serde(default)]
    pub force: bool,
}

/// A session with its observed state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionResponse {
    /// The session. Credentials are never in it.
    #[serde(flatten)]
    pub session: Session,
    /// The machine's name.
    pub machine_name: Option<Name>,
    /// The image's name.
    pub image_name: Option<Name>,
    /// The target of the current generation.
    pub target_iqn: Iqn,
    /// Whether an initiator is logged in.
    pub online: bool,
}

/// What an initiator needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IscsiDetails {
    /// The target's name.
    pub target_iqn: Iqn,
    /// The initiator's name.
    pub initiator_iqn: Iqn,
    /// The portal's address.
    pub portal: String,
    /// The portal's port.
    pub port: u16,
    /// The LUN, in decimal.
    pub lun: u8,
}

/// The target of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// Its name.
    pub iqn: Iqn,
    /// The generation it belongs to.
    pub generation: u32,
    /// The backend that serves it.
    pub backend: String,
}

/// The answer to a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStartResponse {
    /// The session.
    pub session: SessionResponse,
    /// Its target.
    pub target: TargetInfo,
    /// The machine's boot script. It contains the CHAP pair of this generation.
    pub boot_script: String,
    /// Where the machine reads it.
    pub script_url: String,
    /// What an initiator needs.
    pub iscsi: IscsiDetails,
}

/// A page of sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionListResponse {
    /// The sessions.
    pub items: Vec<SessionResponse>,
    /// How many there are in all pages.
    pub total: u64,
    /// The number of this page.
    pub page: u32,
    /// The number of items per page.
    pub per_page: u32,
}

/// `GET /api/v1/sessions/stats`: from counters, no scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatsResponse {
    /// All sessions that are in the database.
    pub total_sessions: u64,
    /// Active ones.
    pub active_sessions: u64,
    /// Active ones with an initiator logged in.
    pub online_sessions: u64,
    /// By state.
    pub status_counts: crate::ports::SessionCounts,
}

/// `GET /api/v1/sessions/machine/{id}/boot-script`: as the machine would read it now; changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootScriptResponse {
    /// The script.
    pub script: String,
    /// What an initiator needs.
    pub iscsi: IscsiDetails,
}

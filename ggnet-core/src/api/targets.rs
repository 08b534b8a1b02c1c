//! Targets on the wire: those of sessions (read only) and manual ones.

use serde::{Deserialize, Serialize};

use crate::nouns::{ImageVersionId, Iqn, MachineId, ManualTarget, Name, SessionId};
use crate::ports::Connection;

/// `POST /api/v1/targets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTargetRequest {
    /// Its name.
    pub name: Name,
    /// The version to export, read-only.
    pub version_id: ImageVersionId,
    /// The only initiator that may log in; if left out, any initiator.
    #[serde(default)]
    pub initiator: Option<Iqn>,
}

/// A target that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetResponse {
    /// Its iSCSI name.
    pub iqn: Iqn,
    /// The manual target's record, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manual: Option<ManualTarget>,
    /// The session it belongs to, when it is a session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// That session's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// That session's generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Its live connections.
    pub connections: Vec<Connection>,
}

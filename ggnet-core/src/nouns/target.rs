//! [`ManualTarget`]: a target that an operator created and that the reconciler keeps (a shared data disk, a test LUN).

use serde::{Deserialize, Serialize};

use super::{ImageVersionId, Iqn, Name, TargetId, Timestamp};

/// An image version exported read-only, to one initiator or to every initiator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualTarget {
    /// Its id.
    pub id: TargetId,
    /// Its name, unique.
    pub name: Name,
    /// The version it serves, read-only.
    pub version: ImageVersionId,
    /// The initiator that may log in; `None`: any initiator.
    #[serde(default)]
    pub initiator: Option<Iqn>,
    /// When it was created.
    pub created_at: Timestamp,
}

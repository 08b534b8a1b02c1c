//! [`AuditRow`]: who did what to which thing, written in the same transaction as the change.

use serde::{Deserialize, Serialize};

use super::{Actor, Timestamp};

/// One row of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What, dotted: `session.start`, `machine.update`.
    pub action: String,
    /// The thing's kind: `session`, `machine`, `image`.
    pub subject_kind: String,
    /// The thing's id.
    pub subject_id: String,
    /// Before and after, or other details; never a secret.
    pub details: serde_json::Value,
}

//! [`Sessions`]: what a machine boots, from its request for a script to the stop.
//!
//! ```text
//!             start                     all steps done             stop
//!   (none) ──────────▶ starting ─────▶ active ───────────────▶ stopping ─────▶ stopped
//!                         │  step failed: undo in reverse           │  step failed: stays stopping,
//!                         ▼                                         ▼  the reconciler keeps trying
//!                       failed                                   stopping
//! ```
//! Start: validate → record `starting` → writebacks → target → boot files → DHCP → record `active`.
//! Stop: record `stopping` → DHCP → boot files → target → writebacks (under `discard`) → record `stopped`.
//!
//! Invariants:
//! * Everything that changes a machine's session is a method of [`LockedMachine`], which only that machine's lock gives, and re-reads the
//!   session under it.
//! * `online` is observed, never a state.

mod boot;
mod boot_request;
mod dhcp_changes;
mod disks_to_boot;
mod failed_starts;
mod generation;
mod locked_machine;
mod pending;
mod polled;
mod resources;
mod start;
mod stop;

use std::sync::Arc;

pub use boot::{Decision, Declined, decide};
pub use boot_request::{Advertised, BootAnswer, BootRequest};
pub use start::{StartRequest, Started};
pub use stop::StopRequest;

pub(super) use self::locked_machine::LockedMachine;
use super::{diagnoses::Diagnoses, presence::Presence, shared::Shared, targets::Targets, versions::Versions};
use crate::{boot_text::templates::BootTemplates, keyed_locks::KeyedLocks, nouns::MachineId};

/// Sessions: boot, start, stop, and the generations of each.
pub struct Sessions {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    targets: Arc<Targets>,
    presence: Arc<Presence>,
    diagnoses: Arc<Diagnoses>,
    templates: BootTemplates,
    locks: KeyedLocks<MachineId>,
    pending: pending::Pending,
    unused: generation::Unused,
    failed_starts: failed_starts::FailedStarts,
    dhcp_changes: dhcp_changes::DhcpChanges,
}

impl Sessions {
    pub(super) fn new(
        shared: Arc<Shared>,
        versions: Arc<Versions>,
        targets: Arc<Targets>,
        presence: Arc<Presence>,
        diagnoses: Arc<Diagnoses>,
        templates: BootTemplates,
    ) -> Self {
        Self {
            shared,
            versions,
            targets,
            presence,
            diagnoses,
            templates,
            locks: KeyedLocks::default(),
            pending: pending::Pending::default(),
            unused: generation::Unused::default(),
            failed_starts: failed_starts::FailedStarts::default(),
            dhcp_changes: dhcp_changes::DhcpChanges::default(),
        }
    }
}

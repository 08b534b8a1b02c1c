//! [`LockedMachine`]: a machine's lock, and with it the right to change the machine's session.
//!
//! ```text
//!   lock_machine ──waits──▶ LockedMachine ──dropped──▶ free
//! ```
//! What may be done under the lock only is a method of this type, in the file of its subject: `start`, `stop`, `generation`, `boot`,
//! `reconcile`, `resources`, `dhcp_changes`. Whoever has none cannot call it.
//!
//! Invariants: at most one exists for a machine; it lives to the end of what it was taken for, across awaits on purpose; a session is read
//! again under it. Who holds one waits for no other machine's, except the reconciler's round over DHCP, which is the only one that holds
//! several.

use std::ops::Deref;

use super::Orchestrator;
use crate::{keyed_locks::KeyGuard, nouns::MachineId};

/// A machine that nobody else works on.
pub(super) struct LockedMachine<'a> {
    orchestrator: &'a Orchestrator,
    id: MachineId,
    _guard: KeyGuard,
}

impl LockedMachine<'_> {
    /// The machine.
    pub(super) const fn id(&self) -> MachineId {
        self.id
    }
}

impl Deref for LockedMachine<'_> {
    type Target = Orchestrator;

    fn deref(&self) -> &Orchestrator {
        self.orchestrator
    }
}

impl Orchestrator {
    /// Waits for a machine's lock; first come, first served.
    pub(super) async fn lock_machine(&self, id: MachineId) -> LockedMachine<'_> {
        LockedMachine { orchestrator: self, id, _guard: self.inner.locks.lock(&id).await }
    }

    /// A machine's lock if nobody holds it.
    pub(super) fn try_lock_machine(&self, id: MachineId) -> Option<LockedMachine<'_>> {
        let guard = self.inner.locks.try_lock(&id)?;
        Some(LockedMachine { orchestrator: self, id, _guard: guard })
    }
}

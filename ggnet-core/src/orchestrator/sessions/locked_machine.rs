//! [`LockedMachine`]: a machine's lock, and with it the right to change the machine's session.
//!
//! ```text
//!   lock_machine ──waits──▶ LockedMachine ──dropped──▶ free
//! ```
//! What may be done under the lock only is a method of this type, in the file of its subject: `start`, `stop`, `generation`, `boot`,
//! `resources`, `dhcp_changes`, the reconciler's `machine`; or it asks for one. Whoever has none cannot call it.
//!
//! Invariants: at most one exists for a machine; it lives to the end of what it was taken for, across awaits on purpose; a session is read
//! again under it. Who holds one waits for no other machine's, except the reconciler's round over DHCP, which is the only one that holds
//! several.

use std::{ops::Deref, sync::Arc};

use super::Sessions;
use crate::{keyed_locks::KeyGuard, nouns::MachineId};

/// A machine that nobody else works on.
pub(in crate::orchestrator) struct LockedMachine<'a> {
    sessions: &'a Arc<Sessions>,
    id: MachineId,
    _guard: KeyGuard,
}

impl LockedMachine<'_> {
    /// The machine.
    pub(in crate::orchestrator) const fn id(&self) -> MachineId {
        self.id
    }
}

impl Deref for LockedMachine<'_> {
    type Target = Arc<Sessions>;

    fn deref(&self) -> &Arc<Sessions> {
        self.sessions
    }
}

impl Sessions {
    /// Waits for a machine's lock; first come, first served.
    pub(in crate::orchestrator) async fn lock_machine(self: &Arc<Self>, id: MachineId) -> LockedMachine<'_> {
        LockedMachine { sessions: self, id, _guard: self.locks.lock(&id).await }
    }

    /// A machine's lock if nobody holds it.
    pub(in crate::orchestrator) fn try_lock_machine(
        self: &Arc<Self>,
        id: MachineId,
    ) -> Option<LockedMachine<'_>> {
        let guard = self.locks.try_lock(&id)?;
        Some(LockedMachine { sessions: self, id, _guard: guard })
    }
}

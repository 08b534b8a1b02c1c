//! One lock per machine: whoever changes a machine's session holds it. Entries exist only while somebody holds or waits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::nouns::MachineId;

#[derive(Default)]
pub(super) struct MachineLocks {
    locks: Mutex<HashMap<MachineId, Arc<AsyncMutex<()>>>>,
}

/// Held across awaits on purpose: a start is a sequence of port calls that must not interleave with a stop of the same machine.
pub(super) type MachineGuard = OwnedMutexGuard<()>;

impl MachineLocks {
    pub(super) async fn lock(&self, machine: MachineId) -> MachineGuard {
        self.entry(machine).lock_owned().await
    }

    /// The lock if nobody holds it.
    pub(super) fn try_lock(&self, machine: MachineId) -> Option<MachineGuard> {
        self.entry(machine).try_lock_owned().ok()
    }

    fn entry(&self, machine: MachineId) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody holds or waits for an entry whose only reference is the map's.
        if locks.len() > 64 {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(machine).or_default().clone()
    }
}

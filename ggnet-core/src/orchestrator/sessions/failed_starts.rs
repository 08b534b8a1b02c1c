//! Starts that a machine's own requests caused and that failed: the next ones wait.
//!
//! Anybody can ask for a machine's script again and again; each start that fails is a session, two events and an audit row. So after
//! [`FREE`] failures in a row a machine's next start is tried after a pause. An operator's start is always tried.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::nouns::MachineId;

/// Failures in a row that cost no pause.
const FREE: u32 = 3;
/// The pause after each further one.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module. Of registered machines only.
#[derive(Debug, Default)]
pub(super) struct FailedStarts(Mutex<HashMap<MachineId, (u32, Instant)>>);

impl FailedStarts {
    /// How long the machine's next start is to wait; none: not at all.
    pub(super) fn wait(&self, machine: MachineId) -> Option<Duration> {
        // Every step under the lock leaves a valid map.
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (failures, last) = all.get(&machine)?;
        let left = PAUSE.checked_sub(last.elapsed()).filter(|left| !left.is_zero())?;
        (*failures >= FREE).then_some(left)
    }

    /// A start failed.
    pub(super) fn add(&self, machine: MachineId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(machine).or_insert((0, Instant::now()));
        *entry = (entry.0.saturating_add(1), Instant::now());
    }

    /// A start succeeded.
    pub(super) fn forget(&self, machine: MachineId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_some_failures_in_a_row_the_next_start_waits() {
        let failed = FailedStarts::default();
        let (machine, other) = (MachineId::generate(), MachineId::generate());
        for _ in 0..FREE {
            assert_eq!(failed.wait(machine), None);
            failed.add(machine);
        }
        assert_eq!((failed.wait(machine), failed.wait(other)), (Some(PAUSE), None));
        tokio::time::advance(PAUSE).await;
        assert_eq!(failed.wait(machine), None, "tried again");
        failed.add(machine);
        assert_eq!(failed.wait(machine), Some(PAUSE));
        failed.forget(machine);
        assert_eq!(failed.wait(machine), None);
    }
}

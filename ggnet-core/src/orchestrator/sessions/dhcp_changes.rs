//! Collects changes of DHCP entries into sets: a daemon that must be restarted for a change is restarted once for all changes that came
//! meanwhile.
//!
//! ```text
//!   change ──▶ waiting ──all that wait, at once──▶ a set under way ──▶ everyone who asked has an answer
//! ```
//! The next set is applied when none is in flight, or when the last one has been in flight for [`SET_WAIT`]: a backend that hangs delays
//! other changes for no longer than that.
//!
//! Invariants: every caller gets a result, or the error that the server is shutting down; of two changes of one entry in one set the later
//! one is applied, and its result goes to both callers. Callers hold the machine's lock, so there can be two only if one caller has given
//! up.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::{Sessions, locked_machine::LockedMachine};
use crate::{
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
    ports::{DhcpChange, DhcpRefusal},
};

/// How long a set in flight delays the next one.
const SET_WAIT: Duration = Duration::from_secs(1);

/// The changes that wait.
#[derive(Default)]
pub(super) struct DhcpChanges(Mutex<Gathering>);

#[derive(Default)]
struct Gathering {
    waiting: Vec<Waiting>,
    /// Whether a task applies the waiting changes.
    is_taken: bool,
}

struct Waiting {
    change: DhcpChange,
    answer: oneshot::Sender<Result<()>>,
}

impl DhcpChanges {
    fn lock(&self) -> MutexGuard<'_, Gathering> {
        // Every step leaves a valid list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All waiting changes; `None` if there are none, and then the task ends.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut gathering = self.lock();
        gathering.is_taken = !gathering.waiting.is_empty();
        gathering.is_taken.then(|| mem::take(&mut gathering.waiting))
    }
}

impl Sessions {
    /// Changes these entries in one set; returns a result for each, in their order.
    pub(in crate::orchestrator) async fn change_all_dhcp(
        self: &Arc<Self>,
        changes: Vec<(&LockedMachine<'_>, DhcpChange)>,
    ) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(changes.len());
        let must_take = {
            let mut gathering = self.dhcp_changes.lock();
            for (_, change) in changes {
                let (answer, answered) = oneshot::channel();
                gathering.waiting.push(Waiting { change, answer });
                answers.push(answered);
            }
            !mem::replace(&mut gathering.is_taken, true)
        };
        if must_take {
            let this = Arc::clone(self);
            // Ends when nothing waits.
            drop(self.shared.spawn(async move { this.take_changes().await }));
        }
        let lost = |_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "The server was shut down before the DHCP backend applied the change",
            ))
        };
        join_all(answers).await.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }

    async fn take_changes(self: &Arc<Self>) {
        while let Some(set) = self.dhcp_changes.take() {
            let this = Arc::clone(self);
            let in_flight = self.shared.spawn(async move { this.apply_set(set).await });
            // After that, it continues on its own.
            let _ = tokio::time::timeout(SET_WAIT, in_flight).await;
        }
    }

    async fn apply_set(&self, set: Vec<Waiting>) {
        let mut places: HashMap<ResourceId, usize> = HashMap::with_capacity(set.len());
        let mut changes: Vec<DhcpChange> = Vec::with_capacity(set.len());
        let mut callers: Vec<Vec<oneshot::Sender<Result<()>>>> = Vec::with_capacity(set.len());
        for Waiting { change, answer } in set {
            match places.get(change.id()) {
                Some(place) => {
                    changes[*place] = change;
                    callers[*place].push(answer);
                }
                None => {
                    places.insert(change.id().clone(), changes.len());
                    changes.push(change);
                    callers.push(vec![answer]);
                }
            }
        }
        let outcomes = self.apply_all(&changes).await;
        for (callers, outcome) in callers.into_iter().zip(outcomes) {
            for caller in callers {
                // The caller may be gone.
                let _ = caller.send(outcome.clone());
            }
        }
    }

    async fn apply_all(&self, changes: &[DhcpChange]) -> Vec<Result<()>> {
        let dhcp = self.shared.ports.dhcp();
        match dhcp.apply(changes).await {
            Ok(refused) => {
                let mut refused: HashMap<_, _> = refused.into_iter().map(|r| (r.id, r.error)).collect();
                changes.iter().map(|change| refused.remove(change.id()).map_or(Ok(()), Err)).collect()
            }
            // An entry that an earlier call still holds blocks the whole set: then each change is made separately.
            Err(e) if e.kind() == ErrorKind::Unavailable && changes.len() > 1 => {
                let each = changes.iter().map(|change| async move {
                    DhcpRefusal::of_one(dhcp.apply(std::slice::from_ref(change)).await?)
                });
                join_all(each).await
            }
            Err(e) => changes.iter().map(|_| Err(e.clone())).collect(),
        }
    }
}

impl LockedMachine<'_> {
    /// Changes one entry, together with other waiting changes.
    pub(super) async fn change_dhcp(&self, change: DhcpChange) -> Result<()> {
        self.change_all_dhcp(vec![(self, change)]).await.pop().unwrap_or(Ok(()))
    }
}

//! Changes of DHCP entries on their way to the backend, gathered: a daemon that must be restarted for a change is restarted once for all
//! that came meanwhile.
//!
//! ```text
//!   change ──▶ waiting ──all that wait, at once──▶ a set under way ──▶ everyone who asked has an answer
//! ```
//! A set is taken when none is under way, or when the last one has been for [`PATIENCE`]: what hangs holds up nobody else for longer.
//!
//! Invariants: whoever waits is answered, or hears that the server is shutting down; of two changes of one entry in one set the later one
//! counts, for both. Callers hold the machine's lock, so there are two only where one has given up.

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

/// For how long a set that is under way is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where changes wait.
#[derive(Default)]
pub(super) struct DhcpChanges(Mutex<Gathering>);

#[derive(Default)]
struct Gathering {
    waiting: Vec<Waiting>,
    /// Whether a task takes what waits.
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

    /// All that wait; none, and then nobody takes any more.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut gathering = self.lock();
        gathering.is_taken = !gathering.waiting.is_empty();
        gathering.is_taken.then(|| mem::take(&mut gathering.waiting))
    }
}

impl Sessions {
    /// Has these entries changed in one set; an outcome for each, in their order.
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
        let lost =
            |_| Err(Error::new(ErrorKind::Unavailable, "The server was shut down before DHCP was told"));
        join_all(answers).await.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }

    async fn take_changes(self: &Arc<Self>) {
        while let Some(set) = self.dhcp_changes.take() {
            let this = Arc::clone(self);
            let under_way = self.shared.spawn(async move { this.apply_set(set).await });
            // Beyond it, it goes on by itself.
            let _ = tokio::time::timeout(PATIENCE, under_way).await;
        }
    }

    async fn apply_set(&self, set: Vec<Waiting>) {
        let mut places: HashMap<ResourceId, usize> = HashMap::with_capacity(set.len());
        let mut changes: Vec<DhcpChange> = Vec::with_capacity(set.len());
        let mut askers: Vec<Vec<oneshot::Sender<Result<()>>>> = Vec::with_capacity(set.len());
        for Waiting { change, answer } in set {
            match places.get(change.id()) {
                Some(place) => {
                    changes[*place] = change;
                    askers[*place].push(answer);
                }
                None => {
                    places.insert(change.id().clone(), changes.len());
                    changes.push(change);
                    askers.push(vec![answer]);
                }
            }
        }
        let outcomes = self.apply_all(&changes).await;
        for (askers, outcome) in askers.into_iter().zip(outcomes) {
            for asker in askers {
                // Nobody may wait any more.
                let _ = asker.send(outcome.clone());
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
            // One entry that an earlier call still holds keeps the whole set from being begun: then each for itself.
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
    /// Has one entry changed, together with others.
    pub(super) async fn change_dhcp(&self, change: DhcpChange) -> Result<()> {
        self.change_all_dhcp(vec![(self, change)]).await.pop().unwrap_or(Ok(()))
    }
}

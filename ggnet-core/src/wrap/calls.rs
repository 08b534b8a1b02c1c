//! [`Calls`]: the calls of one port that are in flight, which of them have lost their caller, and which are overdue.
//!
//! Invariant: an entry exists from [`Calls::begin`] until the [`Begun`] that it returned, which the work itself holds, is dropped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{Class, Op};
use crate::metrics::InFlight;

/// A call in flight.
struct Running {
    op: Op,
    since: Instant,
    /// No caller waits for it: its caller went away, or its time limit has passed.
    left: bool,
    overdue: bool,
}

#[derive(Default)]
struct Table {
    running: HashMap<u64, Running>,
    next: u64,
}

pub(super) struct Calls {
    table: Mutex<Table>,
    /// Notified when a call loses its caller or becomes overdue, and when such a call ends.
    changed: watch::Sender<()>,
    gauges: InFlight,
}

/// A summary of calls that should have ended.
pub(super) struct Late {
    /// How many there are.
    pub(super) count: usize,
    /// The method of the call that has been running longest, with its object.
    pub(super) oldest: String,
    /// For how long it has run.
    pub(super) age: Duration,
}

impl Calls {
    pub(super) fn new(gauges: InFlight) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), changed: watch::Sender::new(()), gauges })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins.
    pub(super) fn begin(self: &Arc<Self>, op: &Op) -> Begun {
        let mut table = self.table();
        let id = table.next;
        table.next += 1;
        table
            .running
            .insert(id, Running { op: op.clone(), since: Instant::now(), left: false, overdue: false });
        self.gauges.running.inc();
        Begun { calls: Arc::clone(self), id }
    }

    /// The overdue calls that count against the port's limit of calls in flight; `None` if there are none.
    pub(super) fn overdue(&self) -> Option<Late> {
        self.late(|call| call.overdue && call.op.class.needs_place())
    }

    /// The calls without a caller that match `which`; `None` if there are none.
    pub(super) fn left(&self, which: impl Fn(&Op) -> bool) -> Option<Late> {
        self.late(|call| call.left && which(&call.op))
    }

    fn late(&self, which: impl Fn(&Running) -> bool) -> Option<Late> {
        let table = self.table();
        let late = || table.running.values().filter(|call| which(call));
        let oldest = late().min_by_key(|call| call.since)?;
        let of = oldest.op.of();
        Some(Late {
            count: late().count(),
            oldest: format!("{}{of}", oldest.op.name),
            age: oldest.since.elapsed(),
        })
    }

    /// Returns once `blocked` returns a value in two checks, `patience` apart.
    pub(super) async fn blocked<T>(&self, patience: Duration, blocked: impl Fn(&Self) -> Option<T>) -> T {
        // Subscribes before the check, so that no change between the two is missed.
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if blocked(self).is_some() {
                tokio::time::sleep(patience).await;
                if let Some(found) = blocked(self) {
                    return found;
                }
            }
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }

    /// Returns once no call without a caller matches `which`.
    pub(super) async fn none_left(&self, which: impl Fn(&Op) -> bool) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if self.left(&which).is_none() {
                return;
            }
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }
}

/// A call in flight; it has ended when this is dropped.
pub(super) struct Begun {
    calls: Arc<Calls>,
    id: u64,
}

impl Begun {
    /// Its caller has gone away.
    pub(super) fn is_left(&self) {
        if let Some(call) = self.calls.table().running.get_mut(&self.id) {
            call.left = true;
        }
        self.calls.changed.send_replace(());
    }

    /// Its limit has passed.
    pub(super) fn is_overdue(&self) {
        if let Some(call) = self.calls.table().running.get_mut(&self.id)
            && !call.overdue
        {
            (call.left, call.overdue) = (true, true);
            self.calls.gauges.overdue.inc();
        }
        self.calls.changed.send_replace(());
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let ended = self.calls.table().running.remove(&self.id);
        self.calls.gauges.running.dec();
        let Some(call) = ended.filter(|call| call.left) else { return };
        if call.overdue {
            self.calls.gauges.overdue.dec();
        }
        self.calls.changed.send_replace(());
    }
}

/// Whether a call changes the object.
pub(super) fn on(object: &str) -> impl Fn(&Op) -> bool {
    move |op| op.objects.iter().any(|changed| changed == object)
}

/// Whether a call is a commit.
pub(super) fn commit(op: &Op) -> bool {
    op.class == Class::Commit
}

//! [`World`]: the state that outlives our process, and [`Life`]: one process in it.
//!
//! ```text
//!   new ──▶ life 1 ──over──▶ life 2 ──over──▶ …
//! ```
//! Invariants: at most one life can change a world; the calls, disks and connections of an earlier one fail with `Unavailable` from the
//! moment the next one starts, as those of a killed process would end. State is only touched through [`Life::state`], which checks that
//! under the same lock.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
    ports::Health,
};

/// The state that a backend keeps outside our process: a kernel's targets, a folder of files. Cloning gives another handle to the same
/// world.
pub struct World<S> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    cell: Mutex<Cell<S>>,
}

struct Cell<S> {
    state: S,
    life: u64,
    health: Health,
}

impl<S> Clone for World<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Default> Default for World<S> {
    fn default() -> Self {
        let cell = Cell { state: S::default(), life: 0, health: Health::Up };
        Self { inner: Arc::new(Inner { cell: Mutex::new(cell) }) }
    }
}

impl<S> std::fmt::Debug for World<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("life", &self.cell().life).finish_non_exhaustive()
    }
}

impl<S> World<S> {
    /// Ends the process that lives in it, as `kill -9` would, without starting another.
    pub fn kill(&self) {
        self.cell().life += 1;
    }

    /// Sets what `health()` returns from now on.
    pub fn set_health(&self, health: Health) {
        self.cell().health = health;
    }

    pub(super) fn health(&self) -> Health {
        self.cell().health.clone()
    }

    /// Changes the state from outside our process, as the other end of a connection does, independent of the current life.
    pub(super) fn touch(&self, change: impl FnOnce(&mut S)) {
        change(&mut self.cell().state);
    }

    fn cell(&self) -> MutexGuard<'_, Cell<S>> {
        self.inner.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the earlier life and starts a new one; `birth` gets the state first, and removes what is lost with a process.
    pub(super) fn enter(&self, backend: &'static str, birth: impl FnOnce(&mut S)) -> Life<S> {
        let mut cell = self.cell();
        cell.life += 1;
        birth(&mut cell.state);
        Life {
            world: self.clone(),
            number: cell.life,
            backend,
            closed: Arc::new(AtomicBool::new(false)),
            locks: Arc::default(),
        }
    }
}

type Locks = Mutex<HashMap<ResourceId, Arc<tokio::sync::Mutex<()>>>>;

/// One process's view of a world.
pub(super) struct Life<S> {
    world: World<S>,
    number: u64,
    backend: &'static str,
    closed: Arc<AtomicBool>,
    locks: Arc<Locks>,
}

impl<S> Clone for Life<S> {
    fn clone(&self) -> Self {
        Self {
            world: self.world.clone(),
            number: self.number,
            backend: self.backend,
            closed: Arc::clone(&self.closed),
            locks: Arc::clone(&self.locks),
        }
    }
}

/// The locked state of a life that has not ended.
pub(super) struct State<'a, S>(MutexGuard<'a, Cell<S>>);

impl<S> std::ops::Deref for State<'_, S> {
    type Target = S;
    fn deref(&self) -> &S {
        &self.0.state
    }
}

impl<S> std::ops::DerefMut for State<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.0.state
    }
}

impl<S> Life<S> {
    pub(super) fn world(&self) -> World<S> {
        self.world.clone()
    }

    /// The state; `Unavailable` once this life is over or was shut down. Never held across an await.
    pub(super) fn state(&self) -> Result<State<'_, S>> {
        let cell = self.world.cell();
        if cell.life != self.number {
            return Err(self.error(ErrorKind::Unavailable, "This backend's process was killed"));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(self.error(ErrorKind::Unavailable, "This backend was shut down"));
        }
        Ok(State(cell))
    }

    /// Waits for the other call that works on `id`; calls on one object go one after the other.
    pub(super) async fn lock(&self, id: &ResourceId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(id.clone()).or_default())
        };
        lock.lock_owned().await
    }

    pub(super) fn health(&self) -> Health {
        match self.state() {
            Ok(state) => state.0.health.clone(),
            Err(e) => Health::Down(e.explain()),
        }
    }

    /// From now on every call fails.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, message).with_backend(self.backend)
    }
}

/// A place where a call can be dropped: real backends have many, so the backends in memory have some too.
pub(super) async fn step() {
    tokio::task::yield_now().await;
}

//! Limits around every call of every port: [`Ports::new`](crate::orchestrator::Ports::new) adds them, and nothing can bypass them. A
//! backend has no time limit for its callers, no retry and no metric of its own.
//!
//! # The way of a call
//!
//! ```text
//!  caller                    refused: `Unavailable`, nothing was begun
//!    │                              ▲ a call without a caller blocks it, or no turn or place within the limit
//!    ▼                              │
//!  turns of its objects ▶ place of its port ──▶ task of its own ──ends──▶ the caller has the result
//!                                                     │
//!                                                     └─limit─▶ the caller has `Timeout`; the call is *overdue*: it goes on, with
//!                                                               turn and place, until it really ends
//! ```
//!
//! # Invariants
//!
//! * No call keeps its caller longer than twice its limit: once to get its turn and place, once for the work. Limits: [`PortLimits`].
//! * Turn and place belong to the work, not to the caller: a caller that gives up, or is dropped, frees nothing, because the call may still
//!   hold a thread. So at most [`Limits::in_flight`] calls of a port run, however many callers gave up. `health` and `shutdown` need no
//!   place: a port that is full can still report it and be closed.
//! * Calls that change one object (`ensure` and `remove` of one id, `apply` to it among others, `convert` to one sink) run one after the
//!   other. So a call without a caller (its time limit passed, or the caller went away) never overwrites a later change: until it ends,
//!   further changes of its object are refused after [`OVERDUE_WAIT`].
//! * Commits of the store may run concurrently, but none is started while an earlier one without a caller is still in flight. Records carry
//!   revisions, so of two conflicting commits in flight one fails with `Conflict`.
//! * The output of a conversion is undefined once its caller gave it up, even if it succeeds later (see `pulse.rs`).
//! * An overdue call is never retried.
//! * Overdue calls are visible: in the [`Health`] of the port, in the log (when a call becomes overdue and when it ends), and in
//!   [`Metrics`](crate::metrics::Metrics).
//! * After `shutdown` of a port its calls in flight are dropped and further ones are refused.
//!
//! A limitation: a backend whose future blocks its thread instead of waiting (a synchronous read in an `async fn`) also blocks the limit.
//! Such work belongs on a blocking thread, as [`crate::ports`] requires.
//!
//! # How it is built
//!
//! Ports × wrappers would need many copies of the same forwarding code. So it is written once: [`Wrapped`] holds a port and a [`Layer`] and
//! implements every port, in `forward.rs`, by passing each call to [`Layer::around`] as a closure (a retry calls it again). A wrapper is a
//! layer: one method, whatever the port. There are two: the limits (`guard.rs`), and the fault injector of the testkit. A new port is one
//! table in `forward.rs`.
//!
//! Methods that do not call the outside world (`name`, `capabilities`, `attach`) are forwarded directly. If `health` fails in a layer, the
//! port is [`Health::Down`] with the layer's message; `shutdown` has no result, so a layer's failure is logged.

mod calls;
mod forward;
mod guard;
mod limits;
mod pulse;
mod retry;

use std::{future::Future, pin::Pin, sync::Arc};

pub(crate) use guard::Guard;
pub use guard::OVERDUE_WAIT;
pub use limits::{Limits, PortLimits};

use crate::{error::Result, metrics::Labels, ports::Health};
use pulse::Pulse;

/// The class of a call, which decides its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Changes nothing.
    Read,
    /// Changes something.
    Change,
    /// A commit of the store.
    Commit,
    /// A conversion: limited by the time without progress.
    Convert,
    /// Asks for the port's health.
    Health,
    /// Closes the port.
    Shutdown,
}

/// Which call of which port.
#[derive(Clone, Debug)]
pub struct Op {
    /// The port: `target`, `writeback`, `image`, `dhcp`, `boot_file`, `image_converter`, `store`.
    pub port: &'static str,
    /// The backend's own name.
    pub backend: &'static str,
    /// The method.
    pub name: &'static str,
    /// Its class.
    pub class: Class,
    /// Whether making the call again after an unknown outcome is harmless. It is not for `commit` of the store (it would publish its events
    /// twice) and `convert` (hours of work).
    pub repeatable: bool,
    /// What it changes, for calls that run one after the other: the objects' ids, each once and in their order; the conversion's sink.
    pub objects: Vec<String>,
    /// The progress of a conversion.
    pulse: Option<Arc<Pulse>>,
}

impl Op {
    /// Its labels in [`Metrics`](crate::metrics::Metrics).
    fn labels(&self) -> Labels<3> {
        [("port", self.port), ("backend", self.backend), ("operation", self.name)]
    }
}

/// One try of a call.
pub type Call<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// What a wrapper does around each call.
pub trait Layer: Send + Sync + 'static {
    /// Makes the call, with one `call()` per try, and returns the result. Nothing has happened before the first try is polled. Each layer
    /// decides whether a try in progress ends when the returned future is dropped.
    fn around<T: Send + 'static>(
        &self,
        op: Op,
        call: impl Fn() -> Call<T> + Send + Sync + 'static,
    ) -> impl Future<Output = Result<T>> + Send;

    /// The result of `health`, given that the port itself returned `reported`.
    fn health(&self, reported: Health) -> Health {
        reported
    }
}

/// A port with a [`Layer`] around its calls; implements every port that `P` does.
pub struct Wrapped<P: ?Sized, L> {
    inner: Arc<P>,
    layer: L,
}

impl<P: ?Sized, L> Wrapped<P, L> {
    /// Puts `layer` around `inner`.
    pub const fn with_layer(inner: Arc<P>, layer: L) -> Self {
        Self { inner, layer }
    }

    /// What is wrapped.
    pub const fn inner(&self) -> &Arc<P> {
        &self.inner
    }

    /// The layer.
    pub const fn layer(&self) -> &L {
        &self.layer
    }
}

//! Limits around every call of every port: [`Ports::new`](crate::orchestrator::Ports::new) puts them there, and nothing else can.
//! A backend contains no time limit of its own for the caller's sake, no retry and no metric.
//!
//! # The way of a call
//!
//! ```text
//!  caller                    refused: `Unavailable`, nothing was begun
//!    │                              ▲ a call that nobody waits for stands in the way, or no turn or place within the limit
//!    ▼                              │
//!  turns of its objects ▶ place of its port ──▶ task of its own ──ends──▶ the caller has the result
//!                                                     │
//!                                                     └─limit─▶ the caller has `Timeout`; the call is *overdue*: it goes on, with
//!                                                               turn and place, until it really ends
//! ```
//!
//! # Invariants
//!
//! * No call keeps its caller longer than twice its limit: once for turn and place, once for the work. Limits: [`PortLimits`].
//! * Turn and place belong to the work, not to the caller: a caller that gives up, or is dropped, frees nothing, because what it
//!   began may still hold a thread. So at most [`Limits::in_flight`] calls of a port run, however many were given up. `health` and
//!   `shutdown` need no place: a port that is full can still say so and be closed.
//! * Calls that change one object (`ensure` and `remove` of one id, `apply` to it among others, `convert` to one sink) run one after the other. So nothing that was
//!   ensured or removed after a call was given up (its limit passed, or its caller went away) is changed by that call: until it ends,
//!   further changes of its object are refused after [`OVERDUE_WAIT`].
//! * Commits of the store may run at the same time, as they did before; but none is begun while an earlier one that was given up has
//!   not ended. Records carry revisions, so of two that were in flight together the loser is a `Conflict`.
//! * What a conversion wrote means nothing once it was given up, even if it succeeds after all (see `pulse.rs`).
//! * A call that is overdue is never tried again.
//! * Overdue calls are seen: in [`Health`] of the port, in the log (when a call becomes overdue and when it ends),
//!   and in [`Metrics`](crate::metrics::Metrics).
//! * After `shutdown` of a port its calls in flight are dropped and further ones are refused.
//!
//! What this cannot do: a backend whose future blocks its thread instead of waiting (a synchronous read in an `async fn`) also blocks
//! the limit. Such work belongs on a blocking thread, as [`crate::ports`] asks.
//!
//! # How it is built
//!
//! Ports × wrappers would be many copies of the same forwarding. So each is written once: [`Wrapped`] holds a port and a [`Layer`]
//! and implements every port, in `forward.rs`, by handing each call to [`Layer::around`] as something that can be made (and, for a
//! retry, made again). A wrapper is a layer: one method, whatever the port. There are two: the limits (`guard.rs`), and the fault
//! injector of the testkit. A new port is one table in `forward.rs`.
//!
//! Methods that are no calls into the world (`name`, `capabilities`, `attach`) go straight through. `health` that fails in a layer is
//! [`Health::Down`] with the layer's words; `shutdown` has no result, so there a layer's failure is logged.

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

/// What a call is, as far as its limits are concerned.
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
    /// Says how the port is.
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
    /// What it is for its limits.
    pub class: Class,
    /// Whether making the call again after an unknown outcome is harmless. Not so for `commit` of the store (it would tell its events
    /// twice) and `convert` (hours of work).
    pub repeatable: bool,
    /// What it changes, for calls that run one after the other: the objects' ids, each once and in their order; the conversion's sink.
    pub objects: Vec<String>,
    /// How far a conversion is.
    pulse: Option<Arc<Pulse>>,
}

impl Op {
    /// What [`Metrics`](crate::metrics::Metrics) count it under.
    fn labels(&self) -> Labels<3> {
        [("port", self.port), ("backend", self.backend), ("operation", self.name)]
    }
}

/// One try of a call.
pub type Call<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// What a wrapper does around each call.
pub trait Layer: Send + Sync + 'static {
    /// Makes the call, `call()` for each try, and gives the result. Nothing has happened before the first try is polled. Whether a try
    /// under way ends when the returned future is dropped is the layer's own.
    fn around<T: Send + 'static>(
        &self,
        op: Op,
        call: impl Fn() -> Call<T> + Send + Sync + 'static,
    ) -> impl Future<Output = Result<T>> + Send;

    /// What `health` says, after the port itself has said `told`.
    fn health(&self, told: Health) -> Health {
        told
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

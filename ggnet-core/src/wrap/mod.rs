//! What every port call needs and no backend should contain: time limits, retries, metrics. Wrappers around a port that are
//! themselves that port.
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! # use ggnet_core::{ports::DhcpBackend, wrap::{Metered, Retry, RetryPolicy, Timeout}};
//! # fn wire(backend: Arc<dyn DhcpBackend>) -> Arc<dyn DhcpBackend> {
//! let limited = Timeout::new(backend, Duration::from_secs(10)); // each try
//! let retried = Retry::new(Arc::new(limited), RetryPolicy::default());
//! let dhcp: Arc<dyn DhcpBackend> = Arc::new(Metered::new(Arc::new(retried))); // the whole
//! # dhcp
//! # }
//! ```
//!
//! # How it is built
//!
//! Ports × wrappers would be many copies of the same forwarding. So each is written once: [`Wrapped`] holds a port and a [`Layer`]
//! and implements every port, in `forward.rs`, by handing each call to [`Layer::around`] as something that can be made (and, for a
//! retry, made again). A wrapper is a layer: one method, whatever the port. A new port is one table in `forward.rs`.
//!
//! Methods that are no calls into the world (`name`, `capabilities`, `attach`) go straight through. `health` that fails in a layer is
//! [`Health::Down`](crate::ports::Health::Down) with the layer's words; `shutdown` has no result, so there a layer's failure is logged.

mod forward;
mod metered;
mod retry;
mod timeout;

use std::{future::Future, pin::Pin, sync::Arc};

pub use metered::{Metered, MeteredLayer};
pub use retry::{Retry, RetryLayer, RetryPolicy};
pub use timeout::{Timeout, TimeoutLayer};

use crate::error::Result;

/// Which call of which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    /// The port: `target`, `writeback`, `dhcp`, `boot_file`, `image_converter`, `store`.
    pub port: &'static str,
    /// The backend's own name.
    pub backend: &'static str,
    /// The method.
    pub name: &'static str,
    /// Whether making the call again after an unknown outcome is harmless. Not so for `commit` of the store (it would tell its events
    /// twice) and `convert` (hours of work, and a file that then exists).
    pub repeatable: bool,
}

/// One try of a call.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What a wrapper does around each call.
pub trait Layer: Send + Sync + 'static {
    /// Makes the call, `call()` for each try, and gives the result. Nothing has happened before the first try is polled. When the
    /// returned future is dropped, a try under way is dropped with it: what that means the port says.
    fn around<'a, T: Send + 'a>(
        &'a self,
        op: Op,
        call: impl Fn() -> Call<'a, T> + Send + Sync + 'a,
    ) -> impl Future<Output = Result<T>> + Send + 'a;
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

//! [`Shared`]: what every service stands on: the ports, the configuration, the subscribers, and the tasks that outlive their callers.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{OrchestratorConfig, Ports};
use crate::{
    error::{Error, Result, code},
    nouns::{Event, Machine, Timestamp},
    ports::{MachineFilter, PageRequest, Store},
};

/// Events that a subscriber may lag behind.
const LAG: usize = 4096;

/// What every service stands on; it knows no service.
pub(super) struct Shared {
    pub(super) ports: Ports,
    pub(super) config: OrchestratorConfig,
    pub(super) events: broadcast::Sender<Event>,
    serving: AtomicBool,
    /// Work that ends by itself: a call, a job.
    tasks: TaskTracker,
    /// No new work.
    pub(super) cancel: CancellationToken,
    /// Ends work under way that did not end in time.
    pub(super) cut: CancellationToken,
}

impl Shared {
    pub(super) fn new(ports: Ports, config: OrchestratorConfig) -> Self {
        Self {
            ports,
            config,
            events: broadcast::channel(LAG).0,
            serving: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// The store.
    pub(super) fn store(&self) -> &dyn Store {
        self.ports.store().as_ref()
    }

    /// The time of day.
    pub(super) fn now(&self) -> Timestamp {
        self.ports.clock().now()
    }

    /// Whether the first reconcile has ended.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// The first reconcile has ended.
    pub(super) fn serve(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// Every machine that is registered, page by page.
    pub(super) async fn all_machines(&self) -> Result<Vec<Machine>> {
        let mut all = Vec::new();
        for page in 1.. {
            let request = PageRequest { page, per_page: 1000 };
            let got = self.store().machines(&MachineFilter::default(), request).await?;
            all.extend(got.items);
            if all.len() as u64 >= got.total || page == u32::MAX {
                break;
            }
        }
        Ok(all)
    }

    /// Runs `work` to its end even when the caller goes away. Refused once shutdown has begun.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(code::shutting_down(), "The server is shutting down"));
        }
        let done = self.spawn(work).await;
        done.map_err(|e| Error::internal("A task of the orchestrator died").with_source(e))?.ok_or_else(
            || Error::new(code::shutting_down(), "The server was shut down before this was done"),
        )?
    }

    /// A task that `shutdown` waits for; `None` when it had to be cut off.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<T>> {
        #[expect(clippy::disallowed_methods, reason = "one call or one job, tracked")]
        self.tasks.spawn(
            // What it logs belongs to the request that asked for it.
            self.cut.clone().run_until_cancelled_owned(work).instrument(tracing::Span::current()),
        )
    }

    /// Takes no new work from here on.
    pub(super) fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
    }

    /// Waits for the work under way; after [`Shared::close`].
    pub(super) async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// How much work is under way.
    pub(super) fn under_way(&self) -> usize {
        self.tasks.len()
    }
}

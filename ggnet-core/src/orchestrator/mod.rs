//! The orchestrator: starts, stops and reconciles sessions over the [ports](crate::ports).
//!
//! ```text
//!             start                     all steps done             stop
//!   (none) ──────────▶ starting ─────▶ active ───────────────▶ stopping ─────▶ stopped
//!                         │  step failed: undo in reverse           │  step failed: stays stopping,
//!                         ▼                                         ▼  the reconciler keeps trying
//!                       failed                                   stopping
//! ```
//! Start: validate → record `starting` → writebacks → target → boot files → DHCP → record `active`.
//! Stop: record `stopping` → DHCP → boot files → target → writebacks (under `discard`) → record `stopped`.
//!
//! Invariants:
//! * Every command has a [`Principal`](crate::nouns::Principal), and asks [`authorize`](crate::authorization::authorize) before anything else.
//! * Everything that changes a machine's session is a method of `LockedMachine`, which only that machine's lock
//!   gives, and re-reads the session under it.
//! * Every state change, its audit row and its event are one transaction of the store; subscribers hear of it afterwards.
//! * Work that changes anything runs in a task of the orchestrator's own, so a caller that goes away stops nothing half-way.
//! * `online` is observed, never a state.
//! * No lock is held for ever, because every call of a port has a limit ([`crate::wrap`]), and so has file work under a lock.
//! * Nothing is served before the first reconcile has ended ([`crate::ports::LoginGate::serving`]).

mod boot;
mod boot_request;
mod config;
mod dhcp_changes;
mod disks_to_boot;
mod failed_starts;
mod generation;
mod images;
mod imports;
mod jobs;
mod journal;
mod locked_machine;
mod machines;
mod observation_queue;
mod observe;
mod pending;
mod ports;
mod pruning;
mod publish;
mod reads;
mod reconcile;
mod resources;
mod served_versions;
mod start;
mod stop;
mod strangers;
mod targets;
mod versions_to_boot;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

pub use boot::{Decision, Declined, decide};
pub use boot_request::{Advertised, BootAnswer, BootRequest};
pub use config::{ChapPolicy, OrchestratorConfig};
pub use images::DeletedVersion;
pub use imports::ImportRequest;
pub use machines::{MachineChange, NewMachine};
pub use ports::{Backends, Ports};
pub use publish::PublishRequest;
pub use reads::{ConnectionsView, ImageView, PortHealth, Reads, SessionView, TargetView, VersionView};
pub use reconcile::ReconcileReport;
pub use start::{StartRequest, Started};
pub use stop::StopRequest;
pub use targets::NewTarget;

use crate::{
    boot_text::templates::BootTemplates,
    error::{Error, Result, code},
    keyed_locks::KeyedLocks,
    nouns::{Event, MachineId, SessionId, Timestamp},
    supervisor::Supervisor,
};

/// The orchestrator. Cheap to clone; the last [`Orchestrator::shutdown`] ends its tasks.
#[derive(Clone)]
pub struct Orchestrator {
    inner: Arc<Inner>,
}

struct Inner {
    ports: Ports,
    config: OrchestratorConfig,
    templates: BootTemplates,
    locks: KeyedLocks<MachineId>,
    pending: pending::Pending,
    /// Serialises what must not race over images: an import's beginning and end, a job's retry, a version's deletion, a
    /// publication, a new session's choice of version.
    image_lock: tokio::sync::RwLock<()>,
    jobs: jobs::Jobs,
    /// Set once what an earlier process's imports left behind is cleaned up: only then may new versions be made.
    swept: tokio::sync::SetOnce<()>,
    /// Held from looking whether a machine's fixed address is free until it is recorded.
    address_lock: tokio::sync::Mutex<()>,
    /// Held from looking whether a MAC address was seen before until its sight is recorded.
    seen_lock: tokio::sync::Mutex<()>,
    online: observe::OnlineSince,
    unused: generation::Unused,
    strangers: strangers::Strangers,
    failed_starts: failed_starts::FailedStarts,
    dhcp_changes: dhcp_changes::DhcpChanges,
    served_versions: served_versions::ServedVersions,
    events: broadcast::Sender<Event>,
    observations: observation_queue::ObservationQueue,
    serving: AtomicBool,
    /// Whether the clock may be wrong, so that nothing is pruned.
    clock_doubted: AtomicBool,
    /// Work that ends by itself: a call, a job.
    tasks: TaskTracker,
    /// The reconciler and the writer of observations.
    long_lived: Supervisor,
    /// No new work.
    cancel: CancellationToken,
    /// Ends work under way that did not end in time.
    cut: CancellationToken,
}

impl Orchestrator {
    /// Checks that the backends fit each other, attaches to them and starts the reconciler and the observer. Must be called
    /// within a tokio runtime. Errors: `Unsupported` naming the two backends that do not fit.
    pub fn new(ports: Ports, config: OrchestratorConfig, templates: BootTemplates) -> Result<Self> {
        ports.check()?;
        config.check()?;
        let (events, _) = broadcast::channel(4096);
        let cancel = CancellationToken::new();
        let jobs_at_once = config.jobs_at_once;
        let this = Self {
            inner: Arc::new(Inner {
                ports,
                config,
                templates,
                locks: KeyedLocks::default(),
                pending: pending::Pending::default(),
                image_lock: tokio::sync::RwLock::default(),
                jobs: jobs::Jobs::new(jobs_at_once),
                swept: tokio::sync::SetOnce::new(),
                address_lock: tokio::sync::Mutex::default(),
                seen_lock: tokio::sync::Mutex::default(),
                online: observe::OnlineSince::default(),
                unused: generation::Unused::default(),
                strangers: strangers::Strangers::default(),
                failed_starts: failed_starts::FailedStarts::default(),
                dhcp_changes: dhcp_changes::DhcpChanges::default(),
                served_versions: served_versions::ServedVersions::default(),
                events,
                observations: observation_queue::ObservationQueue::default(),
                serving: AtomicBool::new(false),
                clock_doubted: AtomicBool::new(false),
                tasks: TaskTracker::new(),
                long_lived: Supervisor::new(cancel.clone()),
                cancel,
                cut: CancellationToken::new(),
            }),
        };
        this.attach();
        let reconciler = this.clone();
        this.inner.long_lived.keep("the reconciler", move || {
            let (reconciler, cut) = (reconciler.clone(), reconciler.inner.cut.clone());
            async move {
                cut.run_until_cancelled_owned(reconciler.reconcile_until_shutdown()).await;
            }
        });
        Ok(this)
    }

    /// Events as they are recorded. A subscriber that lags learns so from the channel and reads on from its last cursor by
    /// [`Reads::events`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &OrchestratorConfig {
        &self.inner.config
    }

    /// Whether the first reconcile has ended.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.inner.serving.load(Ordering::Acquire)
    }

    /// A long-lived task of its own that ended although nobody asked, and has not recovered yet.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inner.long_lived.trouble()
    }

    /// Trouble that an operator should mend; machines boot all the same.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        self.inner.clock_doubted.load(Ordering::Acquire).then(|| {
            format!(
                "The clock says {}, which does not fit what it said before, so nothing old is forgotten. Set it (timedatectl); if it is \
                 right, nothing needs to be done: it is believed after {} hours",
                self.now(),
                pruning::DOUBTED_FOR.as_secs() / 3600
            )
        })
    }

    /// Whether an initiator of this session is, or was within the last reconcile, logged in.
    #[must_use]
    pub fn is_online(&self, session: SessionId) -> bool {
        self.inner.online.is_online(session)
    }

    /// How many live sessions have an initiator logged in.
    #[must_use]
    pub fn online_count(&self) -> u64 {
        self.inner.online.count()
    }

    /// Stops taking work, waits for what is under way, then [shuts the backends down](Ports::shutdown). Sessions stay as they are: a
    /// restart goes on with them.
    ///
    /// It ends within [`OrchestratorConfig::shutdown_deadline`] and the ports' limits to close, whatever hangs: work that is under way
    /// beyond the deadline is cut off as a crash would, and the next start's reconcile completes it.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.cancel.cancel();
        inner.tasks.close();
        let deadline = inner.config.shutdown_deadline;
        let ended = async {
            inner.tasks.wait().await;
            inner.long_lived.stop().await;
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            tracing::warn!(
                ?deadline,
                tasks = inner.tasks.len(),
                "work under way did not end; the next start completes it"
            );
            inner.cut.cancel();
            inner.tasks.wait().await;
            inner.long_lived.stop().await;
        }
        inner.ports.shutdown().await;
    }

    fn now(&self) -> Timestamp {
        self.inner.ports.clock().now()
    }

    /// Runs `work` to its end even when the caller goes away. Refused once shutdown has begun.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.inner.cancel.is_cancelled() {
            return Err(Error::new(code::shutting_down(), "The server is shutting down"));
        }
        let done = self.spawn(work).await;
        done.map_err(|e| Error::internal("A task of the orchestrator died").with_source(e))?.ok_or_else(
            || Error::new(code::shutting_down(), "The server was shut down before this was done"),
        )?
    }

    /// A task that `shutdown` waits for; `None` when it had to be cut off.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<T>> {
        #[expect(clippy::disallowed_methods, reason = "one call or one job, tracked")]
        self.inner.tasks.spawn(
            // What it logs belongs to the request that asked for it.
            self.inner.cut.clone().run_until_cancelled_owned(work).instrument(tracing::Span::current()),
        )
    }
}

//! The orchestrator: starts, stops and reconciles sessions over the [ports](crate::ports), as services by subject.
//!
//! ```text
//!   Reconciler ─▶ Jobs ─▶ Images ─┬─▶ Sessions ─┬─▶ Targets ──▶ Versions ─▶ Shared
//!                 Machines ───────┘             ├─▶ Diagnoses ─▶ Presence ─▶ Shared
//!                 Observations ─▶ Diagnoses     └─▶ Presence
//!                 Images, Jobs ─▶ JobRunner ─▶ Shared
//! ```
//! Arrows run one way; each service owns the state of its subject and is called only from above. [`Reads`] answers queries and changes
//! nothing.
//!
//! Invariants:
//! * Every command has a [`Principal`](crate::nouns::Principal), and calls [`authorize`](crate::authorization::authorize) before anything
//!   else.
//! * Every state change, its audit row and its event are one transaction of the store; subscribers are notified afterwards.
//! * Work that changes anything runs in a task of the orchestrator, so it continues if its caller goes away or drops the future of the
//!   command.
//! * No lock is held for ever, because every call of a port has a limit ([`crate::wrap`]), and so has file work under a lock. Lock order: a
//!   machine's lock, the image lock, the lock for changes of jobs.
//! * No login and no boot script is served before the first reconcile has ended ([`crate::ports::LoginGate::serving`]); both are answered
//!   with "retry".

mod config;
mod diagnoses;
mod images;
mod job_runner;
mod jobs;
mod journal;
mod machines;
mod observations;
mod ports;
mod presence;
mod reads;
mod reconciler;
mod sessions;
mod shared;
mod targets;
mod versions;

use std::sync::Arc;

use tokio::sync::broadcast;

pub use config::{ChapPolicy, OrchestratorConfig};
pub use diagnoses::Diagnoses;
pub use images::{DeletedVersion, Images, ImportRequest, PublishRequest};
pub use jobs::Jobs;
pub use machines::{MachineChange, Machines, NewMachine};
pub use ports::{Backends, Ports};
pub use presence::Presence;
pub use reads::{ConnectionsView, ImageView, PortHealth, Reads, SessionView, TargetView, VersionView};
pub use reconciler::ReconcileReport;
pub use sessions::{
    Advertised, BootAnswer, BootRequest, Decision, Declined, Sessions, StartRequest, Started, StopRequest,
    decide,
};
pub use targets::{NewTarget, Targets};

use self::{
    job_runner::JobRunner, observations::Observations, reconciler::Reconciler, shared::Shared,
    versions::Versions,
};
use crate::{
    boot_text::templates::BootTemplates,
    error::Result,
    nouns::Event,
    ports::{Observation, Observer},
    supervisor::Supervisor,
};

/// The orchestrator. Cheap to clone. [`Orchestrator::shutdown`] ends its tasks and closes the backends.
///
/// Keep a clone as long as you use one of its services: when the last clone is dropped without a shutdown, the services accept no new work,
/// the tasks end, and the backends stay open.
#[derive(Clone)]
pub struct Orchestrator {
    inner: Arc<Inner>,
}

struct Inner {
    services: Services,
    observations: Arc<Observations>,
    reconciler: Arc<Reconciler>,
    /// The reconciler and the writer of observations.
    long_lived: Supervisor,
}

/// The services, lowest first.
struct Services {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    runner: Arc<JobRunner>,
    presence: Arc<Presence>,
    diagnoses: Arc<Diagnoses>,
    targets: Arc<Targets>,
    sessions: Arc<Sessions>,
    machines: Arc<Machines>,
    images: Arc<Images>,
    jobs: Arc<Jobs>,
}

impl Services {
    fn new(ports: Ports, config: OrchestratorConfig, templates: BootTemplates) -> Self {
        let shared = Arc::new(Shared::new(ports, config));
        let versions = Arc::new(Versions::new(Arc::clone(&shared)));
        let runner = Arc::new(JobRunner::new(Arc::clone(&shared)));
        let presence = Arc::new(Presence::new(Arc::clone(&shared)));
        let diagnoses = Arc::new(Diagnoses::new(Arc::clone(&shared), Arc::clone(&presence)));
        let targets = Arc::new(Targets::new(Arc::clone(&shared), Arc::clone(&versions)));
        let sessions = Arc::new(Sessions::new(
            Arc::clone(&shared),
            Arc::clone(&versions),
            Arc::clone(&targets),
            Arc::clone(&presence),
            Arc::clone(&diagnoses),
            templates,
        ));
        let machines =
            Arc::new(Machines::new(Arc::clone(&shared), Arc::clone(&versions), Arc::clone(&sessions)));
        let images = Arc::new(Images::new(
            Arc::clone(&shared),
            Arc::clone(&versions),
            Arc::clone(&runner),
            Arc::clone(&sessions),
        ));
        let jobs = Arc::new(Jobs::new(
            Arc::clone(&shared),
            Arc::clone(&versions),
            Arc::clone(&runner),
            Arc::clone(&images),
        ));
        Self { shared, versions, runner, presence, diagnoses, targets, sessions, machines, images, jobs }
    }
}

impl Orchestrator {
    /// Checks that the backends work together, attaches to them and starts the reconciler and the writer of observations. Must be called
    /// within a tokio runtime. Errors: `Unsupported`, naming the two backends that do not work together.
    pub fn new(ports: Ports, config: OrchestratorConfig, templates: BootTemplates) -> Result<Self> {
        ports.check()?;
        config.check()?;
        let services = Services::new(ports, config, templates);
        let shared = &services.shared;
        let long_lived = Supervisor::new(shared.cancel.clone());
        let observations = Arc::new(Observations::new(
            Arc::clone(shared),
            Arc::clone(&services.presence),
            Arc::clone(&services.diagnoses),
        ));
        let p = &shared.ports;
        p.target().attach(services.sessions.gate(), observations.observer());
        p.dhcp().attach(observations.observer());
        p.boot_files().attach(observations.observer());
        let (writer, cut) = (Arc::clone(&observations), shared.cut.clone());
        long_lived.keep("the writer of observations", move || {
            let (writer, cut) = (Arc::clone(&writer), cut.clone());
            async move {
                cut.run_until_cancelled_owned(writer.write_until_shutdown()).await;
            }
        });
        let reconciler = Arc::new(Reconciler::new(&services));
        let (rounds, cut) = (Arc::clone(&reconciler), shared.cut.clone());
        long_lived.keep("the reconciler", move || {
            let (reconciler, cut) = (Arc::clone(&rounds), cut.clone());
            async move {
                cut.run_until_cancelled_owned(reconciler.reconcile_until_shutdown()).await;
            }
        });
        Ok(Self { inner: Arc::new(Inner { services, observations, reconciler, long_lived }) })
    }

    fn shared(&self) -> &Shared {
        &self.inner.services.shared
    }

    /// Sessions: boot scripts, starts, stops.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.inner.services.sessions
    }

    /// Machines.
    #[must_use]
    pub fn machines(&self) -> &Arc<Machines> {
        &self.inner.services.machines
    }

    /// Images and their versions.
    #[must_use]
    pub fn images(&self) -> &Arc<Images> {
        &self.inner.services.images
    }

    /// Jobs.
    #[must_use]
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.inner.services.jobs
    }

    /// Manual targets.
    #[must_use]
    pub fn targets(&self) -> &Arc<Targets> {
        &self.inner.services.targets
    }

    /// Which sessions are online.
    #[must_use]
    pub fn presence(&self) -> &Arc<Presence> {
        &self.inner.services.presence
    }

    /// The explanations in timelines.
    #[must_use]
    pub fn diagnoses(&self) -> &Arc<Diagnoses> {
        &self.inner.services.diagnoses
    }

    /// Events as they are recorded. Events of changes that were recorded at the same moment may arrive in another order than their cursors',
    /// and a subscriber that lags loses some, which the channel reports. A subscriber that must miss nothing uses an event only as a
    /// notification, and reads [`Reads::events`] after the last cursor that it has *read*.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared().events.subscribe()
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &OrchestratorConfig {
        &self.shared().config
    }

    /// Whether the first reconcile has ended.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.shared().is_serving()
    }

    /// Runs one round of the reconciler now.
    pub async fn reconcile(&self) -> ReconcileReport {
        self.inner.reconciler.reconcile().await
    }

    /// A long-lived task of the orchestrator that ended without being stopped, and has not recovered yet.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inner.long_lived.trouble()
    }

    /// A problem that an operator should fix; machines boot nevertheless.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        self.inner.reconciler.clock_doubt()
    }

    /// Rejects new calls, waits for calls in flight, then [shuts the backends down](Ports::shutdown). Sessions stay as they are: a restart
    /// continues with them.
    ///
    /// It ends within [`OrchestratorConfig::shutdown_deadline`] and the ports' limits to close, even if a backend hangs: operations that
    /// are in flight at the deadline are cut off as by a crash, and the reconciler of the next start completes them.
    pub async fn shutdown(&self) {
        let (shared, long_lived) = (self.shared(), &self.inner.long_lived);
        shared.close();
        let deadline = shared.config.shutdown_deadline;
        let ended = async {
            shared.ended().await;
            long_lived.stop().await;
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            tracing::warn!(
                ?deadline,
                tasks = shared.under_way(),
                "operations in flight did not end; the next start completes them"
            );
            shared.cut.cancel();
            shared.ended().await;
            long_lived.stop().await;
        }
        shared.ports.shutdown().await;
    }
}

/// Lets an embedder report observations of its own, in addition to those of its backends.
impl Observer for Orchestrator {
    fn observe(&self, what: Observation) {
        self.inner.observations.observe(what);
    }
}

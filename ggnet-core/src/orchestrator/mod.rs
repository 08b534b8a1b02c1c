//! The orchestrator: starts, stops and reconciles sessions over the [ports](crate::ports), as services by subject.
//!
//! ```text
//!   Reconciler ─▶ Jobs ─▶ Images ─┬─▶ Sessions ─┬─▶ Targets ──▶ Versions ─▶ Shared
//!                 Machines ───────┘             ├─▶ Diagnoses ─▶ Presence ─▶ Shared
//!                 Observations ─▶ Diagnoses     └─▶ Presence
//!                 Images, Jobs ─▶ JobRunner ─▶ Shared
//! ```
//! Arrows run one way; each service owns the memory of its subject and is reached from above alone. [`Reads`] answers questions and changes
//! nothing.
//!
//! Invariants:
//! * Every command has a [`Principal`](crate::nouns::Principal), and asks [`authorize`](crate::authorization::authorize) before anything else.
//! * Every state change, its audit row and its event are one transaction of the store; subscribers hear of it afterwards.
//! * Work that changes anything runs in a task of the orchestrator's own, so a caller that goes away stops nothing half-way.
//! * No lock is held for ever, because every call of a port has a limit ([`crate::wrap`]), and so has file work under a lock. Order of locks:
//!   a machine's, the image lock, the changes of jobs.
//! * Nothing is served before the first reconcile has ended ([`crate::ports::LoginGate::serving`]).

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

/// The orchestrator. Cheap to clone; the last [`Orchestrator::shutdown`] ends its tasks.
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

/// The services, from the ground up.
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
    /// Checks that the backends fit each other, attaches to them and starts the reconciler and the writer of observations. Must be called
    /// within a tokio runtime. Errors: `Unsupported` naming the two backends that do not fit.
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

    /// What machines boot: scripts, starts, stops.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.inner.services.sessions
    }

    /// The machines of the room.
    #[must_use]
    pub fn machines(&self) -> &Arc<Machines> {
        &self.inner.services.machines
    }

    /// Images and their versions.
    #[must_use]
    pub fn images(&self) -> &Arc<Images> {
        &self.inner.services.images
    }

    /// Long work.
    #[must_use]
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.inner.services.jobs
    }

    /// Manual targets.
    #[must_use]
    pub fn targets(&self) -> &Arc<Targets> {
        &self.inner.services.targets
    }

    /// Who is online.
    #[must_use]
    pub fn presence(&self) -> &Arc<Presence> {
        &self.inner.services.presence
    }

    /// What timelines explain.
    #[must_use]
    pub fn diagnoses(&self) -> &Arc<Diagnoses> {
        &self.inner.services.diagnoses
    }

    /// Events as they are recorded. A subscriber that lags learns so from the channel and reads on from its last cursor by
    /// [`Reads::events`].
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

    /// One round of the reconciler now, for who does not want to wait for it.
    pub async fn reconcile(&self) -> ReconcileReport {
        self.inner.reconciler.reconcile().await
    }

    /// A long-lived task of its own that ended although nobody asked, and has not recovered yet.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.inner.long_lived.trouble()
    }

    /// Trouble that an operator should mend; machines boot all the same.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        self.inner.reconciler.clock_doubt()
    }

    /// Stops taking work, waits for what is under way, then [shuts the backends down](Ports::shutdown). Sessions stay as they are: a
    /// restart goes on with them.
    ///
    /// It ends within [`OrchestratorConfig::shutdown_deadline`] and the ports' limits to close, whatever hangs: work that is under way
    /// beyond the deadline is cut off as a crash would, and the next start's reconcile completes it.
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
                "work under way did not end; the next start completes it"
            );
            shared.cut.cancel();
            shared.ended().await;
            long_lived.stop().await;
        }
        shared.ports.shutdown().await;
    }
}

/// What an embedder observes itself, beside its backends.
impl Observer for Orchestrator {
    fn observe(&self, what: Observation) {
        self.inner.observations.observe(what);
    }
}

//! [`Backends`] gathered in one value, [`Ports`] with limits around them, and the checks that they work together and that the store belongs
//! to them.

use std::sync::Arc;

use crate::{
    error::{Error, ErrorKind, Result},
    metrics::{Metrics, Registry},
    ports::{
        BootFileStore, Clock, Completeness, DhcpBackend, ImageConverter, ImageStore, MachineFilter,
        PageRequest, Store, TargetBackend, WritebackStore,
    },
    wrap::{Guard, PortLimits, Wrapped},
};

/// What an embedder chooses: a backend for each port.
#[derive(Clone)]
pub struct Backends {
    /// Persistent records.
    pub store: Arc<dyn Store>,
    /// iSCSI targets.
    pub target: Arc<dyn TargetBackend>,
    /// Private writable disks.
    pub writeback: Arc<dyn WritebackStore>,
    /// The bytes of image versions.
    pub images: Arc<dyn ImageStore>,
    /// DHCP entries.
    pub dhcp: Arc<dyn DhcpBackend>,
    /// Boot files.
    pub boot_files: Arc<dyn BootFileStore>,
    /// Image conversion.
    pub converter: Arc<dyn ImageConverter>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// Everything the orchestrator needs from the outside world: [`Backends`] with limits around every call. Cheap to clone; all clones share
/// their limits.
#[derive(Clone)]
pub struct Ports {
    store: Arc<dyn Store>,
    target: Arc<dyn TargetBackend>,
    writeback: Arc<dyn WritebackStore>,
    images: Arc<dyn ImageStore>,
    dhcp: Arc<dyn DhcpBackend>,
    boot_files: Arc<dyn BootFileStore>,
    converter: Arc<dyn ImageConverter>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl Ports {
    /// Adds time limits, a limit of calls in flight, retries and metrics to every port; [`crate::wrap`] describes what they guarantee. The
    /// metrics go to `registry`, which can hold those of one set of ports; an embedder that shows no metrics passes `&mut
    /// Registry::default()`.
    ///
    /// # Errors
    /// `Invalid` for limits under which nothing could work.
    pub fn new(backends: Backends, limits: &PortLimits, registry: &mut Registry) -> Result<Self> {
        limits.check()?;
        let metrics = Metrics::new(registry);
        let Backends { store, target, writeback, images, dhcp, boot_files, converter, clock } = backends;
        let guard = |port, backend, of| Guard::new(port, backend, of, &metrics);
        let store_guard = guard("store", store.name(), limits.store);
        let target_guard = guard("target", target.name(), limits.target);
        let writeback_guard = guard("writeback", writeback.name(), limits.writeback);
        let images_guard = guard("image", images.name(), limits.images);
        let dhcp_guard = guard("dhcp", dhcp.name(), limits.dhcp);
        let boot_files_guard = guard("boot_file", boot_files.name(), limits.boot_files);
        let converter_guard = guard("image_converter", converter.name(), limits.converter);
        Ok(Self {
            store: Arc::new(Wrapped::with_layer(store, store_guard)),
            target: Arc::new(Wrapped::with_layer(target, target_guard)),
            writeback: Arc::new(Wrapped::with_layer(writeback, writeback_guard)),
            images: Arc::new(Wrapped::with_layer(images, images_guard)),
            dhcp: Arc::new(Wrapped::with_layer(dhcp, dhcp_guard)),
            boot_files: Arc::new(Wrapped::with_layer(boot_files, boot_files_guard)),
            converter: Arc::new(Wrapped::with_layer(converter, converter_guard)),
            clock,
            metrics,
        })
    }

    /// Persistent records.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// iSCSI targets.
    #[must_use]
    pub fn target(&self) -> &Arc<dyn TargetBackend> {
        &self.target
    }

    /// Private writable disks.
    #[must_use]
    pub fn writeback(&self) -> &Arc<dyn WritebackStore> {
        &self.writeback
    }

    /// The bytes of image versions.
    #[must_use]
    pub fn images(&self) -> &Arc<dyn ImageStore> {
        &self.images
    }

    /// DHCP entries.
    #[must_use]
    pub fn dhcp(&self) -> &Arc<dyn DhcpBackend> {
        &self.dhcp
    }

    /// Boot files.
    #[must_use]
    pub fn boot_files(&self) -> &Arc<dyn BootFileStore> {
        &self.boot_files
    }

    /// Image conversion.
    #[must_use]
    pub fn converter(&self) -> &Arc<dyn ImageConverter> {
        &self.converter
    }

    /// The time of day.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The metrics.
    pub(super) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Shuts the backends down: targets first (flush and sync, then close), then writebacks, then images, then the rest, the store last.
    /// Each has its own limit ([`Limits::shutdown`](crate::wrap::Limits::shutdown)); one that hangs is left behind. Call it only for ports
    /// without an [`Orchestrator`](super::Orchestrator), which does it in its own shutdown.
    pub async fn shutdown(&self) {
        self.target.shutdown().await;
        self.writeback.shutdown().await;
        self.images.shutdown().await;
        self.dhcp.shutdown().await;
        self.boot_files.shutdown().await;
        self.store.shutdown().await;
    }

    /// Rejects a pair that cannot work together, naming both: image store and writeback store, writeback store and target, converter and
    /// image store.
    pub fn check(&self) -> Result<()> {
        let (images, writeback) = (self.images.capabilities(), self.writeback.capabilities());
        let fits = |fits: bool, why: String, what: &str| {
            let refused = || {
                Error::new(ErrorKind::Unsupported, why)
                    .with_hint(format!("Choose {what} that work together in the configuration"))
            };
            if fits { Ok(()) } else { Err(refused()) }
        };
        fits(
            images.opens.contains(&writeback.base),
            format!(
                "The writeback store {} needs the image opened as {:?}, but the image store {} opens it as {:?}",
                self.writeback.name(),
                writeback.base,
                self.images.name(),
                images.opens,
            ),
            "an image store and a writeback store",
        )?;
        let accepts = self.target.capabilities().accepts;
        fits(
            accepts.contains(&writeback.provides),
            format!(
                "The writeback store {} hands out {:?}, but the target backend {} takes {accepts:?}",
                self.writeback.name(),
                writeback.provides,
                self.target.name(),
            ),
            "a writeback store and a target backend",
        )?;
        let sinks = self.converter.sinks();
        fits(
            sinks.contains(&images.sink),
            format!(
                "The image store {} is written to as {:?}, but the converter {} writes to {sinks:?}",
                self.images.name(),
                images.sink,
                self.converter.name(),
            ),
            "an image store and a converter",
        )
    }

    /// Rejects an empty store if there are images or kept writes: it is not the store that they belong to, and the reconciler removes
    /// objects that its store does not know. Call it before [`Orchestrator::new`](super::Orchestrator::new). A store that is only older
    /// than they are is accepted.
    ///
    /// # Errors
    /// `Invalid` for such a store, naming one object that it does not know; otherwise the error of the store, the image store or the
    /// writeback store.
    pub async fn check_store(&self) -> Result<()> {
        let one = PageRequest { page: 1, per_page: 1 };
        if !self.store.events(None, 1, None).await?.is_empty()
            || self.store.images(one).await?.total > 0
            || self.store.machines(&MachineFilter::default(), one).await?.total > 0
        {
            return Ok(());
        }
        let image = self.images.list().await?.into_iter().find(|v| v.completeness == Completeness::Whole);
        let kept = self.writeback.list().await?.into_iter().map(|w| w.id);
        let mut kept = kept.filter(|id| id.owner().is_some_and(|(_, generation)| generation.is_none()));
        let what = match (image, kept.next()) {
            (Some(version), _) => format!("image version {} is", version.id),
            (None, Some(id)) => format!("kept writes of a machine (writeback {id}) are"),
            (None, None) => return Ok(()),
        };
        Err(Error::invalid("store", format!("The database is new, but {what} there and would be removed"))
            .with_hint("Restore the database that they belong to (store.path), or move images and writebacks out of the data folder"))
    }
}

//! Backends that do not fit each other are refused by name: at the start, or, where only manual targets need the fit, when one is asked for.

use std::sync::Arc;

use async_trait::async_trait;
use ggnet_core::{
    ErrorKind, Result,
    block::{Disk, DiskForm},
    boot_text::templates::BootTemplates,
    metrics::Registry,
    nouns::{InstanceId, Principal, ResourceId},
    orchestrator::{Backends, NewTarget, Orchestrator, OrchestratorConfig, Ports},
    ports::{
        ConvertSpec, Converted, Health, ImageConverter, ImageProbe, OpenImage, Progress, Removal, SinkForm,
        Store as _, SystemClock, TargetBackend as _, TargetCapabilities, WritebackCapabilities,
        WritebackListed, WritebackSpec, WritebackStore,
    },
    testkit::memory::{
        MemoryBootFiles, MemoryConverter, MemoryDhcp, MemoryImages, MemoryStore, MemoryTargets,
        MemoryWritebacks, TargetWorld,
    },
    wrap::PortLimits,
};
use tokio_util::sync::CancellationToken;

use crate::house::{House, until};

/// A writeback store with other forms of disk than it says by itself.
struct Odd {
    inner: MemoryWritebacks,
    provides: DiskForm,
    base: DiskForm,
}

#[async_trait]
impl WritebackStore for Odd {
    fn name(&self) -> &'static str {
        "odd"
    }
    fn capabilities(&self) -> WritebackCapabilities {
        WritebackCapabilities { provides: self.provides, base: self.base, ..self.inner.capabilities() }
    }
    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        self.inner.ensure(spec, base).await
    }
    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.inner.remove(id, how).await
    }
    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.inner.list().await
    }
    async fn health(&self) -> Health {
        self.inner.health().await
    }
    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

/// A converter that writes to files alone.
struct ToFiles(MemoryConverter);

#[async_trait]
impl ImageConverter for ToFiles {
    fn name(&self) -> &'static str {
        "to-files"
    }
    async fn probe(&self, path: &std::path::Path) -> Result<ImageProbe> {
        self.0.probe(path).await
    }
    fn sinks(&self) -> Vec<SinkForm> {
        vec![SinkForm::File]
    }
    async fn convert(
        &self,
        spec: &ConvertSpec,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<Converted> {
        self.0.convert(spec, progress, cancel).await
    }
    async fn health(&self) -> Health {
        self.0.health().await
    }
}

fn with(store: &MemoryStore, change: impl FnOnce(&mut Backends)) -> Result<Orchestrator> {
    let mut backends = Backends {
        store: Arc::new(store.clone()),
        target: Arc::new(MemoryTargets::new()),
        writeback: Arc::new(MemoryWritebacks::new()),
        images: Arc::new(MemoryImages::new()),
        dhcp: Arc::new(MemoryDhcp::new()),
        boot_files: Arc::new(MemoryBootFiles::new()),
        converter: Arc::new(MemoryConverter::new()),
        clock: Arc::new(SystemClock),
    };
    change(&mut backends);
    let ports = Ports::new(backends, &PortLimits::default(), &mut Registry::default())?;
    Orchestrator::new(ports, OrchestratorConfig::new(InstanceId::generate())?, BootTemplates::load(None)?)
}

fn odd(provides: DiskForm, base: DiskForm) -> Arc<dyn WritebackStore> {
    Arc::new(Odd { inner: MemoryWritebacks::new(), provides, base })
}

#[tokio::test]
async fn two_that_do_not_fit_are_refused_at_the_start_by_name() {
    let store = MemoryStore::new();
    let refused = |made: Result<Orchestrator>, names: [&str; 3]| {
        let e = made.err().expect("they do not fit");
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
        assert!(names.iter().all(|name| e.message().contains(name)) && e.hint().is_some(), "{e}");
    };
    let over_files = odd(DiskForm::Blocks, DiskForm::File);
    refused(with(&store, |b| b.writeback = over_files), ["store odd", "store memory", "File"]);
    let devices = odd(DiskForm::Device, DiskForm::Blocks);
    refused(with(&store, |b| b.writeback = devices), ["store odd", "backend memory", "Device"]);
    let to_files = Arc::new(ToFiles(MemoryConverter::new()));
    refused(with(&store, |b| b.converter = to_files), ["converter to-files", "store memory", "Blocks"]);
}

#[tokio::test]
async fn a_manual_target_that_could_serve_nothing_is_refused_when_it_is_asked_for() {
    let store = MemoryStore::new();
    let capabilities =
        TargetCapabilities { accepts: vec![DiskForm::File], ..MemoryTargets::new().capabilities() };
    let targets = MemoryTargets::with_capabilities(&TargetWorld::default(), capabilities);
    let files = odd(DiskForm::File, DiskForm::Blocks);
    let o = with(&store, |b| {
        b.target = Arc::new(targets);
        b.writeback = files;
    })
    .unwrap();
    until("the first reconcile ends", async || o.is_serving()).await;
    // A version, as another house has it.
    let house = House::new();
    let p = house.open().await;
    let (image, version) = p.image("debian").await;
    for write in [
        ggnet_core::ports::Write::Image(ggnet_core::nouns::Image {
            revision: 0,
            current: None,
            ..p.store.image(image).await.unwrap().unwrap()
        }),
        ggnet_core::ports::Write::Version(p.store.version(version).await.unwrap().unwrap()),
    ] {
        store.commit(ggnet_core::ports::Batch::new().write(write)).await.unwrap();
    }
    let new = NewTarget { name: "shared".parse().unwrap(), version, initiator: None };
    let e = o.targets().create(new, &Principal::embedder()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    assert!(e.message().contains("image store memory") && e.hint().is_some(), "{e}");
    assert!(store.targets().await.unwrap().is_empty());
    assert!(store.events(None, 10, None).await.unwrap().is_empty(), "nothing was recorded");
}

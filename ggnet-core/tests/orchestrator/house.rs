//! [`House`]: the worlds of every backend, and [`Process`]: one life of the orchestrator in them.
//!
//! Invariant: [`Process::assert_whole`] holds whenever the reconciler has come round: the backends have exactly what the store says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use ggnet_core::{
    Result,
    block::{Disk, DiskForm},
    boot_text::{ipxe::inspect, templates::BootTemplates},
    metrics::Registry,
    nouns::{
        EventKind, Firmware, Image, ImageId, ImageVersion, ImageVersionId, InstanceId, MacAddr, Machine,
        MachineId, MachineState, Principal, ResourceId, Session, SessionState, VersionSource, VersionState,
        WritebackPolicy,
    },
    orchestrator::{
        Advertised, Backends, BootAnswer, BootRequest, Orchestrator, OrchestratorConfig, Ports, StartRequest,
        Started, StopRequest,
    },
    ports::{
        Batch, BootFileStore as _, Clock as _, Completeness, DhcpBackend as _, Frozen, Health,
        ImageStore as _, LoginVisibility, MachineFilter, OpenImage, PageRequest, Removal, Store,
        TargetBackend as _, TargetCapabilities, Write, WritebackCapabilities, WritebackListed, WritebackSpec,
        WritebackStore,
    },
    testkit::{
        flaky::{FaultPlan, Flaky},
        memory::{
            BootFileWorld, DhcpWorld, ImageWorld, LoginError, ManualClock, MemoryBootFiles, MemoryConverter,
            MemoryDhcp, MemoryImages, MemoryInitiator, MemoryStore, MemoryTargets, MemoryWritebacks,
            StoreWorld, TargetWorld, WritebackWorld,
        },
    },
    wrap::{Limits, PortLimits},
};

/// The image's size: of no importance, and a whole number of blocks.
pub const SIZE: u64 = 1 << 20;

/// What outlives a process.
pub struct House {
    pub store: StoreWorld,
    pub targets: TargetWorld,
    pub writebacks: WritebackWorld,
    pub images: ImageWorld,
    pub dhcp: DhcpWorld,
    pub files: BootFileWorld,
    pub clock: ManualClock,
    /// Where files to import lie; of what the backends have, nothing is a file.
    pub dir: tempfile::TempDir,
    pub config: OrchestratorConfig,
    pub limits: PortLimits,
    pub polled: bool,
    /// Whether the writeback store's `get` says of everything that it is not there, whatever `list` says.
    pub forgetful: bool,
}

/// A writeback store whose `get` knows nothing.
struct Forgetful(Arc<MemoryWritebacks>);

#[async_trait::async_trait]
impl WritebackStore for Forgetful {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn capabilities(&self) -> WritebackCapabilities {
        self.0.capabilities()
    }

    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        self.0.ensure(spec, base).await
    }

    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        self.0.freeze(id).await
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.0.remove(id, how).await
    }

    async fn get(&self, _: &ResourceId) -> Result<Option<WritebackListed>> {
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.0.list().await
    }

    async fn health(&self) -> Health {
        self.0.health().await
    }

    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

/// One life of the orchestrator, with the backends behind its back.
pub struct Process {
    pub o: Orchestrator,
    /// What it works over, with limits around each call.
    pub ports: Ports,
    pub plan: FaultPlan,
    pub store: MemoryStore,
    pub targets: Arc<MemoryTargets>,
    pub writebacks: Arc<MemoryWritebacks>,
    pub images: Arc<MemoryImages>,
    pub dhcp: Arc<MemoryDhcp>,
    pub files: Arc<MemoryBootFiles>,
}

impl House {
    /// An empty one. The reconciler's timer is out of the way: tests say when it comes round.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = OrchestratorConfig::new(InstanceId::generate()).unwrap();
        config.reconcile_interval = Duration::from_secs(1_000_000);
        config.chain_url = Some("http://192.0.2.1:8080".parse().unwrap());
        Self {
            store: StoreWorld::default(),
            targets: TargetWorld::default(),
            writebacks: WritebackWorld::default(),
            images: ImageWorld::default(),
            dhcp: DhcpWorld::default(),
            files: BootFileWorld::default(),
            clock: ManualClock::new(),
            dir,
            config,
            limits: once(),
            polled: false,
            forgetful: false,
        }
    }

    /// A process starts; whatever lived here before is dead from now on. It may not be serving yet.
    pub fn open_unready(&self, plan: &FaultPlan) -> Process {
        let store = MemoryStore::over(&self.store);
        let targets = Arc::new(if self.polled {
            let capabilities = TargetCapabilities {
                logins: LoginVisibility::Polled,
                survives_restart: true,
                ..MemoryTargets::new().capabilities()
            };
            MemoryTargets::with_capabilities(&self.targets, capabilities)
        } else {
            MemoryTargets::over(&self.targets)
        });
        let writebacks = Arc::new(MemoryWritebacks::over(&self.writebacks));
        let images = Arc::new(MemoryImages::over(&self.images).adopting(&self.writebacks));
        let dhcp = Arc::new(MemoryDhcp::over(&self.dhcp));
        let files = Arc::new(MemoryBootFiles::over(&self.files));
        let backends = Backends {
            store: Arc::new(Flaky::new(Arc::new(store.clone()), plan)),
            target: Arc::new(Flaky::new(targets.clone(), plan)),
            writeback: if self.forgetful {
                Arc::new(Flaky::new(Arc::new(Forgetful(writebacks.clone())), plan))
            } else {
                Arc::new(Flaky::new(writebacks.clone(), plan))
            },
            images: Arc::new(Flaky::new(images.clone(), plan)),
            dhcp: Arc::new(Flaky::new(dhcp.clone(), plan)),
            boot_files: Arc::new(Flaky::new(files.clone(), plan)),
            converter: Arc::new(Flaky::new(Arc::new(MemoryConverter::new()), plan)),
            clock: Arc::new(self.clock.clone()),
        };
        let ports = Ports::new(backends, &self.limits, &mut Registry::default()).unwrap();
        let o = Orchestrator::new(ports.clone(), self.config.clone(), BootTemplates::load(None).unwrap())
            .unwrap();
        Process { o, ports, plan: plan.clone(), store, targets, writebacks, images, dhcp, files }
    }

    /// A process starts, and its first reconcile has ended.
    pub async fn open(&self) -> Process {
        let process = self.open_unready(&FaultPlan::new());
        process.until_serving().await;
        // The last call that it makes by itself, unless it doubts its clock: from here on all calls are a test's own.
        until("it has looked at its clock", async || {
            process.plan.calls("store.prune") > 0 || process.o.degraded().is_some()
        })
        .await;
        process
    }

    /// Time passes, by the clock on the wall and by the one of timers.
    pub async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }
}

/// The usual limits, without a second try: a fault that a test plans must be seen.
fn once() -> PortLimits {
    every(|of| of.tries = 1)
}

/// The usual limits with a change of every port's.
pub fn every(change: impl Fn(&mut Limits)) -> PortLimits {
    let mut limits = PortLimits::default();
    let ports = [
        &mut limits.store,
        &mut limits.target,
        &mut limits.writeback,
        &mut limits.images,
        &mut limits.dhcp,
        &mut limits.boot_files,
        &mut limits.converter,
    ];
    ports.into_iter().for_each(change);
    limits
}

/// Waits for something that a task does by and by.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..20_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("this never happened: {what}");
}

pub fn mac(n: u32) -> MacAddr {
    let [_, a, b, c] = n.to_be_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}").parse().unwrap()
}

pub fn peer() -> SocketAddr {
    "192.0.2.77:40000".parse().unwrap()
}

pub fn all() -> PageRequest {
    PageRequest { page: 1, per_page: 1000 }
}

pub fn advertised() -> Advertised {
    Advertised { portal: "192.0.2.1".parse().unwrap(), http_url: "http://192.0.2.1:8080".parse().unwrap() }
}

/// A machine with this number, as an operator would describe it.
pub fn pc(n: u32, image: Option<ImageId>) -> Machine {
    let now = ManualClock::new().now();
    Machine {
        id: MachineId::generate(),
        name: format!("pc-{n}").parse().unwrap(),
        description: String::new(),
        macs: vec![mac(n)],
        device_type: Default::default(),
        firmware: Firmware::Unknown,
        fixed_address: None,
        groups: vec![],
        state: MachineState::Active,
        image,
        pinned_version: None,
        auto_start: true,
        writeback: WritebackPolicy::Discard,
        created_at: now,
        updated_at: now,
        revision: 0,
    }
}

/// What a script says of the disk: the target's resource, and the CHAP user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub text: String,
    pub target: ResourceId,
}

impl Process {
    pub async fn until_serving(&self) {
        until("the first reconcile ends", async || self.o.is_serving()).await;
    }

    /// An image with one ready version, as an import leaves it (its bytes are blank).
    pub async fn image(&self, name: &str) -> (ImageId, ImageVersionId) {
        let now = ManualClock::new().now();
        let mut image = Image {
            id: ImageId::generate(),
            name: name.parse().unwrap(),
            description: String::new(),
            current: None,
            last_version: 0,
            created_at: now,
            updated_at: now,
            revision: 0,
        };
        self.store.commit(Batch::new().write(Write::Image(image.clone()))).await.unwrap();
        let version = self.version(image.id, 1).await;
        (image.revision, image.current) = (1, Some(version));
        self.store.commit(Batch::new().write(Write::Image(image.clone()))).await.unwrap();
        (image.id, version)
    }

    /// Another ready version, not current.
    pub async fn version(&self, image: ImageId, number: u32) -> ImageVersionId {
        let now = ManualClock::new().now();
        let version = ImageVersion {
            id: ImageVersionId::generate(),
            image,
            number,
            state: VersionState::Ready,
            comment: String::new(),
            source: VersionSource::Import { path: "/import".into(), format: None, expected_sha256: None },
            size_bytes: SIZE,
            sha256: Some("0".repeat(64)),
            error: None,
            failure: None,
            created_at: now,
            finished_at: Some(now),
        };
        self.images.world().plant(version.id, SIZE, &[]).unwrap();
        self.store.commit(Batch::new().write(Write::Version(version.clone()))).await.unwrap();
        version.id
    }

    /// The versions and drafts that the image store has.
    pub async fn image_ids(&self) -> Vec<ImageVersionId> {
        self.images.list().await.unwrap().into_iter().map(|listed| listed.id).collect()
    }

    /// What a version reads as.
    pub async fn image_bytes(&self, id: ImageVersionId) -> Vec<u8> {
        let opened = self.images.open(id, DiskForm::Blocks).await.unwrap();
        let Disk::Blocks(device) = &opened.disk else { panic!("opened as {:?}", opened.disk) };
        let mut bytes = vec![0; usize::try_from(opened.size_bytes).unwrap()];
        device.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Registers a machine, changed as told.
    pub async fn machine(&self, n: u32, image: ImageId, change: impl FnOnce(&mut Machine)) -> Machine {
        let mut machine = pc(n, Some(image));
        change(&mut machine);
        self.o.machines().create(machine, &Principal::embedder()).await.unwrap()
    }

    pub async fn start(&self, machine: &Machine) -> Result<Started> {
        self.o
            .sessions()
            .start(StartRequest {
                machine: machine.id,
                image: None,
                data_disks: vec![],
                by: Principal::embedder(),
            })
            .await
    }

    pub async fn stop(&self, session: &Session, force: bool) -> Result<Session> {
        let reason = ggnet_core::nouns::StopReason::Operator;
        self.o
            .sessions()
            .stop(StopRequest { session: session.id, force, reason, by: Principal::embedder() })
            .await
    }

    pub async fn boot(&self, mac: MacAddr) -> Result<BootAnswer> {
        self.boot_with(mac, true).await
    }

    pub async fn boot_with(&self, mac: MacAddr, prepare: bool) -> Result<BootAnswer> {
        let request = BootRequest {
            mac,
            firmware: Firmware::Bios,
            peer: Some("192.0.2.77".to_owned()),
            request_id: "a-boot".parse().ok(),
            advertised: advertised(),
            prepare,
        };
        self.o.sessions().boot(request).await
    }

    /// Asks for the script, which must be one with a disk.
    pub async fn script(&self, machine: &Machine) -> Script {
        match self.boot(machine.macs[0]).await.unwrap() {
            BootAnswer::Script(text) => self.read(text),
            BootAnswer::Retry(_) => panic!("told to come again"),
        }
    }

    /// Reads a script as iPXE would.
    pub fn read(&self, text: String) -> Script {
        let summary = inspect(&text).unwrap();
        let uri: ggnet_core::boot_text::SanUri = summary.san[0].uri.parse().unwrap();
        let config = self.o.config();
        let target = uri.target.resource(&config.iqn_prefix, &config.instance).unwrap();
        Script { text, target }
    }

    /// A machine logs in to this target.
    pub async fn login(&self, target: &ResourceId, machine: &Machine) -> Result<MemoryInitiator, LoginError> {
        let name = ggnet_core::nouns::Iqn::initiator(&self.o.config().iqn_prefix, machine.macs[0]).unwrap();
        self.targets.login(target, &name, peer()).await
    }

    /// Powers on: script, login.
    pub async fn power_on(&self, machine: &Machine) -> MemoryInitiator {
        let script = self.script(machine).await;
        self.login(&script.target, machine).await.unwrap()
    }

    pub async fn session(&self, machine: &Machine) -> Session {
        self.store.live_session(machine.id).await.unwrap().unwrap()
    }

    pub async fn last(&self, machine: &Machine) -> Option<Session> {
        self.store.last_session(machine.id).await.unwrap()
    }

    pub async fn set_current(&self, image: ImageId, version: ImageVersionId) {
        self.o.images().set_current(image, version, &Principal::embedder()).await.unwrap();
    }

    pub async fn update(
        &self,
        machine: &Machine,
        change: impl FnOnce(&mut Machine) + Send + 'static,
    ) -> Machine {
        let change = Box::new(move |mut m: Machine| {
            change(&mut m);
            Ok(m)
        });
        self.o.machines().update(machine.id, None, change, &Principal::embedder()).await.unwrap()
    }

    /// The kinds of the events of a machine, in their order.
    pub async fn events(&self, machine: MachineId) -> Vec<EventKind> {
        let events = self.store.events(None, 100_000, Some(machine)).await.unwrap();
        events.into_iter().map(|e| e.event.kind).collect()
    }

    pub async fn all_events(&self) -> Vec<EventKind> {
        let events = self.store.events(None, 100_000, None).await.unwrap();
        events.into_iter().map(|e| e.event.kind).collect()
    }

    /// Everything that the backends have, by port.
    pub async fn left(&self) -> BTreeMap<&'static str, BTreeSet<ResourceId>> {
        let mut left = BTreeMap::new();
        let ids = |l: Vec<ggnet_core::ports::Listed>| l.into_iter().map(|l| l.id).collect();
        left.insert("target", ids(self.targets.list().await.unwrap()));
        left.insert("dhcp", ids(self.dhcp.list().await.unwrap()));
        left.insert("boot_file", ids(self.files.list().await.unwrap()));
        let writebacks = self.writebacks.list().await.unwrap();
        left.insert("writeback", writebacks.into_iter().map(|w| w.id).collect());
        left
    }

    /// Nothing is left in any backend.
    pub async fn assert_empty(&self, why: &str) {
        for (port, ids) in self.left().await {
            assert!(ids.is_empty(), "{why}: {port} still has {ids:?}");
        }
    }

    /// The backends have exactly what the store says, whole.
    pub async fn assert_whole(&self, why: &str) {
        let sessions = self.store.live_sessions().await.unwrap();
        let machines = self.store.machines(&MachineFilter::default(), all()).await.unwrap().items;
        let mut targets = BTreeSet::new();
        let mut writebacks = BTreeSet::new();
        for session in &sessions {
            assert_eq!(session.state, SessionState::Active, "{why}: {session:?}");
            targets.extend(session.generations().map(|g| session.target(g)));
            writebacks.extend(session.writebacks().cloned());
        }
        targets.extend(self.store.targets().await.unwrap().iter().map(|t| ResourceId::manual(t.id)));
        // What machines keep may be there without a session.
        let is_kept = |w: &&ResourceId| {
            w.owner()
                .is_some_and(|(m, generation)| generation.is_none() && machines.iter().any(|x| x.id == m))
        };
        let live = |m: &Machine| sessions.iter().any(|s| s.machine == m.id);
        let wants = |m: &&Machine| {
            m.state == MachineState::Active && (live(m) || (m.auto_start && m.image.is_some()))
        };
        let wanted: BTreeSet<_> = machines.iter().filter(wants).map(|m| ResourceId::machine(m.id)).collect();
        let left = self.left().await;
        assert_eq!(left["target"], targets, "{why}: targets");
        assert_eq!(left["dhcp"], wanted, "{why}: DHCP entries");
        assert_eq!(left["boot_file"], wanted, "{why}: boot files");
        let have: BTreeSet<_> = left["writeback"].iter().filter(|w| !is_kept(w)).cloned().collect();
        let want: BTreeSet<_> = writebacks.iter().filter(|w| !is_kept(w)).cloned().collect();
        assert_eq!(have, want, "{why}: writebacks");
        assert!(left["writeback"].is_superset(&writebacks), "{why}: a session's writeback is lost");
        // What is ready has its bytes, and nothing has bytes that no record wants.
        for listed in self.images.list().await.unwrap() {
            let version = self.store.version(listed.id).await.unwrap();
            let version = version.unwrap_or_else(|| panic!("{why}: bytes of no version: {listed:?}"));
            assert_ne!(version.state, VersionState::Failed, "{why}: bytes of a failed version: {version:?}");
            if version.state == VersionState::Ready {
                let whole = (Completeness::Whole, version.size_bytes);
                assert_eq!((listed.completeness, listed.size_bytes), whole, "{why}: {version:?}");
            }
        }
        let listed = [self.targets.list().await, self.dhcp.list().await, self.files.list().await];
        for object in listed.into_iter().flat_map(Result::unwrap) {
            assert_eq!(object.completeness, Completeness::Whole, "{why}: {object:?}");
        }
        for writeback in self.writebacks.list().await.unwrap().iter().filter(|w| writebacks.contains(&w.id)) {
            assert_eq!(writeback.completeness, Completeness::Whole, "{why}: {writeback:?}");
        }
    }

    /// The reconciler comes round, and has nothing to complain of.
    pub async fn reconcile(&self) {
        let report = self.o.reconcile().await;
        assert!(report.trouble.is_empty(), "{:?}", report.trouble);
    }
}

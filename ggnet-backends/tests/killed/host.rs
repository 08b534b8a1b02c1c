//! [`Host`]: the server's folder and what else outlives its process, and [`Process`]: one run of the server.
//!
//! ```text
//!   open ──▶ serving ── dies, or was idle ──▶ end ──▶ open …
//! ```
//! Invariants: a process is a runtime of one thread, and runs only while its test waits in [`Process::run`], so that it stands still from the
//! moment of its death; the next one begins when no file of the folder is open any more.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ggnet_backends::{
    image_store::files::{ImageFiles, ImageFilesConfig},
    store::sqlite::{SqliteConfig, SqliteStore},
    writeback::layers::{Layers, LayersConfig},
};
use ggnet_core::{
    block::{Disk, DiskForm},
    boot_text::{SanUri, ipxe::inspect, templates::BootTemplates},
    metrics::Registry,
    nouns::{
        Firmware, ImageId, ImageVersionId, InstanceId, Iqn, MacAddr, Machine, MachineId, MachineState,
        Principal, ResourceId, Session, StopReason, VersionState, WritebackPolicy,
    },
    orchestrator::{
        Advertised, Backends, BootAnswer, BootRequest, ImportRequest, Orchestrator, OrchestratorConfig,
        Ports, StartRequest, StopRequest,
    },
    ports::{Clock as _, ImageStore as _, Store as _},
    testkit::{
        flaky::{Fault, FaultPlan, Flaky},
        memory::{
            BootFileWorld, DhcpWorld, LoginError, ManualClock, MemoryBootFiles, MemoryConverter, MemoryDhcp,
            MemoryInitiator, MemoryTargets, TargetWorld,
        },
    },
    wrap::PortLimits,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// A disk's size: of no importance, whole blocks of a layer, and more than one piece of a conversion.
pub const SIZE: usize = 160 << 10;

/// Where a session writes: a part of a block, two whole blocks, and the parts of two neighbours.
const WRITES: [(usize, usize); 3] = [(0, 512), (12_288, 8192), (41_984, 4096)];

/// What an imported version reads as: every sector tells the version and its place.
pub fn imported(salt: u8) -> Vec<u8> {
    (0..SIZE).map(|at| salt.wrapping_add(u8::try_from(at / 512 % 251).unwrap())).collect()
}

/// The same disk once [`Process::write`] has written to it.
pub fn written(disk: &[u8], salt: u8) -> Vec<u8> {
    let mut disk = disk.to_vec();
    for (at, len) in WRITES {
        disk[at..at + len].fill(salt);
    }
    disk
}

/// What outlives the server's process.
pub struct Host {
    /// `ggnet.db`, `ggnet.key`, `images`, `writebacks`, and `source.raw` to import.
    folder: TempDir,
    /// Nothing in it outlives a process: it is here so that the end of one can close all connections.
    targets: TargetWorld,
    dhcp: DhcpWorld,
    boot_files: BootFileWorld,
    clock: ManualClock,
    config: OrchestratorConfig,
}

/// One run of the server. The backends are here without the fault plan, so that a test's own calls do not count.
pub struct Process {
    pub o: Orchestrator,
    pub plan: FaultPlan,
    pub store: SqliteStore,
    pub images: ImageFiles,
    pub writebacks: Layers,
    pub targets: Arc<MemoryTargets>,
    pub dhcp: Arc<MemoryDhcp>,
    pub boot_files: Arc<MemoryBootFiles>,
    pub folder: PathBuf,
    runtime: Runtime,
}

impl Host {
    /// Empty, on a tmpfs if there is one: the tests commit thousands of times, and a kill loses nothing that was not synced. The reconciler's
    /// timer never fires.
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut config = OrchestratorConfig::new(InstanceId::generate()).unwrap();
        config.reconcile_interval = Duration::from_secs(1_000_000);
        config.chain_url = Some("http://192.0.2.1:8080".parse().unwrap());
        Self {
            folder,
            targets: TargetWorld::default(),
            dhcp: DhcpWorld::default(),
            boot_files: BootFileWorld::default(),
            clock: ManualClock::new(),
            config,
        }
    }

    fn database(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("ggnet.db{suffix}"))
    }

    /// A process starts. It may not be serving yet.
    pub fn open_unready(&self, plan: &FaultPlan) -> Process {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let dir = self.folder.path();
        let (path, key_file) = (self.database(""), dir.join("ggnet.key"));
        let store = runtime.block_on(SqliteStore::open(SqliteConfig { path, key_file })).unwrap();
        let images = ImageFiles::open(&ImageFilesConfig { dir: dir.join("images") }).unwrap();
        let instance = self.config.instance.clone();
        let writebacks = Layers::open(LayersConfig { dir: dir.join("writebacks"), instance }).unwrap();
        let targets = Arc::new(MemoryTargets::over(&self.targets));
        let dhcp = Arc::new(MemoryDhcp::over(&self.dhcp));
        let boot_files = Arc::new(MemoryBootFiles::over(&self.boot_files));
        let backends = Backends {
            store: Arc::new(Flaky::new(Arc::new(store.clone()), plan)),
            target: Arc::new(Flaky::new(Arc::clone(&targets), plan)),
            writeback: Arc::new(Flaky::new(Arc::new(writebacks.clone()), plan)),
            images: Arc::new(Flaky::new(Arc::new(images.clone()), plan)),
            dhcp: Arc::new(Flaky::new(Arc::clone(&dhcp), plan)),
            boot_files: Arc::new(Flaky::new(Arc::clone(&boot_files), plan)),
            converter: Arc::new(Flaky::new(Arc::new(MemoryConverter::new()), plan)),
            clock: Arc::new(self.clock.clone()),
        };
        let ports = Ports::new(backends, &PortLimits::default(), &mut Registry::default()).unwrap();
        let (config, templates) = (self.config.clone(), BootTemplates::load(None).unwrap());
        let o = runtime.block_on(async { Orchestrator::new(ports, config, templates) }).unwrap();
        let (plan, folder) = (plan.clone(), dir.to_owned());
        Process { o, plan, store, images, writebacks, targets, dhcp, boot_files, folder, runtime }
    }

    /// A process starts, and its first reconcile has ended.
    pub fn open(&self) -> Process {
        let process = self.open_unready(&FaultPlan::new());
        process.run(async {
            until("the first reconcile ends", async || process.o.is_serving()).await;
            // The last call that a process makes by itself: all later ones are caused by the test.
            until("old rows are pruned", async || process.plan.calls("store.prune") > 0).await;
        });
        process
    }

    /// Ends a process, killed or idle, drops what else holds something of it, and starts the next one.
    pub fn reopen(&self, process: Process, held: impl Sized) -> Process {
        self.end(process, held);
        self.open()
    }

    /// As [`reopen`](Self::reopen), without the next one.
    pub fn end(&self, process: Process, held: impl Sized) {
        let Process { o, plan, store, images, writebacks, targets, dhcp, boot_files, folder, runtime } =
            process;
        let handle = runtime.handle().clone();
        // Waits for file work that has begun, then drops every task where it stands.
        runtime.shutdown_timeout(Duration::from_secs(60));
        let left = self.database_as_it_is();
        {
            // A connection of sqlx's pool looks for a runtime when it is dropped.
            let _entered = handle.enter();
            drop(MemoryTargets::over(&self.targets));
            drop((held, o, plan, store, images, writebacks, targets, dhcp, boot_files));
        }
        wait_until_closed(&folder);
        self.put_back(&left);
    }

    /// Copies the database and its write-ahead log as they are now. The database first: what a checkpoint writes to it meanwhile is in the log,
    /// too.
    fn database_as_it_is(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut copies = Vec::new();
        for suffix in ["", "-wal"] {
            let (from, to) = (self.database(suffix), self.database(&format!(".left{suffix}")));
            match fs::copy(&from, &to) {
                Ok(_) => copies.push((to, from)),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::NotFound, "{}", from.display()),
            }
        }
        copies
    }

    /// Undoes what closing the dead process's connections did to the database: after a kill nothing is closed.
    fn put_back(&self, copies: &[(PathBuf, PathBuf)]) {
        for suffix in ["-wal", "-shm"] {
            match fs::remove_file(self.database(suffix)) {
                Ok(()) => {}
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::NotFound, "{suffix}"),
            }
        }
        for (copy, place) in copies {
            fs::rename(copy, place).unwrap();
        }
    }
}

/// Waits until this program has no file of `folder` open.
fn wait_until_closed(folder: &Path) {
    let folder = folder.canonicalize().unwrap();
    let begun = Instant::now();
    loop {
        let open: Vec<_> = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
            .filter(|target| target.starts_with(&folder))
            .collect();
        if open.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "a dead process has these open: {open:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until `condition` is true.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..60_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("this never happened: {what}");
}

fn mac(n: u8) -> MacAddr {
    format!("52:54:00:00:00:{n:02x}").parse().unwrap()
}

pub fn peer() -> SocketAddr {
    "192.0.2.77:40000".parse().unwrap()
}

/// A machine's request for its script.
pub fn boot_request(machine: &Machine) -> BootRequest {
    BootRequest {
        mac: machine.macs[0],
        firmware: Firmware::Bios,
        peer: None,
        request_id: None,
        advertised: Advertised {
            portal: "192.0.2.1".parse().unwrap(),
            http_url: "http://192.0.2.1:8080".parse().unwrap(),
        },
        prepare: true,
    }
}

pub fn start_request(machine: &Machine) -> StartRequest {
    StartRequest { machine: machine.id, image: None, data_disks: vec![], by: Principal::embedder() }
}

pub fn stop_request(session: &Session) -> StopRequest {
    StopRequest { session: session.id, force: true, reason: StopReason::Operator, by: Principal::embedder() }
}

impl Process {
    /// Runs the process until this has ended.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Runs `work` until it ends or the process dies at its `step`-th call from now on; true when it died.
    pub fn dies(&self, step: u64, polls: usize, work: impl Future) -> bool {
        self.plan.add(Fault::any().nth(step).kills(polls));
        self.run(async {
            let died = tokio::select! {
                biased;
                () = self.plan.killed() => true,
                _ = work => false,
            };
            // Another time at each step, because a transaction consists of several statements that another thread runs.
            let dead_at = Instant::now() + Duration::from_micros(step * 130 % 1000);
            while polls == 1 && Instant::now() < dead_at {
                tokio::task::yield_now().await;
            }
            died
        })
    }

    /// Which call was the last.
    pub fn last_call(&self, step: u64, polls: usize) -> String {
        format!("killed at call {step} after {polls} polls: {:?}", self.plan.log().last())
    }

    /// Waits until observations of what the test did are recorded: those are calls, too.
    pub fn be_quiet(&self) {
        self.run(async {
            let (mut quiet, mut calls) = (0, self.plan.log().len());
            until("no call for a while", async || {
                let now = self.plan.log().len();
                quiet = if now == calls { quiet + 1 } else { 0 };
                calls = now;
                quiet > 3
            })
            .await;
        });
    }

    /// The import of a version that reads as [`imported`].
    pub fn import_request(&self, image: &str, salt: u8) -> ImportRequest {
        let path = self.folder.join("source.raw");
        fs::write(&path, imported(salt)).unwrap();
        ImportRequest {
            image: image.parse().unwrap(),
            path,
            format: None,
            expected_sha256: None,
            comment: String::new(),
            make_current: true,
            by: Principal::embedder(),
        }
    }

    /// Imports the first version of an image.
    pub fn image(&self, name: &str, salt: u8) -> (ImageId, ImageVersionId) {
        let request = self.import_request(name, salt);
        self.run(async {
            let (image, version) = self.o.images().import(request).await.unwrap();
            until("the import ends", async || self.o.images().import_progress(version.id).is_none()).await;
            let ended = self.store.version(version.id).await.unwrap().unwrap();
            assert_eq!(ended.state, VersionState::Ready, "{ended:?}");
            (image.id, version.id)
        })
    }

    /// Registers a machine.
    pub fn machine(&self, n: u8, image: ImageId, policy: WritebackPolicy, auto_start: bool) -> Machine {
        let now = ManualClock::new().now();
        let machine = Machine {
            id: MachineId::generate(),
            name: format!("pc-{n}").parse().unwrap(),
            description: String::new(),
            macs: vec![mac(n)],
            device_type: Default::default(),
            firmware: Firmware::Unknown,
            fixed_address: None,
            groups: vec![],
            state: MachineState::Active,
            image: Some(image),
            pinned_version: None,
            auto_start,
            writeback: policy,
            created_at: now,
            updated_at: now,
            revision: 0,
        };
        self.run(self.o.machines().create(machine, &Principal::embedder())).unwrap()
    }

    /// Asks for the script, and says which target is in it.
    pub fn script(&self, machine: &Machine) -> ResourceId {
        let text = match self.run(self.o.sessions().boot(boot_request(machine))).unwrap() {
            BootAnswer::Script(text) => text,
            BootAnswer::Retry(_) => panic!("told to come again"),
        };
        let uri: SanUri = inspect(&text).unwrap().san[0].uri.parse().unwrap();
        let config = self.o.config();
        uri.target.resource(&config.iqn_prefix, &config.instance).unwrap()
    }

    /// A machine logs in to this target.
    pub fn login(&self, target: &ResourceId, machine: &Machine) -> Result<MemoryInitiator, LoginError> {
        let name = Iqn::initiator(&self.o.config().iqn_prefix, machine.macs[0]).unwrap();
        self.run(self.targets.login(target, &name, peer()))
    }

    /// Switches a machine on: script, login.
    pub fn power_on(&self, machine: &Machine) -> MemoryInitiator {
        let target = self.script(machine);
        self.login(&target, machine).unwrap()
    }

    /// Writes to a machine's disk: then it reads as [`written`].
    pub fn write(&self, disk: &MemoryInitiator, salt: u8) {
        for (at, len) in WRITES {
            self.run(disk.write(0, at as u64, &vec![salt; len])).unwrap();
        }
    }

    /// The whole of a machine's disk.
    pub fn read(&self, disk: &MemoryInitiator) -> Vec<u8> {
        self.run(disk.read(0, 0, SIZE)).unwrap()
    }

    /// What a version reads as.
    pub fn version_bytes(&self, id: ImageVersionId) -> Vec<u8> {
        let opened = self.run(self.images.open(id, DiskForm::Blocks)).unwrap();
        let Disk::Blocks(device) = &opened.disk else { panic!("opened as {:?}", opened.disk) };
        let mut bytes = vec![0; usize::try_from(opened.size_bytes).unwrap()];
        device.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub fn session(&self, machine: &Machine) -> Session {
        self.run(self.store.live_session(machine.id)).unwrap().unwrap()
    }

    pub fn last_session(&self, machine: &Machine) -> Option<Session> {
        self.run(self.store.last_session(machine.id)).unwrap()
    }

    /// An operator stops what a machine has.
    pub fn stop(&self, machine: &Machine) {
        let request = stop_request(&self.session(machine));
        self.run(self.o.sessions().stop(request)).unwrap();
    }

    /// A machine boots, finds `expected` on its disk, and is stopped.
    pub fn assert_boots(&self, machine: &Machine, expected: &[u8], why: &str) {
        let disk = self.power_on(machine);
        assert!(self.read(&disk) == expected, "{why}: the machine boots another disk");
        self.assert_whole(&format!("{why}, and booted"));
        self.stop(machine);
    }
}

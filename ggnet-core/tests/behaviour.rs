//! The behaviour suites on the backends in memory.

#![expect(clippy::unwrap_used, reason = "a fixture fails by panicking, as a test does")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_core::{
    Error, ErrorKind, Result,
    block::Disk,
    metrics::Registry,
    nouns::{Firmware, MacAddr},
    orchestrator::{Backends, Ports},
    ports::{
        Access, BootFileStore, BootPath, DhcpBackend, ImageConverter, ImageStore, LoginVisibility,
        SystemClock, TargetBackend, TargetCapabilities, TargetEndpoint, WritebackStore,
    },
    testkit::{
        memory::{
            BootFileWorld, DhcpWorld, ImageWorld, LoginError, MemoryBootFiles, MemoryConverter, MemoryDhcp,
            MemoryImages, MemoryInitiator, MemoryStore, MemoryTargets, MemoryWritebacks, RamDisk,
            TargetWorld, WritebackWorld,
        },
        suite::{
            BootFileFixture, ConverterFixture, DhcpAnswer, DhcpFixture, Fixture, Foreign, ImageStoreFixture,
            TargetClient, TargetFixture, WritebackFixture, instance, iqn_prefix,
        },
    },
    wrap::PortLimits,
};

/// Backends in memory, with this change, behind limits as for every embedder: the limits must not change what a backend does.
fn limited(change: impl FnOnce(&mut Backends)) -> Ports {
    let mut backends = Backends {
        store: Arc::new(MemoryStore::new()),
        target: Arc::new(MemoryTargets::new()),
        writeback: Arc::new(MemoryWritebacks::new()),
        images: Arc::new(MemoryImages::new()),
        dhcp: Arc::new(MemoryDhcp::new()),
        boot_files: Arc::new(MemoryBootFiles::new()),
        converter: Arc::new(MemoryConverter::new()),
        clock: Arc::new(SystemClock),
    };
    change(&mut backends);
    Ports::new(backends, &PortLimits::default(), &mut Registry::default()).unwrap()
}

// Targets: once as the built-in target is, once as the kernel's, once behind limits.

struct Targets {
    limited: bool,
    world: Mutex<TargetWorld>,
    now: Mutex<Option<Arc<MemoryTargets>>>,
    disks: Mutex<std::collections::HashMap<String, Arc<RamDisk>>>,
    capabilities: TargetCapabilities,
}

impl Targets {
    fn builtin() -> Self {
        Self::with(MemoryTargets::new().capabilities())
    }

    fn kernel() -> Self {
        let builtin = MemoryTargets::new().capabilities();
        Self::with(TargetCapabilities {
            chap: false,
            mutual_chap: false,
            logins: LoginVisibility::Polled,
            max_luns: 2,
            survives_restart: true,
            follows_growth: false,
            ..builtin
        })
    }

    fn with(capabilities: TargetCapabilities) -> Self {
        Self {
            limited: false,
            world: Mutex::default(),
            now: Mutex::default(),
            disks: Mutex::default(),
            capabilities,
        }
    }

    fn open(&self) -> Arc<dyn TargetBackend> {
        let world = self.world.lock().unwrap().clone();
        let targets = Arc::new(MemoryTargets::with_capabilities(&world, self.capabilities.clone()));
        *self.now.lock().unwrap() = Some(Arc::clone(&targets));
        if self.limited { limited(|b| b.target = targets).target().clone() } else { targets }
    }
}

#[async_trait]
impl Fixture<dyn TargetBackend> for Targets {
    async fn fresh(&self) -> Arc<dyn TargetBackend> {
        *self.world.lock().unwrap() = TargetWorld::default();
        self.open()
    }

    async fn reopen(&self) -> Arc<dyn TargetBackend> {
        self.open()
    }
}

struct Client(MemoryInitiator, u8);

#[async_trait]
impl TargetClient for Client {
    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.0.read(self.1, offset, len).await
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.write(self.1, offset, data).await
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush(self.1).await
    }

    async fn logout(self: Box<Self>) -> Result<()> {
        self.0.logout().await;
        Ok(())
    }
}

#[async_trait]
impl TargetFixture for Targets {
    async fn disk(&self, key: &str, size: u64) -> Disk {
        let mut disks = self.disks.lock().unwrap();
        let new = || Arc::new(RamDisk::zeros(size.try_into().unwrap()));
        Disk::Blocks(disks.entry(key.to_owned()).or_insert_with(new).clone())
    }

    fn can_connect(&self) -> bool {
        true
    }

    async fn connect(&self, endpoint: &TargetEndpoint, access: &Access) -> Result<Box<dyn TargetClient>> {
        let targets = self.now.lock().unwrap().clone().unwrap();
        let (name, chap) = match access {
            Access::Shared => ("iqn.2026-11.local.ggnet:anybody".parse()?, None),
            Access::Initiator { name, chap, .. } => (name.clone(), chap.as_ref()),
        };
        let resource = endpoint.iqn.resource(&iqn_prefix(), &instance()).unwrap();
        let peer = SocketAddr::from(([192, 0, 2, 9], 40_000));
        match targets.login_with(&resource, &name, chap, peer).await {
            Ok(initiator) => Ok(Box::new(Client(initiator, endpoint.lun))),
            Err(e) => {
                let kind = match e {
                    LoginError::ServiceUnavailable => ErrorKind::Unavailable,
                    LoginError::NoSuchTarget => ErrorKind::NotFound,
                    _ => ErrorKind::Permission,
                };
                Err(Error::new(kind, e.to_string()))
            }
        }
    }
}

ggnet_core::target_behaviour!(builtin_like_targets, Targets::builtin(), not_run: [
    what_is_not_ours_is_left_alone,
    chap_it_cannot_demand_is_unsupported,
    the_target_proves_itself,
]);
ggnet_core::target_behaviour!(limited_targets, Targets { limited: true, ..Targets::builtin() }, not_run: [
    what_is_not_ours_is_left_alone,
    chap_it_cannot_demand_is_unsupported,
    the_target_proves_itself,
]);
ggnet_core::target_behaviour!(kernel_like_targets, Targets::kernel(), not_run: [
    what_is_not_ours_is_left_alone,
    a_wrong_secret_is_refused,
    the_target_proves_itself,
    the_newest_login_of_a_name_wins,
    a_disk_that_grew_is_served_to_its_end,
    the_gate_is_asked_after_authentication,
    the_gate_can_put_off_and_refuse,
    no_login_is_served_before_the_gate_serves,
    logins_and_first_accesses_are_observed,
    shutdown_closes_connections,
]);

// Writebacks.

struct Writebacks {
    limited: bool,
    world: Mutex<WritebackWorld>,
    folder: tempfile::TempDir,
}

impl Writebacks {
    fn new() -> Self {
        Self { limited: false, world: Mutex::default(), folder: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Fixture<dyn WritebackStore> for Writebacks {
    async fn fresh(&self) -> Arc<dyn WritebackStore> {
        *self.world.lock().unwrap() = WritebackWorld::default();
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn WritebackStore> {
        let writebacks = Arc::new(MemoryWritebacks::over(&self.world.lock().unwrap()));
        if self.limited { limited(|b| b.writeback = writebacks).writeback().clone() } else { writebacks }
    }
}

impl WritebackFixture for Writebacks {
    fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

ggnet_core::writeback_behaviour!(writebacks, Writebacks::new(), not_run: [
    what_is_not_ours_is_left_alone,
    a_missing_base_is_not_found,
]);
ggnet_core::writeback_behaviour!(limited_writebacks, Writebacks { limited: true, ..Writebacks::new() }, not_run: [
    what_is_not_ours_is_left_alone,
    a_missing_base_is_not_found,
]);

// Images, with the writebacks that they adopt from.

#[derive(Default)]
struct Images {
    limited: bool,
    adopts: bool,
    world: Mutex<ImageWorld>,
    writebacks: Mutex<WritebackWorld>,
}

#[async_trait]
impl Fixture<dyn ImageStore> for Images {
    async fn fresh(&self) -> Arc<dyn ImageStore> {
        *self.world.lock().unwrap() = ImageWorld::default();
        *self.writebacks.lock().unwrap() = WritebackWorld::default();
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn ImageStore> {
        let images = MemoryImages::over(&self.world.lock().unwrap());
        let images = if self.adopts { images.adopting(&self.writebacks.lock().unwrap()) } else { images };
        let images = Arc::new(images);
        if self.limited { limited(|b| b.images = images).images().clone() } else { images }
    }
}

#[async_trait]
impl ImageStoreFixture for Images {
    async fn writebacks(&self) -> Option<Arc<dyn WritebackStore>> {
        let writebacks = Arc::new(MemoryWritebacks::over(&self.writebacks.lock().unwrap()));
        Some(if self.limited {
            limited(|b| b.writeback = writebacks).writeback().clone()
        } else {
            writebacks
        })
    }

    fn has_writebacks(&self) -> bool {
        self.adopts
    }
}

ggnet_core::image_store_behaviour!(images, Images { adopts: true, ..Images::default() }, not_run: [
    what_is_not_ours_is_left_alone,
]);
ggnet_core::image_store_behaviour!(limited_images, Images { adopts: true, limited: true, ..Images::default() }, not_run: [
    what_is_not_ours_is_left_alone,
]);
ggnet_core::image_store_behaviour!(images_that_adopt_nothing, Images::default(), not_run: [
    what_is_not_ours_is_left_alone,
    an_adopted_writeback_is_a_version,
    adopted_twice_equals_once,
    a_version_below_another_is_busy,
    adopting_over_a_lost_version_is_not_found,
    a_dropped_adoption_leaves_the_disk_in_one_place,
    a_crash_around_an_adoption_leaves_the_disk_in_one_place,
]);

// DHCP.

#[derive(Default)]
struct Dhcp {
    limited: bool,
    world: Mutex<DhcpWorld>,
    now: Mutex<Option<Arc<MemoryDhcp>>>,
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for Dhcp {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        *self.world.lock().unwrap() = DhcpWorld::default();
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        let dhcp = Arc::new(MemoryDhcp::over(&self.world.lock().unwrap()));
        *self.now.lock().unwrap() = Some(Arc::clone(&dhcp));
        if self.limited { limited(|b| b.dhcp = dhcp).dhcp().clone() } else { dhcp }
    }
}

#[async_trait]
impl DhcpFixture for Dhcp {
    fn can_ask(&self) -> bool {
        true
    }

    async fn ask(&self, mac: MacAddr) -> DhcpAnswer {
        let dhcp = self.now.lock().unwrap().clone().unwrap();
        let host = dhcp.request(mac, Firmware::Uefi, false);
        DhcpAnswer {
            boot_file: host.as_ref().map(|_| "loader".into()),
            address: host.and_then(|h| h.fixed_address),
        }
    }
}

ggnet_core::dhcp_behaviour!(dhcp, Dhcp::default(), not_run: [what_is_not_ours_is_left_alone]);
ggnet_core::dhcp_behaviour!(limited_dhcp, Dhcp { limited: true, ..Dhcp::default() }, not_run: [
    what_is_not_ours_is_left_alone,
]);

// Boot files.

#[derive(Default)]
struct BootFiles {
    limited: bool,
    world: Mutex<BootFileWorld>,
    now: Mutex<Option<Arc<MemoryBootFiles>>>,
}

#[async_trait]
impl Fixture<dyn BootFileStore> for BootFiles {
    async fn fresh(&self) -> Arc<dyn BootFileStore> {
        *self.world.lock().unwrap() = BootFileWorld::default();
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn BootFileStore> {
        let files = Arc::new(MemoryBootFiles::over(&self.world.lock().unwrap()));
        *self.now.lock().unwrap() = Some(Arc::clone(&files));
        if self.limited { limited(|b| b.boot_files = files).boot_files().clone() } else { files }
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let world = self.world.lock().unwrap().clone();
        let path: BootPath = "machines/an-operators-own.ipxe".parse().unwrap();
        world.plant(path.clone(), Bytes::from_static(b"#!ipxe"));
        Some(Box::new(Planted(world, path)))
    }
}

struct Planted(BootFileWorld, BootPath);

#[async_trait]
impl Foreign for Planted {
    async fn check(&self) -> Result<(), String> {
        match self.0.planted(&self.1) {
            Some(bytes) if bytes == "#!ipxe" => Ok(()),
            other => Err(format!("{} is now {other:?}", self.1)),
        }
    }
}

#[async_trait]
impl BootFileFixture for BootFiles {
    fn can_fetch(&self) -> bool {
        true
    }

    fn observes(&self) -> bool {
        true
    }

    async fn fetch(&self, path: &BootPath) -> Result<Bytes> {
        let files = self.now.lock().unwrap().clone().unwrap();
        files.fetch(path, SocketAddr::from(([192, 0, 2, 9], 2070)))
    }
}

ggnet_core::boot_file_behaviour!(boot_files, BootFiles::default(), not_run: []);
ggnet_core::boot_file_behaviour!(limited_boot_files, BootFiles { limited: true, ..BootFiles::default() }, not_run: []);

// The converter.

struct Converter {
    limited: bool,
    folder: tempfile::TempDir,
}

impl Converter {
    fn new() -> Self {
        Self { limited: false, folder: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Fixture<dyn ImageConverter> for Converter {
    async fn fresh(&self) -> Arc<dyn ImageConverter> {
        let converter = Arc::new(MemoryConverter::new());
        if self.limited { limited(|b| b.converter = converter).converter().clone() } else { converter }
    }

    async fn reopen(&self) -> Arc<dyn ImageConverter> {
        self.fresh().await
    }
}

#[async_trait]
impl ConverterFixture for Converter {
    fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

ggnet_core::converter_behaviour!(converter, Converter::new(), not_run: [
    every_sample_becomes_its_raw_bytes,
    a_sink_of_another_form_is_unsupported,
]);
ggnet_core::converter_behaviour!(limited_converter, Converter { limited: true, ..Converter::new() }, not_run: [
    every_sample_becomes_its_raw_bytes,
    a_sink_of_another_form_is_unsupported,
]);

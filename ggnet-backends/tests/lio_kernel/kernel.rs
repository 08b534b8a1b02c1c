//! [`Kernel`]: the kernel's tree as a fixture. Each starts with an empty tree, and leaves none of its own objects.
#![expect(clippy::disallowed_methods, reason = "files of zeros, losetup, and waiting for a blocking thread")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ggnet_backends::target::{
    lio_configfs::{Hook, LioConfig, LioConfigfs},
    lio_targetcli::{self, TargetcliConfig},
};
use ggnet_core::{
    block::Disk,
    error::Result,
    nouns::{ChapPair, ImageFormat, InstanceId, Iqn, MachineId, ResourceId, Secret},
    ports::{Access, LunDisks, LunSpec, Removal, TargetBackend, TargetEndpoint, TargetSpec},
    testkit::suite::{Effort, Fixture, Foreign, TargetClient, TargetFixture, Wanted, instance, iqn_prefix},
};

use crate::{helped::Helped, iscsi_support::client};

/// Where the kernel's tree is.
pub const ROOT: &str = "/sys/kernel/config/target";

/// What the suite's `crash` ends: a backend whose further changes are all rejected.
struct Life {
    dead: Arc<AtomicBool>,
    /// Held by the backend and by its work on blocking threads.
    token: Weak<()>,
}

impl Life {
    /// Ends it, and waits for a system call in progress.
    fn end(&self) {
        self.dead.store(true, Ordering::SeqCst);
        while self.token.strong_count() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The kernel's tree, and disks for its targets.
pub struct Kernel {
    dir: tempfile::TempDir,
    devices: Option<Mutex<BTreeMap<String, PathBuf>>>,
    helped: Option<Helped>,
    by_tool: bool,
    life: Mutex<Option<Life>>,
}

impl Kernel {
    pub fn with_files() -> Self {
        Self::new(None)
    }

    pub fn with_devices() -> Self {
        Self::new(Some(Mutex::default()))
    }

    /// As a server that is not root has it.
    pub fn by_the_helper() -> Self {
        let mut kernel = Self::new(None);
        kernel.helped = Some(Helped::start(kernel.dir.path()));
        kernel
    }

    /// On files, changed by targetcli.
    pub fn by_targetcli() -> Self {
        let mut kernel = Self::new(None);
        kernel.by_tool = true;
        kernel
    }

    fn new(devices: Option<Mutex<BTreeMap<String, PathBuf>>>) -> Self {
        assert!(
            Path::new(ROOT).is_dir(),
            "no kernel target here: `cargo test --workspace --all-features --test native` runs this in a machine that has one"
        );
        wipe(&instance());
        wipe(&other_instance());
        assert_same(&tree(), &pristine(), "the last test left nothing");
        Self {
            dir: tempfile::tempdir().unwrap(),
            devices,
            helped: None,
            by_tool: false,
            life: Mutex::default(),
        }
    }

    fn open(&self) -> Arc<dyn TargetBackend> {
        let (dead, token) = (Arc::new(AtomicBool::new(false)), Arc::new(()));
        *self.life.lock().unwrap() = Some(Life { dead: Arc::clone(&dead), token: Arc::downgrade(&token) });
        let hook: Hook = Arc::new(move |_| {
            let _held = &token;
            if dead.load(Ordering::SeqCst) { Err(io::Error::other("the process is dead")) } else { Ok(()) }
        });
        match &self.helped {
            Some(helped) => helped.open(hook),
            None if self.by_tool => Arc::new(by_targetcli(instance(), &self.home(), Some(hook))),
            None => Arc::new(backend(instance(), Some(hook))),
        }
    }

    /// Where targetcli has its settings.
    fn home(&self) -> PathBuf {
        self.dir.path().join("tool")
    }

    fn file(&self, key: &str, size: u64) -> PathBuf {
        let path = self.dir.path().join(key);
        if !path.exists() {
            File::create(&path).unwrap().set_len(size).unwrap();
            if self.helped.is_some() {
                Helped::own(&path);
            }
        }
        path
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(life) = self.life.lock().unwrap().take() {
            life.end();
        }
        wipe(&instance());
        wipe(&other_instance());
        if self.by_tool && !std::thread::panicking() {
            let kept =
                fs::read_dir(self.home()).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
            let secret = b"password=";
            assert!(
                kept.into_iter().all(|file| !file.windows(secret.len()).any(|w| w == secret)),
                "a log of secrets"
            );
        }
        for device in self.devices.iter().flat_map(|d| d.lock().unwrap().clone().into_values()) {
            Command::new("losetup").arg("-d").arg(device).status().unwrap();
        }
    }
}

#[async_trait]
impl Fixture<dyn TargetBackend> for Kernel {
    async fn fresh(&self) -> Arc<dyn TargetBackend> {
        if let Some(life) = self.life.lock().unwrap().take() {
            life.dead.store(true, Ordering::SeqCst);
        }
        wipe(&instance());
        self.open()
    }

    async fn reopen(&self) -> Arc<dyn TargetBackend> {
        let life = self.life.lock().unwrap().take().expect("fresh() came before");
        tokio::task::spawn_blocking(move || life.end()).await.unwrap();
        self.open()
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let other = backend(other_instance(), None);
        let mut spec = spec(&self.file("foreign", 1 << 20), 9, None);
        spec.iqn = Iqn::target(&iqn_prefix(), &other_instance(), &spec.id).unwrap();
        other.ensure(&spec, &spec.disks).await.unwrap();
        // An operator's own target, as targetcli creates it.
        let backstore = format!("{ROOT}/core/fileio_3/operators");
        fs::create_dir_all(&backstore).unwrap();
        let disk = self.file("operators", 1 << 20).display().to_string();
        let attribute = |name: &str, value: &str| fs::write(format!("{backstore}/{name}"), value).unwrap();
        attribute("control", &format!("fd_dev_name={disk},fd_dev_size=1048576"));
        attribute("udev_path", &disk);
        attribute("enable", "1");
        fs::create_dir_all(format!("{ROOT}/iscsi/iqn.2003-01.org.linux-iscsi.host:disk/tpgt_1")).unwrap();
        Some(Box::new(Others(tree())))
    }

    fn has_foreign(&self) -> bool {
        true
    }

    fn effort(&self) -> Effort {
        if self.by_tool { Effort::Less } else { Effort::Full }
    }
}

struct Others(Vec<String>);

#[async_trait]
impl Foreign for Others {
    async fn check(&self) -> std::result::Result<(), String> {
        let now = tree();
        if now == self.0 { Ok(()) } else { Err(format!("{:#?}\nbecame\n{now:#?}", self.0)) }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for folder in [
            "core/fileio_3/operators",
            "core/fileio_3",
            "iscsi/iqn.2003-01.org.linux-iscsi.host:disk/tpgt_1",
            "iscsi/iqn.2003-01.org.linux-iscsi.host:disk",
        ] {
            fs::remove_dir(format!("{ROOT}/{folder}")).unwrap();
        }
    }
}

#[async_trait]
impl TargetFixture for Kernel {
    async fn disk(&self, key: &str, size: u64) -> Disk {
        let path = self.file(key, size);
        let Some(devices) = &self.devices else { return Disk::File { path, format: ImageFormat::Raw } };
        let mut devices = devices.lock().unwrap();
        let device = devices.entry(key.to_owned()).or_insert_with(|| {
            let free = Command::new("losetup").arg("-f").output().unwrap();
            let device = String::from_utf8(free.stdout).unwrap().trim().to_owned();
            let made = Command::new("losetup").arg(&device).arg(&path).status().unwrap();
            assert!(made.success(), "losetup {device} {}", path.display());
            device.into()
        });
        Disk::Device { path: device.clone() }
    }

    fn can_connect(&self) -> bool {
        true
    }

    async fn connect(&self, endpoint: &TargetEndpoint, access: &Access) -> Result<Box<dyn TargetClient>> {
        let client = client::log_in(endpoint, access).await?;
        // The kernel answers a login before it counts the session of its initiator; a request over the session is processed after that.
        client.read(0, 512).await?;
        Ok(client)
    }
}

/// "lio-targetcli", as the server creates it, except for the hook and the time limit.
fn by_targetcli(instance: InstanceId, home: &Path, hook: Option<Hook>) -> LioConfigfs {
    let config = TargetcliConfig { time_limit_s: 600, ..TargetcliConfig::default() };
    // It starts its programs in this runtime, and waits for them.
    tokio::task::block_in_place(|| lio_targetcli::start_hooked(config, iqn_prefix(), instance, home, hook))
        .unwrap()
}

/// Another GGnet on the same host.
pub fn other_instance() -> InstanceId {
    "f0e1d2c3".parse().unwrap()
}

/// The backend as the server creates it, except for the hook.
pub fn backend(instance: InstanceId, hook: Option<Hook>) -> LioConfigfs {
    LioConfigfs::start_hooked(LioConfig::default(), iqn_prefix(), instance, hook).unwrap()
}

/// A target on a file, for initiator `n`.
pub fn spec(file: &Path, n: u32, secret: Option<&str>) -> Wanted {
    let id = ResourceId::generation(MachineId::generate(), 1);
    let iqn = Iqn::target(&iqn_prefix(), &instance(), &id).unwrap();
    let disk = Disk::File { path: file.to_owned(), format: ImageFormat::Raw };
    let disk_key = file.display().to_string();
    let lun = LunSpec { number: 0, disk_key, serial: format!("5e71a1{n:04x}"), read_only: false };
    let name = format!("iqn.2026-11.local.ggnet:pc-{n}").parse().unwrap();
    let chap = secret.map(|s| ChapPair { user: format!("pc-{n}"), secret: Secret::new(s) });
    let access = Access::Initiator { name, chap, mutual: None };
    Wanted { spec: TargetSpec { id, iqn, luns: vec![lun], access }, disks: LunDisks::from([(0, disk)]) }
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// Removes the objects of an instance. On its own thread, because the caller may be inside a runtime.
pub fn wipe(instance: &InstanceId) {
    let instance = instance.clone();
    let work = move || {
        block_on(async {
            let backend = backend(instance, None);
            for listed in backend.list().await.unwrap() {
                backend.remove(&listed.id, Removal::Force).await.unwrap();
            }
        });
    };
    std::thread::spawn(work).join().unwrap();
}

/// The objects, links and values of the kernel's tree, sorted; without sessions, counters and the numbers that the kernel assigns.
pub fn tree() -> Vec<String> {
    let mut all = Vec::new();
    for part in ["core", "iscsi"] {
        walk(&Path::new(ROOT).join(part), &mut all);
    }
    all.sort();
    all
}

fn walk(at: &Path, all: &mut Vec<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = entry.file_name().to_string_lossy().into_owned();
        if kind.is_dir() {
            if !["statistics", "fabric_statistics"].contains(&name.as_str()) {
                all.push(path.display().to_string());
                walk(&path, all);
            }
        } else if kind.is_symlink() {
            all.push(format!("{} → {}", path.display(), fs::read_link(&path).unwrap().display()));
        } else if !["info", "hba_info", "dynamic_sessions"].contains(&name.as_str()) {
            // The kernel's value for no name and no secret; targetcli's restoreconfig writes it even if nothing was set.
            let none = |text: String| if text == "NULL" { String::new() } else { text };
            let value = fs::read(&path).map(|v| none(String::from_utf8_lossy(&v).trim().to_owned()));
            all.push(format!("{} = {value:?}", path.display()));
        }
    }
}

/// Fails with the differences.
pub fn assert_same(have: &[String], want: &[String], what: &str) {
    let only = |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
    let (more, less) = (only(have, want), only(want, have));
    assert!(more.is_empty() && less.is_empty(), "{what}: there is {more:#?} instead of {less:#?}");
}

/// The tree as it was before the first of these tests.
pub fn pristine() -> Vec<String> {
    static FIRST: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    FIRST.get_or_init(tree).clone()
}

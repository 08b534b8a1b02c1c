//! The backends "external" with the examples of `infra/examples/external` as their programs: the whole suites of their ports. The boot
//! files are served by Debian's `in.tftpd` and fetched by tftp-hpa.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_backends::external::{ExternalBootFiles, ExternalConfig, ExternalDhcp, look};
use ggnet_core::{
    ErrorKind,
    error::Result,
    nouns::{InstanceId, MacAddr},
    ports::{BootBundle, BootFileStore, BootPath, DhcpBackend, Health},
    registry::{Registry, Wiring},
    testkit::suite::{BootFileFixture, DhcpAnswer, DhcpFixture, Fixture, Foreign, instance, iqn_prefix},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    builtin_boot_files::tftp_get,
    process::Process,
    sandbox::{Keeper, TFTPD, tftpd},
};

/// An example program, configured with a folder or file of the test.
pub fn example(name: &str, key: &str, value: &Path) -> ExternalConfig {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/examples/external").join(name);
    assert!(std::fs::metadata(&program).unwrap().permissions().mode() & 0o111 != 0, "{name} can be run");
    let mut config = ExternalConfig::new(vec![program.to_str().unwrap().to_owned()]);
    config.config.insert(key.to_owned(), value.to_str().unwrap().into());
    config
}

/// Starts a backend in a process that can be killed, in place of the previous one.
pub async fn opened<T: Send + 'static>(
    process: &Mutex<Option<Process>>,
    open: impl Future<Output = Result<T>> + Send + 'static,
) -> Arc<T> {
    let old = process.lock().unwrap().take();
    if let Some(old) = old {
        old.kill().await;
    }
    let new = Process::start();
    let backend = new.handle().spawn(open).await.unwrap().unwrap();
    *process.lock().unwrap() = Some(new);
    Arc::new(backend)
}

/// A folder that in.tftpd serves.
struct Served {
    dir: TempDir,
    server: Keeper,
    process: Mutex<Option<Process>>,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let server = tftpd(dir.path().to_str().unwrap());
        Self { dir, server, process: Mutex::default() }
    }

    fn open(&self, instance: InstanceId) -> impl Future<Output = Result<ExternalBootFiles>> + Send + use<> {
        ExternalBootFiles::open(example("boot_files.py", "root", self.dir.path()), instance)
    }
}

#[async_trait]
impl Fixture<dyn BootFileStore> for Served {
    async fn fresh(&self) -> Arc<dyn BootFileStore> {
        opened(&self.process, self.open(instance())).await
    }

    /// The program ends with the process that started it.
    async fn reopen(&self) -> Arc<dyn BootFileStore> {
        opened(&self.process, self.open(instance())).await
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let other = self.open("ffffffff".parse().unwrap()).await.unwrap();
        let files = [("machines/other.ipxe".parse().unwrap(), Bytes::from_static(b"#!ipxe\n"))].into();
        other.ensure(&BootBundle { id: "other-pc".parse().unwrap(), files }).await.unwrap();
        let root = self.dir.path().to_owned();
        std::fs::create_dir(root.join("pxelinux.cfg")).unwrap();
        for name in ["boot.ipxe", "pxelinux.cfg/default"] {
            std::fs::copy(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/examples/tftp").join(name),
                root.join(name),
            )
            .unwrap();
        }
        Some(Box::new(Others { files: others(&root), root }))
    }
}

#[async_trait]
impl BootFileFixture for Served {
    fn can_fetch(&self) -> bool {
        true
    }

    async fn fetch(&self, path: &BootPath) -> Result<Bytes> {
        tftp_get(&self.server.prefix(), TFTPD.parse().unwrap(), path).await
    }
}

/// Files of other owners in the folder.
struct Others {
    root: PathBuf,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

#[async_trait]
impl Foreign for Others {
    async fn check(&self) -> std::result::Result<(), String> {
        let now = others(&self.root);
        if now == self.files { Ok(()) } else { Err(format!("{:?} became {now:?}", self.files)) }
    }
}

/// Every file of other owners below a folder: its content, or a link's text.
fn others(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with(format!(".ggnet-{}", instance())) {
            continue;
        }
        if let Ok(text) = std::fs::read_link(&path) {
            all.insert(path, text.into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            all.extend(others(&path));
        } else {
            all.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    all
}

ggnet_core::boot_file_behaviour!(boot_files, Served::new(), not_run: [what_is_sent_is_observed]);

const OPERATORS: &str = "00:16:3e:00:00:01 printer\n";
const ANOTHERS: &str = "00:16:3e:00:00:02 pc-9 # ggnet 11111111 0123 0123456789abcdef\n";

/// An ethers file.
struct Ethers {
    dir: TempDir,
    process: Mutex<Option<Process>>,
}

impl Ethers {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), process: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ethers")
    }
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for Ethers {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        let backend = self.reopen().await;
        let _ = std::fs::remove_file(self.path());
        backend
    }

    /// The program ends with the process that started it.
    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        let config = example("ethers.py", "path", &self.path());
        opened(&self.process, ExternalDhcp::open(config, instance())).await
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        crate::native_dhcp::write(&self.path(), &format!("{OPERATORS}{ANOTHERS}"));
        Some(Box::new(Lines(self.path())))
    }

    fn has_foreign(&self) -> bool {
        true
    }
}

/// An operator's line, and one of another GGnet.
struct Lines(PathBuf);

#[async_trait]
impl Foreign for Lines {
    async fn check(&self) -> std::result::Result<(), String> {
        let text = std::fs::read_to_string(&self.0).map_err(|e| e.to_string())?;
        if text == format!("{OPERATORS}{ANOTHERS}") { Ok(()) } else { Err(text) }
    }
}

/// A machine that sends requests to a DHCP server that reads the file.
#[async_trait]
impl DhcpFixture for Ethers {
    fn can_ask(&self) -> bool {
        true
    }

    async fn ask(&self, mac: MacAddr) -> DhcpAnswer {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let knows = text.lines().any(|line| line.starts_with(&mac.to_string()));
        DhcpAnswer { boot_file: knows.then(|| "ipxe.efi".to_owned()), address: None }
    }
}

ggnet_core::dhcp_behaviour!(
    dhcp,
    Ethers::new(),
    not_run: [a_reserved_address_is_given, what_is_answered_is_observed]
);

#[tokio::test]
async fn the_examples_refuse_what_they_are_not_made_for_and_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let e =
        ExternalBootFiles::open(example("boot_files.py", "rot", dir.path()), instance()).await.err().unwrap();
    assert_eq!((e.kind(), e.backend()), (ErrorKind::Invalid, Some("external")), "{}", e.report());
    assert!(e.hint().unwrap().contains("root ="), "{e:?}");
    let absent = dir.path().join("absent");
    let e =
        ExternalBootFiles::open(example("boot_files.py", "root", &absent), instance()).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    assert!(e.message().contains(absent.to_str().unwrap()), "{e}");
    let e = ExternalDhcp::open(example("boot_files.py", "root", dir.path()), instance()).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
}

#[tokio::test]
async fn a_look_beside_a_running_server_disturbs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = example("boot_files.py", "root", dir.path());
    let store = ExternalBootFiles::open(config.clone(), instance()).await.unwrap();
    // The running program holds its lock; the check takes none.
    assert_eq!(look(config, "boot_files", instance()).await.unwrap(), serde_json::Value::Null);
    assert_eq!(store.health().await, Health::Up);
    let capabilities =
        look(example("ethers.py", "path", &dir.path().join("ethers")), "dhcp", instance()).await;
    assert_eq!(capabilities.unwrap(), json!({ "leases": false, "observes": false }));
}

#[tokio::test]
async fn the_registry_makes_them_and_gives_the_loaders_to_the_boot_file_store() {
    let (root, loaders) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    crate::native_dhcp::write(&loaders.path().join("undionly.kpxe"), "a loader");
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    let wiring = Wiring::new(instance(), iqn_prefix(), root.path().into());
    let config = example("boot_files.py", "root", root.path());
    let mut table =
        json!({ "command": config.command, "config": config.config, "loaders_dir": loaders.path() });
    let store = registry.boot_files.make("external", wiring.clone(), table.clone()).await.unwrap();
    assert_eq!(store.read(&"undionly.kpxe".parse().unwrap()).await.unwrap(), "a loader");
    store.shutdown().await;
    table["deadlines"] = 3.into();
    let e = registry.boot_files.make("external", wiring, table).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.message().contains("deadlines"), "{e}");
}

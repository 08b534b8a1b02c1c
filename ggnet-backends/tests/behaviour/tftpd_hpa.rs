//! The boot file store "tftpd-hpa", with Debian's `in.tftpd` as its server in a network of its own and tftp-hpa as its client.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_backends::bootfile::tftpd_hpa::{TftpdHpa, TftpdHpaConfig};
use ggnet_core::{
    error::Result,
    nouns::{InstanceId, ResourceId},
    ports::{BootBundle, BootFileStore, BootPath, Health, Listed, Observer},
    testkit::suite::{BootFileFixture, Fixture, Foreign, instance},
};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::{
    builtin_boot_files::tftp_get,
    process::{Process, within},
    sandbox::{Keeper, TFTPD, tftpd},
};

struct Served {
    dir: TempDir,
    server: Keeper,
    process: Mutex<Option<Process>>,
}

impl Served {
    /// A folder as an operator creates it, with the example files in it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/examples/tftp");
        std::fs::create_dir(dir.path().join("pxelinux.cfg")).unwrap();
        for file in ["boot.ipxe", "pxelinux.cfg/default"] {
            std::fs::copy(examples.join(file), dir.path().join(file)).unwrap();
        }
        let server = tftpd(dir.path().to_str().unwrap());
        Self { dir, server, process: Mutex::default() }
    }

    async fn store(&self, instance: InstanceId) -> TftpdHpa {
        let config = TftpdHpaConfig { root: self.dir.path().into(), ask: false, ..TftpdHpaConfig::default() };
        TftpdHpa::open(config, instance).await.unwrap()
    }

    async fn open(&self) -> Arc<dyn BootFileStore> {
        let process = Process::start();
        let store = InProcess { store: self.store(instance()).await, process: process.handle() };
        *self.process.lock().unwrap() = Some(process);
        Arc::new(store)
    }
}

#[async_trait]
impl Fixture<dyn BootFileStore> for Served {
    async fn fresh(&self) -> Arc<dyn BootFileStore> {
        self.open().await
    }

    async fn reopen(&self) -> Arc<dyn BootFileStore> {
        let old = self.process.lock().unwrap().take();
        old.expect("fresh() came before").kill().await;
        self.open().await
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let other = self.store("ffffffff".parse().unwrap()).await;
        let files = [("machines/other.ipxe".parse().unwrap(), Bytes::from_static(b"#!ipxe\n"))].into();
        other.ensure(&BootBundle { id: "other-pc".parse().unwrap(), files }).await.unwrap();
        let dir = self.dir.path().to_owned();
        Some(Box::new(Others { files: others(&dir), dir }))
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

/// Files of other owners in the folder, before there were any of ours.
struct Others {
    dir: PathBuf,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

#[async_trait]
impl Foreign for Others {
    async fn check(&self) -> std::result::Result<(), String> {
        let now = others(&self.dir);
        if now == self.files { Ok(()) } else { Err(format!("{:?} became {:?}", self.files, now)) }
    }
}

/// Every file of other owners below a folder: its content, or a link's text.
fn others(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with(format!(".ggnet/{}", instance())) {
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

/// The store with its file operations in a process that can be killed.
struct InProcess {
    store: TftpdHpa,
    process: Handle,
}

#[async_trait]
impl BootFileStore for InProcess {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        self.store.attach(observer);
    }

    async fn ensure(&self, bundle: &BootBundle) -> Result<()> {
        within(&self.process, self.store.ensure(bundle)).await
    }

    async fn remove(&self, id: &ResourceId) -> Result<()> {
        within(&self.process, self.store.remove(id)).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        within(&self.process, self.store.get(id)).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        within(&self.process, self.store.list()).await
    }

    async fn read(&self, path: &BootPath) -> Result<Bytes> {
        within(&self.process, self.store.read(path)).await
    }

    async fn health(&self) -> Health {
        within(&self.process, self.store.health()).await
    }

    async fn shutdown(&self) {
        within(&self.process, self.store.shutdown()).await;
    }
}

ggnet_core::boot_file_behaviour!(behaviour, Served::new(), not_run: [what_is_sent_is_observed]);

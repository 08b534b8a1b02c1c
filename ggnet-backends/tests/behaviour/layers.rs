//! The writeback store "layers".

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ggnet_backends::{
    layers::open_raw,
    writeback::layers::{Layers, LayersConfig},
};
use ggnet_core::{
    block::Disk,
    error::Result,
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{
        Frozen, Health, OpenImage, Removal, WritebackCapabilities, WritebackListed, WritebackSpec,
        WritebackStore,
    },
    testkit::suite::{Fixture, Foreign, WritebackFixture, instance},
};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::process::{Process, within};

struct Folders {
    dir: TempDir,
    process: Mutex<Option<Process>>,
}

impl Folders {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        Self { dir, process: Mutex::default() }
    }

    fn store(&self, instance: InstanceId) -> Layers {
        Layers::open(LayersConfig { dir: self.dir.path().join("writebacks"), instance }).unwrap()
    }

    fn open(&self) -> Arc<dyn WritebackStore> {
        let process = Process::start();
        let store = InProcess { store: self.store(instance()), process: process.handle() };
        *self.process.lock().unwrap() = Some(process);
        Arc::new(store)
    }
}

#[async_trait]
impl Fixture<dyn WritebackStore> for Folders {
    async fn fresh(&self) -> Arc<dyn WritebackStore> {
        self.open()
    }

    async fn reopen(&self) -> Arc<dyn WritebackStore> {
        let old = self.process.lock().unwrap().take();
        old.expect("fresh() came before").kill().await;
        self.open()
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let other = self.store("ffffffff".parse().unwrap());
        let path = self.dir.path().join("images/other.raw");
        std::fs::copy("/proc/self/exe", &path).unwrap();
        let size_bytes = 64 << 10;
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size_bytes).unwrap();
        let base = open_raw(ImageVersionId::generate(), &path).unwrap();
        let spec = WritebackSpec { id: "other-pc".parse().unwrap(), version: base.id, size_bytes };
        let Disk::Blocks(device) = other.ensure(&spec, &base).await.unwrap() else {
            panic!("layers are blocks")
        };
        let write = move || {
            device.write_at(&[7; 4096], 8192).unwrap();
            device.flush().unwrap();
        };
        tokio::task::spawn_blocking(write).await.unwrap();
        let dir = self.dir.path().join("writebacks");
        let files = files(&dir);
        assert!(!files.is_empty(), "the other instance's writeback has files");
        Some(Box::new(Others { dir, files }))
    }
}

impl WritebackFixture for Folders {
    fn folder(&self) -> PathBuf {
        self.dir.path().join("images")
    }
}

/// The files of another instance's writeback, before any of ours existed.
pub struct Others {
    pub dir: PathBuf,
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

#[async_trait]
impl Foreign for Others {
    async fn check(&self) -> std::result::Result<(), String> {
        if files(&self.dir) == self.files { Ok(()) } else { Err("files of another instance changed".into()) }
    }
}

/// Every file below a folder.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    all
}

/// The store with its file operations in a process that can be killed.
pub struct InProcess<S> {
    pub store: S,
    pub process: Handle,
}

#[async_trait]
impl<S: WritebackStore> WritebackStore for InProcess<S> {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    fn capabilities(&self) -> WritebackCapabilities {
        self.store.capabilities()
    }

    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        within(&self.process, self.store.ensure(spec, base)).await
    }

    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        within(&self.process, self.store.freeze(id)).await
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        within(&self.process, self.store.remove(id, how)).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        within(&self.process, self.store.get(id)).await
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        within(&self.process, self.store.list()).await
    }

    async fn health(&self) -> Health {
        within(&self.process, self.store.health()).await
    }

    async fn shutdown(&self) {
        within(&self.process, self.store.shutdown()).await;
    }
}

ggnet_core::writeback_behaviour!(behaviour, Folders::new(), not_run: [a_missing_base_is_not_found]);

//! The image store "files", with each of the writeback stores whose frozen disks it adopts.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ggnet_backends::{
    image_store::files::{ImageFiles, ImageFilesConfig},
    writeback::{
        layers::{Layers, LayersConfig},
        reflink::{CopyMode, Reflink, ReflinkConfig},
    },
};
use ggnet_core::{
    block::DiskForm,
    error::Result,
    nouns::ImageVersionId,
    ports::{
        Frozen, Health, ImageCapabilities, ImageListed, ImageSpec, ImageStore, OpenImage, Removal, Sink,
        WritebackStore,
    },
    testkit::suite::{Fixture, Foreign, ImageStoreFixture, instance},
};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::{
    layers::{InProcess, Others, files},
    process::{Process, within},
};

/// The writeback stores of the adopted disks.
#[derive(Clone, Copy)]
enum Writebacks {
    Layers,
    Copies,
}

/// A data folder.
struct Data {
    dir: TempDir,
    writebacks: Writebacks,
    process: Mutex<Option<Process>>,
}

impl Data {
    fn new(writebacks: Writebacks) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), writebacks, process: Mutex::default() }
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn open(&self) -> Arc<dyn ImageStore> {
        let process = Process::start();
        let store = ImageFiles::open(&ImageFilesConfig { dir: self.images() }).unwrap();
        let store = ImagesInProcess { store, process: process.handle() };
        *self.process.lock().unwrap() = Some(process);
        Arc::new(store)
    }
}

#[async_trait]
impl Fixture<dyn ImageStore> for Data {
    async fn fresh(&self) -> Arc<dyn ImageStore> {
        self.open()
    }

    async fn reopen(&self) -> Arc<dyn ImageStore> {
        let old = self.process.lock().unwrap().take();
        old.expect("fresh() came before").kill().await;
        self.open()
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let dir = self.images();
        std::fs::create_dir(dir.join("lost+found")).unwrap();
        for name in ["notes.txt", "win11.raw", ".hidden", "lost+found/#12"] {
            std::fs::copy("/etc/hostname", dir.join(name)).unwrap();
        }
        Some(Box::new(Others { files: files(&dir), dir }))
    }
}

#[async_trait]
impl ImageStoreFixture for Data {
    async fn writebacks(&self) -> Option<Arc<dyn WritebackStore>> {
        let process = self.process.lock().unwrap().as_ref().expect("fresh() came before").handle();
        let (dir, instance) = (self.dir.path(), instance());
        Some(match self.writebacks {
            Writebacks::Layers => {
                let config = LayersConfig { dir: dir.join("writebacks"), instance };
                Arc::new(InProcess { store: Layers::open(config).unwrap(), process })
            }
            Writebacks::Copies => {
                let images = Some(self.images());
                let config = ReflinkConfig { dir: dir.join("disks"), images, instance, copy: CopyMode::Full };
                Arc::new(InProcess { store: Reflink::open(config).unwrap(), process })
            }
        })
    }

    fn has_writebacks(&self) -> bool {
        true
    }
}

/// The store with its file operations in a process that can be killed.
struct ImagesInProcess {
    store: ImageFiles,
    process: Handle,
}

#[async_trait]
impl ImageStore for ImagesInProcess {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    fn capabilities(&self) -> ImageCapabilities {
        self.store.capabilities()
    }

    async fn draft(&self, spec: &ImageSpec) -> Result<Sink> {
        within(&self.process, self.store.draft(spec)).await
    }

    async fn seal(&self, spec: &ImageSpec) -> Result<ImageListed> {
        within(&self.process, self.store.seal(spec)).await
    }

    async fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        within(&self.process, self.store.adopt(spec, from)).await
    }

    async fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage> {
        within(&self.process, self.store.open(id, form)).await
    }

    async fn get(&self, id: ImageVersionId) -> Result<Option<ImageListed>> {
        within(&self.process, self.store.get(id)).await
    }

    async fn list(&self) -> Result<Vec<ImageListed>> {
        within(&self.process, self.store.list()).await
    }

    async fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()> {
        within(&self.process, self.store.remove(id, how)).await
    }

    async fn health(&self) -> Health {
        within(&self.process, self.store.health()).await
    }

    async fn shutdown(&self) {
        within(&self.process, self.store.shutdown()).await;
    }
}

ggnet_core::image_store_behaviour!(with_layers, Data::new(Writebacks::Layers), not_run: []);
ggnet_core::image_store_behaviour!(with_copies, Data::new(Writebacks::Copies), not_run: []);

//! The writeback store "layers": a mutable layer over an immutable version, served by our own process.
//!
//! A layer is a sparse data file as large as the disk and a map of two bits per 4-KiB block (absent, present, zero). Creating one means
//! creating two small files without an fsync, whatever the size of the image. Guarantees, and the modules that explain them:
//! * every acknowledged write survives the death of our process (`layers::device`);
//! * every flushed write survives a power cut (`layers::device`, `layers::flush`);
//! * the folder contains everything that `list` needs (`layer_folder`, `layers::format`).
//!
//! Levels: `mod` → `layer_folder` → [`crate::layers`], the library → the folder and files that all stores share.
//!
//! ```text
//!   free ── ensure ──▶ open, as long as a caller holds its disk ──▶ free
//!     └──── freeze ──▶ frozen, as long as a caller holds that ──▶ free, or adopted by an image store
//! ```
//!
//! Invariants: at most one `Device` per writeback exists in the process, so there is only one writer of its files; it lives as long as a
//! caller holds the returned disk, and is opened again after that; file operations of the port's methods run on blocking threads and
//! complete even if the caller's future is dropped.

mod descriptor;
mod layer_folder;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use ggnet_core::{
    block::{BlockDevice as _, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{InstanceId, ResourceId},
    ports::{
        Frozen, Health, Hold, Native, OpenImage, Removal, WritebackCapabilities, WritebackListed,
        WritebackSpec, WritebackStore,
    },
};

pub use self::descriptor::descriptor;
use self::layer_folder::LayerFolder;
use super::folder;
use crate::{
    files::{Files, OsFiles, make_folder},
    layers::{FAMILY, device::Device, layer::Status},
    slots::{self, Slots},
};

const NAME: &str = "layers";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The settings of the store.
#[derive(Clone, Debug)]
pub struct LayersConfig {
    /// Its folder; created with mode 0700 if it does not exist. The file system must support sparse files; if it can punch holes, discarded
    /// space is freed.
    pub dir: PathBuf,
    /// The instance whose writebacks are listed and changed.
    pub instance: InstanceId,
}

/// The writeback store "layers". See the module.
#[derive(Clone)]
pub struct Layers {
    inner: Arc<Inner>,
}

struct Inner {
    layer_folder: LayerFolder,
    slots: Slots<Slot>,
}

/// A writeback that was requested; its lock serializes the calls for one id.
#[derive(Default)]
struct Slot {
    device: Weak<Device>,
    status: Arc<Status>,
    /// Alive while it is frozen.
    frozen: Weak<()>,
}

impl Slot {
    fn check_not_frozen(&self, id: &ResourceId) -> Result<()> {
        if self.frozen.strong_count() > 0 { Err(folder::frozen(id)) } else { Ok(()) }
    }

    /// Whether its disk is held, or it is frozen: a later call must know that.
    fn in_use(&self) -> bool {
        self.device.strong_count() > 0 || self.frozen.strong_count() > 0
    }
}

impl Layers {
    /// Opens the store. Reads and writes a little, so it must not run on a runtime thread if the disk may be slow. Errors: those of the
    /// operating system for the folder.
    pub fn open(config: LayersConfig) -> Result<Self> {
        make_folder(&config.dir).map_err(|e| e.with_backend(NAME))?;
        let boot = std::fs::read_to_string(BOOT_ID)
            .map_err(|e| Error::io(format!("Reading {BOOT_ID}"), e).with_backend(NAME))?;
        Self::open_over(Arc::new(OsFiles), config, boot.trim())
    }

    /// Like [`Layers::open`], with any implementation of files and any boot id.
    pub(crate) fn open_over(files: Arc<dyn Files>, config: LayersConfig, boot: &str) -> Result<Self> {
        let layer_folder = LayerFolder::open(files, config.dir, config.instance, boot.to_owned())
            .map_err(|e| e.with_backend(NAME).with_operation("open"))?;
        Ok(Self { inner: Arc::new(Inner { layer_folder, slots: Slots::new(NAME) }) })
    }

    /// Runs a file operation on a blocking thread. It completes even if this future is dropped.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        slots::blocking(NAME, operation, subject, move || work(&inner)).await
    }
}

impl Inner {
    fn ensure(&self, slot: &mut Slot, spec: &WritebackSpec, base: &OpenImage) -> Result<Arc<Device>> {
        spec.check_base(base)?;
        slot.check_not_frozen(&spec.id)?;
        if let Some(device) = slot.device.upgrade() {
            if slot.status.failed() {
                return Err(layer_folder::failed(&spec.id));
            }
            if device.version() == spec.version && device.info().size_bytes == spec.size_bytes {
                return Ok(device);
            }
            return Err(Error::new(
                ErrorKind::Busy,
                format!("Writeback {} is in use over image version {}", spec.id, device.version()),
            ));
        }
        let device = self.layer_folder.ensure(&spec.id, base)?;
        *slot = Slot {
            device: Arc::downgrade(&device),
            status: device.layer.status.clone(),
            frozen: Weak::new(),
        };
        Ok(device)
    }

    fn freeze(&self, slot: &mut Slot, id: &ResourceId) -> Result<Frozen> {
        slot.check_not_frozen(id)?;
        if slot.device.strong_count() > 0 {
            return Err(Error::new(ErrorKind::Busy, format!("Writeback {id} is in use"))
                .with_hint("Stop the session that has it as a disk"));
        }
        let still = self.layer_folder.freeze(id)?;
        let locator = folder::locator(&still.home)?;
        let held = Arc::new(());
        slot.frozen = Arc::downgrade(&held);
        Ok(Frozen {
            writeback: id.clone(),
            base: still.base,
            size_bytes: still.size_bytes,
            whole: false,
            native: Native { family: FAMILY.to_owned(), locator },
            hold: Hold::of(held),
        })
    }

    fn remove(&self, slot: &mut Slot, id: &ResourceId, how: Removal) -> Result<()> {
        slot.check_not_frozen(id)?;
        if let Some(device) = slot.device.upgrade() {
            match how {
                Removal::IfIdle => {
                    return Err(Error::new(ErrorKind::Busy, format!("Writeback {id} is in use")));
                }
                Removal::Force => {
                    device.layer.status.remove();
                    // A running flush uses paths of files: it must not access those of a successor.
                    drop(device.flusher.hold());
                }
            }
        }
        self.layer_folder.remove(id)?;
        *slot = Slot::default();
        Ok(())
    }

    fn health(&self) -> Health {
        let health = self.layer_folder.health();
        let failed = self.slots.which(|s| s.status.failed() && s.device.strong_count() > 0);
        let failed: Vec<&str> = failed.iter().map(ResourceId::as_str).collect();
        match health {
            Health::Up if !failed.is_empty() => Health::Degraded(format!(
                "The disk lost writes of {}: look for disk errors in the kernel log",
                failed.join(", ")
            )),
            other => other,
        }
    }
}

#[async_trait]
impl WritebackStore for Layers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> WritebackCapabilities {
        WritebackCapabilities {
            provides: DiskForm::Blocks,
            base: DiskForm::Blocks,
            freezes: Some(FAMILY.to_owned()),
            kill_safe: true,
            power_safe: true,
            discard: self.inner.layer_folder.punches(),
        }
    }

    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        let mut slot = self.inner.slots.lock(&spec.id).await?;
        let (wanted, base) = (spec.clone(), base.clone());
        // Disk before lock, in this order: if a caller drops this future, a following `remove` must not find a disk that no caller will
        // ever get.
        let (device, _slot) = self
            .blocking("ensure", spec.id.as_str(), move |inner| {
                inner.ensure(&mut slot, &wanted, &base).map(|device| (device, slot))
            })
            .await?;
        Ok(Disk::Blocks(device))
    }

    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        let mut slot = self.inner.slots.lock(id).await?;
        let wanted = id.clone();
        // The frozen state before the lock, as in `ensure`: no call must find a freeze that its caller has abandoned.
        let (frozen, _slot) = self
            .blocking("freeze", id.as_str(), move |inner| {
                inner.freeze(&mut slot, &wanted).map(|frozen| (frozen, slot))
            })
            .await?;
        Ok(frozen)
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let mut slot = self.inner.slots.lock(id).await?;
        let gone = id.clone();
        self.blocking("remove", id.as_str(), move |inner| {
            let removed = inner.remove(&mut slot, &gone, how);
            drop(slot);
            // A later `ensure` must return a disk that is still held, and no call may change a frozen one.
            inner.slots.sweep(Slot::in_use);
            removed
        })
        .await
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.inner.slots.check_open()?;
        self.blocking("list", "", |inner| inner.layer_folder.list()).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        self.inner.slots.check_open()?;
        let wanted = id.clone();
        self.blocking("get", id.as_str(), move |inner| inner.layer_folder.get(&wanted)).await
    }

    async fn health(&self) -> Health {
        self.blocking("health", "", |inner| Ok(inner.health()))
            .await
            .unwrap_or_else(|e| Health::Down(e.to_string()))
    }

    async fn shutdown(&self) {
        let mut flushes = tokio::task::JoinSet::new();
        for (id, slot) in self.inner.slots.close() {
            // Waits for a call in flight for this id.
            let device = slot.lock().await.device.upgrade();
            if let Some(device) = device {
                flushes.spawn_blocking(move || (id, device.flush()));
            }
        }
        while let Some(flushed) = flushes.join_next().await {
            match flushed {
                Ok((_, Ok(()))) => {}
                Ok((id, Err(error))) => tracing::error!(writeback = %id, %error, "not flushed at shutdown"),
                Err(error) => tracing::error!(%error, "a flush at shutdown panicked"),
            }
        }
    }
}

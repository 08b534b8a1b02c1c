//! The writeback store "layers": a mutable layer of our own over an immutable version, served by our own process.
//!
//! A layer is a sparse data file as large as the disk and a map of two bits per 4-KiB block (absent, present, zero). Making one
//! is two small files and no fsync, whatever the size of the image. What holds, and where it is argued:
//! * every acknowledged write survives the death of our process (`device`);
//! * every flushed write survives a power cut (`device`, `flush`);
//! * what is in the folder tells `list` everything (`shelf`, `format`);
//! * all disks on one version share one open file and one page cache (`chain`).
//!
//! Floors: `mod` → `shelf` → `device` → `flush` → `layer`, `chain` → `map`, `locks`, `format`, `busy` → the folder and
//! files that all stores share.
//!
//! Invariants: at most one `Device` per writeback exists in the process, so nobody else writes its files; it lives as long as
//! somebody holds the disk that was handed out, and is opened again after that; file work of the port's methods runs on blocking
//! threads and ends there even when the caller's future is dropped.

mod base_disk;
mod busy;
mod chain;
mod descriptor;
mod device;
mod flush;
mod format;
mod inline;
mod layer;
mod locks;
mod map;
mod shelf;
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
        BaseImage, Health, Removal, WritebackCapabilities, WritebackListed, WritebackSpec, WritebackStore,
    },
};

pub use self::descriptor::descriptor;
use self::{
    device::Device,
    files::{Files, OsFiles},
    layer::Status,
    shelf::Shelf,
};
use super::{files, folder};
use crate::slots::{self, Slots};

const NAME: &str = "layers";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the store stands.
#[derive(Clone, Debug)]
pub struct LayersConfig {
    /// Its folder; made with mode 0700 if it is not there. On a file system with sparse files; one that can punch holes gives
    /// discarded space back.
    pub dir: PathBuf,
    /// Whose writebacks are seen and touched in it.
    pub instance: InstanceId,
}

/// The writeback store "layers". See the module.
#[derive(Clone)]
pub struct Layers {
    inner: Arc<Inner>,
}

struct Inner {
    shelf: Shelf,
    slots: Slots<Slot>,
}

/// One writeback that was asked for; its lock is what makes calls for one id wait for each other.
#[derive(Default)]
struct Slot {
    device: Weak<Device>,
    status: Arc<Status>,
}

impl Layers {
    /// Opens the store. Reads and writes a little, so not for a runtime thread when the disk may be slow. Errors: what the
    /// operating system says of the folder.
    pub fn open(config: LayersConfig) -> Result<Self> {
        folder::make(&config.dir).map_err(|e| e.with_backend(NAME))?;
        let boot = std::fs::read_to_string(BOOT_ID)
            .map_err(|e| Error::io(format!("Reading {BOOT_ID}"), e).with_backend(NAME))?;
        Self::open_over(Arc::new(OsFiles), config, boot.trim())
    }

    /// As [`Layers::open`], over any files and under any kernel.
    fn open_over(files: Arc<dyn Files>, config: LayersConfig, boot: &str) -> Result<Self> {
        let shelf = Shelf::open(files, config.dir, config.instance, boot.to_owned())
            .map_err(|e| e.with_backend(NAME).with_operation("open"))?;
        Ok(Self { inner: Arc::new(Inner { shelf, slots: Slots::new(NAME) }) })
    }

    /// Runs file work on a blocking thread; it ends there even when this future is dropped.
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
    fn ensure(&self, slot: &mut Slot, spec: &WritebackSpec) -> Result<Arc<Device>> {
        if let Some(device) = slot.device.upgrade() {
            if slot.status.failed() {
                return Err(shelf::failed(&spec.id));
            }
            if device.chain.version() == spec.base.version && device.info().size_bytes == spec.base.size_bytes
            {
                return Ok(device);
            }
            return Err(Error::new(
                ErrorKind::Busy,
                format!("Writeback {} is in use over image version {}", spec.id, device.chain.version()),
            ));
        }
        let device = self.shelf.ensure(&spec.id, &spec.base, &[])?;
        *slot = Slot { device: Arc::downgrade(&device), status: device.layer.status.clone() };
        Ok(device)
    }

    fn remove(&self, slot: &mut Slot, id: &ResourceId, how: Removal) -> Result<()> {
        if let Some(device) = slot.device.upgrade() {
            match how {
                Removal::IfIdle => {
                    return Err(Error::new(ErrorKind::Busy, format!("Writeback {id} is in use")));
                }
                Removal::Force => {
                    device.layer.status.remove();
                    // A flush under way names files by their paths: it must not meet those of a successor.
                    drop(device.flusher.hold());
                }
            }
        }
        self.shelf.remove(id)?;
        *slot = Slot::default();
        Ok(())
    }

    fn health(&self) -> Health {
        let health = self.shelf.health();
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
            kill_safe: true,
            power_safe: true,
            discard: self.inner.shelf.punches(),
        }
    }

    async fn ensure(&self, spec: &WritebackSpec) -> Result<Disk> {
        let mut slot = self.inner.slots.lock(&spec.id).await?;
        let wanted = spec.clone();
        // Disk before lock, in this order: a caller who drops this future must not meet, in a `remove` right after it, the disk
        // that nobody will ever get.
        let (device, _slot) = self
            .blocking("ensure", spec.id.as_str(), move |inner| {
                inner.ensure(&mut slot, &wanted).map(|device| (device, slot))
            })
            .await?;
        Ok(Disk::Blocks(device))
    }

    async fn open_base(&self, base: &BaseImage) -> Result<Disk> {
        self.inner.slots.check_open()?;
        let wanted = base.clone();
        let subject = base.version.to_string();
        let chain =
            self.blocking("open_base", &subject, move |inner| inner.shelf.chain(&wanted, &[])).await?;
        Ok(Disk::Blocks(Arc::new(base_disk::BaseDisk::new(chain, base.size_bytes))))
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let mut slot = self.inner.slots.lock(id).await?;
        let gone = id.clone();
        self.blocking("remove", id.as_str(), move |inner| {
            let removed = inner.remove(&mut slot, &gone, how);
            drop(slot);
            // A disk that somebody still holds is the one that a later `ensure` must find.
            inner.slots.sweep(|s| s.device.strong_count() > 0);
            removed
        })
        .await
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.inner.slots.check_open()?;
        self.blocking("list", "", |inner| inner.shelf.list()).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        self.inner.slots.check_open()?;
        let wanted = id.clone();
        self.blocking("get", id.as_str(), move |inner| inner.shelf.get(&wanted)).await
    }

    async fn health(&self) -> Health {
        self.blocking("health", "", |inner| Ok(inner.health()))
            .await
            .unwrap_or_else(|e| Health::Down(e.to_string()))
    }

    async fn shutdown(&self) {
        let mut flushes = tokio::task::JoinSet::new();
        for (id, slot) in self.inner.slots.close() {
            // Waits for a call for this id that is under way.
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

/// A length or an index that is in memory, or is of a file mapped by something in memory.
const fn to_usize(n: u64) -> usize {
    const { assert!(usize::BITS == 64, "disks are larger than this machine's addresses") };
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, as asserted")]
    let n = n as usize;
    n
}

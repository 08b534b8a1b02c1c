//! [`MemoryWritebacks`]: private writable disks whose written blocks are in memory, over an opened image version.
//!
//! Invariants: a block that was never written reads from the version below, which is never written to; written blocks belong to the world
//! and outlive our process, the disks handed out do not; a disk of a removed writeback, or of an earlier life, fails; a frozen one is not
//! written to.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Weak},
};

use async_trait::async_trait;

use super::{
    blocks::{Blocks, Layered},
    world::{Life, World, step},
};
use crate::{
    block::{BlockDevice, BlockInfo, BlockRun, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, ResourceId},
    ports::{
        Completeness, Frozen, Health, Hold, Native, OpenImage, Removal, WritebackCapabilities,
        WritebackListed, WritebackSpec, WritebackStore,
    },
    testkit::disk::check,
};

/// What [`MemoryWritebacks`] freezes: its locator is the writeback's name, in the same world.
pub(super) const FAMILY: &str = "memory";

/// The state that outlives a [`MemoryWritebacks`]: the written blocks.
pub type WritebackWorld = World<WritebackState>;

/// The writebacks.
#[derive(Debug, Default)]
pub struct WritebackState {
    entries: BTreeMap<ResourceId, Entry>,
}

#[derive(Debug)]
struct Entry {
    version: ImageVersionId,
    size: u64,
    blocks: Arc<Blocks>,
    completeness: Completeness,
    // The disk that was returned, while it is held.
    disk: Weak<Overlay>,
    // Alive while it is frozen.
    frozen: Weak<()>,
}

impl Entry {
    fn is_frozen(&self) -> bool {
        self.frozen.strong_count() > 0
    }
}

impl World<WritebackState> {
    /// The written blocks of this writeback, if it exists.
    pub(super) fn blocks(&self, id: &ResourceId) -> Option<Arc<Blocks>> {
        let mut blocks = None;
        self.touch(|state| blocks = state.entries.get(id).map(|entry| Arc::clone(&entry.blocks)));
        blocks
    }

    /// Removes a writeback that became a version.
    pub(super) fn forget(&self, id: &ResourceId) {
        self.touch(|state| _ = state.entries.remove(id));
    }
}

/// Writebacks in memory.
pub struct MemoryWritebacks {
    life: Life<WritebackState>,
}

impl MemoryWritebacks {
    /// In an empty world.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&WritebackWorld::default())
    }

    /// In this world, as after a crash of our process: what was written is there, disks handed out before fail.
    #[must_use]
    pub fn over(world: &WritebackWorld) -> Self {
        // Disks of an earlier life are invalid, even if they are still held.
        let birth = |state: &mut WritebackState| {
            for entry in state.entries.values_mut() {
                (entry.disk, entry.frozen) = (Weak::new(), Weak::new());
            }
        };
        Self { life: world.enter("memory", birth) }
    }

    /// The state that outlives it.
    #[must_use]
    pub fn world(&self) -> WritebackWorld {
        self.life.world()
    }

    fn busy(&self, operation: &str, message: String) -> Error {
        self.life.error(ErrorKind::Busy, message).with_operation(operation)
    }
}

impl Default for MemoryWritebacks {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl WritebackStore for MemoryWritebacks {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> WritebackCapabilities {
        WritebackCapabilities {
            provides: DiskForm::Blocks,
            base: DiskForm::Blocks,
            freezes: Some(FAMILY.to_owned()),
            kill_safe: true,
            power_safe: false,
            discard: true,
        }
    }

    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        spec.check_base(base)?;
        let Disk::Blocks(below) = &base.disk else {
            let message = format!("{} is based on blocks, not on {:?}", spec.id, base.disk.form());
            return Err(self.life.error(ErrorKind::Unsupported, message).with_operation("ensure"));
        };
        let _turn = self.life.lock(&spec.id).await;
        if let Some(entry) = self.life.state()?.entries.get(&spec.id) {
            if (entry.version, entry.size) != (spec.version, spec.size_bytes) {
                return Err(self.busy("ensure", format!("{} is based on version {}", spec.id, entry.version)));
            }
            if entry.is_frozen() {
                return Err(self.busy("ensure", format!("{} is frozen", spec.id)));
            }
            if entry.completeness == Completeness::Whole
                && let Some(disk) = entry.disk.upgrade()
            {
                return Ok(Disk::Blocks(disk));
            }
        }
        step().await;
        let blocks = {
            let mut state = self.life.state()?;
            let entry = state.entries.entry(spec.id.clone()).or_insert_with(|| Entry {
                version: spec.version,
                size: spec.size_bytes,
                blocks: Arc::default(),
                completeness: Completeness::Partial,
                disk: Weak::new(),
                frozen: Weak::new(),
            });
            Arc::clone(&entry.blocks)
        };
        step().await;
        let disk = Arc::new(Overlay {
            life: self.life.clone(),
            id: spec.id.clone(),
            disk: Layered { blocks, below: Some(Arc::clone(below)), size: spec.size_bytes },
            _base: base.clone(),
        });
        if let Some(entry) = self.life.state()?.entries.get_mut(&spec.id) {
            entry.completeness = Completeness::Whole;
            entry.disk = Arc::downgrade(&disk);
        }
        step().await;
        Ok(Disk::Blocks(disk))
    }

    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        let _turn = self.life.lock(id).await;
        step().await;
        let frozen = {
            let mut state = self.life.state()?;
            let entry = state.entries.get_mut(id);
            let Some(entry) = entry.filter(|entry| entry.completeness == Completeness::Whole) else {
                return Err(Error::not_found("writeback", id).with_backend("memory"));
            };
            if entry.disk.strong_count() > 0 || entry.is_frozen() {
                return Err(self.busy("freeze", format!("The disk of {id} is in use")));
            }
            let token = Arc::new(());
            entry.frozen = Arc::downgrade(&token);
            Frozen {
                writeback: id.clone(),
                base: entry.version,
                size_bytes: entry.size,
                whole: false,
                native: Native { family: FAMILY.to_owned(), locator: id.to_string() },
                hold: Hold::of(token),
            }
        };
        step().await;
        Ok(frozen)
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let _turn = self.life.lock(id).await;
        if let Some(entry) = self.life.state()?.entries.get_mut(id) {
            if entry.is_frozen() {
                return Err(self.busy("remove", format!("{id} is frozen")));
            }
            if how == Removal::IfIdle && entry.disk.strong_count() > 0 {
                return Err(self.busy("remove", format!("The disk of {id} is in use")));
            }
            entry.completeness = Completeness::Partial;
            // Disks that were returned have the old blocks and detect that the entry has others.
            entry.blocks = Arc::default();
            entry.disk = Weak::new();
        }
        step().await;
        self.life.state()?.entries.remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        step().await;
        let state = self.life.state()?;
        let listed = |(id, entry): (&ResourceId, &Entry)| {
            let spec = WritebackSpec { id: id.clone(), version: entry.version, size_bytes: entry.size };
            WritebackListed {
                id: id.clone(),
                digest: (entry.completeness == Completeness::Whole).then(|| spec.digest()),
                completeness: entry.completeness,
                base: Some(entry.version),
                bytes: entry.blocks.bytes(),
            }
        };
        Ok(state.entries.iter().map(listed).collect())
    }

    async fn health(&self) -> Health {
        self.life.health()
    }

    async fn shutdown(&self) {
        self.life.close();
    }
}

/// A disk as `ensure` returns it.
struct Overlay {
    life: Life<WritebackState>,
    id: ResourceId,
    disk: Layered,
    // Open as long as this.
    _base: OpenImage,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Overlay {
    /// The disk, unless our process died or the writeback was removed.
    fn usable(&self) -> io::Result<&Layered> {
        let state = self.life.state().map_err(io::Error::other)?;
        match state.entries.get(&self.id) {
            Some(entry) if Arc::ptr_eq(&entry.blocks, &self.disk.blocks) => Ok(&self.disk),
            _ => Err(io::Error::other(format!("The writeback {} was removed", self.id))),
        }
    }
}

impl BlockDevice for Overlay {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // A range outside the disk is invalid, even after the disk was removed.
        check(&self.info(), offset, buf.len() as u64)?;
        self.usable()?.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check(&self.info(), offset, buf.len() as u64)?;
        self.usable()?.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.usable()?.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check(&self.info(), offset, len)?;
        self.usable()?.discard(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        self.disk.block_status(offset, len, limit)
    }
}

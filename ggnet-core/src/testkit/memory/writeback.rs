//! [`MemoryWritebacks`]: private writable disks whose written blocks are in memory, over the bytes of a real base file.
//!
//! Invariants: a block that was never written reads from the base file, which is never opened for writing; written blocks belong
//! to the world and outlive our process, the disks handed out do not; a disk of a removed writeback, or of an earlier life, fails.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use async_trait::async_trait;

use super::world::{Life, World, step};
use crate::{
    block::{BlockDevice, BlockInfo, BlockRun, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
    ports::{
        BaseImage, Completeness, Health, Removal, WritebackCapabilities, WritebackListed, WritebackSpec,
        WritebackStore,
    },
    testkit::disk::{check, check_write},
};

const BLOCK: usize = 4096;

/// What outlives a [`MemoryWritebacks`]: what was written.
pub type WritebackWorld = World<WritebackState>;

/// The writebacks.
#[derive(Debug, Default)]
pub struct WritebackState {
    entries: BTreeMap<ResourceId, Entry>,
}

// Written blocks by number; none: discarded, zeros.
type Blocks = RwLock<HashMap<u64, Option<Box<[u8]>>>>;

#[derive(Debug)]
struct Entry {
    base: BaseImage,
    blocks: Arc<Blocks>,
    completeness: Completeness,
    // The disk that is handed out, while somebody holds it.
    disk: Weak<Overlay>,
}

/// Writebacks in memory.
pub struct MemoryWritebacks {
    life: Life<WritebackState>,
    blank_bases: bool,
}

impl MemoryWritebacks {
    /// In an empty world. Base files must exist.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&WritebackWorld::default())
    }

    /// In this world, as after a crash of our process: what was written is there, disks handed out before fail.
    #[must_use]
    pub fn over(world: &WritebackWorld) -> Self {
        // Disks of an earlier life are nobody's any more, whoever still holds them.
        let birth = |state: &mut WritebackState| {
            state.entries.values_mut().for_each(|entry| entry.disk = Weak::new());
        };
        Self { life: world.enter("memory", birth), blank_bases: false }
    }

    /// Every base reads as zeros, and no base file is opened: for tests whose image versions have no bytes.
    #[must_use]
    pub fn with_blank_bases(mut self) -> Self {
        self.blank_bases = true;
        self
    }

    /// What outlives it.
    #[must_use]
    pub fn world(&self) -> WritebackWorld {
        self.life.world()
    }

    async fn base_file(&self, base: &BaseImage) -> Result<Option<File>> {
        if self.blank_bases {
            return Ok(None);
        }
        let (path, size) = (base.path.clone(), base.size_bytes);
        let open = move || {
            let doing = format!("Opening the base image {}", path.display());
            let file = File::open(&path).map_err(|e| Error::io(&doing, e))?;
            let have = file.metadata().map_err(|e| Error::io(&doing, e))?.len();
            if have < size {
                let message = format!("{doing}: it has {have} bytes and should have {size}");
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            Ok(Some(file))
        };
        let opened = tokio::task::spawn_blocking(open).await;
        opened.map_err(|e| self.life.error(ErrorKind::Internal, "The opening task died").with_source(e))?
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
            kill_safe: true,
            power_safe: false,
            discard: true,
        }
    }

    async fn ensure(&self, spec: &WritebackSpec) -> Result<Disk> {
        let _turn = self.life.lock(&spec.id).await;
        if let Some(entry) = self.life.state()?.entries.get(&spec.id) {
            if entry.base.version != spec.base.version || entry.base.size_bytes != spec.base.size_bytes {
                let message = format!("{} stands on version {}", spec.id, entry.base.version);
                return Err(self.life.error(ErrorKind::Busy, message).with_operation("ensure"));
            }
            if entry.completeness == Completeness::Whole
                && let Some(disk) = entry.disk.upgrade()
            {
                return Ok(Disk::Blocks(disk));
            }
        }
        let base = self.base_file(&spec.base).await?;
        let blocks = {
            let mut state = self.life.state()?;
            let entry = state.entries.entry(spec.id.clone()).or_insert_with(|| Entry {
                base: spec.base.clone(),
                blocks: Arc::default(),
                completeness: Completeness::Partial,
                disk: Weak::new(),
            });
            Arc::clone(&entry.blocks)
        };
        step().await;
        let disk = Arc::new(Overlay {
            life: self.life.clone(),
            id: spec.id.clone(),
            base,
            size: spec.base.size_bytes,
            blocks,
        });
        if let Some(entry) = self.life.state()?.entries.get_mut(&spec.id) {
            entry.completeness = Completeness::Whole;
            entry.disk = Arc::downgrade(&disk);
        }
        step().await;
        Ok(Disk::Blocks(disk))
    }

    async fn open_base(&self, base: &BaseImage) -> Result<Disk> {
        let (file, size) = (self.base_file(base).await?, base.size_bytes);
        Ok(Disk::Blocks(Arc::new(Base { file, size })))
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let _turn = self.life.lock(id).await;
        if let Some(entry) = self.life.state()?.entries.get_mut(id) {
            if how == Removal::IfIdle && entry.disk.strong_count() > 0 {
                let message = format!("The disk of {id} is in use");
                return Err(self.life.error(ErrorKind::Busy, message).with_operation("remove"));
            }
            entry.completeness = Completeness::Partial;
            // Disks handed out hold the old blocks and see that they are no longer the entry's.
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
            let blocks = entry.blocks.read().unwrap_or_else(PoisonError::into_inner);
            let kept = blocks.values().filter(|block| block.is_some()).count();
            let spec = WritebackSpec { id: id.clone(), base: entry.base.clone() };
            WritebackListed {
                id: id.clone(),
                digest: (entry.completeness == Completeness::Whole).then(|| spec.digest()),
                completeness: entry.completeness,
                base: Some(entry.base.version),
                bytes: (kept * BLOCK) as u64,
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

/// A base alone, read-only.
struct Base {
    // None: zeros.
    file: Option<File>,
    size: u64,
}

impl BlockDevice for Base {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: true,
            discard: false,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(&self.info(), offset, buf.len() as u64)?;
        match &self.file {
            Some(file) => file.read_exact_at(buf, offset),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_write(&self.info(), offset, buf.len() as u64)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_write(&self.info(), offset, len)
    }
}

/// A disk as it is handed out.
struct Overlay {
    life: Life<WritebackState>,
    id: ResourceId,
    // None: zeros.
    base: Option<File>,
    size: u64,
    blocks: Arc<Blocks>,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Refuses when our process died or the writeback was removed.
    fn usable(&self) -> io::Result<()> {
        let state = self.life.state().map_err(io::Error::other)?;
        match state.entries.get(&self.id) {
            Some(entry) if Arc::ptr_eq(&entry.blocks, &self.blocks) => Ok(()),
            _ => Err(io::Error::other(format!("The writeback {} was removed", self.id))),
        }
    }

    /// The whole block `number` as the base has it, zeros after the base's end.
    fn base_block(&self, number: u64) -> io::Result<Box<[u8]>> {
        let mut block = vec![0; BLOCK].into_boxed_slice();
        if let Some(file) = &self.base {
            let at = number * BLOCK as u64;
            let len = usize::try_from(self.size - at).unwrap_or(BLOCK).min(BLOCK);
            file.read_exact_at(&mut block[..len], at)?;
        }
        Ok(block)
    }
}

/// The parts of `[offset, offset + len)` in each block: block number, place within the block, place within the request.
fn pieces(
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK as u64).unwrap_or(0);
        let n = (BLOCK - within).min(len - done);
        let piece = (at / BLOCK as u64, within..within + n, done..done + n);
        done += n;
        Some(piece)
    })
}

impl BlockDevice for Overlay {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            discard: true,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(&self.info(), offset, buf.len() as u64)?;
        self.usable()?;
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        for (number, within, request) in pieces(offset, buf.len()) {
            match blocks.get(&number) {
                Some(Some(block)) => buf[request].copy_from_slice(&block[within]),
                Some(None) => buf[request].fill(0),
                None => buf[request].copy_from_slice(&self.base_block(number)?[within]),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_write(&self.info(), offset, buf.len() as u64)?;
        self.usable()?;
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        for (number, within, request) in pieces(offset, buf.len()) {
            let mut block = match blocks.remove(&number) {
                Some(Some(block)) => block,
                Some(None) => vec![0; BLOCK].into_boxed_slice(),
                None => self.base_block(number)?,
            };
            block[within].copy_from_slice(&buf[request]);
            blocks.insert(number, Some(block));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.usable()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_write(&self.info(), offset, len)?;
        self.usable()?;
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let end = offset + len;
        for number in offset / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            let first = number * BLOCK as u64;
            let (from, to) = (offset.max(first) - first, end.min(first + BLOCK as u64) - first);
            // The disk's last block may be short; to its end is all of it.
            let whole = from == 0 && (to == BLOCK as u64 || first + to == self.size);
            let zeroed = if whole {
                None
            } else {
                let mut block = match blocks.remove(&number) {
                    Some(Some(block)) => block,
                    Some(None) => vec![0; BLOCK].into_boxed_slice(),
                    None => self.base_block(number)?,
                };
                let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(BLOCK);
                block[range].fill(0);
                Some(block)
            };
            blocks.insert(number, zeroed);
        }
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        check(&self.info(), offset, len)?;
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let mut runs: Vec<BlockRun> = Vec::new();
        for (number, within, _) in pieces(offset, usize::try_from(len).unwrap_or(usize::MAX)) {
            let mapped = !matches!(blocks.get(&number), Some(None));
            let len = within.len() as u64;
            let full = runs.len() == limit;
            match runs.last_mut() {
                Some(run) if run.mapped == mapped => run.len += len,
                _ if full => break,
                _ => runs.push(BlockRun { len, mapped }),
            }
        }
        Ok(runs)
    }
}

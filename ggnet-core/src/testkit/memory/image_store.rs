//! [`MemoryImages`]: the bytes of image versions in memory, without a path, so that code that uses it cannot assume a file.
//!
//! A version is blocks over the version below it, or over nothing. Converters write to a device ([`SinkForm::Blocks`]); a frozen disk of a
//! [`MemoryWritebacks`](super::MemoryWritebacks) becomes a version without a copy.
//!
//! Invariants: a sealed version is never written to, also not through the device of its draft; versions and drafts belong to the world and
//! outlive our process, the disks handed out do not.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Weak},
};

use async_trait::async_trait;

use super::{
    blocks::{Blocks, Layered},
    world::{Life, World, step},
    writeback::{FAMILY, WritebackWorld},
};
use crate::{
    block::{BlockDevice, BlockInfo, BlockRun, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, ResourceId},
    ports::{
        Completeness, Frozen, Health, Hold, ImageCapabilities, ImageListed, ImageSpec, ImageStore, OpenImage,
        Removal, Sink, SinkForm,
    },
};

/// What outlives a [`MemoryImages`].
pub type ImageWorld = World<ImageState>;

/// The versions and drafts.
#[derive(Debug, Default)]
pub struct ImageState {
    versions: BTreeMap<ImageVersionId, Entry>,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    blocks: Arc<Blocks>,
    completeness: Completeness,
    parent: Option<ImageVersionId>,
    // The writeback that it was made from.
    adopted: Option<ResourceId>,
    // Alive while it is open.
    open: Weak<()>,
}

impl Entry {
    fn new(size: u64) -> Self {
        Self {
            size,
            blocks: Arc::default(),
            completeness: Completeness::Partial,
            parent: None,
            adopted: None,
            open: Weak::new(),
        }
    }

    fn listed(&self, id: ImageVersionId) -> ImageListed {
        let mut listed = ImageListed::whole(id, self.size);
        listed.completeness = self.completeness;
        listed.parent = self.parent;
        listed.bytes = self.blocks.bytes();
        listed
    }
}

impl ImageState {
    /// A version's bytes with all that is below.
    fn layered(&self, id: ImageVersionId) -> Option<Layered> {
        let entry = self.versions.get(&id)?;
        let below = match entry.parent {
            Some(parent) => Some(Arc::new(self.layered(parent)?) as Arc<dyn BlockDevice>),
            None => None,
        };
        Some(Layered { blocks: Arc::clone(&entry.blocks), below, size: entry.size })
    }
}

impl World<ImageState> {
    /// Adds a whole version, as an import would: these bytes, and zeros up to `size`.
    ///
    /// # Errors
    /// `InvalidInput` if the bytes are not whole sectors of the disk.
    pub fn plant(&self, id: ImageVersionId, size: u64, bytes: &[u8]) -> io::Result<()> {
        let mut entry = Entry::new(size);
        entry.completeness = Completeness::Whole;
        let disk = Layered { blocks: Arc::clone(&entry.blocks), below: None, size };
        if !bytes.is_empty() {
            disk.write_at(bytes, 0)?;
        }
        self.touch(|state| _ = state.versions.insert(id, entry));
        Ok(())
    }
}

/// Image versions in memory.
pub struct MemoryImages {
    life: Life<ImageState>,
    /// The writebacks whose frozen disks it takes over.
    writebacks: Option<WritebackWorld>,
}

impl MemoryImages {
    /// In an empty world.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&ImageWorld::default())
    }

    /// In this world, as after a crash of our process: versions and drafts are there, disks handed out before fail.
    #[must_use]
    pub fn over(world: &ImageWorld) -> Self {
        let birth = |state: &mut ImageState| {
            state.versions.values_mut().for_each(|entry| entry.open = Weak::new());
        };
        Self { life: world.enter("memory", birth), writebacks: None }
    }

    /// The same, and it takes over the frozen disks of this world.
    #[must_use]
    pub fn adopting(mut self, writebacks: &WritebackWorld) -> Self {
        self.writebacks = Some(writebacks.clone());
        self
    }

    /// The state that outlives it.
    #[must_use]
    pub fn world(&self) -> ImageWorld {
        self.life.world()
    }

    fn error(&self, kind: ErrorKind, operation: &str, message: String) -> Error {
        self.life.error(kind, message).with_operation(operation)
    }

    /// Calls that change one version go one after the other.
    async fn turn(&self, id: ImageVersionId) -> Result<tokio::sync::OwnedMutexGuard<()>> {
        let key: ResourceId = id.simple().parse()?;
        Ok(self.life.lock(&key).await)
    }

    fn adopt_now(&self, spec: &ImageSpec, from: &Frozen, writebacks: &WritebackWorld) -> Result<ImageListed> {
        let blocks = writebacks.blocks(&from.writeback);
        let listed = {
            let mut state = self.life.state()?;
            if let Some(entry) = state.versions.get(&spec.id) {
                let again = entry.adopted.as_ref() == Some(&from.writeback) && blocks.is_none();
                return if again && entry.size == spec.size_bytes {
                    Ok(entry.listed(spec.id))
                } else {
                    let message = format!("Version {} already exists", spec.id);
                    Err(self.error(ErrorKind::Conflict, "adopt", message))
                };
            }
            if from.size_bytes != spec.size_bytes {
                let message =
                    format!("{} has {} bytes, not {}", from.writeback, from.size_bytes, spec.size_bytes);
                return Err(self.error(ErrorKind::Corrupt, "adopt", message));
            }
            let whole = |entry: &&Entry| entry.completeness == Completeness::Whole;
            if !from.whole && state.versions.get(&from.base).filter(whole).is_none() {
                return Err(Error::not_found("image version", from.base).with_backend("memory"));
            }
            let Some(blocks) = blocks else {
                return Err(Error::not_found("writeback", &from.writeback).with_backend("memory"));
            };
            let entry = Entry {
                blocks,
                completeness: Completeness::Whole,
                parent: (!from.whole).then_some(from.base),
                adopted: Some(from.writeback.clone()),
                ..Entry::new(spec.size_bytes)
            };
            let listed = entry.listed(spec.id);
            state.versions.insert(spec.id, entry);
            listed
        };
        // A call cannot be dropped in between. Not under the lock of the versions, because a disk over one of them may need it.
        writebacks.forget(&from.writeback);
        Ok(listed)
    }
}

impl Default for MemoryImages {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl ImageStore for MemoryImages {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> ImageCapabilities {
        let mut capabilities = ImageCapabilities::new(SinkForm::Blocks);
        capabilities.adopts.extend(self.writebacks.is_some().then(|| FAMILY.to_owned()));
        capabilities
    }

    async fn draft(&self, spec: &ImageSpec) -> Result<Sink> {
        if spec.size_bytes == 0 || !spec.size_bytes.is_multiple_of(512) {
            let message =
                format!("A disk of {} bytes is not a whole number of 512-byte sectors", spec.size_bytes);
            return Err(Error::invalid("size_bytes", message));
        }
        let _turn = self.turn(spec.id).await?;
        step().await;
        let blocks = {
            let mut state = self.life.state()?;
            let entry = state.versions.entry(spec.id).or_insert_with(|| Entry::new(spec.size_bytes));
            if entry.completeness == Completeness::Whole {
                let message = format!("Version {} is sealed", spec.id);
                return Err(self.error(ErrorKind::Conflict, "draft", message));
            }
            if entry.size != spec.size_bytes {
                *entry = Entry::new(spec.size_bytes);
            }
            Arc::clone(&entry.blocks)
        };
        step().await;
        let disk = Layered { blocks, below: None, size: spec.size_bytes };
        Ok(Sink::Blocks(Arc::new(Draft { life: self.life.clone(), id: spec.id, disk })))
    }

    async fn seal(&self, spec: &ImageSpec) -> Result<ImageListed> {
        let _turn = self.turn(spec.id).await?;
        step().await;
        let listed = {
            let mut state = self.life.state()?;
            let Some(entry) = state.versions.get_mut(&spec.id) else {
                return Err(Error::not_found("image version", spec.id).with_backend("memory"));
            };
            if entry.size != spec.size_bytes {
                let message =
                    format!("Version {} has {} bytes, not {}", spec.id, entry.size, spec.size_bytes);
                return Err(self.error(ErrorKind::Corrupt, "seal", message));
            }
            entry.completeness = Completeness::Whole;
            entry.listed(spec.id)
        };
        step().await;
        Ok(listed)
    }

    async fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        let Some(writebacks) = self.writebacks.as_ref().filter(|_| from.native.family == FAMILY) else {
            let message = format!("The image store in memory cannot take over {}", from.native.family);
            return Err(self.error(ErrorKind::Unsupported, "adopt", message));
        };
        let _turn = self.turn(spec.id).await?;
        step().await;
        let listed = self.adopt_now(spec, from, writebacks)?;
        step().await;
        Ok(listed)
    }

    async fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage> {
        if form != DiskForm::Blocks {
            let message = format!("Versions are opened as blocks, not as {form:?}");
            return Err(self.error(ErrorKind::Unsupported, "open", message));
        }
        step().await;
        let mut state = self.life.state()?;
        let gone = || Error::not_found("image version", id).with_backend("memory");
        let disk = state.layered(id).ok_or_else(gone)?;
        let entry = state.versions.get_mut(&id);
        let entry = entry.filter(|entry| entry.completeness == Completeness::Whole).ok_or_else(gone)?;
        let token = entry.open.upgrade().unwrap_or_default();
        entry.open = Arc::downgrade(&token);
        let size_bytes = entry.size;
        let device = Opened { life: self.life.clone(), disk, _open: Arc::clone(&token) };
        Ok(OpenImage { id, size_bytes, disk: Disk::Blocks(Arc::new(device)), hold: Hold::of(token) })
    }

    async fn list(&self) -> Result<Vec<ImageListed>> {
        step().await;
        let state = self.life.state()?;
        Ok(state.versions.iter().map(|(id, entry)| entry.listed(*id)).collect())
    }

    async fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()> {
        let _turn = self.turn(id).await?;
        step().await;
        {
            let mut state = self.life.state()?;
            if let Some((above, _)) = state.versions.iter().find(|(_, entry)| entry.parent == Some(id)) {
                let message = format!("Version {above} is based on version {id}");
                return Err(self.error(ErrorKind::Busy, "remove", message));
            }
            if let Some(entry) = state.versions.get_mut(&id) {
                if how == Removal::IfIdle && entry.open.strong_count() > 0 {
                    return Err(self.error(ErrorKind::Busy, "remove", format!("Version {id} is open")));
                }
                *entry = Entry::new(entry.size);
            }
        }
        step().await;
        self.life.state()?.versions.remove(&id);
        Ok(())
    }

    async fn health(&self) -> Health {
        self.life.health()
    }

    async fn shutdown(&self) {
        self.life.close();
    }
}

/// The device of a draft.
struct Draft {
    life: Life<ImageState>,
    id: ImageVersionId,
    disk: Layered,
}

impl Draft {
    /// The disk, while it is the draft's.
    fn usable(&self) -> io::Result<&Layered> {
        let state = self.life.state().map_err(io::Error::other)?;
        match state.versions.get(&self.id) {
            Some(entry) if !Arc::ptr_eq(&entry.blocks, &self.disk.blocks) => {}
            Some(entry) if entry.completeness == Completeness::Partial => return Ok(&self.disk),
            Some(_) => return Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            None => {}
        }
        Err(io::Error::other(format!("The draft of version {} was removed", self.id)))
    }
}

impl BlockDevice for Draft {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.usable()?.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.usable()?.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.usable()?.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.usable()?.discard(offset, len)
    }
}

/// A version as it is opened: read-only.
struct Opened {
    life: Life<ImageState>,
    disk: Layered,
    _open: Arc<()>,
}

impl BlockDevice for Opened {
    fn info(&self) -> BlockInfo {
        BlockInfo { read_only: true, discard: false, ..self.disk.info() }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // Fails unless its process is alive.
        drop(self.life.state().map_err(io::Error::other)?);
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        self.disk.block_status(offset, len, limit)
    }
}

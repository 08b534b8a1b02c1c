//! [`WritebackStore`]: a private writable disk on top of an image version.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Completeness, Health, Removal, SpecDigest};
use crate::{
    block::{Disk, DiskForm},
    error::Result,
    nouns::{ImageVersionId, ResourceId},
};

/// The immutable disk below a writeback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseImage {
    /// The version.
    pub version: ImageVersionId,
    /// Its raw file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// What a writeback should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritebackSpec {
    /// Its name among our objects.
    pub id: ResourceId,
    /// What is below it.
    pub base: BaseImage,
}

impl WritebackSpec {
    /// The digest of the spec.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        let version = self.base.version.simple();
        SpecDigest::of([self.id.as_str().as_bytes(), version.as_bytes(), &self.base.size_bytes.to_be_bytes()])
    }
}

/// What a writeback store can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritebackCapabilities {
    /// The form of disk that it hands out.
    pub provides: DiskForm,
    /// Whether an acknowledged write survives the death of our process.
    pub kill_safe: bool,
    /// Whether a flushed write survives a power cut.
    pub power_safe: bool,
    /// Whether discarded blocks are given back to the host.
    pub discard: bool,
}

/// One writeback of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritebackListed {
    /// Its name.
    pub id: ResourceId,
    /// The digest of the spec it was made from.
    pub digest: Option<SpecDigest>,
    /// Whether it is all there.
    pub completeness: Completeness,
    /// The version below it: while any writeback stands on a version, that version cannot be deleted. None only when partial.
    pub base: Option<ImageVersionId>,
    /// Bytes that it takes on the host.
    pub bytes: u64,
}

/// Private writable disks. See [`crate::ports`] for what holds for `ensure`, `remove` and `list`.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait WritebackStore: Send + Sync + 'static {
    /// The store's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> WritebackCapabilities;

    /// Makes the writeback exist, empty when new, and hands out its disk; a second call hands out the same disk with what was
    /// written to it. Over another base than it was made for it is `Busy`: what is in it means nothing there. Errors: `NotFound`
    /// when the base file is missing, `Full`, `Corrupt` when what is on disk cannot be read back.
    async fn ensure(&self, spec: &WritebackSpec) -> Result<Disk>;

    /// A read-only disk of the base alone, sharing its open file and page cache with the writebacks over it.
    async fn open_base(&self, base: &BaseImage) -> Result<Disk>;

    /// Deletes the writeback and what was written. Under `IfIdle` a disk handed out and still held is `Busy`; under `Force` later
    /// calls on it fail.
    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()>;

    /// Our writebacks.
    async fn list(&self) -> Result<Vec<WritebackListed>>;

    /// One of our writebacks, as `list` shows it; none: there is nothing of it.
    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == *id))
    }

    /// How it is; degraded when its file system is nearly full.
    async fn health(&self) -> Health;

    /// Flushes every open writeback and lets go of it; nothing is deleted. After it only `health` may be called.
    async fn shutdown(&self);
}

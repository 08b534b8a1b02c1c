//! [`WritebackStore`]: a private writable disk on top of an image version.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Completeness, Frozen, Health, OpenImage, Removal, SpecDigest};
use crate::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, ResourceId},
};

/// What a writeback should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritebackSpec {
    /// Its name among our objects.
    pub id: ResourceId,
    /// The version below it.
    pub version: ImageVersionId,
    /// The disk's size in bytes: that of the version.
    pub size_bytes: u64,
}

impl WritebackSpec {
    /// The digest of the spec.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        let version = self.version.simple();
        SpecDigest::of([self.id.as_str().as_bytes(), version.as_bytes(), &self.size_bytes.to_be_bytes()])
    }

    /// Checks that `base` is the version of this spec. A store's `ensure` calls it first.
    ///
    /// # Errors
    /// `Invalid` (field `base`).
    pub fn check_base(&self, base: &OpenImage) -> Result<()> {
        if (base.id, base.size_bytes) == (self.version, self.size_bytes) {
            return Ok(());
        }
        Err(Error::invalid(
            "base",
            format!(
                "Writeback {} is based on version {} of {} bytes, but version {} of {} bytes was opened for it",
                self.id, self.version, self.size_bytes, base.id, base.size_bytes
            ),
        ))
    }
}

/// What a writeback store can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritebackCapabilities {
    /// The form of disk that it provides.
    pub provides: DiskForm,
    /// The form in which it needs the version below opened.
    pub base: DiskForm,
    /// The family of what [`WritebackStore::freeze`] hands over ([`Native::family`](super::Native::family)); `None` if it cannot freeze.
    pub freezes: Option<String>,
    /// Whether an acknowledged write survives the death of our process.
    pub kill_safe: bool,
    /// Whether a flushed write survives a power cut.
    pub power_safe: bool,
    /// Whether discarded blocks are given back to the host.
    pub discard: bool,
}

/// One of our writebacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritebackListed {
    /// Its name.
    pub id: ResourceId,
    /// The digest of the spec it was made from.
    pub digest: Option<SpecDigest>,
    /// Whether it is complete.
    pub completeness: Completeness,
    /// The version that it is based on: a version cannot be deleted while a writeback is based on it. `None` only when partial.
    pub base: Option<ImageVersionId>,
    /// Bytes that it takes on the host.
    pub bytes: u64,
}

/// Private writable disks. See [`crate::ports`] for the contract of `ensure`, `remove` and `list`.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait WritebackStore: Send + Sync + 'static {
    /// The store's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> WritebackCapabilities;

    /// Makes the writeback exist over `base`, empty when new, and returns its disk; a second call returns the same disk with everything
    /// that was written to it. It is `Busy` over a version other than its own, where its contents would be meaningless, and while it is
    /// frozen. The disk keeps `base` open. Errors: `Full`; `Corrupt` when what is on disk cannot be read back; `NotFound` when the bytes of
    /// the base have been removed meanwhile.
    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk>;

    /// Blocks writes to a writeback for as long as the result lives, so that an image store can adopt it: see [`Frozen`]. When it returns,
    /// everything written before survives a power cut. `NotFound`; `Busy` while a disk that was returned is still held, or when it is
    /// already frozen; `Unsupported` for a store that does not freeze.
    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("The writeback store {} cannot hand over {id}", self.name()),
        )
        .with_hint("Another writeback store can: see `ggnet-server backends`"))
    }

    /// Deletes the writeback with everything written to it. `Busy` while it is frozen, and under `IfIdle` while a disk that was returned is
    /// still held; under `Force`, later calls on such a disk fail.
    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()>;

    /// Our writebacks.
    async fn list(&self) -> Result<Vec<WritebackListed>>;

    /// One of our writebacks, as `list` shows it; `None` if nothing of it exists.
    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == *id))
    }

    /// The store's health; degraded when its file system is nearly full.
    async fn health(&self) -> Health;

    /// Flushes and releases every open writeback; nothing is deleted. After it only `health` may be called.
    async fn shutdown(&self);
}

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

    /// That `base` is the version that this spec is about: a store begins its `ensure` with it.
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
    /// The form of disk that it hands out.
    pub provides: DiskForm,
    /// The form in which it wants the version below opened.
    pub base: DiskForm,
    /// The family of what [`WritebackStore::freeze`] hands over ([`Native::family`](super::Native::family)); none: it cannot.
    pub freezes: Option<String>,
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

    /// Makes the writeback exist over `base`, empty when new, and hands out its disk; a second call hands out the same disk with what was
    /// written to it. Over another version than it was made for it is `Busy`: what is in it means nothing there. So it is while it is frozen.
    /// The disk keeps `base` open. Errors: `Full`; `Corrupt` when what is on disk cannot be read back; `NotFound` when the bytes of the base
    /// went meanwhile.
    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk>;

    /// Ends the writing to a writeback for as long as the answer lives, so that an image store can adopt it: see [`Frozen`]. Everything
    /// written before survives a power cut by then. `NotFound`; `Busy` while a disk handed out is still held, or it is frozen already;
    /// `Unsupported` for a store that does not freeze.
    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("The writeback store {} cannot hand over {id}", self.name()),
        )
        .with_hint("Another writeback store can: see `ggnet-server backends`"))
    }

    /// Deletes the writeback and what was written. A frozen one is `Busy`. Under `IfIdle` a disk handed out and still held is, too; under `Force` later
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

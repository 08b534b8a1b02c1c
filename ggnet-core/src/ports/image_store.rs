//! [`ImageStore`]: the bytes of image versions.
//!
//! ```text
//!                 draft                    seal
//!   (nothing) ───────────▶ Partial ───────────────▶ Whole ──remove──▶ (nothing)
//!       └───────────────────── adopt ─────────────────▲
//! ```
//! A version is written once, through the [`Sink`] of its draft, and never after it is sealed. Callers identify a version by its id alone:
//! the location of its bytes is private to the store.
//!
//! There are two ways to make a version: a converter writes to the sink of a draft, which is then sealed; or a frozen writeback
//! ([`Frozen`]) is adopted as it is, without a copy. The caller records an adoption *before* it starts: after a crash the frozen disk is in
//! one place or the other, complete in either case, and the record says that it is wanted.

use std::{any::Any, fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Completeness, Health, Removal};
use crate::{
    block::{BlockDevice, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, ResourceId},
};

/// Where a converter writes a version's raw bytes. Ranges that were not written read as zeros.
#[derive(Clone)]
#[non_exhaustive]
pub enum Sink {
    /// A plain raw file. The writer creates or truncates it, and leaves it as long as the disk.
    File(PathBuf),
    /// A block device of our own process, as large as the draft's spec says.
    Blocks(Arc<dyn BlockDevice>),
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Blocks(device) => f.debug_tuple("Blocks").field(&device.info()).finish(),
        }
    }
}

/// The forms of [`Sink`], used to check at wiring time that a converter and an image store work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkForm {
    /// [`Sink::File`].
    File,
    /// [`Sink::Blocks`].
    Blocks,
}

impl Sink {
    /// Its form.
    #[must_use]
    pub const fn form(&self) -> SinkForm {
        match self {
            Self::File(_) => SinkForm::File,
            Self::Blocks(_) => SinkForm::Blocks,
        }
    }
}

/// What a version should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageSpec {
    /// The version.
    pub id: ImageVersionId,
    /// The disk's size in bytes: whole sectors of 512 bytes, at least one.
    pub size_bytes: u64,
}

impl ImageSpec {
    /// A version of this many bytes.
    #[must_use]
    pub const fn new(id: ImageVersionId, size_bytes: u64) -> Self {
        Self { id, size_bytes }
    }
}

/// What an image store can do; constant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageCapabilities {
    /// The forms in which it opens a version; [`DiskForm::Blocks`] is always one of them.
    pub opens: Vec<DiskForm>,
    /// The form of sink that converters write to.
    pub sink: SinkForm,
    /// The families of frozen writebacks that it adopts ([`Native::family`]); empty if it adopts none.
    pub adopts: Vec<String>,
}

impl ImageCapabilities {
    /// Opens versions as blocks only, and adopts nothing.
    #[must_use]
    pub fn new(sink: SinkForm) -> Self {
        Self { opens: vec![DiskForm::Blocks], sink, adopts: Vec::new() }
    }
}

/// One of our versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageListed {
    /// The version.
    pub id: ImageVersionId,
    /// Whole: sealed or adopted. Partial: a draft, or the remains of an interrupted call.
    pub completeness: Completeness,
    /// The disk's size in bytes; 0 when it is partial and not known.
    pub size_bytes: u64,
    /// The version that it is based on, if any: that version cannot be removed before this one.
    pub parent: Option<ImageVersionId>,
    /// Bytes that it takes itself, without the versions that it is based on.
    pub bytes: u64,
}

impl ImageListed {
    /// A whole version of this many bytes that is based on no other.
    #[must_use]
    pub const fn whole(id: ImageVersionId, size_bytes: u64) -> Self {
        Self { id, completeness: Completeness::Whole, size_bytes, parent: None, bytes: 0 }
    }

    /// The remains of an interrupted call, or a draft.
    #[must_use]
    pub const fn partial(id: ImageVersionId) -> Self {
        Self { id, completeness: Completeness::Partial, size_bytes: 0, parent: None, bytes: 0 }
    }

    /// The same, based on another version.
    #[must_use]
    pub const fn over(mut self, parent: ImageVersionId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The same, taking this many bytes.
    #[must_use]
    pub const fn taking(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }
}

/// An object that is private to a family of backends: a frozen disk that an image store of the same family can take over without a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Native {
    /// The kind of object that the locator names.
    pub family: String,
    /// Where it is, in the notation of that family.
    pub locator: String,
}

/// Keeps a resource alive while it is used. Dropping it releases the resource.
#[derive(Clone)]
pub struct Hold(
    #[expect(dead_code, reason = "it is held, not looked at")] Option<Arc<dyn Any + Send + Sync>>,
);

impl Hold {
    /// Keeps `what` alive.
    #[must_use]
    pub fn of(what: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(what)))
    }

    /// Keeps nothing.
    #[must_use]
    pub const fn nothing() -> Self {
        Self(None)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// An open version: read-only, and guaranteed to exist while this value, a clone of it or a disk over it lives.
#[derive(Clone, Debug)]
pub struct OpenImage {
    /// The version.
    pub id: ImageVersionId,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Its bytes, never written to.
    pub disk: Disk,
    /// What keeps it open. A disk over it must keep this for as long as the disk lives.
    pub hold: Hold,
}

/// A writeback that is no longer written to: everything that was written to it survives a power cut.
///
/// While this value lives, nothing can write to the writeback: its store's `ensure` is `Busy`. Dropping it ends the freeze, and nothing has
/// changed.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The writeback.
    pub writeback: ResourceId,
    /// The version that it is based on.
    pub base: ImageVersionId,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Whether it contains the whole disk, and needs no version below it.
    pub whole: bool,
    /// The object that an image store of this family takes over.
    pub native: Native,
    /// What keeps it frozen.
    pub hold: Hold,
}

/// The bytes of image versions. See the [module](self) for the life of a version, and [`crate::ports`] for the contract of every call.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait ImageStore: Send + Sync + 'static {
    /// The store's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> ImageCapabilities;

    /// Starts a version and returns where its bytes go. It is listed as partial until it is sealed; a second call returns the same sink.
    /// `Conflict` for a version that is sealed; `Full`.
    async fn draft(&self, spec: &ImageSpec) -> Result<Sink>;

    /// Turns a written draft into a version, permanently: it is synced, so that a power cut loses nothing of it, and never written to
    /// again. Sealing twice equals once. `NotFound` without a draft; `Corrupt` when what was written is not as large as the spec says, and
    /// it stays partial.
    async fn seal(&self, spec: &ImageSpec) -> Result<ImageListed>;

    /// Turns a frozen writeback into a version without a copy; it is then no longer a writeback. After an interruption it is still that
    /// writeback, or it is this version, complete in either case. Work that continues after its future was dropped keeps a clone of `from`
    /// until it ends: a caller that can freeze the writeback again knows that no adoption is in progress. Adopting twice equals once.
    /// `Unsupported` for a family outside [`ImageCapabilities::adopts`], or if it is in a place from which it cannot be taken over (another
    /// file system); `Conflict` for a version that has other bytes already; `NotFound` when the version that it is based on is not in this
    /// store.
    async fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        let _ = spec;
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("The image store {} cannot take over {}", self.name(), from.native.family),
        ))
    }

    /// Opens a whole version for reading, in one of the forms of [`ImageCapabilities::opens`]; else `Unsupported`. `NotFound` when there is
    /// no such version or its bytes are gone; `Corrupt` when their size has changed.
    async fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage>;

    /// What exists of a version; `None` if nothing does.
    async fn get(&self, id: ImageVersionId) -> Result<Option<ImageListed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == id))
    }

    /// Our versions. A version whose bytes were removed from outside is not listed.
    async fn list(&self) -> Result<Vec<ImageListed>>;

    /// Removes a version or a draft, or whatever exists of it. `Busy` while another version is based on it; under `IfIdle` also while it is
    /// open.
    async fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()>;

    /// The store's health; degraded when its file system is nearly full.
    async fn health(&self) -> Health;

    /// Releases everything that is open. After it only `health` may be called.
    async fn shutdown(&self);
}

//! [`ImageStore`]: the bytes of image versions.
//!
//! ```text
//!                 draft                    seal
//!   (nothing) ───────────▶ Partial ───────────────▶ Whole ──remove──▶ (nothing)
//!       └───────────────────── adopt ─────────────────▲
//! ```
//! A version is written once, through the [`Sink`] of its draft, and never after it is sealed. Callers know a version by its id alone: where
//! its bytes lie is the store's own.
//!
//! Two ways to make one: a converter writes to the sink of a draft, which is then sealed; or a frozen writeback ([`Frozen`]) is adopted as it
//! is, without a copy. What is about to be adopted is recorded by the caller *before* it is: after a crash the frozen disk is in one place or
//! the other, whole in both, and the record says that it is wanted.

use std::{any::Any, fmt, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Completeness, Health, Removal};
use crate::{
    block::{BlockDevice, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, ResourceId},
};

/// Where a converter writes a version's raw bytes. What was not written reads as zeros.
#[derive(Clone)]
#[non_exhaustive]
pub enum Sink {
    /// A plain raw file: made or emptied by whoever writes it, and left as long as the disk.
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

/// The forms of [`Sink`], for the check at wiring time that a converter and an image store fit.
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
    /// A version of so many bytes.
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
    /// Where converters write to.
    pub sink: SinkForm,
    /// The families of frozen writebacks that it adopts ([`Native::family`]); empty: none.
    pub adopts: Vec<String>,
}

impl ImageCapabilities {
    /// Opens versions as blocks alone, and adopts nothing.
    #[must_use]
    pub fn new(sink: SinkForm) -> Self {
        Self { opens: vec![DiskForm::Blocks], sink, adopts: Vec::new() }
    }
}

/// One version of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageListed {
    /// The version.
    pub id: ImageVersionId,
    /// Whole: sealed or adopted. Partial: a draft, or what a call that was cut short left.
    pub completeness: Completeness,
    /// The disk's size in bytes; 0 when it is partial and not known.
    pub size_bytes: u64,
    /// The version below it, where it stands on one: that one cannot be removed before it.
    pub parent: Option<ImageVersionId>,
    /// Bytes that it takes itself, without what is below it.
    pub bytes: u64,
}

impl ImageListed {
    /// A whole version of so many bytes that stands on nothing.
    #[must_use]
    pub const fn whole(id: ImageVersionId, size_bytes: u64) -> Self {
        Self { id, completeness: Completeness::Whole, size_bytes, parent: None, bytes: 0 }
    }

    /// What is left of a call that was cut short, or a draft.
    #[must_use]
    pub const fn partial(id: ImageVersionId) -> Self {
        Self { id, completeness: Completeness::Partial, size_bytes: 0, parent: None, bytes: 0 }
    }

    /// Standing on another version.
    #[must_use]
    pub const fn over(mut self, parent: ImageVersionId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Taking so many bytes.
    #[must_use]
    pub const fn taking(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }
}

/// Something of a backend's own, for those backends that know its family: a frozen disk that its image store can take over without a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Native {
    /// Which kind of thing the locator names.
    pub family: String,
    /// Where it is, in that family's own words.
    pub locator: String,
}

/// What must live as long as something is used. Dropping it lets go.
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

/// A version that is open: read-only, and there for as long as this, a clone of it or a disk over it lives.
#[derive(Clone, Debug)]
pub struct OpenImage {
    /// The version.
    pub id: ImageVersionId,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Its bytes, never written to.
    pub disk: Disk,
    /// What keeps it open. Whoever puts a disk over it keeps it as long as that disk.
    pub hold: Hold,
}

/// A writeback whose writing has ended: everything that was written to it survives a power cut.
///
/// While this lives nobody can write to it: its store's `ensure` is `Busy`. Dropping it ends the freeze, and nothing has changed.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The writeback.
    pub writeback: ResourceId,
    /// The version that it stands on.
    pub base: ImageVersionId,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// Whether it has all of the disk, and needs nothing below it.
    pub whole: bool,
    /// What an image store of this family takes over.
    pub native: Native,
    /// What keeps it frozen.
    pub hold: Hold,
}

/// The bytes of image versions. See the module, and [`crate::ports`] for what holds for every call.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait ImageStore: Send + Sync + 'static {
    /// The store's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> ImageCapabilities;

    /// Begins a version and says where its bytes go. It is listed as partial until it is sealed; asked twice, the same sink. `Conflict` for a
    /// version that is sealed; `Full`.
    async fn draft(&self, spec: &ImageSpec) -> Result<Sink>;

    /// Makes a written draft a version, for good: synced, so that a power cut loses nothing of it, and never written to again. Sealed twice
    /// equals once. `NotFound` without a draft; `Corrupt` when what was written is not as large as the spec says, and it stays partial.
    async fn seal(&self, spec: &ImageSpec) -> Result<ImageListed>;

    /// Makes a frozen writeback a version without a copy; it is then no writeback any more. Cut short, it is still that writeback, or this
    /// version, whole. What goes on when its future was dropped keeps a clone of `from` until it ends: whoever can freeze the writeback again
    /// knows that no adoption is under way. Adopted twice equals once. `Unsupported` for a family outside [`ImageCapabilities::adopts`], or
    /// where it lies at a place that cannot be taken over (another file system); `Conflict` for a version that has other bytes already;
    /// `NotFound` when the version below is not here.
    async fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        let _ = spec;
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("The image store {} cannot take over {}", self.name(), from.native.family),
        ))
    }

    /// Opens a whole version for reading, in one of the forms of [`ImageCapabilities::opens`]; else `Unsupported`. `NotFound` when there is
    /// no such version or its bytes are gone; `Corrupt` when they are not as large as they were.
    async fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage>;

    /// What is there of a version; none: nothing.
    async fn get(&self, id: ImageVersionId) -> Result<Option<ImageListed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == id))
    }

    /// Our versions. One whose bytes somebody removed is not listed.
    async fn list(&self) -> Result<Vec<ImageListed>>;

    /// Removes a version or a draft, whatever is there of it. `Busy` while another version stands on it; under `IfIdle` also while it is
    /// open.
    async fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()>;

    /// How it is; degraded when its file system is nearly full.
    async fn health(&self) -> Health;

    /// Lets go of everything that is open. After it only `health` may be called.
    async fn shutdown(&self);
}

//! The writeback store "reflink": a private raw file for each session, for targets that take files (the kernel's).
//!
//! The file is a copy of the image version that shares its blocks (FICLONE on XFS and btrfs): made in less than a millisecond whatever the
//! size of the image, and it takes space only for what is written. A version is raw as it is stored, so it serves as it is.
//!
//! ```text
//!   <dir>/<instance>-<id>/<version>.raw         the writeback; its name says what it was made from
//!                         <version>.raw.new     a copy that is not whole yet
//! ```
//! * Made: folder, copy under `.new`, fsync, rename, fsync of both folders. A folder without a `.raw` is *partial*: nothing was ever
//!   handed out of it, so `ensure` begins anew. A copy that failed is removed.
//! * Removed: see `folder`.
//! * Kept or discarded: whoever calls decides; what was written is in the file, whether anybody has it open or not.
//!
//! Invariants: whoever finds a `.raw` finds a whole copy; a file is handed out only over the version that it was made from; the
//! versions are opened for reading only. Calls for one id run one after the other; file work runs on blocking threads and ends there even when
//! the caller's future is dropped.
//!
//! What this store cannot know: who has a file open (the kernel's target does not show in `/proc`). So `remove` never says `Busy`:
//! whoever removes takes the target away first, as the orchestrator does. And `bytes` of a listing are what the file system counts for the
//! file, blocks that it shares with the version included: at most that much is given back by a `remove`.

mod copy;
mod descriptor;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_core::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageFormat, ImageVersionId, InstanceId, ResourceId},
    ports::{
        BaseImage, Completeness, Health, Removal, WritebackCapabilities, WritebackListed, WritebackSpec,
        WritebackStore,
    },
};
use serde::Deserialize;

pub use self::descriptor::descriptor;
use super::{
    files::{Open, OsFiles},
    folder::{self, Folder, check_len, check_size, damaged, gone_is_none, other_base},
};
use crate::{
    cloning,
    slots::{self, Slots},
};

/// The store's name in the configuration and in errors.
pub const NAME: &str = "reflink";

const RAW: &str = ".raw";
const NEW: &str = ".raw.new";

/// What to do where the file system cannot share blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMode {
    /// Refuse: a start that copies a whole image takes minutes, and nobody asked for that.
    #[default]
    Reflink,
    /// Copy what the version holds; its holes stay holes.
    Full,
}

/// Where the store stands.
#[derive(Clone, Debug)]
pub struct ReflinkConfig {
    /// Its folder; made with mode 0700 if it is not there. On the same file system as the versions.
    pub dir: PathBuf,
    /// The folder of the versions, to find out at the start whether they can be reflinked; none: at the first session.
    pub images: Option<PathBuf>,
    /// Whose writebacks are seen and touched in it.
    pub instance: InstanceId,
    /// What to do where the file system cannot share blocks.
    pub copy: CopyMode,
}

/// The writeback store "reflink". See the module. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Reflink {
    inner: Arc<Inner>,
}

struct Inner {
    folder: Folder,
    copy: CopyMode,
    punches: bool,
    slots: Slots<()>,
}

/// What stands in a writeback's folder.
#[derive(Default)]
struct Found {
    whole: Option<ImageVersionId>,
    half: Vec<PathBuf>,
}

impl Reflink {
    /// Opens the store. Reads and writes a little, so not for a runtime thread when the disk may be slow.
    ///
    /// # Errors
    /// `Unsupported` where versions cannot be reflinked and a full copy is not configured; else what the operating system says of the
    /// folder.
    pub fn open(config: ReflinkConfig) -> Result<Self> {
        Self::open_folder(config).map_err(|e| e.with_backend(NAME).with_operation("open"))
    }

    fn open_folder(config: ReflinkConfig) -> Result<Self> {
        // A target elsewhere in the system opens the files: our working folder means nothing to it.
        let dir = absolute(&config.dir)?;
        folder::make(&dir)?;
        let at = |e| Error::io(format!("Writing to {}", dir.display()), e);
        let images = config.images.unwrap_or_else(|| dir.clone());
        if config.copy == CopyMode::Reflink && !cloning::possible(&images, &dir).map_err(at)? {
            return Err(unsupported(&images, &dir));
        }
        let folder = Folder::new(Arc::new(OsFiles), dir.clone(), config.instance);
        let punches = folder.can_punch().map_err(at)?;
        Ok(Self { inner: Arc::new(Inner { folder, copy: config.copy, punches, slots: Slots::new(NAME) }) })
    }

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

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(format!("Finding {}", path.display()), e))
}

/// No clone of what is at `from` can be made in the folder `to`.
fn unsupported(from: &Path, to: &Path) -> Error {
    let (of, on) = (cloning::file_system(from), cloning::file_system(to));
    let what = if of == on && !matches!(on.as_str(), "XFS" | "btrfs") {
        format!("{} is on {on}, which makes no reflinks", to.display())
    } else {
        format!("{} ({of}) cannot be reflinked to {} ({on})", from.display(), to.display())
    };
    Error::new(ErrorKind::Unsupported, what).with_hint(
        "put images and writebacks on one XFS (mkfs.xfs makes it with reflinks) or btrfs; or set copy = \"full\" in [writeback], and \
         every session begins with a copy of the whole image",
    )
}

impl Inner {
    fn found(&self, home: &Path, names: &[String]) -> Result<Found> {
        let mut found = Found::default();
        for name in names {
            let version =
                |suffix: &str| name.strip_suffix(suffix).and_then(|v| v.parse::<ImageVersionId>().ok());
            match (version(RAW), version(NEW)) {
                (Some(version), _) if found.whole.is_none() => found.whole = Some(version),
                (None, Some(_)) => found.half.push(home.join(name)),
                _ => {
                    return Err(damaged(home, format!("{name} does not belong there"))
                        .with_hint("a file was put there by hand: move it away, or remove the writeback"));
                }
            }
        }
        Ok(found)
    }

    fn file(&self, id: &ResourceId, version: ImageVersionId) -> PathBuf {
        self.folder.home(id).join(format!("{}{RAW}", version.simple()))
    }

    fn ensure(&self, spec: &WritebackSpec) -> Result<PathBuf> {
        check_size(&spec.base)?;
        let (id, home) = (&spec.id, self.folder.home(&spec.id));
        let at = |what: &str, e| Error::io(format!("{what} {}", home.display()), e);
        self.folder.end_removal(id).map_err(|e| at("Removing what was left of", e))?;
        let names = gone_is_none(self.folder.files.names(&home)).map_err(|e| at("Reading", e))?;
        let found = self.found(&home, &names.unwrap_or_default())?;
        let file = self.file(id, spec.base.version);
        if let Some(version) = found.whole {
            if version != spec.base.version {
                return Err(other_base(id, version));
            }
            let len = self.len(&file).map_err(|e| at("Reading", e))?;
            return if len == spec.base.size_bytes { Ok(file) } else { Err(other_base(id, version)) };
        }
        for half in &found.half {
            self.folder.files.remove_file(half).map_err(|e| at("Cleaning", e))?;
        }
        self.make(spec, &home, &file).inspect_err(|e| {
            if let Err(left) = self.folder.remove(id) {
                tracing::warn!(writeback = %id, error = %left.report(), after = %e.report(), "not undone");
            }
        })?;
        Ok(file)
    }

    fn make(&self, spec: &WritebackSpec, home: &Path, file: &Path) -> Result<()> {
        let base = copy::open_base(&spec.base)?;
        let files = &self.folder.files;
        let at = |e| Error::io(format!("Making {}", home.display()), e);
        files.create_dir(home).map_err(at)?;
        let new = home.join(format!("{}{NEW}", spec.base.version.simple()));
        let shared = copy::make(&base, &new, self.copy == CopyMode::Full).map_err(|e| {
            if cloning::cannot(&e) {
                unsupported(&spec.base.path, home)
            } else {
                Error::io(format!("Copying {} to {}", spec.base.path.display(), new.display()), e)
            }
        })?;
        if !shared {
            tracing::debug!(writeback = %spec.id, base = %spec.base.path.display(), "copied in full");
        }
        check_len(&new, self.len(&new).map_err(at)?, spec.base.size_bytes)?;
        files.rename(&new, file).map_err(at)?;
        let sync = |dir: &Path| files.open_dir(dir).and_then(|dir| dir.sync_all());
        sync(home).and_then(|()| sync(&self.folder.dir)).map_err(at)
    }

    fn len(&self, file: &Path) -> std::io::Result<u64> {
        self.folder.files.open(file, Open::Read)?.size()
    }

    fn describe(
        &self,
        home: &Path,
        id: ResourceId,
        names: &[String],
        removed: bool,
    ) -> std::io::Result<Option<WritebackListed>> {
        let bytes = self.folder.allocated(home, names)?;
        let found = self.found(home, names);
        let whole = found.as_ref().ok().and_then(|f| f.whole.filter(|_| f.half.is_empty() && !removed));
        let len = match whole {
            Some(version) => gone_is_none(self.len(&home.join(format!("{}{RAW}", version.simple()))))?,
            None => None,
        };
        let spec = whole.zip(len).map(|(version, size_bytes)| WritebackSpec {
            id: id.clone(),
            base: BaseImage { version, path: PathBuf::new(), size_bytes },
        });
        Ok(Some(WritebackListed {
            id,
            digest: spec.as_ref().map(WritebackSpec::digest),
            completeness: if spec.is_some() { Completeness::Whole } else { Completeness::Partial },
            base: found.ok().and_then(|f| f.whole),
            bytes,
        }))
    }
}

#[async_trait]
impl WritebackStore for Reflink {
    fn name(&self) -> &'static str {
        NAME
    }

    /// A file of the kernel's page cache: an acknowledged write is in it whatever becomes of us, and a flushed one is on the disk.
    fn capabilities(&self) -> WritebackCapabilities {
        WritebackCapabilities {
            provides: DiskForm::File,
            kill_safe: true,
            power_safe: true,
            discard: self.inner.punches,
        }
    }

    /// Dropped half-way: the file work goes on to its end.
    async fn ensure(&self, spec: &WritebackSpec) -> Result<Disk> {
        let slot = self.inner.slots.lock(&spec.id).await?;
        let wanted = spec.clone();
        let made = self.blocking("ensure", spec.id.as_str(), move |inner| {
            let _slot = slot;
            inner.ensure(&wanted)
        });
        Ok(Disk::File { path: made.await?, format: ImageFormat::Raw })
    }

    async fn open_base(&self, base: &BaseImage) -> Result<Disk> {
        self.inner.slots.check_open()?;
        let (wanted, subject) = (base.clone(), base.version.to_string());
        let checked = self.blocking("open_base", &subject, move |_| {
            copy::open_base(&wanted)?;
            absolute(&wanted.path)
        });
        Ok(Disk::File { path: checked.await?, format: ImageFormat::Raw })
    }

    /// Dropped half-way: the file work goes on to its end. Both ways are the same here, see the module.
    async fn remove(&self, id: &ResourceId, _how: Removal) -> Result<()> {
        let slot = self.inner.slots.lock(id).await?;
        let gone = id.clone();
        self.blocking("remove", id.as_str(), move |inner| {
            let removed = inner.folder.remove(&gone);
            drop(slot);
            inner.slots.sweep(|()| false);
            removed
        })
        .await
    }

    async fn list(&self) -> Result<Vec<WritebackListed>> {
        self.inner.slots.check_open()?;
        self.blocking("list", "", |inner| {
            inner.folder.list(|home, id, names, removed| inner.describe(home, id, names, removed))
        })
        .await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<WritebackListed>> {
        self.inner.slots.check_open()?;
        let wanted = id.clone();
        self.blocking("get", id.as_str(), move |inner| {
            inner.folder.get(&wanted, |home, id, names, removed| inner.describe(home, id, names, removed))
        })
        .await
    }

    async fn health(&self) -> Health {
        self.blocking("health", "", |inner| Ok(inner.folder.health()))
            .await
            .unwrap_or_else(|e| Health::Down(e.to_string()))
    }

    /// Waits for calls under way. What was written is the kernel's to keep.
    async fn shutdown(&self) {
        for (_, slot) in self.inner.slots.close() {
            drop(slot.lock().await);
        }
    }
}

//! The writeback store "reflink": a private raw file for each session, for targets that accept files (the kernel's).
//!
//! The file is a copy of the image version that shares its blocks (FICLONE on XFS and btrfs): created in less than a millisecond whatever
//! the size of the image, and it uses space only for changes. A version is stored as a raw file, so it needs no conversion.
//!
//! ```text
//!   <dir>/<instance>-<id>/<version>.raw         the writeback; its name shows the version that it was made from
//!                         <version>.raw.new     a copy that is not complete yet
//! ```
//! * Create: folder, copy under `.new`, fsync, rename, fsync of both folders. A folder without a `.raw` is *partial*: it was never handed
//!   out, so `ensure` starts again. A failed copy is removed.
//! * Remove: see `folder`.
//! * Keep or discard: the caller decides; all writes are in the file, whether it is open or not.
//! * Freeze: synced. It is the whole disk and needs no version below it.
//!
//! Invariants: an existing `.raw` is a complete copy; a file is only handed out over the version that it was made from; versions are opened
//! read-only. Calls for the same id run one after the other; file operations run on blocking threads and complete even if the caller's
//! future is dropped.
//!
//! This store cannot know whether a file is open (the kernel's target is not visible in `/proc`). So `remove` returns `Busy` only for a
//! frozen disk, and `freeze` never for a disk in use: the caller must remove the target first, as the orchestrator does. And `bytes` of a
//! listing is the disk usage that the file system reports for the file, including blocks shared with the version: a `remove` frees at most
//! that much.

mod copy;
mod descriptor;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use ggnet_core::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageFormat, ImageVersionId, InstanceId, ResourceId},
    ports::{
        Completeness, Frozen, Health, Hold, Native, OpenImage, Removal, WritebackCapabilities,
        WritebackListed, WritebackSpec, WritebackStore,
    },
};
use serde::Deserialize;

pub use self::descriptor::descriptor;
use super::folder::{self, Folder, nothing_to_freeze, other_base};
use crate::{
    cloning,
    files::{
        Files, Open, OsFiles, RAW_FILE, absolute, check_len, check_size, damaged, gone_is_none, make_folder,
    },
    slots::{self, Slots},
};

/// The store's name in the configuration and in errors.
pub const NAME: &str = "reflink";

const RAW: &str = ".raw";
const NEW: &str = ".raw.new";

/// What to do if the file system cannot share blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMode {
    /// Fail: a start that copies a whole image takes minutes, which must be configured explicitly.
    #[default]
    Reflink,
    /// Copy the data of the version; its holes stay holes.
    Full,
}

/// The settings of the store.
#[derive(Clone, Debug)]
pub struct ReflinkConfig {
    /// Its folder; created with mode 0700 if it does not exist. It must be on the same file system as the versions.
    pub dir: PathBuf,
    /// The folder of the versions, to check at start whether they can be reflinked. If `None` or missing, this is checked for the first
    /// session.
    pub images: Option<PathBuf>,
    /// The instance whose writebacks are listed and changed.
    pub instance: InstanceId,
    /// What to do if the file system cannot share blocks.
    pub copy: CopyMode,
}

/// The writeback store "reflink". See the module. Cheap to clone; all clones share one store.
#[derive(Clone)]
pub struct Reflink {
    inner: Arc<Inner>,
}

struct Inner {
    folder: Folder,
    copy: CopyMode,
    punches: bool,
    slots: Slots<Slot>,
}

/// A writeback that was requested; its lock serializes the calls for one id.
#[derive(Default)]
struct Slot {
    /// Alive while it is frozen.
    frozen: Weak<Thaw>,
}

/// A frozen disk. When it is released, the file may have become an image version; then its folder is removed, too.
struct Thaw {
    files: Arc<dyn Files>,
    home: PathBuf,
}

impl Drop for Thaw {
    fn drop(&mut self) {
        // Only an empty folder can be removed. If it stays, for whatever reason, it is listed as partial.
        let _ = self.files.remove_dir(&self.home);
    }
}

impl Slot {
    fn check_not_frozen(&self, id: &ResourceId) -> Result<()> {
        if self.frozen.strong_count() > 0 { Err(folder::frozen(id)) } else { Ok(()) }
    }
}

/// The content of a writeback's folder.
#[derive(Default)]
struct Found {
    whole: Option<ImageVersionId>,
    half: Vec<PathBuf>,
}

impl Reflink {
    /// Opens the store. Reads and writes a little, so it must not run on a runtime thread if the disk may be slow.
    ///
    /// # Errors
    /// `Unsupported` if versions cannot be reflinked and a full copy is not configured; otherwise the errors of the operating system for
    /// the folder.
    pub fn open(config: ReflinkConfig) -> Result<Self> {
        Self::open_folder(config).map_err(|e| e.with_backend(NAME).with_operation("open"))
    }

    fn open_folder(config: ReflinkConfig) -> Result<Self> {
        // A target outside this process opens the files, so paths must not depend on our working folder.
        let dir = absolute(&config.dir)?;
        make_folder(&dir)?;
        let at = |e| Error::io(format!("Writing to {}", dir.display()), e);
        let images = config.images.filter(|images| images.is_dir()).unwrap_or_else(|| dir.clone());
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

/// The raw file of an opened version.
fn file_of(base: &OpenImage) -> Result<&Path> {
    match &base.disk {
        Disk::File { path, format: ImageFormat::Raw } => Ok(path),
        other => Err(Error::new(
            ErrorKind::Unsupported,
            format!("The image version must be a raw file, but version {} is open as {other:?}", base.id),
        )),
    }
}

/// The error if `from` cannot be cloned into the folder `to`.
fn unsupported(from: &Path, to: &Path) -> Error {
    let (of, on) = (cloning::file_system(from), cloning::file_system(to));
    let what = if of == on && !matches!(on.as_str(), "XFS" | "btrfs") {
        format!("{} is on {on}, which does not support reflinks", to.display())
    } else {
        format!("{} ({of}) cannot be reflinked to {} ({on})", from.display(), to.display())
    };
    Error::new(ErrorKind::Unsupported, what).with_hint(
        "put images and writebacks on the same XFS (mkfs.xfs enables reflinks) or btrfs; or set copy = \"full\" in [writeback], \
         then every session starts with a copy of the whole image",
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
                        .with_hint("a file was added by hand: move it away, or remove the writeback"));
                }
            }
        }
        Ok(found)
    }

    fn file(&self, id: &ResourceId, version: ImageVersionId) -> PathBuf {
        self.folder.home(id).join(format!("{}{RAW}", version.simple()))
    }

    fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<PathBuf> {
        spec.check_base(base)?;
        check_size(spec.size_bytes)?;
        let version = file_of(base)?;
        let (id, home) = (&spec.id, self.folder.home(&spec.id));
        let at = |what: &str, e| Error::io(format!("{what} {}", home.display()), e);
        self.folder.end_removal(id).map_err(|e| at("Removing the rest of", e))?;
        let names = gone_is_none(self.folder.files.names(&home)).map_err(|e| at("Reading", e))?;
        let found = self.found(&home, &names.unwrap_or_default())?;
        let file = self.file(id, spec.version);
        if let Some(version) = found.whole {
            if version != spec.version {
                return Err(other_base(id, version));
            }
            let len = self.len(&file).map_err(|e| at("Reading", e))?;
            return if len == spec.size_bytes { Ok(file) } else { Err(other_base(id, version)) };
        }
        for half in &found.half {
            self.folder.files.remove_file(half).map_err(|e| at("Cleaning", e))?;
        }
        self.make(spec, version, &home, &file).inspect_err(|e| {
            if let Err(left) = self.folder.remove(id) {
                tracing::warn!(writeback = %id, error = %left.report(), after = %e.report(), "cannot undo a failed change");
            }
        })?;
        Ok(file)
    }

    fn make(&self, spec: &WritebackSpec, version: &Path, home: &Path, file: &Path) -> Result<()> {
        let base = copy::open_base(version, spec.size_bytes)?;
        let files = &self.folder.files;
        let at = |e| Error::io(format!("Making {}", home.display()), e);
        self.folder.make_home(home)?;
        let new = home.join(format!("{}{NEW}", spec.version.simple()));
        let shared = copy::make(&base, &new, self.copy == CopyMode::Full).map_err(|e| {
            if cloning::cannot(&e) {
                unsupported(version, home)
            } else {
                Error::io(format!("Copying {} to {}", version.display(), new.display()), e)
            }
        })?;
        if !shared {
            tracing::debug!(writeback = %spec.id, base = %version.display(), "copied in full");
        }
        check_len(&new, self.len(&new).map_err(at)?, spec.size_bytes)?;
        files.rename(&new, file).map_err(at)?;
        self.sync_names(home).map_err(at)
    }

    /// Syncs the names in a writeback's folder and the name of the folder.
    fn sync_names(&self, home: &Path) -> std::io::Result<()> {
        let sync = |dir: &Path| self.folder.files.open_dir(dir).and_then(|dir| dir.sync_all());
        sync(home).and_then(|()| sync(&self.folder.dir))
    }

    fn freeze(&self, slot: &mut Slot, id: &ResourceId) -> Result<Frozen> {
        slot.check_not_frozen(id)?;
        let home = self.folder.home(id);
        let at = |e| Error::io(format!("Freezing {}", home.display()), e);
        let names = gone_is_none(self.folder.files.names(&home)).map_err(at)?.unwrap_or_default();
        let Some(base) = self.found(&home, &names)?.whole else { return Err(nothing_to_freeze(id)) };
        let path = self.file(id, base);
        let file = self.folder.files.open(&path, Open::Write).map_err(at)?;
        file.sync_all().and_then(|()| self.sync_names(&home)).map_err(at)?;
        let locator = folder::locator(&path)?;
        let size_bytes = file.size().map_err(at)?;
        let held = Arc::new(Thaw { files: Arc::clone(&self.folder.files), home: home.clone() });
        slot.frozen = Arc::downgrade(&held);
        Ok(Frozen {
            writeback: id.clone(),
            base,
            size_bytes,
            whole: true,
            native: Native { family: RAW_FILE.to_owned(), locator },
            hold: Hold::of(held),
        })
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
        let spec =
            whole.zip(len).map(|(version, size_bytes)| WritebackSpec { id: id.clone(), version, size_bytes });
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

    /// A file in the kernel's page cache: an acknowledged write survives our death, and a flushed one is on disk.
    fn capabilities(&self) -> WritebackCapabilities {
        WritebackCapabilities {
            provides: DiskForm::File,
            base: DiskForm::File,
            freezes: Some(RAW_FILE.to_owned()),
            kill_safe: true,
            power_safe: true,
            discard: self.inner.punches,
        }
    }

    /// If the future is dropped, the file operations still complete.
    async fn ensure(&self, spec: &WritebackSpec, base: &OpenImage) -> Result<Disk> {
        let slot = self.inner.slots.lock(&spec.id).await?;
        let (wanted, base) = (spec.clone(), base.clone());
        let made = self.blocking("ensure", spec.id.as_str(), move |inner| {
            slot.check_not_frozen(&wanted.id)?;
            inner.ensure(&wanted, &base)
        });
        Ok(Disk::File { path: made.await?, format: ImageFormat::Raw })
    }

    async fn freeze(&self, id: &ResourceId) -> Result<Frozen> {
        let mut slot = self.inner.slots.lock(id).await?;
        let wanted = id.clone();
        // The frozen state before the lock: no call must find a freeze that its caller has abandoned.
        let (frozen, _slot) = self
            .blocking("freeze", id.as_str(), move |inner| {
                inner.freeze(&mut slot, &wanted).map(|frozen| (frozen, slot))
            })
            .await?;
        Ok(frozen)
    }

    /// If the future is dropped, the file operations still complete. Both ways of removal are the same here, see the module.
    async fn remove(&self, id: &ResourceId, _how: Removal) -> Result<()> {
        let slot = self.inner.slots.lock(id).await?;
        let gone = id.clone();
        self.blocking("remove", id.as_str(), move |inner| {
            slot.check_not_frozen(&gone)?;
            let removed = inner.folder.remove(&gone);
            drop(slot);
            // A later call must know that it is frozen.
            inner.slots.sweep(|slot| slot.frozen.strong_count() > 0);
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

    /// Waits for calls in flight. The kernel keeps what was written.
    async fn shutdown(&self) {
        for (_, slot) in self.inner.slots.close() {
            drop(slot.lock().await);
        }
    }
}

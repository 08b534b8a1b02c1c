//! The versions in their folder: drafts, sealing, opening, adoption, removal. `names` describes the names.
//!
//! * A draft is sealed by a rename after its bytes are on disk; then the folder is synced. If interrupted, it is either a draft or a
//!   version.
//! * A frozen writeback is adopted by a rename into this folder; then both folders are synced. If interrupted, it is either that writeback
//!   or this version, complete in both cases: a rename across folders is one change on XFS, ext4 and btrfs.
//! * A layer is removed like a writeback: renamed, the folder synced, then its content deleted. If interrupted, it is listed as partial.
//!
//! Invariants: an open version is one device, shared by all who hold it or have a layer over it; a version with a layer over it is not
//! removed; a call holds the lock of its version and takes that of the version below only after its own, so there is no deadlock.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ggnet_core::{
    block::{BlockDevice, Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ImageFormat, ImageVersionId},
    ports::{Completeness, Frozen, Health, Hold, ImageListed, ImageSpec, OpenImage, Removal, Sink},
};

use super::names::{Found, Names, found};
use crate::{
    files::{
        Files, Open, Place, RAW_FILE, Words, check_len, check_size, damaged, gone_is_none, remove_folder,
    },
    layers::{
        FAMILY,
        chain::{FrozenLayer, frozen_header},
        format::{DURABLE_NEW, HOT, Header},
        raw::RawDisk,
    },
};

const PROBE: &str = ".probe";

/// See the module.
pub(super) struct Versions {
    files: Arc<dyn Files>,
    names: Names,
    place: Place,
    cells: Mutex<HashMap<ImageVersionId, Arc<Mutex<Cell>>>>,
}

/// A version that was requested; its lock serializes the calls for one version.
#[derive(Default)]
struct Cell {
    open: Option<Weak<dyn BlockDevice>>,
}

impl Cell {
    fn device(&self) -> Option<Arc<dyn BlockDevice>> {
        self.open.as_ref().and_then(Weak::upgrade)
    }
}

/// The state behind a poisoned lock is valid at any time: whether a version is open.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn conflict(id: ImageVersionId, what: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("Image version {id} {what}"))
        .with_hint("A version never changes: create a new one")
}

impl Versions {
    /// Opens the folder `dir`, an absolute path of an existing folder.
    pub(super) fn new(files: Arc<dyn Files>, dir: PathBuf) -> Self {
        let words = Words {
            when_full: "so no image can be imported",
            before_full: "an import fails",
            before_no_inodes: "an import fails",
        };
        let place = Place::new(Arc::clone(&files), dir.clone(), PROBE, words);
        Self { files, names: Names(dir), place, cells: Mutex::default() }
    }

    fn cell(&self, id: ImageVersionId) -> Arc<Mutex<Cell>> {
        Arc::clone(locked(&self.cells).entry(id).or_default())
    }

    /// Waits for all calls in flight.
    pub(super) fn wait_for_calls(&self) {
        let cells: Vec<_> = locked(&self.cells).values().cloned().collect();
        for cell in cells {
            drop(locked(&cell));
        }
    }

    /// Syncs the folder: a killed process may have left a rename unsynced, and a caller that finds a version here records it as ready.
    pub(super) fn settle_names(&self) -> Result<()> {
        self.sync(self.names.dir()).map_err(self.at("Syncing"))
    }

    /// The error of an operation in the folder.
    fn at(&self, doing: &'static str) -> impl Fn(io::Error) -> Error {
        move |e| Error::io(format!("{doing} {}", self.names.dir().display()), e)
    }

    fn names_there(&self) -> Result<Vec<String>> {
        self.files.names(self.names.dir()).map_err(self.at("Reading"))
    }

    /// What exists of one version, without reading all names.
    fn found(&self, id: ImageVersionId) -> Result<Found> {
        let there = |path: PathBuf| gone_is_none(self.files.is_link(&path)).map(|link| link.is_some());
        let (raw, layer) = (there(self.names.raw(id)), there(self.names.layer(id)));
        let (draft, removed) = (there(self.names.draft(id)), there(self.names.removed(id)));
        let at = self.at("Reading");
        Ok(Found {
            raw: raw.map_err(&at)?,
            layer: layer.map_err(&at)?,
            draft: draft.map_err(&at)?,
            removed: removed.map_err(&at)?,
            partial: Vec::new(),
        })
    }

    /// Like [`found`](Self::found), including leftovers of earlier versions of GGnet.
    fn found_with_leftovers(&self, id: ImageVersionId) -> Result<Found> {
        Ok(found(&self.names_there()?).remove(&id).unwrap_or_default())
    }

    /// All versions.
    pub(super) fn list(&self) -> Result<Vec<ImageListed>> {
        let mut all = Vec::new();
        for (id, found) in found(&self.names_there()?) {
            all.extend(self.describe(id, &found)?);
        }
        Ok(all)
    }

    /// One version.
    pub(super) fn get(&self, id: ImageVersionId) -> Result<Option<ImageListed>> {
        self.describe(id, &self.found(id)?)
    }

    /// What exists of a version; `None`: nothing, or it was removed in the meantime.
    fn describe(&self, id: ImageVersionId, found: &Found) -> Result<Option<ImageListed>> {
        let described = if found.raw {
            self.describe_raw(id)
        } else if found.layer {
            self.describe_layer(id)
        } else if *found == Found::default() {
            return Ok(None);
        } else {
            let bytes = gone_is_none(self.files.allocated(&self.names.draft(id)));
            bytes.map(|bytes| ImageListed::partial(id).taking(bytes.unwrap_or(0)))
        };
        gone_is_none(described).map_err(self.at("Reading"))
    }

    fn describe_raw(&self, id: ImageVersionId) -> io::Result<ImageListed> {
        let path = self.names.raw(id);
        let bytes = self.files.allocated(&path)?;
        let len = match self.files.open(&path, Open::Read).and_then(|file| file.size()) {
            // Not a file: not made by us, but not a reason to fail the list of the others.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory) => 0,
            len => len?,
        };
        let whole = len > 0 && len.is_multiple_of(512);
        let listed = if whole { ImageListed::whole(id, len) } else { ImageListed::partial(id) };
        Ok(listed.taking(bytes))
    }

    fn describe_layer(&self, id: ImageVersionId) -> io::Result<ImageListed> {
        let home = self.names.layer(id);
        let names = match self.files.names(&home) {
            // Not a folder: as above.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(ImageListed::partial(id)),
            names => names?,
        };
        let mut bytes = 0;
        for name in names {
            bytes += gone_is_none(self.files.allocated(&home.join(name)))?.unwrap_or(0);
        }
        Ok(match frozen_header(&*self.files, &home) {
            Ok(header) => ImageListed::whole(id, header.size).over(header.base).taking(bytes),
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
                ImageListed::partial(id).taking(bytes)
            }
            Err(e) => return Err(e),
        })
    }

    /// A version that can be opened; otherwise `NotFound`, or `Corrupt` with the reason.
    fn whole(&self, id: ImageVersionId) -> Result<ImageListed> {
        let found = self.found(id)?;
        match self.describe(id, &found)? {
            Some(listed) if listed.completeness == Completeness::Whole => Ok(listed),
            Some(_) if found.raw => {
                let path = self.names.raw(id);
                RawDisk::open(&*self.files, &path).and_then(|_| Err(damaged(&path, "it changed just now")))
            }
            Some(_) if found.layer => {
                let home = self.names.layer(id);
                match frozen_header(&*self.files, &home) {
                    Ok(_) => Err(damaged(&home, "it changed just now")),
                    Err(e) => Err(unreadable(&home, e)),
                }
            }
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("There is no file of image version {id} in {}", self.names.dir().display()),
            )
            .with_hint("Mount the disk that holds this folder, or restore the file")),
        }
    }

    /// Creates a draft of a version.
    pub(super) fn draft(&self, spec: &ImageSpec) -> Result<Sink> {
        check_size(spec.size_bytes)?;
        let cell = self.cell(spec.id);
        let _held = locked(&cell);
        let found = self.found_with_leftovers(spec.id)?;
        if found.is_sealed() {
            return Err(conflict(spec.id, "already exists"));
        }
        self.clean(spec.id, &found).map_err(self.at("Cleaning"))?;
        let path = self.names.draft(spec.id);
        if !found.draft {
            self.files.open(&path, Open::Create).map_err(self.at("Creating a file in"))?;
        }
        Ok(Sink::File(path))
    }

    /// Seals a draft as a version.
    pub(super) fn seal(&self, spec: &ImageSpec) -> Result<ImageListed> {
        check_size(spec.size_bytes)?;
        let cell = self.cell(spec.id);
        let _held = locked(&cell);
        if self.found(spec.id)?.is_sealed() {
            let listed = self.whole(spec.id)?;
            if listed.size_bytes != spec.size_bytes || listed.parent.is_some() {
                return Err(conflict(spec.id, "already exists with different content"));
            }
            // The call that renamed it may have been interrupted.
            self.sync(self.names.dir()).map_err(self.at("Syncing"))?;
            return Ok(listed);
        }
        let draft = self.names.draft(spec.id);
        match gone_is_none(self.files.is_link(&draft)).map_err(self.at("Reading"))? {
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("There is no draft of image version {}", spec.id),
                ));
            }
            Some(true) => return Err(damaged(&draft, "it is a symbolic link")),
            Some(false) => {}
        }
        let file = self.files.open(&draft, Open::Read).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => damaged(&draft, e),
            _ => Error::io(format!("Opening {}", draft.display()), e),
        })?;
        let at = |e| Error::io(format!("Sealing {}", draft.display()), e);
        check_len(&draft, file.size().map_err(at)?, spec.size_bytes)?;
        file.sync_all().map_err(at)?;
        self.files.rename(&draft, &self.names.raw(spec.id)).map_err(at)?;
        self.sync(self.names.dir()).map_err(at)?;
        self.whole(spec.id)
    }

    fn sync(&self, dir: &Path) -> io::Result<()> {
        self.files.open_dir(dir)?.sync_all()
    }

    /// Adopts a frozen writeback.
    pub(super) fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        check_size(spec.size_bytes)?;
        if spec.size_bytes != from.size_bytes {
            let (want, have) = (spec.size_bytes, from.size_bytes);
            let why = format!("Writeback {} is a disk of {have} bytes, not of {want}", from.writeback);
            return Err(Error::invalid("size_bytes", why));
        }
        if spec.id == from.base {
            return Err(Error::invalid(
                "id",
                format!("Image version {} cannot be a layer over itself", spec.id),
            ));
        }
        let source = Path::new(&from.native.locator);
        let cell = self.cell(spec.id);
        let _held = locked(&cell);
        match from.native.family.as_str() {
            FAMILY => {
                // Checked before its lock is taken: two versions that refer to each other must not wait for each other.
                self.whole(from.base).map_err(|e| below(spec.id, e))?;
                let parent = self.cell(from.base);
                let _stays = locked(&parent);
                self.whole(from.base).map_err(|e| below(spec.id, e))?;
                self.adopt_layer(spec, from, source)
            }
            RAW_FILE => self.adopt_raw(spec, source),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("The image store `files` cannot adopt {other}"),
            )
            .with_hint(format!("It adopts {FAMILY} and {RAW_FILE}"))),
        }
    }

    fn adopt_layer(&self, spec: &ImageSpec, from: &Frozen, source: &Path) -> Result<ImageListed> {
        let (found, home) = (self.found(spec.id)?, self.names.layer(spec.id));
        let is_it = |header: &Header| {
            (&header.id, header.base, header.size) == (&from.writeback, from.base, from.size_bytes)
        };
        if self.is_there(source)? {
            if found.is_sealed() {
                return Err(conflict(spec.id, "already exists"));
            }
            let header = frozen_header(&*self.files, source).map_err(|e| unreadable(source, e))?;
            if !is_it(&header) {
                return Err(damaged(source, format!("it contains writeback {}", header.id)));
            }
            self.clean(spec.id, &found).map_err(self.at("Cleaning"))?;
            self.take(source, &home)?;
            if found.draft {
                self.files.remove_file(&self.names.draft(spec.id)).map_err(self.at("Cleaning"))?;
            }
        } else if !found.layer {
            return Err(gone(source));
        } else if !frozen_header(&*self.files, &home).is_ok_and(|header| is_it(&header)) {
            return Err(conflict(spec.id, "already exists with different content"));
        }
        self.settle(source)?;
        // Files that only a mutable layer has. The flush that froze the layer wrote all their information to the durable map.
        for name in [HOT, DURABLE_NEW] {
            if let Err(e) = gone_is_none(self.files.remove_file(&home.join(name))) {
                tracing::warn!(version = %spec.id, name, error = %e, "cannot remove a file that is no longer needed");
            }
        }
        self.whole(spec.id)
    }

    fn adopt_raw(&self, spec: &ImageSpec, source: &Path) -> Result<ImageListed> {
        let (found, file) = (self.found(spec.id)?, self.names.raw(spec.id));
        if self.is_there(source)? {
            if found.is_sealed() {
                return Err(conflict(spec.id, "already exists"));
            }
            let at = |e| Error::io(format!("Opening {}", source.display()), e);
            let len = self.files.open(source, Open::Read).and_then(|file| file.size()).map_err(at)?;
            check_len(source, len, spec.size_bytes)?;
            self.clean(spec.id, &found).map_err(self.at("Cleaning"))?;
            self.take(source, &file)?;
            if found.draft {
                self.files.remove_file(&self.names.draft(spec.id)).map_err(self.at("Cleaning"))?;
            }
        } else if !found.raw {
            return Err(gone(source));
        }
        self.settle(source)?;
        let listed = self.whole(spec.id)?;
        check_len(&file, listed.size_bytes, spec.size_bytes)?;
        Ok(listed)
    }

    /// Whether the object to adopt is still in its own place.
    fn is_there(&self, source: &Path) -> Result<bool> {
        let link = gone_is_none(self.files.is_link(source));
        match link.map_err(|e| Error::io(format!("Reading {}", source.display()), e))? {
            None => Ok(false),
            Some(false) => Ok(true),
            // The target of the link is not ours and can be anywhere.
            Some(true) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} is a symbolic link, so it cannot be adopted by a rename", source.display()),
            )
            .with_hint("Replace it with what it points to")),
        }
    }

    /// Moves it here.
    fn take(&self, source: &Path, to: &Path) -> Result<()> {
        self.files.rename(source, to).map_err(|e| {
            if e.kind() == io::ErrorKind::CrossesDevices {
                let dir = self.names.dir().display();
                let what = format!("{} and {dir} are on different file systems", source.display());
                Error::new(ErrorKind::Unsupported, what).with_hint(
                    "Put writebacks and images on the same file system; in the data folder they are",
                )
            } else {
                Error::io(format!("Moving {} to {}", source.display(), to.display()), e)
            }
        })
    }

    /// Makes a move durable. Syncs the destination first: until then the other folder may still have it.
    fn settle(&self, source: &Path) -> Result<()> {
        self.sync(self.names.dir()).map_err(self.at("Syncing"))?;
        match source.parent().map(|dir| gone_is_none(self.sync(dir))) {
            Some(Err(e)) => Err(Error::io(format!("Syncing the folder of {}", source.display()), e)),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// Removes the parts of an incomplete version.
    fn clean(&self, id: ImageVersionId, found: &Found) -> io::Result<()> {
        for name in &found.partial {
            gone_is_none(self.files.remove_file(&self.names.dir().join(name)))?;
        }
        if found.removed {
            // The rename must not be reverted by a power cut after half of the files were deleted.
            self.sync(self.names.dir())?;
            gone_is_none(remove_folder(&*self.files, &self.names.removed(id)))?;
        }
        Ok(())
    }

    /// Opens a version.
    pub(super) fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage> {
        let device = self.device(id, &mut Vec::new())?;
        let (size_bytes, hold) = (device.info().size_bytes, Hold::of(Arc::clone(&device)));
        let disk = match form {
            DiskForm::Blocks => Disk::Blocks(device),
            DiskForm::File if self.whole(id)?.parent.is_none() => {
                Disk::File { path: self.names.raw(id), format: ImageFormat::Raw }
            }
            DiskForm::File => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("Image version {id} is a layer over another version, not a file of its own"),
                )
                .with_hint("Serve it with the target `builtin` and the writebacks `layers`"));
            }
            DiskForm::Device => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "The image store `files` opens blocks and files, not devices",
                ));
            }
        };
        Ok(OpenImage { id, size_bytes, disk, hold })
    }

    /// The device of a version, and of those below it; `above` are the layers over it.
    fn device(&self, id: ImageVersionId, above: &mut Vec<ImageVersionId>) -> Result<Arc<dyn BlockDevice>> {
        if above.contains(&id) {
            return Err(damaged(&self.names.layer(id), "it is a layer over itself"));
        }
        above.push(id);
        let cell = self.cell(id);
        let mut cell = locked(&cell);
        let listed = self.whole(id)?;
        let path = if listed.parent.is_some() { self.names.layer(id) } else { self.names.raw(id) };
        if let Some(device) = cell.device() {
            check_len(&path, listed.size_bytes, device.info().size_bytes)?;
            return Ok(device);
        }
        let device: Arc<dyn BlockDevice> = match listed.parent {
            None => Arc::new(RawDisk::open(&*self.files, &path)?),
            Some(parent) => {
                let under = self.device(parent, above).map_err(|e| below(id, e))?;
                Arc::new(FrozenLayer::open(&*self.files, &path, under).map_err(|e| unreadable(&path, e))?)
            }
        };
        cell.open = Some(Arc::downgrade(&device));
        Ok(device)
    }

    /// Removes a version, including an incomplete one.
    pub(super) fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()> {
        let cell = self.cell(id);
        let mut held = locked(&cell);
        let found = self.found_with_leftovers(id)?;
        if let Some(child) = self.list()?.into_iter().find(|listed| listed.parent == Some(id)) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("Image version {} is a layer over version {id}", child.id),
            )
            .with_hint("Remove that one first"));
        }
        if how == Removal::IfIdle && held.device().is_some() {
            return Err(Error::new(ErrorKind::Busy, format!("Image version {id} is in use")));
        }
        self.remove_parts(id, &found)
            .map_err(|e| Error::io(format!("Removing {}", self.names.raw(id).display()), e))?;
        // A holder keeps the open version until it closes it; a new one with this id is a different object.
        held.open = None;
        drop(held);
        drop(cell);
        locked(&self.cells).retain(|_, cell| {
            Arc::strong_count(cell) > 1 || cell.try_lock().is_ok_and(|cell| cell.device().is_some())
        });
        Ok(())
    }

    fn remove_parts(&self, id: ImageVersionId, found: &Found) -> io::Result<()> {
        for (there, path) in [(found.raw, self.names.raw(id)), (found.draft, self.names.draft(id))] {
            if there {
                gone_is_none(self.files.remove_file(&path))?;
            }
        }
        self.clean(id, found)?;
        if found.layer {
            let removed = self.names.removed(id);
            if gone_is_none(self.files.rename(&self.names.layer(id), &removed))?.is_some() {
                self.clean(id, &Found { removed: true, ..Found::default() })?;
            }
        }
        Ok(())
    }

    /// The health of the folder; blocks on disk I/O. A full folder prevents imports, but no machine from booting.
    pub(super) fn health(&self) -> Health {
        match self.place.health() {
            Health::Blocked(why) => Health::Degraded(why),
            other => other,
        }
    }
}

/// Adds to an error that it is about the version below another one.
fn below(id: ImageVersionId, e: Error) -> Error {
    e.with_context("above", format!("image version {id}, which is a layer over it"))
}

/// The error for a layer that cannot be read: it is damaged, or its disk has errors.
fn unreadable(home: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            damaged(home, e)
        }
        _ => Error::io(format!("Reading {}", home.display()), e),
    }
}

/// There is nothing to adopt.
fn gone(source: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("There is nothing to adopt at {}", source.display()))
}

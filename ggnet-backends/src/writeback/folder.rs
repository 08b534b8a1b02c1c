//! The folder in which a store's writebacks stand: what is the same whatever a writeback is made of.
//!
//! ```text
//!   <dir>/<instance>-<id>/             one writeback, mode 0700; its files 0600
//!   <dir>/.removed-<instance>-<id>/    one that is being removed
//!   <dir>/.probe-<instance>            there for a moment: can this folder be written?
//! ```
//! Removed: renamed, `<dir>` synced, then emptied. The sync is what keeps a removed disk from coming back, after a power cut, under
//! the name of a new one. Cut short after the rename it is *partial*, and the next `ensure` or `remove` ends it.
//!
//! Invariants: names of other instances are never touched; two calls for one id do not run at the same time (the caller's locks), and
//! two servers on one folder are kept apart by the server's lock on the data folder.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{Completeness, Health, WritebackListed},
};

use crate::files::{Files, Place, Words, absolute, gone_is_none, remove_folder};

const REMOVED: &str = ".removed-";
const PROBE: &str = ".probe-";

/// See the module.
pub(super) struct Folder {
    pub(super) files: Arc<dyn Files>,
    pub(super) dir: PathBuf,
    pub(super) instance: InstanceId,
    place: Place,
}

impl Folder {
    pub(super) fn new(files: Arc<dyn Files>, dir: PathBuf, instance: InstanceId) -> Self {
        let words = Words {
            when_full: "so no machine can get a disk",
            before_full: "guests run out of space",
            before_no_inodes: "machines cannot get a disk",
        };
        let place = Place::new(Arc::clone(&files), dir.clone(), &format!("{PROBE}{instance}"), words);
        Self { files, dir, instance, place }
    }

    /// The folder of a writeback.
    pub(super) fn home(&self, id: &ResourceId) -> PathBuf {
        self.dir.join(format!("{}-{id}", self.instance))
    }

    /// Makes the folder of a writeback. `Unavailable` where the folder of all of them is gone: `NotFound` would be taken for the bytes of the
    /// version below.
    pub(super) fn make_home(&self, home: &Path) -> Result<()> {
        self.files.create_dir(home).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::new(
                ErrorKind::Unavailable,
                format!("The folder of the writebacks, {}, no longer exists", self.dir.display()),
            )
            .with_hint("Check that its disk is mounted, then try again"),
            _ => Error::io(format!("Creating {}", home.display()), e),
        })
    }

    fn removed_dir(&self, id: &ResourceId) -> PathBuf {
        self.dir.join(format!("{REMOVED}{}-{id}", self.instance))
    }

    /// See [`Place::can_punch`].
    pub(super) fn can_punch(&self) -> io::Result<bool> {
        self.place.can_punch()
    }

    /// Removes the writeback, whatever is there of it.
    pub(super) fn remove(&self, id: &ResourceId) -> Result<()> {
        let at = |e| Error::io(format!("Removing {}", self.home(id).display()), e);
        self.end_removal(id).map_err(at)?;
        match self.files.rename(&self.home(id), &self.removed_dir(id)) {
            Ok(()) => self.end_removal(id).map_err(at),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(at(e)),
        }
    }

    /// Ends a removal that had got as far as the rename.
    pub(super) fn end_removal(&self, id: &ResourceId) -> io::Result<()> {
        let removed_dir = self.removed_dir(id);
        if gone_is_none(self.files.is_link(&removed_dir))?.is_none() {
            return Ok(());
        }
        self.files.open_dir(&self.dir)?.sync_all()?;
        remove_folder(&*self.files, &removed_dir)
    }

    /// What stands in the folder, as `describe` says of each (its folder, the names and sizes in it, whether it is being removed).
    pub(super) fn list(
        &self,
        mut describe: impl FnMut(&Path, ResourceId, &[String], bool) -> io::Result<Option<WritebackListed>>,
    ) -> Result<Vec<WritebackListed>> {
        let names = self
            .files
            .names(&self.dir)
            .map_err(|e| Error::io(format!("Reading {}", self.dir.display()), e))?;
        let ours = format!("{}-", self.instance);
        let id_of = |name: &str| name.strip_prefix(&ours).and_then(|id| id.parse::<ResourceId>().ok());
        let mut out = HashMap::new();
        for name in &names {
            let removed_dir = name.strip_prefix(REMOVED);
            let Some(id) = id_of(removed_dir.unwrap_or(name)) else { continue };
            match self.described(&self.dir.join(name), &id, removed_dir.is_some(), &mut describe)? {
                // One under its own name counts, and what is left of a namesake goes with the next call for it.
                Some(listed) if removed_dir.is_none() => {
                    out.insert(id, listed);
                }
                Some(listed) => {
                    out.entry(id).or_insert(listed);
                }
                None => {}
            }
        }
        Ok(out.into_values().collect())
    }

    /// As [`list`](Self::list), of one.
    pub(super) fn get(
        &self,
        id: &ResourceId,
        mut describe: impl FnMut(&Path, ResourceId, &[String], bool) -> io::Result<Option<WritebackListed>>,
    ) -> Result<Option<WritebackListed>> {
        Ok(match self.described(&self.home(id), id, false, &mut describe)? {
            Some(listed) => Some(listed),
            None => self.described(&self.removed_dir(id), id, true, &mut describe)?,
        })
    }

    fn described(
        &self,
        home: &Path,
        id: &ResourceId,
        removed: bool,
        describe: &mut impl FnMut(&Path, ResourceId, &[String], bool) -> io::Result<Option<WritebackListed>>,
    ) -> Result<Option<WritebackListed>> {
        let inside = gone_is_none(self.files.names(home));
        // None: there is nothing, or it was removed meanwhile.
        let listed = inside.and_then(|inside| {
            inside.map_or(Ok(None), |inside| describe(home, id.clone(), &inside, removed))
        });
        match listed {
            // Not made by us, and no reason to know nothing of the others.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) => {
                tracing::warn!(path = %home.display(), error = %e, "cannot read a writeback");
                let completeness = Completeness::Partial;
                Ok(Some(WritebackListed { id: id.clone(), digest: None, completeness, base: None, bytes: 0 }))
            }
            listed => listed.map_err(|e| Error::io(format!("Reading {}", home.display()), e)),
        }
    }

    /// Bytes that these files take on the disk.
    pub(super) fn allocated(&self, home: &Path, names: &[String]) -> io::Result<u64> {
        names.iter().try_fold(0, |sum, name| {
            Ok(sum + gone_is_none(self.files.allocated(&home.join(name)))?.unwrap_or(0))
        })
    }

    /// How the folder is; waits for the disk.
    pub(super) fn health(&self) -> Health {
        self.place.health()
    }
}

/// What is in a writeback means nothing over another base.
pub(super) fn other_base(id: &ResourceId, version: ImageVersionId) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("Writeback {id} is over image version {version} and contains the changes to it"),
    )
    .with_hint("remove the writeback first")
}

/// What is in a writeback that an image store is about to take over is not to change.
pub(super) fn frozen(id: &ResourceId) -> Error {
    Error::new(ErrorKind::Busy, format!("Writeback {id} is frozen: an image version is being made from it"))
        .with_hint("Try again after that")
}

/// There is nothing of a writeback that could be frozen.
pub(super) fn nothing_to_freeze(id: &ResourceId) -> Error {
    Error::new(ErrorKind::NotFound, format!("Writeback {id} does not exist, so it has no changes"))
}

/// A path as the locator of something that an image store takes over.
pub(super) fn locator(path: &Path) -> Result<String> {
    let path = absolute(path)?;
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("The name of {} is not UTF-8", path.display()))
            .with_hint("Rename the folder of the writebacks, and use the new name in the configuration")
    })
}

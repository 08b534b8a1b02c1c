//! The folder of a store's writebacks: what is common to all kinds of writebacks.
//!
//! ```text
//!   <dir>/<instance>-<id>/             one writeback, mode 0700; its files 0600
//!   <dir>/.removed-<instance>-<id>/    one that is being removed
//!   <dir>/.probe-<instance>            a temporary file that checks whether the folder is writable
//! ```
//! Removal: the folder is renamed, `<dir>` synced, then its content is deleted. Because of the sync, a removed disk cannot reappear after a
//! power cut under the name of a new one. If interrupted after the rename, it is *partial*, and the next `ensure` or `remove` completes it.
//!
//! Invariants: names of other instances are never changed; two calls for the same id do not run concurrently (the caller's locks), and the
//! server's lock on the data folder prevents two servers on one folder.

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

    /// Creates the folder of a writeback. `Unavailable` if the parent folder does not exist: `NotFound` would mean the bytes of the version
    /// below.
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

    /// Removes the writeback, including an incomplete one.
    pub(super) fn remove(&self, id: &ResourceId) -> Result<()> {
        let at = |e| Error::io(format!("Removing {}", self.home(id).display()), e);
        self.end_removal(id).map_err(at)?;
        match self.files.rename(&self.home(id), &self.removed_dir(id)) {
            Ok(()) => self.end_removal(id).map_err(at),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(at(e)),
        }
    }

    /// Completes a removal that was interrupted after the rename.
    pub(super) fn end_removal(&self, id: &ResourceId) -> io::Result<()> {
        let removed_dir = self.removed_dir(id);
        if gone_is_none(self.files.is_link(&removed_dir))?.is_none() {
            return Ok(());
        }
        self.files.open_dir(&self.dir)?.sync_all()?;
        remove_folder(&*self.files, &removed_dir)
    }

    /// Lists the folder; `describe` converts each entry (its folder, the names and sizes in it, whether it is being removed).
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
                // An entry under its own name is listed; the rest of a removed one with the same name is deleted by the next call for it.
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

    /// Like [`list`](Self::list), for one id.
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
        // `None`: it does not exist, or was removed in the meantime.
        let listed = inside.and_then(|inside| {
            inside.map_or(Ok(None), |inside| describe(home, id.clone(), &inside, removed))
        });
        match listed {
            // Not made by us, but not a reason to fail the list of the others.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) => {
                tracing::warn!(path = %home.display(), error = %e, "cannot read a writeback");
                let completeness = Completeness::Partial;
                Ok(Some(WritebackListed { id: id.clone(), digest: None, completeness, base: None, bytes: 0 }))
            }
            listed => listed.map_err(|e| Error::io(format!("Reading {}", home.display()), e)),
        }
    }

    /// The disk space that these files use, in bytes.
    pub(super) fn allocated(&self, home: &Path, names: &[String]) -> io::Result<u64> {
        names.iter().try_fold(0, |sum, name| {
            Ok(sum + gone_is_none(self.files.allocated(&home.join(name)))?.unwrap_or(0))
        })
    }

    /// The health of the folder; blocks on disk I/O.
    pub(super) fn health(&self) -> Health {
        self.place.health()
    }
}

/// The content of a writeback cannot be used over another base.
pub(super) fn other_base(id: &ResourceId, version: ImageVersionId) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("Writeback {id} is over image version {version} and contains the changes to it"),
    )
    .with_hint("remove the writeback first")
}

/// The content of a writeback must not change while an image store is about to adopt it.
pub(super) fn frozen(id: &ResourceId) -> Error {
    Error::new(ErrorKind::Busy, format!("Writeback {id} is frozen: an image version is being made from it"))
        .with_hint("Try again after that")
}

/// There is no writeback to freeze.
pub(super) fn nothing_to_freeze(id: &ResourceId) -> Error {
    Error::new(ErrorKind::NotFound, format!("Writeback {id} does not exist, so it has no changes"))
}

/// A path as the locator of something that an image store adopts.
pub(super) fn locator(path: &Path) -> Result<String> {
    let path = absolute(path)?;
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("The name of {} is not UTF-8", path.display()))
            .with_hint("Rename the folder of the writebacks, and use the new name in the configuration")
    })
}

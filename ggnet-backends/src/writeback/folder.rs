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
    fs::DirBuilder,
    io::{self, IoSlice},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{BaseImage, Completeness, Health, WritebackListed},
};

use super::files::{Files, Open, RawFile, Space};

const REMOVED: &str = ".removed-";
const PROBE: &str = ".probe-";
const LOW_BYTES: u64 = 1 << 30;
/// Fewer inodes make no machine's disk: a folder with up to three files, twice over for a boot that is prepared.
const NEEDED_FILES: u64 = 8;
/// With fewer free inodes somebody should look.
const LOW_FILES: u64 = 500;
/// What the probe writes.
const PROBE_BYTES: usize = 128 << 10;

/// See the module.
pub(super) struct Folder {
    pub(super) files: Arc<dyn Files>,
    pub(super) dir: PathBuf,
    pub(super) instance: InstanceId,
    /// Held while the probe file is there: two at once would remove each other's.
    probing: Mutex<()>,
}

/// Makes the folder and those above it, mode 0700, where they are not there.
pub(super) fn make(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Error::io(format!("Creating {}", dir.display()), e))
}

/// Opens a store on a blocking thread.
pub(super) async fn opened<T: Send + 'static>(
    open: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|e| Error::internal("Opening the writebacks died").with_source(e))?
}

impl Folder {
    pub(super) fn new(files: Arc<dyn Files>, dir: PathBuf, instance: InstanceId) -> Self {
        Self { files, dir, instance, probing: Mutex::default() }
    }

    /// The folder of a writeback.
    pub(super) fn home(&self, id: &ResourceId) -> PathBuf {
        self.dir.join(format!("{}-{id}", self.instance))
    }

    fn grave(&self, id: &ResourceId) -> PathBuf {
        self.dir.join(format!("{REMOVED}{}-{id}", self.instance))
    }

    /// Whether holes can be punched into files here, found out with a file that is removed again. On a full disk it is not known, and
    /// nothing is punched until the next start: what is there must be served.
    pub(super) fn can_punch(&self) -> io::Result<bool> {
        let tried = self.with_probe(|file| file.set_size(8192).and_then(|()| file.punch(0, 4096)));
        match tried {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(e) if full(&e) => {
                tracing::warn!(dir = %self.dir.display(), "full at the start: blocks that guests discard are not given back to the disk");
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a machine's disk could be made: as much is written as the maps of a small one take. A full disk still has room for an empty
    /// file.
    fn has_room(&self) -> io::Result<()> {
        self.with_probe(|file| file.write_at(&mut [IoSlice::new(&vec![1; PROBE_BYTES])], 0))
    }

    fn with_probe(&self, work: impl FnOnce(&dyn RawFile) -> io::Result<()>) -> io::Result<()> {
        let _one = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join(format!("{PROBE}{}", self.instance));
        let file = self.files.open(&path, Open::Create)?;
        let done = work(file.as_ref());
        self.files.remove_file(&path)?;
        done
    }

    /// Removes the writeback, whatever is there of it.
    pub(super) fn remove(&self, id: &ResourceId) -> Result<()> {
        let at = |e| Error::io(format!("Removing {}", self.home(id).display()), e);
        self.end_removal(id).map_err(at)?;
        match self.files.rename(&self.home(id), &self.grave(id)) {
            Ok(()) => self.end_removal(id).map_err(at),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(at(e)),
        }
    }

    /// Ends a removal that had got as far as the rename.
    pub(super) fn end_removal(&self, id: &ResourceId) -> io::Result<()> {
        let grave = self.grave(id);
        let names = match gone_is_none(self.files.is_link(&grave))? {
            None => return Ok(()),
            Some(true) => Err(io::ErrorKind::NotADirectory.into()),
            Some(false) => self.files.names(&grave),
        };
        self.files.open_dir(&self.dir)?.sync_all()?;
        let names = match names {
            // Somebody put a link or a file there. It bears our name and goes; what a link points at is not ours.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                tracing::warn!(path = %grave.display(), "no folder but a link or a file; only that is removed");
                return self.files.remove_file(&grave);
            }
            names => names?,
        };
        for name in names {
            self.files.remove_file(&grave.join(name))?;
        }
        self.files.remove_dir(&grave)
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
            let grave = name.strip_prefix(REMOVED);
            let Some(id) = id_of(grave.unwrap_or(name)) else { continue };
            match self.described(&self.dir.join(name), &id, grave.is_some(), &mut describe)? {
                // One under its own name counts, and what is left of a namesake goes with the next call for it.
                Some(listed) if grave.is_none() => {
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
            None => self.described(&self.grave(id), id, true, &mut describe)?,
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
                tracing::warn!(path = %home.display(), error = %e, "an odd writeback");
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
        let dir = self.dir.display();
        let room = self.has_room();
        let lacks_room = room.as_ref().is_err_and(full);
        if let Err(e) = room
            && !lacks_room
        {
            return Health::Down(format!("{dir} cannot be written: {e}: check its mount and permissions"));
        }
        match self.files.space(&self.dir) {
            Err(e) => Health::Down(format!("The file system of {dir} does not answer: {e}")),
            Ok(Space { files: Some(files), .. }) if files < NEEDED_FILES => Health::Blocked(format!(
                "{dir} has no inodes to spare ({files} free), no machine gets a disk: remove files from its file system, or make one with more of them"
            )),
            Ok(_) if lacks_room => {
                Health::Blocked(format!("{dir} is full, no machine gets a disk: free some space"))
            }
            Ok(s) if s.available < LOW_BYTES || s.available < s.total / 20 => Health::Degraded(format!(
                "{dir} has {} MiB of {} MiB free: free some space before guests run out of it",
                s.available >> 20,
                s.total >> 20
            )),
            Ok(Space { files: Some(files), .. }) if files < LOW_FILES => Health::Degraded(format!(
                "{dir} has few inodes left ({files} free): remove files from its file system before machines get no disk"
            )),
            Ok(_) => Health::Up,
        }
    }
}

/// Whether there was no space, on the disk or in the quota.
pub(super) fn full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A disk is of whole sectors, and has some.
pub(super) fn check_size(base: &BaseImage) -> Result<()> {
    if base.size_bytes == 0 || !base.size_bytes.is_multiple_of(512) {
        return Err(Error::invalid(
            "size_bytes",
            format!("{} bytes are not a whole number of 512-byte sectors", base.size_bytes),
        ));
    }
    Ok(())
}

/// A version's file is as long as its disk.
pub(super) fn check_len(path: &Path, len: u64, want: u64) -> Result<()> {
    if len == want { Ok(()) } else { Err(damaged(path, format!("it has {len} bytes instead of {want}"))) }
}

/// What is in a writeback means nothing over another base.
pub(super) fn other_base(id: &ResourceId, version: ImageVersionId) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("Writeback {id} stands on image version {version} and holds what was written to it"),
    )
    .with_hint("remove the writeback first")
}

/// What is on the disk is not what we wrote.
pub(super) fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} cannot be read back: {why}", path.display()))
}

/// A file that is not there is none.
pub(super) fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

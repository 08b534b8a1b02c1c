//! Flushing: makes acknowledged writes survive a power cut.
//!
//! ```text
//!   1  copy the dirty pages of the map        the set of blocks as it is now, before the sync begins
//!   2  fdatasync the data file                every block that the copy calls present is on the disk
//!   3  write the copy into the durable map    words of one state each: whichever of them a power cut leaves, all are true
//!   4  fdatasync the durable map
//! ```
//! A durable map does not exist before the first flush: until then nothing has to survive a power cut, and creating a writeback needs no
//! fsync. The first durable map is written under another name and synced; then the folder and its parent are synced, so that data file and
//! folder exist whenever the map does; then it is renamed and the folder is synced again. *An existing durable map file is complete.* If an
//! earlier process left a durable map, the first flush syncs the map, the folder and the parent even if there is nothing to write, because
//! that process may have died before it did.
//!
//! Invariants: only one flush at a time; a flush that started after a caller arrived, and succeeded, serves that caller too; a failed sync
//! is never retried: the disk fails permanently, because the kernel may have dropped the data that it could not write. Only a lack of
//! space, file descriptors or memory in a call that is not a sync can be retried, because nothing was lost: a lack of space is returned as
//! such, the others as `ResourceBusy`.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    busy::{or_busy, scarce},
    format::{DURABLE, DURABLE_NEW, Header},
    layer::Layer,
    map::{BlockMap, DirtyPage},
};
use crate::files::{Files, Open, RawFile, full};

/// The state of a flusher.
pub(crate) struct Flusher {
    /// Number of the latest flush that started.
    begun: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Number of the latest flush that succeeded.
    done: u64,
    /// The durable map, if it exists.
    durable: Option<Arc<dyn RawFile>>,
    /// Whether all names and the whole durable map are known to be on disk.
    settled: bool,
    files: Arc<dyn Files>,
    home: PathBuf,
    header: Header,
}

/// Why a flush failed.
enum Failure {
    /// Data did not reach the disk, and it is unknown which.
    Sync(io::Error),
    /// Nothing was lost; a later flush may succeed.
    Resources(io::Error),
}

impl Failure {
    /// The failure of a call that is not a sync.
    fn of(e: io::Error) -> Self {
        if full(&e) || scarce(&e) { Self::Resources(or_busy(e)) } else { Self::Sync(e) }
    }
}

impl Flusher {
    /// For the writeback in `home`; `header` is the header of its durable map, existing or future.
    pub(crate) fn new(
        files: Arc<dyn Files>,
        home: PathBuf,
        header: Header,
        durable: Option<Arc<dyn RawFile>>,
    ) -> Self {
        let inner = Inner { done: 0, durable, settled: false, files, home, header };
        Self { begun: AtomicU64::new(0), inner: Mutex::new(inner) }
    }

    /// Waits for a running flush; no other starts before the guard is dropped.
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside leaves at worst an unfinished flush, which the next one repeats from the start.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes `layer`, whose files are in this flusher's folder.
    pub(crate) fn flush(&self, layer: &Layer) -> io::Result<()> {
        layer.alive()?;
        let seen = self.begun.load(Ordering::SeqCst);
        let mut inner = self.lock();
        layer.alive()?;
        if inner.done > seen {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        if layer.unsynced.swap(false, Ordering::AcqRel) {
            let pages = layer.map.take_dirty();
            if let Err(failure) = inner.make_durable(layer, &pages) {
                layer.map.mark_dirty(&pages);
                layer.unsynced.store(true, Ordering::Release);
                return Err(match failure {
                    Failure::Resources(e) => e,
                    Failure::Sync(e) => {
                        layer.fail();
                        // Converted to another error kind, so that the caller does not treat it as a write that can be retried.
                        io::Error::other(format!(
                            "Writeback {} could not be written to its disk: {e}",
                            layer.id
                        ))
                    }
                });
            }
        }
        inner.done = number;
        Ok(())
    }
}

impl Inner {
    /// Steps 2 to 4.
    fn make_durable(&mut self, layer: &Layer, pages: &[DirtyPage]) -> Result<(), Failure> {
        layer.data.sync_data().map_err(Failure::Sync)?;
        match &self.durable {
            Some(file) => {
                BlockMap::write_pages(&**file, pages).map_err(Failure::of)?;
                if !pages.is_empty() || !self.settled {
                    file.sync_data().map_err(Failure::Sync)?;
                }
                if !self.settled {
                    self.sync_names()?;
                }
            }
            None => self.durable = Some(self.first(pages)?),
        }
        self.settled = true;
        Ok(())
    }

    /// Creates the durable map; `pages` is its whole content.
    fn first(&self, pages: &[DirtyPage]) -> Result<Arc<dyn RawFile>, Failure> {
        let new = self.home.join(DURABLE_NEW);
        let file = self.files.open(&new, Open::Create).map_err(Failure::of)?;
        file.set_size(BlockMap::file_len(self.header.size)).map_err(Failure::of)?;
        file.write_at(&mut [IoSlice::new(&self.header.encode())], 0).map_err(Failure::of)?;
        BlockMap::write_pages(&*file, pages).map_err(Failure::of)?;
        file.sync_all().map_err(Failure::Sync)?;
        self.sync_names()?;
        self.files.rename(&new, &self.home.join(DURABLE)).map_err(Failure::of)?;
        self.sync_home()?;
        Ok(file)
    }

    /// Syncs the names in the folder and the name of the folder.
    fn sync_names(&self) -> Result<(), Failure> {
        self.sync_home()?;
        let Some(parent) = self.home.parent() else { return Ok(()) };
        let parent = self.files.open_dir(parent).map_err(Failure::of)?;
        parent.sync_all().map_err(Failure::Sync)
    }

    fn sync_home(&self) -> Result<(), Failure> {
        let home = self.files.open_dir(&self.home).map_err(Failure::of)?;
        home.sync_all().map_err(Failure::Sync)
    }
}

//! [`Place`]: the folder of a store: checks whether it is writable and how much space is left.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ggnet_core::ports::Health;

use super::{Files, Open, RawFile, Space, full};

const LOW_BYTES: u64 = 1 << 30;
/// With fewer inodes no disk of a machine can be created: it needs a folder with up to three files, twice for a prepared boot.
const NEEDED_FILES: u64 = 8;
/// With fewer free inodes the operator should act.
const LOW_FILES: u64 = 500;
/// The content of the probe file.
const PROBE_BYTES: usize = 128 << 10;

/// The consequences of a lack of space, for health messages.
pub(crate) struct Words {
    /// What is not possible in a full folder.
    pub(crate) when_full: &'static str,
    /// What will happen if no space is freed.
    pub(crate) before_full: &'static str,
    /// What will happen if no inodes are freed.
    pub(crate) before_no_inodes: &'static str,
}

/// See the module.
pub(crate) struct Place {
    files: Arc<dyn Files>,
    dir: PathBuf,
    /// A temporary file that checks whether the folder is writable.
    probe: PathBuf,
    words: Words,
    /// Held while the probe file exists, because two concurrent probes would remove each other's file.
    probing: Mutex<()>,
}

impl Place {
    /// The folder `dir`, in which a file named `probe` may be created and removed.
    pub(crate) fn new(files: Arc<dyn Files>, dir: PathBuf, probe: &str, words: Words) -> Self {
        Self { probe: dir.join(probe), files, dir, words, probing: Mutex::default() }
    }

    /// Whether holes can be punched into files here; tries it with a temporary file. On a full disk it is unknown, and nothing is punched
    /// until the next start, because existing disks must be served.
    pub(crate) fn can_punch(&self) -> io::Result<bool> {
        let tried = self.with_probe(|file| file.set_size(8192).and_then(|()| file.punch(0, 4096)));
        match tried {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(e) if full(&e) => {
                tracing::warn!(dir = %self.dir.display(), "the file system was full at start: blocks that guests discard are not freed");
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a machine's disk could be created: writes as much as the maps of a small disk need, because a full file system still has
    /// space for an empty file.
    fn has_room(&self) -> io::Result<()> {
        self.with_probe(|file| file.write_at(&mut [IoSlice::new(&vec![1; PROBE_BYTES])], 0))
    }

    fn with_probe(&self, work: impl FnOnce(&dyn RawFile) -> io::Result<()>) -> io::Result<()> {
        let _one = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.files.open(&self.probe, Open::Create)?;
        let done = work(file.as_ref());
        self.files.remove_file(&self.probe)?;
        done
    }

    /// The health of the folder; blocks on disk I/O.
    pub(crate) fn health(&self) -> Health {
        let (dir, words) = (self.dir.display(), &self.words);
        let room = self.has_room();
        let lacks_room = room.as_ref().is_err_and(full);
        if let Err(e) = room
            && !lacks_room
        {
            return Health::Down(format!("{dir} is not writable: {e}; check its mount and permissions"));
        }
        match self.files.space(&self.dir) {
            Err(e) => Health::Down(format!("Cannot read the free space of {dir}: {e}")),
            Ok(Space { files: Some(files), .. }) if files < NEEDED_FILES => Health::Blocked(format!(
                "{dir} has almost no inodes left ({files} free), {}: remove files from its file system, or create one with \
                 more inodes",
                words.when_full
            )),
            Ok(_) if lacks_room => {
                Health::Blocked(format!("{dir} is full, {}: free some space", words.when_full))
            }
            Ok(s) if s.available < LOW_BYTES || s.available < s.total / 20 => Health::Degraded(format!(
                "{dir} has {} MiB of {} MiB free: free some space before {}",
                s.available >> 20,
                s.total >> 20,
                words.before_full
            )),
            Ok(Space { files: Some(files), .. }) if files < LOW_FILES => Health::Degraded(format!(
                "{dir} has few inodes left ({files} free): remove files from its file system before {}",
                words.before_no_inodes
            )),
            Ok(_) => Health::Up,
        }
    }
}

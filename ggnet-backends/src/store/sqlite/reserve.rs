//! The reserve: disk space that is kept beside the database for what frees space.
//!
//! On a full disk a session can be stopped, and an image deleted, only if that can be recorded. So a file of [`SIZE`] bytes is kept
//! allocated beside the database, `<database>-reserve`, while there is room. A change that frees space and does not fit gets it, slice
//! by slice; when there is room again it is taken back.
//!
//! ```text
//!            such a change does not fit            nothing is left
//!   whole ───────────────────────────────▶ short ──────────────────▶ empty
//!     ▲                                      │ room again              │
//!     └──────────────────────────────────────┴─────────────────────────┘
//! ```
//! Invariants: while the reserve is not whole no other change is made, so that what strangers cause never uses it up; the file system
//! sees a slice free only while a change waits for it (a guest that writes at the same moment can take that slice, not the rest).
//!
//! What it is worth depends on the file system: see `host::kept_space`. All calls block.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, CWD, FallocateFlags, Timespec, Timestamps, UTIME_NOW, fallocate},
    io::Errno,
};

/// What is kept: the write-ahead log from empty to where SQLite folds it into the database (1000 pages of 4 KiB), and as much again
/// for the database and what the file system itself needs.
pub(super) const SIZE: u64 = 8 << 20;
/// What one attempt gets; a stop is recorded in about 100 KiB.
const SLICE: u64 = 512 << 10;
/// With so much free nobody asks whether there is room.
const PLENTY: u64 = 64 << 20;
/// Inodes that a start makes: the reserve, the write-ahead log with its index, and one more for what is written atomically.
const FILES: u64 = 4;

/// See the module.
pub(super) struct Reserve {
    path: PathBuf,
    /// Bytes that the file has.
    held: Mutex<u64>,
    whole: AtomicBool,
    /// The file system writes elsewhere at every change.
    elsewhere: bool,
}

impl Reserve {
    /// The reserve of the database at this path, taken if there is room. `elsewhere`: see [`writes_elsewhere`](super::open::writes_elsewhere).
    ///
    /// # Errors
    /// The file cannot be made, but for lack of room: see [`take`](Self::take).
    pub(super) fn open(database: &Path, elsewhere: bool) -> io::Result<Self> {
        let mut name = database.as_os_str().to_owned();
        name.push("-reserve");
        let path = PathBuf::from(name);
        let held = match fs::symlink_metadata(&path) {
            // What an earlier process had.
            Ok(meta) => meta.len().min(SIZE),
            Err(_) => 0,
        };
        let this = Self { path, held: Mutex::new(held), whole: AtomicBool::new(false), elsewhere };
        this.take()?;
        Ok(this)
    }

    /// Whether all of it is there.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Takes what is missing, or as much of that as there is room for. Whether it is whole now.
    ///
    /// # Errors
    /// For another reason than lack of room.
    pub(super) fn take(&self) -> io::Result<bool> {
        let mut held = self.lock();
        if self.is_whole() {
            return Ok(true);
        }
        let file = match self.file() {
            Ok(file) => file,
            Err(e) if full(&e) => return Ok(self.note(false)),
            Err(e) => return Err(e),
        };
        // All at once; else as many slices as there are.
        let mut wanted = SIZE;
        loop {
            match grow(&file, *held, wanted) {
                Ok(()) => *held = wanted,
                Err(e) if full(&e) && wanted == SIZE && *held + SLICE < SIZE => {}
                Err(e) if full(&e) => return Ok(self.note(false)),
                Err(e) => return Err(e),
            }
            if *held == SIZE {
                return Ok(self.note(true));
            }
            wanted = (*held + SLICE).min(SIZE);
        }
    }

    /// Gives a slice back to the file system. False: nothing was left.
    ///
    /// # Errors
    /// The file cannot be made shorter.
    pub(super) fn give(&self) -> io::Result<bool> {
        let mut held = self.lock();
        if *held == 0 {
            return Ok(false);
        }
        self.note(false);
        let rest = held.saturating_sub(SLICE);
        let file = self.file()?;
        file.set_len(rest)?;
        if self.elsewhere {
            // What is freed can be written again when the file system has committed that, and not before.
            rustix::fs::syncfs(&file)?;
        }
        *held = rest;
        Ok(true)
    }

    /// Whether there is room beside the whole reserve, in bytes, found out by taking and giving back a slice more, and in inodes.
    ///
    /// # Errors
    /// For another reason than lack of room.
    pub(super) fn room(&self) -> io::Result<bool> {
        self.look();
        if !self.take()? {
            return Ok(false);
        }
        // Nothing is changed on the disk for a question that is asked every few seconds.
        let stat = rustix::fs::statvfs(&self.path)?;
        // A file system that makes inodes as it needs them reports none at all.
        if stat.f_files > 0 && stat.f_favail < FILES {
            return Ok(false);
        }
        if stat.f_bavail.saturating_mul(stat.f_frsize) >= PLENTY {
            return Ok(true);
        }
        let _held = self.lock();
        let file = self.file()?;
        match grow(&file, SIZE, SIZE + SLICE) {
            Ok(()) => {
                file.set_len(SIZE)?;
                Ok(true)
            }
            Err(e) if full(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether the file system takes no change. The mount's flag does not tell of one that the kernel stopped after an error (ext4 since
    /// Linux 6.12), so the file's time is set: the smallest change there is.
    pub(super) fn is_read_only(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        rustix::fs::utimensat(CWD, &self.path, &times, AtFlags::empty()) == Err(Errno::ROFS)
    }

    /// Somebody may have removed the file, or cut it.
    fn look(&self) {
        let mut held = self.lock();
        let there = fs::symlink_metadata(&self.path).map_or(0, |meta| meta.len().min(SIZE));
        if there < *held {
            *held = there;
            self.note(false);
        }
    }

    fn file(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)
    }

    fn note(&self, whole: bool) -> bool {
        self.whole.store(whole, Ordering::Release);
        whole
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        // Every step under it leaves a number that the next `take` starts from.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the file `to` bytes long, all of them on the disk; after an error it is `from` long.
fn grow(file: &File, from: u64, to: u64) -> io::Result<()> {
    let grown = match fallocate(file, FallocateFlags::empty(), 0, to).map_err(io::Error::from) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => fill(file, from, to),
        other => other,
    };
    if grown.is_err() {
        // It may have grown a part of the way.
        file.set_len(from)?;
    }
    grown
}

/// The same where the file system cannot allocate ahead: with bytes that it cannot compress.
fn fill(mut file: &File, from: u64, to: u64) -> io::Result<()> {
    use std::io::Seek as _;
    let mut block = vec![0; 64 << 10];
    getrandom::fill(&mut block).map_err(|e| io::Error::other(e.to_string()))?;
    file.seek(io::SeekFrom::Start(from))?;
    let mut at = from;
    while at < to {
        let length = usize::try_from((to - at).min(64 << 10)).unwrap_or(block.len());
        file.write_all(&block[..length])?;
        at += length as u64;
    }
    file.sync_all()
}

fn full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn it_is_taken_given_in_slices_and_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(&folder.path().join("x.db"), true).unwrap();
        let taken = || fs::metadata(folder.path().join("x.db-reserve")).unwrap().blocks() * 512;
        assert!(reserve.is_whole() && reserve.room().unwrap() && taken() >= SIZE);
        let mut slices = 0;
        while reserve.give().unwrap() {
            slices += 1;
            assert!(!reserve.is_whole());
        }
        assert_eq!((slices, taken()), (SIZE / SLICE, 0));
        assert!(reserve.take().unwrap() && reserve.is_whole() && taken() >= SIZE);
        // Somebody removed it: the next look takes it again.
        fs::remove_file(folder.path().join("x.db-reserve")).unwrap();
        assert!(reserve.room().unwrap() && reserve.is_whole() && taken() >= SIZE);
        drop(reserve);
        // A later process goes on with what there is.
        File::options().write(true).open(folder.path().join("x.db-reserve")).unwrap().set_len(SLICE).unwrap();
        assert!(Reserve::open(&folder.path().join("x.db"), false).unwrap().is_whole() && taken() >= SIZE);
    }

    #[test]
    fn where_nothing_can_be_allocated_ahead_it_is_written() {
        let file = tempfile::tempfile().unwrap();
        fill(&file, 0, SIZE).unwrap();
        let meta = file.metadata().unwrap();
        assert!(meta.len() == SIZE && meta.blocks() * 512 >= SIZE);
    }
}

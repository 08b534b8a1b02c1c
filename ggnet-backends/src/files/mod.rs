//! The few file operations that writebacks and image versions need, behind two small traits, and their implementation with the operating
//! system.
//!
//! They are traits so that the crash tests can run the same code on a simulated disk that loses, reorders and tears unsynced data. An
//! implementation guarantees:
//! * a completed write or punch is visible to every later read, also in another process after ours died (the page cache);
//! * it survives a power cut only after `sync_data`/`sync_all` of that file returned; until then each 512-byte sector has, after the power
//!   cut, any one of the values that it had since;
//! * a name (create, rename, remove) survives a power cut only after `sync_all` of its directory.

#![cfg_attr(
    not(all(feature = "writeback-layers", feature = "writeback-reflink", feature = "images-files")),
    allow(dead_code, reason = "a plain file uses fewer of these functions than a layer does")
)]

mod place;
#[cfg(test)]
#[cfg(any(feature = "writeback-layers", feature = "images-files"))]
pub(crate) mod sim;

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, IoSlice, IoSliceMut},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::error::{Error, ErrorKind, Result as CoreResult};
use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::{Errno, ReadWriteFlags},
};

pub(crate) use self::place::{Place, Words};

/// The family of a plain raw file that a writeback store hands over: its locator is the absolute path of the file.
pub(crate) const RAW_FILE: &str = "raw-file";

/// An open file.
pub(crate) trait RawFile: Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Sets its length; the new part is a hole.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Fills `buf`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Fills `buf` if all data is in memory; `false`: it is not, or the file system does not report it.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool>;
    /// Writes all parts one after the other, starting at `offset`. After an error, any part of it may have been written.
    fn write_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes the range a hole that reads as zeros; the file keeps its length. `Unsupported` if the file system has no holes.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// `fdatasync`.
    fn sync_data(&self) -> io::Result<()>;
    /// `fsync`, also of a directory.
    fn sync_all(&self) -> io::Result<()>;
    /// Whether there is data (not a hole) at `offset`, and where that ends, at most at `end`.
    fn run(&self, offset: u64, end: u64) -> io::Result<(bool, u64)>;
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// For reading only.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; created if it does not exist, truncated if it does. Mode 0600.
    Create,
}

/// Space on a file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    /// Total bytes.
    pub(crate) total: u64,
    /// Bytes that we can still use.
    pub(crate) available: u64,
    /// Files and folders that can still be created; `None` if the file system creates inodes as needed.
    pub(crate) files: Option<u64>,
}

/// A file system.
pub(crate) trait Files: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn RawFile>>;
    /// Opens a directory, to sync it.
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn RawFile>>;
    /// Creates a directory with mode 0700; an existing one is not changed.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or directory; replaces an existing file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory; names that are not UTF-8 are skipped, because they are not ours.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether the path is a symbolic link.
    fn is_link(&self, path: &Path) -> io::Result<bool>;
    /// Disk space that a file uses, in bytes.
    fn allocated(&self, path: &Path) -> io::Result<u64>;
    /// Space on the file system of `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// The operating system's files.
#[derive(Debug)]
pub(crate) struct OsFiles;

struct OsFile(File);

/// Repeats a system call that was interrupted by a signal.
fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

impl RawFile for OsFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let wanted = buf.len();
        loop {
            let mut parts = [IoSliceMut::new(buf)];
            return match rustix::io::preadv2(&self.0, &mut parts, offset, ReadWriteFlags::NOWAIT) {
                // A short count means that the rest is not in memory (or not in the file, which the blocking read will report).
                Ok(n) => Ok(n == wanted),
                Err(Errno::INTR) => continue,
                // OPNOTSUPP and INVAL: this file system does not support it, so every read may block.
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
                Err(e) => Err(e.into()),
            };
        }
    }

    fn write_at(&self, mut parts: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let n = again(|| match &*parts {
                [one] => rustix::io::pwrite(&self.0, one, offset),
                many => rustix::io::pwritev(&self.0, many, offset),
            })?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += n as u64;
            IoSlice::advance_slices(&mut parts, n);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        again(|| {
            rustix::fs::fallocate(
                &self.0,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                len,
            )
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        // Never retried after an error: the kernel may have dropped the data that it could not write.
        rustix::fs::fdatasync(&self.0).map_err(io::Error::from)
    }

    fn sync_all(&self) -> io::Result<()> {
        rustix::fs::fsync(&self.0).map_err(io::Error::from)
    }

    fn run(&self, offset: u64, end: u64) -> io::Result<(bool, u64)> {
        // The shared file position that lseek changes is never used: every transfer specifies its offset.
        let data = match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(at) => at,
            Err(Errno::NXIO) => return Ok((false, end)),
            Err(Errno::INVAL) => return Ok((true, end)),
            Err(e) => return Err(e.into()),
        };
        if data > offset {
            return Ok((false, data.min(end)));
        }
        Ok((true, again(|| rustix::fs::seek(&self.0, SeekFrom::Hole(offset)))?.min(end)))
    }
}

impl Files for OsFiles {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn RawFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match how {
            Open::Read => {}
            Open::Write => {
                options.write(true);
            }
            Open::Create => {
                options.write(true).create(true).truncate(true).mode(0o600);
            }
        }
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile(file)))
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn RawFile>> {
        Ok(Arc::new(OsFile(File::open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            if let Ok(name) = std::str::from_utf8(entry?.file_name().as_bytes()) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        Ok(std::fs::symlink_metadata(path)?.is_symlink())
    }

    fn allocated(&self, path: &Path) -> io::Result<u64> {
        // st_blocks is in units of 512 bytes, whatever the block size of the file system.
        Ok(std::fs::symlink_metadata(path)?.blocks() * 512)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let s = rustix::fs::statvfs(path)?;
        Ok(Space {
            total: s.f_blocks * s.f_frsize,
            available: s.f_bavail * s.f_frsize,
            // btrfs and others do not report any.
            files: (s.f_files > 0).then_some(s.f_favail),
        })
    }
}

/// Creates a folder and its missing parents, mode 0700.
pub(crate) fn make_folder(dir: &Path) -> CoreResult<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Error::io(format!("Creating {}", dir.display()), e))
}

/// Opens a store on a blocking thread.
pub(crate) async fn opened<T: Send + 'static>(
    open: impl FnOnce() -> CoreResult<T> + Send + 'static,
) -> CoreResult<T> {
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|e| Error::internal("The task that opens a store panicked").with_source(e))?
}

/// A path that is valid in every process.
pub(crate) fn absolute(path: &Path) -> CoreResult<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(format!("Finding {}", path.display()), e))
}

/// Removes one of our folders with the files in it. If it is a link or a file, only that is removed: the target of a link is not ours.
/// `NotFound` if it does not exist.
pub(crate) fn remove_folder(files: &dyn Files, path: &Path) -> io::Result<()> {
    let names =
        if files.is_link(path)? { Err(io::ErrorKind::NotADirectory.into()) } else { files.names(path) };
    let names = match names {
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            tracing::warn!(path = %path.display(), "not a folder but a link or a file; removing only that");
            return files.remove_file(path);
        }
        names => names?,
    };
    for name in names {
        files.remove_file(&path.join(name))?;
    }
    files.remove_dir(path)
}

/// Whether the disk or the quota is full.
pub(crate) fn full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A disk must consist of whole sectors, and not be empty.
pub(crate) fn check_size(size_bytes: u64) -> CoreResult<()> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) {
        return Err(Error::invalid(
            "size_bytes",
            format!("{size_bytes} bytes are not a whole number of 512-byte sectors"),
        ));
    }
    Ok(())
}

/// The file of a version must be as long as its disk.
pub(crate) fn check_len(path: &Path, len: u64, want: u64) -> CoreResult<()> {
    if len == want { Ok(()) } else { Err(damaged(path, format!("it has {len} bytes instead of {want}"))) }
}

/// The data on disk is not what we wrote.
pub(crate) fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} cannot be read back: {why}", path.display()))
}

/// Converts the error for a missing file to `None`.
pub(crate) fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

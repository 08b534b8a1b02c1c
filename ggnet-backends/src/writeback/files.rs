//! The few file operations that writebacks need, behind two small traits, and the operating system's implementation.
//!
//! They are traits so that the crash tests can run the very same code over a simulated disk that loses, reorders and tears what
//! was not synced. What an implementation promises:
//! * a write or punch that returned is seen by every later read, also of another process after ours died (the page cache);
//! * it survives a power cut only after `sync_data`/`sync_all` of that file returned; until then each 512-byte sector is, after
//!   the cut, any one of the values it had since;
//! * a name (create, rename, remove) survives a power cut only after `sync_all` of its directory.

#![cfg_attr(
    not(feature = "writeback-layers"),
    allow(dead_code, reason = "a plain file needs less than a layer")
)]

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, IoSlice, IoSliceMut},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::{Errno, ReadWriteFlags},
};

/// An open file.
pub(super) trait RawFile: Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Makes it that long; what is new is a hole.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Fills `buf`; a file that ends before is `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Fills `buf` if it is all in memory; `false`: it is not, or the file system cannot tell.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool>;
    /// Writes all parts one after the other from `offset` on. After an error any part of it may have been written.
    fn write_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes the range a hole that reads as zeros; the file keeps its length. `Unsupported` where the file system has none.
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
pub(super) enum Open {
    /// For reading only.
    Read,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; made if it is not there, emptied if it is. Mode 0600.
    Create,
}

/// Room on a file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    /// Bytes in all.
    pub(super) total: u64,
    /// Bytes that we may still take.
    pub(super) available: u64,
    /// Files and folders that can still be made; none where the file system makes inodes as it needs them.
    pub(super) files: Option<u64>,
}

/// A file system.
pub(super) trait Files: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn RawFile>>;
    /// Opens a directory, to sync it.
    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn RawFile>>;
    /// Makes a directory of mode 0700; one that is there is left as it is.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or directory; a file in the way is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, those that are no UTF-8 left out: they are not ours.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether a symbolic link stands there.
    fn is_link(&self, path: &Path) -> io::Result<bool>;
    /// Bytes that a file takes on the disk.
    fn allocated(&self, path: &Path) -> io::Result<u64>;
    /// Room on the file system of `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// The operating system's files.
#[derive(Debug)]
pub(super) struct OsFiles;

struct OsFile(File);

/// Repeats a system call that a signal interrupted.
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
                // A short count means that the rest is not in memory (or not in the file, which the waiting form will say).
                Ok(n) => Ok(n == wanted),
                Err(Errno::INTR) => continue,
                // OPNOTSUPP and INVAL: this file system cannot tell, so every read may wait.
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
        // Not repeated on any error: what the kernel could not write it may have dropped.
        rustix::fs::fdatasync(&self.0).map_err(io::Error::from)
    }

    fn sync_all(&self) -> io::Result<()> {
        rustix::fs::fsync(&self.0).map_err(io::Error::from)
    }

    fn run(&self, offset: u64, end: u64) -> io::Result<(bool, u64)> {
        // The shared file position that lseek moves is never used: every transfer names its offset.
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
        // st_blocks is in units of 512 bytes, whatever the file system's own block is.
        Ok(std::fs::symlink_metadata(path)?.blocks() * 512)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let s = rustix::fs::statvfs(path)?;
        Ok(Space {
            total: s.f_blocks * s.f_frsize,
            available: s.f_bavail * s.f_frsize,
            // btrfs and others report none at all.
            files: (s.f_files > 0).then_some(s.f_favail),
        })
    }
}

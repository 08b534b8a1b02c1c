//! A file, or a block device of the host, as a [`BlockDevice`], through the page cache.
//!
//! Invariants: data in the page cache is read without waiting, everything else is left to the blocking pool; a discarded range becomes a
//! hole in the file, which reads as zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::block::{BlockDevice, BlockInfo, BlockRun};

/// A file as a disk (Linux only).
///
/// Writes go to the page cache on the caller's thread: if the host has too many dirty pages, such a write waits for a disk.
///
/// After a failed sync every flush fails: the kernel reports an error once, so a later sync could succeed although data is lost.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    info: BlockInfo,
    /// A sync has failed.
    lost: AtomicBool,
}

impl FileDevice {
    /// Opens a file. The disk is the file without an incomplete last block of 512 bytes.
    ///
    /// # Errors
    /// The file cannot be opened, or its size cannot be determined.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> io::Result<Self> {
        let mut file = File::options().read(true).write(!read_only).open(path)?;
        // The metadata of a block device has no size.
        let size_bytes = io::Seek::seek(&mut file, io::SeekFrom::End(0))? / 512 * 512;
        let info = BlockInfo {
            size_bytes,
            logical_block: 512,
            physical_block: 4096,
            read_only,
            volatile_cache: true,
            discard: !read_only,
        };
        Ok(Self::new(file, info))
    }

    /// A file that is already open. It must not get shorter than `info` says, and must support holes if `info` has `discard`.
    #[must_use]
    pub fn new(file: File, info: BlockInfo) -> Self {
        Self { file, info, lost: AtomicBool::new(false) }
    }

    fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier sync failed, so written data may be lost"));
        }
        sync(&self.file).inspect_err(|_| self.lost.store(true, Ordering::Relaxed))
    }
}

impl BlockDevice for FileDevice {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let len = buf.len();
        let mut vec = [io::IoSliceMut::new(buf)];
        match preadv2(&self.file, &mut vec, offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(n == len),
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.file.write_all_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync(File::sync_data)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let end = offset + len;
        let block = u64::from(self.info.logical_block);
        let data = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => at.min(end),
            Err(Errno::NXIO) => end,
            Err(e) => return Err(e.into()),
        };
        if data > offset {
            return Ok(BlockRun { len: (data - offset).next_multiple_of(block).min(len), mapped: false });
        }
        let hole = seek(&self.file, SeekFrom::Hole(offset))?.min(end);
        Ok(BlockRun { len: (hole - offset).next_multiple_of(block).min(len), mapped: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_written_and_punched_and_says_what_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create_new(&path).unwrap().set_len((1 << 20) + 100).unwrap();
        let disk = FileDevice::open(&path, false).unwrap();
        assert_eq!(disk.info().size_bytes, 1 << 20, "whole blocks");
        assert_eq!(disk.block_status(0, 1 << 20).unwrap(), BlockRun { len: 1 << 20, mapped: false });
        disk.write_at(&[7; 8192], 64 << 10).unwrap();
        disk.flush().unwrap();
        assert_eq!(disk.block_status(0, 1 << 20).unwrap(), BlockRun { len: 64 << 10, mapped: false });
        assert!(disk.block_status(64 << 10, 1 << 20).unwrap().mapped);
        let mut buf = [0; 8192];
        disk.read_at(&mut buf, 64 << 10).unwrap();
        assert_eq!(buf, [7; 8192]);
        disk.discard(64 << 10, 4096).unwrap();
        disk.read_at(&mut buf, 64 << 10).unwrap();
        assert_eq!((&buf[..4096], &buf[4096..]), ([0; 4096].as_slice(), [7; 4096].as_slice()));
        let read_only = FileDevice::open(&path, true).unwrap();
        assert!(read_only.info().read_only && read_only.write_at(&[1; 512], 0).is_err());
    }

    #[test]
    fn after_a_failed_sync_no_flush_succeeds() {
        let disk = FileDevice::open("/dev/null", false).unwrap();
        assert!(disk.sync(|_| Ok(())).is_ok());
        assert!(disk.sync(|_| Err(io::Error::from(io::ErrorKind::StorageFull))).is_err());
        assert!(disk.sync(|_| Ok(())).is_err());
    }
}

//! A raw file as a block device, through the page cache: for tests, the example and measurements.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ggnet_iscsi::{BlockDevice, BlockInfo, BlockRun};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// A file, in memory or not, through the page cache.
pub struct FileDisk {
    /// The file.
    pub file: File,
    /// Bytes of it that are the disk.
    pub size: u64,
    /// Logical block length.
    pub block: u32,
    /// Physical block length.
    pub physical: u32,
}

impl BlockDevice for FileDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: self.block,
            physical_block: self.physical,
            read_only: false,
            volatile_cache: true,
            discard: true,
        }
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
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let end = offset + len;
        let block = u64::from(self.block);
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

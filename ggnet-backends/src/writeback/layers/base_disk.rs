//! A version alone, read-only: for manual targets. It shares the chain, and so its open file and page cache, with the writebacks above it.

use std::{io, sync::Arc};

use ggnet_core::block::{BlockDevice, BlockInfo, BlockRun};

use super::{
    busy::or_busy,
    chain::{Chain, Wait, runs},
};

/// A chain as a read-only disk.
pub(super) struct BaseDisk {
    chain: Arc<Chain>,
    size: u64,
}

impl BaseDisk {
    pub(super) const fn new(chain: Arc<Chain>, size: u64) -> Self {
        Self { chain, size }
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let within = offset.checked_add(len).is_some_and(|end| end <= self.size);
        if within && offset.is_multiple_of(512) && len.is_multiple_of(512) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "outside the disk, or not in whole sectors"))
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "an image version is never written to")
}

impl BlockDevice for BaseDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: true,
            discard: false,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.check(offset, buf.len() as u64)?;
        self.chain.below().read(buf, offset, Wait::Never).map_err(or_busy)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.chain.below().read(buf, offset, Wait::Allowed).map(|_| ()).map_err(or_busy)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        self.check(offset, len)?;
        runs(offset, len, limit, |at, end| self.chain.below().run(at, end)).map_err(or_busy)
    }
}

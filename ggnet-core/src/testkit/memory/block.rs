//! [`RamDisk`]: a disk that is a `Vec<u8>`.

use std::{
    io,
    sync::{PoisonError, RwLock},
};

use crate::{
    block::{BlockDevice, BlockInfo},
    testkit::disk::{check, check_write},
};

/// A disk of 512-byte sectors in memory. Reads and writes never wait.
#[derive(Debug)]
pub struct RamDisk {
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
}

impl RamDisk {
    /// A disk with these bytes, zeros added up to a whole sector.
    #[must_use]
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Self { bytes: RwLock::new(bytes), read_only: false }
    }

    /// A disk of `size` zeros, rounded up to a whole sector.
    #[must_use]
    pub fn zeros(size: usize) -> Self {
        Self::new(vec![0; size])
    }

    /// The same disk, refusing writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// A copy of all its bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Checked offsets fit into memory, so this conversion cannot fail after the check.
fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl BlockDevice for RamDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64,
            logical_block: 512,
            physical_block: 4096,
            read_only: self.read_only,
            discard: false,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(&self.info(), offset, buf.len() as u64)?;
        let at = index(offset)?;
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        buf.copy_from_slice(&bytes[at..at + buf.len()]);
        Ok(())
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.write_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_write(&self.info(), offset, buf.len() as u64)?;
        let at = index(offset)?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_write(&self.info(), offset, len)?;
        let (at, end) = (index(offset)?, index(offset + len)?);
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)[at..end].fill(0);
        Ok(())
    }
}

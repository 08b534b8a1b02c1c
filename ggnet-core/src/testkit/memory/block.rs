//! [`RamDisk`]: a disk that is a `Vec<u8>`, and that can grow and make its callers retry.

use std::{
    io,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
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
    /// The number of calls that will still fail with "try again".
    busy: AtomicU32,
}

impl RamDisk {
    /// A disk with these bytes, zeros added up to a whole sector.
    #[must_use]
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Self { bytes: RwLock::new(bytes), read_only: false, busy: AtomicU32::new(0) }
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

    /// Grows it to `size` bytes, rounded up to a whole sector; the new part is zeros. It never shrinks: a smaller size changes nothing.
    pub fn grow(&self, size: usize) {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let size = size.next_multiple_of(512).max(bytes.len());
        bytes.resize(size, 0);
    }

    /// The next `calls` reads, writes, flushes and discards fail with `ResourceBusy` ("not now, try again") and do nothing.
    pub fn be_busy(&self, calls: u32) {
        self.busy.store(calls, Ordering::SeqCst);
    }

    fn not_busy(&self) -> io::Result<()> {
        let one_less = |left: u32| left.checked_sub(1);
        match self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Err(io::Error::new(io::ErrorKind::ResourceBusy, "the disk was told to be busy")),
            Err(_) => Ok(()),
        }
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
        self.not_busy()?;
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
        self.not_busy()?;
        let at = index(offset)?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.not_busy()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_write(&self.info(), offset, len)?;
        self.not_busy()?;
        let (at, end) = (index(offset)?, index(offset + len)?);
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)[at..end].fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_never_shrinks() {
        let disk = RamDisk::new(vec![7; 512]);
        assert!(disk.read_at(&mut [0; 512], 512).is_err());
        disk.grow(1000);
        assert_eq!(disk.info().size_bytes, 1024);
        let mut new = [1; 512];
        disk.read_at(&mut new, 512).unwrap();
        assert_eq!(new, [0; 512]);
        disk.grow(512);
        assert_eq!(disk.info().size_bytes, 1024);
    }

    #[test]
    fn busy_calls_do_nothing_and_the_next_one_does_all() {
        let disk = RamDisk::zeros(512);
        disk.be_busy(3);
        for result in [disk.write_at(&[1; 512], 0), disk.flush(), disk.discard(0, 512)] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        }
        assert_eq!(disk.to_vec(), [0; 512]);
        disk.write_at(&[1; 512], 0).unwrap();
        assert_eq!(disk.to_vec(), [1; 512]);
    }
}

//! Opens the disk of a writeback store, in any form, so that a test can read its bytes.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use crate::{
    block::{BlockDevice, BlockInfo, Disk},
    nouns::ImageFormat,
};

/// The bytes of `disk`. Blocks are returned as they are; a raw file or a kernel device is opened. Blocking.
///
/// Errors: those of opening; `Unsupported` for a file that is not raw.
pub fn open(disk: &Disk, read_only: bool) -> io::Result<Arc<dyn BlockDevice>> {
    match disk {
        Disk::Blocks(device) => Ok(Arc::clone(device)),
        Disk::File { path, format: ImageFormat::Raw } | Disk::Device { path } => {
            Ok(Arc::new(FileDisk::open(path, read_only)?))
        }
        Disk::File { path, format } => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{} is {format:?}; only raw files can be opened", path.display()),
        )),
    }
}

/// A raw file, or a block device of the kernel, as a disk of 512-byte sectors.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size: u64,
    read_only: bool,
}

impl FileDisk {
    /// Opens it; its size is where the file ends.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        // The metadata of a block device has no length; seeking to its end gives it.
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        Ok(Self { file, size, read_only })
    }
}

/// Rejects a range that is outside the device or not aligned to its sectors.
pub(crate) fn check(info: &BlockInfo, offset: u64, len: u64) -> io::Result<()> {
    let block = u64::from(info.logical_block);
    let inside = offset.checked_add(len).is_some_and(|end| end <= info.size_bytes);
    if inside && offset.is_multiple_of(block) && len.is_multiple_of(block) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are not whole sectors within {} bytes", info.size_bytes),
        ))
    }
}

/// Rejects a change of a read-only device.
pub(crate) fn check_write(info: &BlockInfo, offset: u64, len: u64) -> io::Result<()> {
    if info.read_only {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    check(info, offset, len)
}

impl BlockDevice for FileDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: self.read_only,
            discard: false,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(&self.info(), offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_write(&self.info(), offset, buf.len() as u64)?;
        self.file.write_all_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_write(&self.info(), offset, len)?;
        let zeros = vec![0; 1 << 16];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeros.len());
            self.file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }
}

//! A raw file as a read-only disk: an imported version, and the lowest disk of a chain.

use std::{io, path::Path, sync::Arc};

use ggnet_core::{
    block::{BlockDevice, BlockInfo, BlockRun, Disk},
    error::{Error, ErrorKind, Result},
    nouns::ImageVersionId,
    ports::{Hold, OpenImage},
};

use super::{
    busy::or_busy,
    chain::{Wait, end_of, frozen_info, never_written, read_file, runs},
};
use crate::files::{Files, Open, OsFiles, RawFile, damaged};

/// See the module.
pub(crate) struct RawDisk {
    file: Arc<dyn RawFile>,
    size: u64,
}

impl RawDisk {
    /// Opens the file at `path`, whose length is the size of the disk. Errors: `NotFound`; `Corrupt` if the length is not a whole number of
    /// sectors, or if it is not a file.
    pub(crate) fn open(files: &dyn Files, path: &Path) -> Result<Self> {
        let at = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => damaged(path, e),
            _ => Error::io(format!("Opening {}", path.display()), e),
        };
        let file = files.open(path, Open::Read).map_err(at)?;
        let size = file.size().map_err(at)?;
        if size == 0 || !size.is_multiple_of(512) {
            return Err(damaged(path, format!("its {size} bytes are not whole sectors of 512 bytes")));
        }
        Ok(Self { file, size })
    }

    fn read(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<bool> {
        end_of(offset, buf.len() as u64, self.size)?;
        read_file(&*self.file, buf, offset, wait).map_err(or_busy)
    }
}

impl BlockDevice for RawDisk {
    fn info(&self) -> BlockInfo {
        frozen_info(self.size)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read(buf, offset, Wait::Never)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset, Wait::Allowed).map(|_| ())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(never_written())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(never_written())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        end_of(offset, len, self.size)?;
        runs(offset, len, limit, |at, end| self.file.run(at, end)).map_err(or_busy)
    }
}

/// A raw file as a version with that id, without an image store: for measurements and tests. Blocks on disk I/O.
///
/// # Errors
/// `NotFound`; `Corrupt` if it is not a file of whole sectors.
pub fn open_raw(id: ImageVersionId, path: &Path) -> Result<OpenImage> {
    let disk: Arc<dyn BlockDevice> = Arc::new(RawDisk::open(&OsFiles, path)?);
    let (size_bytes, hold) = (disk.info().size_bytes, Hold::of(Arc::clone(&disk)));
    Ok(OpenImage { id, size_bytes, disk: Disk::Blocks(disk), hold })
}

/// The device of an opened version, for a layer over it. `Unsupported` for a version that is not open as blocks, or has larger sectors than
/// a layer's disk.
pub(crate) fn bytes_of(base: &OpenImage) -> Result<Arc<dyn BlockDevice>> {
    let unfit = |what: String| Err(Error::new(ErrorKind::Unsupported, format!("A layer needs {what}")));
    match &base.disk {
        Disk::Blocks(device) if device.info().logical_block == 512 => Ok(Arc::clone(device)),
        Disk::Blocks(device) => unfit(format!(
            "sectors of 512 bytes, but image version {} has sectors of {}",
            base.id,
            device.info().logical_block
        )),
        other => unfit(format!(
            "an image version that is open as blocks, but version {} is open as {other:?}",
            base.id
        )),
    }
}

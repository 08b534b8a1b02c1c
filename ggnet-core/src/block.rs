//! [`BlockDevice`]: the bytes of a disk, and [`Disk`]: the forms in which a writeback store hands one to a target.
//!
//! The trait is synchronous on purpose. A read that is in the page cache must be answered on the spot: a boxed future or a hop
//! to a thread pool costs more than the read (measured: 18 to 23 µs of CPU a request against 5 to 6). So there is a `try_`
//! form that never waits for a disk, and a form that may and is only called on a blocking thread.
//!
//! Invariants: all methods take `&self` and may run at the same time from many threads; overlapping writes in flight leave either
//! one's bytes in each 512-byte sector, as on a real disk; offsets and lengths are bytes, multiples of
//! [`BlockInfo::logical_block`], and within [`BlockInfo::size_bytes`], else `InvalidInput` and nothing happens.
//!
//! # Errors
//!
//! | `io::ErrorKind` | means | the initiator sees |
//! |---|---|---|
//! | `ResourceBusy` | not now, try again | BUSY: it sends the command again |
//! | `StorageFull`, `QuotaExceeded` | the host has no space | DATA PROTECT, space allocation failed |
//! | `ReadOnlyFilesystem` | the disk takes no writes | DATA PROTECT, write protected |
//! | `InvalidInput` | a range that is not on the disk | a defect of the caller |
//! | any other | the medium failed | MEDIUM ERROR |
//!
//! `ResourceBusy` is for what passes by itself: a shortage of file descriptors or of memory, a place where the bytes are that cannot
//! be reached for a moment. A write or a discard that returns it may have been done in part, and is done whole when it is sent again.
//! Never return it for an error of the medium, nor for a flush whose sync has failed: the kernel may have dropped what it could
//! not write, and the sync that succeeds after that would lie. A flush that could not begin its sync may return it. Initiators do
//! not try for ever (Linux three minutes): a disk that can wait for a while by itself should, in the calls that may block.
//!
//! # Growth
//!
//! [`BlockInfo::size_bytes`] may grow while the disk is open, and never shrinks. Only the owner of the bytes lets it grow: the store
//! that handed out the device, or a wrapper around it. It may do so at any time, also under a live initiator; when `info` has the
//! new size, all of it can be read and written. A target whose
//! [`follows_growth`](crate::ports::TargetCapabilities::follows_growth) is set serves the new size from then on and notifies every
//! initiator; others serve the old one until the target is made again.

use std::{io, path::PathBuf, sync::Arc};

use crate::nouns::ImageFormat;

/// What a block device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its size in bytes, a multiple of `logical_block`. It may grow, see the module.
    pub size_bytes: u64,
    /// 512 or 4096: the smallest unit that can be addressed.
    pub logical_block: u32,
    /// The unit in which writing is cheap (4096 for layers).
    pub physical_block: u32,
    /// Every write is refused with `ReadOnlyFilesystem`.
    pub read_only: bool,
    /// Whether [`BlockDevice::discard`] gives space back.
    pub discard: bool,
}

/// One run of a device's blocks that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Length in bytes.
    pub len: u64,
    /// False: reads as zeros and takes no space.
    pub mapped: bool,
}

/// A disk's bytes. See the module for what holds for every method, for errors and for growth.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size, block sizes and abilities; all but the size are constant. A target calls it for every command: no system call, no lock
    /// that is held across one.
    fn info(&self) -> BlockInfo;

    /// Fills `buf` from `offset` if that needs no wait for a disk; `Ok(false)`: it would, nothing is promised about `buf`.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`; may wait for a disk.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `buf` at `offset` if that needs no wait for a disk; `Ok(false)`: it would, nothing was written.
    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes `buf` at `offset`; may wait. When it returns the write survives the death of our process, not a power cut.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that returned before this call survive a power cut. After a sync has failed once it fails for good: what
    /// the kernel could not write it may have dropped, and a later success would lie. `ResourceBusy` and `StorageFull` say that no
    /// sync has failed.
    fn flush(&self) -> io::Result<()>;

    /// Lets the range read as zeros and gives its space back where [`BlockInfo::discard`] says so.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The runs of mapped and unmapped blocks from `offset` on, at most `limit` of them, covering at most `len` bytes. Neighbours may
    /// be alike: a device need not look on for where the like ends.
    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        let _ = (offset, limit);
        Ok(vec![BlockRun { len, mapped: true }])
    }
}

/// A writable disk as a writeback store hands it out.
#[derive(Clone)]
#[non_exhaustive]
pub enum Disk {
    /// Served by our own process.
    Blocks(Arc<dyn BlockDevice>),
    /// A plain file that something else opens.
    File {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: ImageFormat,
    },
    /// A block device of the kernel.
    Device {
        /// Its path below `/dev`.
        path: PathBuf,
    },
}

/// The forms of [`Disk`], for the check at wiring time that a writeback store and a target fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskForm {
    /// [`Disk::Blocks`].
    Blocks,
    /// [`Disk::File`].
    File,
    /// [`Disk::Device`].
    Device,
}

impl Disk {
    /// Its form.
    #[must_use]
    pub const fn form(&self) -> DiskForm {
        match self {
            Self::Blocks(_) => DiskForm::Blocks,
            Self::File { .. } => DiskForm::File,
            Self::Device { .. } => DiskForm::Device,
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blocks(device) => f.debug_tuple("Blocks").field(&device.info()).finish(),
            Self::File { path, format } => {
                f.debug_struct("File").field("path", path).field("format", format).finish()
            }
            Self::Device { path } => f.debug_struct("Device").field("path", path).finish(),
        }
    }
}

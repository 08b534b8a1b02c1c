//! [`BlockDevice`]: the bytes of a disk, and [`Disk`]: the forms in which a writeback store hands one to a target.
//!
//! The trait is synchronous on purpose. A read from the page cache must be answered at once: a boxed future or a switch to a thread pool
//! costs more than the read (measured: 18 to 23 µs of CPU a request against 5 to 6). So each call has a `try_` form that never waits for a
//! disk, and a form that may wait and is only called on a blocking thread.
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
//! `ResourceBusy` is for conditions that end by themselves: a shortage of file descriptors or of memory, or storage that cannot be reached
//! for a moment. A write or a discard that returns it may have been done in part; the initiator's retry does it completely. Never return it
//! for a medium error, nor for a flush whose sync has failed: the kernel may have dropped the data that it could not write, and a later
//! sync that succeeds would be false. A flush that could not start its sync may return it. Initiators do not retry for ever (Linux for
//! three minutes): a disk that can wait for a while itself should do so, in the calls that may block.
//!
//! # Growth
//!
//! [`BlockInfo::size_bytes`] may grow while the disk is open, and never shrinks. Only the owner of the bytes makes it grow: the store that
//! provided the device, or a wrapper around it. It may do so at any time, also under a live initiator; when `info` has the new size, all of
//! it can be read and written. A target whose [`follows_growth`](crate::ports::TargetCapabilities::follows_growth) is set serves the new
//! size from then on and notifies every initiator; others serve the old size until the target is created again.

use std::{io, path::PathBuf, sync::Arc};

use crate::nouns::ImageFormat;

/// The properties of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its size in bytes, a multiple of `logical_block`. It may grow: see the [module](self).
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

/// One run of consecutive blocks of a device that are all mapped or all unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Length in bytes.
    pub len: u64,
    /// False: reads as zeros and takes no space.
    pub mapped: bool,
}

/// A disk's bytes. The [module](self) describes the rules for every method, the errors and growth.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size, block sizes and abilities; all but the size are constant. A target calls it for every command: no system calls, and no lock
    /// that is held across a system call.
    fn info(&self) -> BlockInfo;

    /// Fills `buf` from `offset` if that does not need to wait for a disk. `Ok(false)`: it would need to wait; the contents of `buf` are
    /// undefined.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`; may wait for a disk.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `buf` at `offset` if that does not need to wait for a disk. `Ok(false)`: it would need to wait; nothing was written.
    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes `buf` at `offset`; may wait. When it returns, the write survives the death of our process, unless the writeback store that
    /// provides the disk declares otherwise ([`kill_safe`](crate::ports::WritebackCapabilities::kill_safe)). It need not survive a power
    /// cut.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that returned before this call survive a power cut, unless the writeback store declares otherwise
    /// ([`power_safe`](crate::ports::WritebackCapabilities::power_safe)). After one failed sync it fails permanently: the kernel may have
    /// dropped the data that it could not write, and a later success would be false. `ResourceBusy` and `StorageFull` mean that no sync has
    /// failed.
    fn flush(&self) -> io::Result<()>;

    /// Makes the range read as zeros and frees its space if [`BlockInfo::discard`] is set.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The runs of mapped and unmapped blocks from `offset` on, at most `limit` of them, covering at most `len` bytes. Adjacent runs may be
    /// of the same kind: a device need not search for the end of a merged run.
    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        let _ = (offset, limit);
        Ok(vec![BlockRun { len, mapped: true }])
    }
}

/// A writable disk in the form in which a writeback store provides it.
#[derive(Clone)]
#[non_exhaustive]
pub enum Disk {
    /// Served by our own process.
    Blocks(Arc<dyn BlockDevice>),
    /// A plain file that another program opens.
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

/// The forms of [`Disk`], used to check at wiring time that a writeback store and a target work together.
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

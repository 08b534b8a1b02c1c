//! The block device behind a logical unit.
//!
//! The trait is synchronous on purpose: a read that the page cache can answer must cost neither a boxed future nor a switch to another
//! thread. The `try_` calls run on the runtime's thread and may decline; the others run on the blocking pool only.
//!
//! The contract is in the documentation of [`BlockDevice`], which users of the crate can read.

use std::io;

/// The properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Size in bytes, a multiple of `logical_block`. It may grow while sessions are open, and never shrinks.
    pub size_bytes: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub logical_block: u32,
    /// The unit in bytes in which writing is cheap, a power-of-two multiple of `logical_block`; also the granularity of a discard.
    pub physical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Whether acknowledged writes may be lost in a power cut before [`BlockDevice::flush`].
    pub volatile_cache: bool,
    /// Whether [`BlockDevice::discard`] frees space. A discarded range then reads as zeros.
    pub discard: bool,
}

/// A run of blocks that are all mapped or all unmapped, for GET LBA STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Length in bytes from the requested offset; at least one logical block.
    pub len: u64,
    /// Whether space is allocated for it (in the device, or in a layer below it). An unmapped run reads as zeros.
    pub mapped: bool,
}

/// A disk, as the target uses it.
///
/// The trait is synchronous: the `try_` methods run on the runtime's thread and may decline, all other methods except
/// [`info`](BlockDevice::info) run on the blocking pool.
///
/// # Contract
///
/// * All methods take `&self` and may run at the same time, also on overlapping ranges.
/// * Offsets and lengths are in bytes, multiples of [`BlockInfo::logical_block`], and within the device.
/// * A write that has returned is visible to every later read. It survives the death of the process, unless the disk itself is in the
///   process's memory.
/// * Only [`flush`](BlockDevice::flush) makes a write survive a power cut. A flush whose sync failed is never reported as done later.
/// * The size may grow and never shrinks; all other fields of [`BlockInfo`] are constant.
///
/// # Errors
///
/// * [`io::ErrorKind::ResourceBusy`]: not possible now, try again. The initiator gets status BUSY and sends the command again. Do not
///   return it for an error of the medium, nor for a flush whose sync failed. The command may have been done in part; the repetition does
///   it completely.
/// * [`io::ErrorKind::StorageFull`] and `QuotaExceeded` become "space allocation failed" (the initiator can continue when space was freed),
///   `ReadOnlyFilesystem` becomes "write protected".
/// * Any other kind becomes a medium error.
pub trait BlockDevice: Send + Sync {
    /// The properties of the device. It is called for every command, which is how growth is detected: it must be cheap, and make no system
    /// call.
    fn info(&self) -> BlockInfo;

    /// Fills `buf` from `offset` without waiting for a disk, or returns `Ok(false)` and leaves the contents of `buf` undefined.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`. May block.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `buf` at `offset` if that does not wait for long (the page cache accepts it), or returns `Ok(false)`; any part of the range
    /// may have been written then.
    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes `buf` at `offset`. May block.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that returned before this call survive a power cut. May block.
    fn flush(&self) -> io::Result<()>;

    /// Discards a range: frees its space, and the range reads as zeros from then on. May block. Called only if [`BlockInfo::discard`] is
    /// set; parts smaller than `physical_block` may be written with zeros instead.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Whether the blocks from `offset` on are mapped: the first run, at most `len` bytes long. The run that follows may be of the same
    /// kind. May block.
    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let _ = offset;
        Ok(BlockRun { len, mapped: true })
    }
}

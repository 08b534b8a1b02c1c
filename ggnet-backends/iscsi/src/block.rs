//! The block device that a logical unit stands on.
//!
//! The trait is synchronous on purpose: a read that the page cache can answer must cost neither a boxed future nor a
//! hop to another thread. The `try_` calls run inline on the runtime and may decline; the others run on the blocking
//! pool only.
//!
//! Invariants every implementor keeps:
//! * all calls take `&self` and may run at the same time, overlapping ranges included;
//! * offsets and lengths are in bytes and multiples of [`BlockInfo::logical_block`], and lie inside the device;
//! * a write that returned is seen by every later read, and survives the death of the process;
//! * only [`flush`](BlockDevice::flush) makes it survive a power cut; one whose sync failed is never reported as done later;
//! * the size may grow and never shrinks; nothing else of [`BlockInfo`] changes.

use std::io;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Size in bytes, a multiple of `logical_block`. It may grow while sessions are open.
    pub size_bytes: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub logical_block: u32,
    /// Bytes that are best written at once, a power-of-two multiple of `logical_block`; also the grain of a discard.
    pub physical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Acknowledged writes may be lost in a power cut until [`BlockDevice::flush`].
    pub volatile_cache: bool,
    /// [`BlockDevice::discard`] gives space back, and a discarded range reads as zeros.
    pub discard: bool,
}

/// A run of blocks that are stored alike, for GET LBA STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Length in bytes from the asked offset; at least one logical block.
    pub len: u64,
    /// Whether space is taken for it (or below it in a chain); a run without reads as zeros.
    pub mapped: bool,
}

/// A disk, as the target needs it. See the module's words for what every implementor promises.
///
/// Errors:
/// * [`io::ErrorKind::ResourceBusy`]: not now, try again. It becomes status BUSY, and the initiator sends the command again. Never
///   for an error of the medium, nor for a flush whose sync failed. What it leaves half done is done whole by the repetition.
/// * [`io::ErrorKind::StorageFull`] and `QuotaExceeded` become "space allocation failed" (the initiator may go on after space was
///   made), `ReadOnlyFilesystem` "write protected".
/// * Any other becomes a medium error.
pub trait BlockDevice: Send + Sync {
    /// What the device is. Called for every command, which is how growth is noticed: it must be cheap, without a system call.
    fn info(&self) -> BlockInfo;

    /// Fills `buf` from `offset` without waiting for a disk, or returns `Ok(false)` with `buf` undefined.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`. May block.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `buf` at `offset` when that will not wait for long (the page cache takes it), or returns `Ok(false)`
    /// with any part of the range written.
    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes `buf` at `offset`. May block.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that returned before this call began survive a power cut. May block.
    fn flush(&self) -> io::Result<()>;

    /// Drops a range: its space is given back and it reads as zeros from now on. May block. Only called where
    /// [`BlockInfo::discard`] is set; parts smaller than `physical_block` may be zeroed instead.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// How the blocks from `offset` are stored: the first run, at most `len` bytes long; what follows may be alike. May block.
    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let _ = offset;
        Ok(BlockRun { len, mapped: true })
    }
}

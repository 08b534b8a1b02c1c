//! The disk of one writeback: a mutable layer over an opened image version.
//!
//! # What is on disk at any time, and why every interruption is survived
//!
//! A write that touches a block for the first time does, under the block's lock: (1) write the whole block to the data file, with the part
//! that the guest did not write copied from below; (2) write the word to the hot map file; (3) write the word to memory; then it is
//! acknowledged. A write to blocks that are present is one write to the data file and takes no lock. A discard does, under the lock: (1)
//! write zero to the hot map file, (2) write zero to memory, (3) punch the hole. `flush.rs` describes a flush.
//!
//! *Our process dies*: the kernel keeps what was written to both files, in that order, so the hot map is valid.
//! * Between (1) and (2) of a write: the block is as before. The data file's content under an absent or zero block is never read, and never
//!   used later: a block that becomes present is always written as a whole.
//! * Between (1) and (3) of a discard: the block is zero, and uses space until it is written or discarded again.
//!
//! *Power cut*: the durable map is valid. A block is present in it only if its data was synced before the word was written.
//! * A first write, not flushed: the durable word is absent or zero; the block reads as before.
//! * A rewrite, not flushed: each sector is old or new, as on any disk.
//! * A discard, not flushed, of a durably present block: the word is present, and the file has the old data or the hole: old data or zeros.
//!   If written again after that: old data, zeros or new data. Never data from below, and never data of another block.
//! * A discard, flushed: the word is zero, so no old data returns, whether the hole reached the disk or not.
//! * Zero → present → zero and similar sequences, with a flush at any point: the word has the state at the start of that flush; its data is
//!   of that state or a later one, and a zero state needs no data.
//!
//! *A write that fails half-way* (no space, no memory): the maps are as before, so blocks that were not present read as before; sectors
//! that were present may have either content, as after any write that was not acknowledged.
//!
//! Invariants: states change only under the lock; the hot map file is changed before memory, so no request depends on a state that a kill
//! could revert; a disk that failed an fsync or was removed returns an error for every further call.

use std::{
    io::{self, IoSlice},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use ggnet_core::{
    block::{BlockDevice, BlockInfo, BlockRun},
    nouns::ImageVersionId,
    ports::OpenImage,
};

use super::{
    busy::or_busy,
    chain::{Wait, end_of, read_below, read_through, run_through, runs},
    flush::Flusher,
    format::BLOCK,
    inline::Inline,
    layer::Layer,
    locks::{GROUP_BLOCKS, RangeLocks, STRIPES},
    map::State,
    to_usize,
};

const BLOCK_LEN: usize = 4096;
static ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// See the module.
pub(crate) struct Device {
    pub(crate) layer: Layer,
    pub(crate) flusher: Flusher,
    /// The version below it, which stays open as long as this disk.
    base: OpenImage,
    /// The bytes of `base`.
    below: Arc<dyn BlockDevice>,
    size: u64,
    punches: bool,
    locks: RangeLocks,
    inline: Arc<Inline>,
}

/// The parts of a [`Device`].
pub(crate) struct Parts {
    pub(crate) layer: Layer,
    pub(crate) size: u64,
    pub(crate) base: OpenImage,
    /// The bytes of `base`.
    pub(crate) below: Arc<dyn BlockDevice>,
    pub(crate) flusher: Flusher,
    pub(crate) punches: bool,
    pub(crate) inline: Arc<Inline>,
}

impl Device {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { layer, size, base, below, flusher, punches, inline } = parts;
        Self { layer, flusher, base, below, size, punches, locks: RangeLocks::new(), inline }
    }

    /// The version below it.
    pub(crate) const fn version(&self) -> ImageVersionId {
        self.base.id
    }

    /// The first block of a range and the one after its last, or an error if the range is invalid.
    fn range(&self, offset: u64, len: usize) -> io::Result<(u64, u64)> {
        let end = end_of(offset, len as u64, self.size)?;
        Ok((offset / BLOCK, end.div_ceil(BLOCK)))
    }

    fn read(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<bool> {
        self.layer.alive()?;
        self.range(offset, buf.len())?;
        read_through(&self.layer.map, &*self.layer.data, &*self.below, buf, offset, wait).map_err(or_busy)
    }

    fn write(&self, buf: &[u8], offset: u64, wait: Wait) -> io::Result<bool> {
        self.layer.alive()?;
        let (first, end) = self.range(offset, buf.len())?;
        if buf.is_empty() {
            return Ok(true);
        }
        let done = if self.layer.map.all(first, end, State::Present) {
            self.rewrite(buf, offset, wait)
        } else {
            self.first_write(buf, offset, first, end, wait)
        };
        let done = done.map_err(or_busy)?;
        if done {
            self.layer.unsynced.store(true, Ordering::Release);
        }
        Ok(done)
    }

    /// Writes to blocks that are all present.
    fn rewrite(&self, buf: &[u8], offset: u64, wait: Wait) -> io::Result<bool> {
        let end = offset + buf.len() as u64;
        if wait == Wait::Never && !(self.edge_is_cached(offset)? && self.edge_is_cached(end)?) {
            return Ok(false);
        }
        self.layer.data.write_at(&mut [IoSlice::new(buf)], offset)?;
        Ok(true)
    }

    /// Whether a write that starts or ends at `edge` needs no read of the partly covered block: for such a write the kernel would read the
    /// rest of the page, and block.
    fn edge_is_cached(&self, edge: u64) -> io::Result<bool> {
        if edge.is_multiple_of(BLOCK) || edge == self.size {
            return Ok(true);
        }
        self.layer.data.try_read_at(&mut [0; 512], edge)
    }

    /// Writes to blocks of which at least one is not present.
    fn first_write(&self, buf: &[u8], offset: u64, first: u64, end: u64, wait: Wait) -> io::Result<bool> {
        let _held = match wait {
            Wait::Allowed => self.locks.lock(first, end),
            Wait::Never => match self.locks.try_lock(first, end) {
                Some(held) => held,
                None => return Ok(false),
            },
        };
        let stop = offset + buf.len() as u64;
        let (mut head, mut tail) = ([0; BLOCK_LEN], [0; BLOCK_LEN]);
        let head = &mut head[..to_usize(offset - first * BLOCK)];
        let tail = &mut tail[..to_usize((end * BLOCK).min(self.size) - stop)];
        let Some(head) = self.fill(head, first * BLOCK, wait)? else { return Ok(false) };
        let Some(tail) = self.fill(tail, stop, wait)? else { return Ok(false) };

        let start = offset - head.len() as u64;
        self.layer.data.write_at(&mut [IoSlice::new(head), IoSlice::new(buf), IoSlice::new(tail)], start)?;
        self.record(first, end, State::Present)?;
        Ok(true)
    }

    /// The data that must be written into the rest of a block in addition to the guest's data: its current content, or nothing if the block
    /// is already present. `None`: finding out would block. The caller holds the block's lock.
    fn fill<'a>(&self, rest: &'a mut [u8], at: u64, wait: Wait) -> io::Result<Option<&'a [u8]>> {
        if rest.is_empty() {
            return Ok(Some(&[]));
        }
        let block = at / BLOCK;
        let known = match self.layer.map.run(block, block + 1).0 {
            State::Zero => {
                rest.fill(0);
                true
            }
            State::Absent => read_below(&*self.below, rest, at, wait)?,
            State::Present => {
                let cached = wait == Wait::Allowed || self.layer.data.try_read_at(&mut rest[..512], at)?;
                return Ok(cached.then_some(&[]));
            }
        };
        Ok(known.then_some(rest))
    }

    /// Sets the state of blocks: first in the hot map file, then in memory. The caller holds their locks.
    fn record(&self, first: u64, end: u64, state: State) -> io::Result<()> {
        let Some(change) = self.layer.map.change(first, end, state) else { return Ok(()) };
        if let Err(e) = self.layer.map.write(&*self.layer.hot, &change, true) {
            // Some of the words may be in the file: restore the old ones, otherwise a kill would revert what memory has from now on. Words
            // that could be written before can be written again, so this fails only if nothing was written.
            let _ = self.layer.map.write(&*self.layer.hot, &change, false);
            return Err(e);
        }
        self.layer.map.apply(&change);
        Ok(())
    }

    /// Discards whole blocks (the last one may be shortened by the end of the disk).
    fn discard_blocks(&self, first: u64, end: u64) -> io::Result<()> {
        let mut at = first;
        while at < end {
            // Processes as many groups at a time as there are locks: one write of words and one hole for 128 MiB.
            let stop = ((at / GROUP_BLOCKS + STRIPES) * GROUP_BLOCKS).min(end);
            let _held = self.locks.lock(at, stop);
            if !self.layer.map.all(at, stop, State::Zero) {
                self.record(at, stop, State::Zero).map_err(or_busy)?;
                self.layer.unsynced.store(true, Ordering::Release);
                if self.punches {
                    let len = (stop * BLOCK).min(self.size) - at * BLOCK;
                    self.layer.data.punch(at * BLOCK, len).map_err(or_busy)?;
                }
            }
            at = stop;
        }
        Ok(())
    }

    /// Writes zeros to a part of a block.
    fn discard_part(&self, offset: u64, end: u64) -> io::Result<()> {
        let block = offset / BLOCK;
        if offset == end || self.layer.map.all(block, block + 1, State::Zero) {
            return Ok(());
        }
        self.write(&ZEROS[..to_usize(end - offset)], offset, Wait::Allowed).map(|_| ())
    }
}

impl BlockDevice for Device {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            discard: self.punches,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read(buf, offset, Wait::Never)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset, Wait::Allowed).map(|_| ())
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        if !self.inline.allows(buf.len()) {
            return Ok(false);
        }
        let since = Instant::now();
        let done = self.write(buf, offset, Wait::Never);
        self.inline.took(since.elapsed());
        done
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(buf, offset, Wait::Allowed).map(|_| ())
    }

    fn flush(&self) -> io::Result<()> {
        self.flusher.flush(&self.layer)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.layer.alive()?;
        self.range(offset, to_usize(len))?;
        let end = offset + len;
        let whole_from = offset.next_multiple_of(BLOCK);
        let whole_to = if end == self.size { end.next_multiple_of(BLOCK) } else { end - end % BLOCK };
        if whole_from >= whole_to {
            return if whole_from < end {
                // Parts of two adjacent blocks, neither of them whole.
                self.discard_part(offset, whole_from)?;
                self.discard_part(whole_from, end)
            } else {
                self.discard_part(offset, end)
            };
        }
        self.discard_part(offset, whole_from)?;
        self.discard_blocks(whole_from / BLOCK, whole_to / BLOCK)?;
        if whole_to < end { self.discard_part(whole_to, end) } else { Ok(()) }
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        self.layer.alive()?;
        self.range(offset, to_usize(len))?;
        runs(offset, len, limit, |at, end| run_through(&self.layer.map, &*self.below, at, end))
            .map_err(or_busy)
    }
}

//! The disk of one writeback: a mutable layer over an opened image version.
//!
//! # What is on disk at any instant, and why every cut is survived
//!
//! A write that touches a block for the first time does, under the block's lock: (1) the whole block into the data file, the part
//! that the guest did not write copied from below; (2) the word into the hot map file; (3) the word into memory; then it is
//! acknowledged. A write to blocks that are present is one write to the data file and takes no lock. A discard does, under
//! the lock: (1) zero into the hot map file, (2) zero into memory, (3) the hole. A flush is described in `flush.rs`.
//!
//! *Our process dies*: the kernel keeps what both files were told, in that order, so the hot map holds.
//! * between (1) and (2) of a write: the block is as before; what lies in the data file under an absent or zero block is never
//!   read, and never trusted later: a block that becomes present is always written whole.
//! * between (1) and (3) of a discard: the block is zero, and takes space until it is written or discarded again.
//!
//! *The power goes*: the durable map holds. It calls a block present only if its data was synced before the word was written.
//! * A first write, not flushed: the durable word says absent or zero; the block reads as before.
//! * A rewrite, not flushed: each sector is old or new, as on any disk.
//! * A discard, not flushed, of a durably present block: the word says present, and the file has the old data or the hole: old
//!   or zeros. Written again after that: old, zeros or new. Never what is below, never foreign bytes.
//! * A discard, flushed: the word says zero, so no old data comes back, whatever of the hole the disk kept.
//! * Zero → present → zero and the like, with the flush at any place: the word is of the state at the start of that flush; its data
//!   is that state's or a later one's, and a state `zero` needs no data at all.
//!
//! *A write that fails half-way* (no space, no memory): the maps are as before, so what had not been present reads as before; the
//! sectors that had been present may hold either, as after any write that was not acknowledged.
//!
//! Invariants: state changes only under the lock; the hot map file is changed before memory, so nobody acts on a state that a
//! kill could undo; a disk that failed an fsync or was removed answers every call with an error for good.

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
    /// The version that it stands on, open for as long as this disk is.
    base: OpenImage,
    /// The bytes of `base`.
    below: Arc<dyn BlockDevice>,
    size: u64,
    punches: bool,
    locks: RangeLocks,
    inline: Arc<Inline>,
}

/// Of what a [`Device`] is made.
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

    /// The version that it stands on.
    pub(crate) const fn version(&self) -> ImageVersionId {
        self.base.id
    }

    /// The first block and the one after the last of a range, or why it is none.
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

    /// Whether a write that begins or ends at `edge` needs no read of the block that it covers in part: the kernel would read
    /// it, and wait, to fill the rest of the page.
    fn edge_is_cached(&self, edge: u64) -> io::Result<bool> {
        if edge.is_multiple_of(BLOCK) || edge == self.size {
            return Ok(true);
        }
        self.layer.data.try_read_at(&mut [0; 512], edge)
    }

    /// Writes to blocks of which at least one was not present.
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

    /// What has to be written beside the guest's bytes into the rest of a block: what it reads as now, or nothing if the block is
    /// present already. `None`: finding out would wait. The caller holds the block's lock.
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

    /// Puts blocks into a state: the hot map file first, then memory. The caller holds their locks.
    fn record(&self, first: u64, end: u64, state: State) -> io::Result<()> {
        let Some(change) = self.layer.map.change(first, end, state) else { return Ok(()) };
        if let Err(e) = self.layer.map.write(&*self.layer.hot, &change, true) {
            // Some of the words may be in the file: put them back, or a kill would undo what memory says from now on. What could
            // be written before can be written again, so this fails only where nothing was written.
            let _ = self.layer.map.write(&*self.layer.hot, &change, false);
            return Err(e);
        }
        self.layer.map.apply(&change);
        Ok(())
    }

    /// Discards whole blocks (the last one may be cut short by the end of the disk).
    fn discard_blocks(&self, first: u64, end: u64) -> io::Result<()> {
        let mut at = first;
        while at < end {
            // As many groups at a time as there are locks: one word write and one hole for 128 MiB.
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

    /// Makes part of a block zeros.
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
                // Two parts of two neighbours, none of them whole.
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

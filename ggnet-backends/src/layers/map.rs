//! The map of a layer in memory: two bits per block, and the pages that are not in the durable map file yet.
//!
//! ```text
//!            write            discard
//!   absent ─────────▶ present ◀────────▶ zero        nothing ever becomes absent again
//!      └────────────────────────────────▶
//! ```
//! The map is divided into pages of 512 words (one 4-KiB page of the file, 64 MiB of disk), which exist only after a change in them: a new
//! writeback uses no memory here, whatever its size. Invariants: a block is always in one of the three states above; a word changes only
//! under the locks of its blocks; a page is marked dirty after its words changed and before the request is acknowledged, so
//! [`BlockMap::take_dirty`] returns at least every change that was acknowledged before it.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    format::{BLOCK, MAP_OFFSET},
    to_usize,
};
use crate::files::RawFile;

/// Blocks in one word of the map.
pub(crate) const WORD_BLOCKS: u64 = 32;
/// Words in one page of the map.
const PAGE_WORDS: usize = 512;
const PAGE_BYTES: usize = PAGE_WORDS * 8;
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// The state of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No data: read from below.
    Absent,
    /// The whole block is in the data file.
    Present,
    /// It reads as zeros, whatever the data file contains there.
    Zero,
}

impl State {
    const fn of(bits: u64) -> Self {
        match bits & 3 {
            1 => Self::Present,
            2 => Self::Zero,
            _ => Self::Absent,
        }
    }

    /// A word with all its blocks in this state.
    const fn word(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Present => LOW_BITS,
            Self::Zero => LOW_BITS << 1,
        }
    }
}

struct Page {
    words: [AtomicU64; PAGE_WORDS],
    dirty: AtomicBool,
}

impl Page {
    fn new() -> Box<Self> {
        Box::new(Self { words: [const { AtomicU64::new(0) }; PAGE_WORDS], dirty: AtomicBool::new(false) })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAGE_BYTES);
        for word in &self.words {
            bytes.extend_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        bytes
    }
}

/// Words that a request will change: adjacent in the file, from `first_word` on.
#[derive(Debug)]
pub(crate) struct Change {
    first_word: u64,
    words: Vec<u64>,
}

/// A page as it was when a flush started.
#[derive(Debug)]
pub(crate) struct DirtyPage {
    index: u64,
    bytes: Vec<u8>,
}

/// See the module.
pub(crate) struct BlockMap {
    pages: Box<[OnceLock<Box<Page>>]>,
    words: u64,
}

impl BlockMap {
    /// A map for a disk of `size` bytes with all blocks absent.
    pub(crate) fn new(size: u64) -> Self {
        let words = size.div_ceil(BLOCK).div_ceil(WORD_BLOCKS);
        let pages = words.div_ceil(PAGE_WORDS as u64);
        Self { pages: (0..pages).map(|_| OnceLock::new()).collect(), words }
    }

    /// Length of a map file for a disk of `size` bytes.
    pub(crate) fn file_len(size: u64) -> u64 {
        MAP_OFFSET + size.div_ceil(BLOCK).div_ceil(WORD_BLOCKS) * 8
    }

    /// Reads the map of a disk of `size` bytes from a map file. A word with a block in a fourth state is `InvalidData`.
    pub(crate) fn load(file: &dyn RawFile, size: u64) -> io::Result<Self> {
        let map = Self::new(size);
        map.each_page_of(file, |index, bytes| {
            if bytes.iter().all(|b| *b == 0) {
                return Ok(());
            }
            let page = Page::new();
            for (word, eight) in page.words.iter().zip(bytes.as_chunks::<8>().0) {
                let value = u64::from_le_bytes(*eight);
                if value & (value >> 1) & LOW_BITS != 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("map page {index} has a block in an unknown state"),
                    ));
                }
                word.store(value, Ordering::Release);
            }
            // The slot is empty, because the map is not shared before it is returned.
            let _ = map.pages[to_usize(index)].set(page);
            Ok(())
        })?;
        Ok(map)
    }

    /// Marks every page dirty that differs from the one in `file`; without a file, all pages that are not empty.
    pub(crate) fn mark_differences(&self, file: Option<&dyn RawFile>) -> io::Result<()> {
        let Some(file) = file else {
            self.pages.iter().filter_map(OnceLock::get).for_each(|p| p.dirty.store(true, Ordering::Release));
            return Ok(());
        };
        self.each_page_of(file, |index, bytes| {
            let slot = &self.pages[to_usize(index)];
            let same = slot
                .get()
                .map_or_else(|| bytes.iter().all(|b| *b == 0), |p| p.bytes()[..bytes.len()] == *bytes);
            if !same {
                slot.get_or_init(Page::new).dirty.store(true, Ordering::Release);
            }
            Ok(())
        })
    }

    /// Calls `see` with each page of a map file; the last one may be shorter.
    fn each_page_of(
        &self,
        file: &dyn RawFile,
        mut see: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        const CHUNK_PAGES: u64 = 64;
        let mut buf = vec![0; PAGE_BYTES * to_usize(CHUNK_PAGES)];
        let (mut index, mut left) = (0_u64, to_usize(self.words) * 8);
        while left > 0 {
            let n = left.min(buf.len());
            file.read_at(&mut buf[..n], MAP_OFFSET + index * PAGE_BYTES as u64)?;
            for page in buf[..n].chunks(PAGE_BYTES) {
                see(index, page)?;
                index += 1;
            }
            left -= n;
        }
        Ok(())
    }

    fn word(&self, index: u64) -> u64 {
        let i = to_usize(index);
        self.pages[i / PAGE_WORDS].get().map_or(0, |p| p.words[i % PAGE_WORDS].load(Ordering::Acquire))
    }

    /// The state of block `first`, and where the run of blocks in that state ends, at most at `end`; `first < end`.
    pub(crate) fn run(&self, first: u64, end: u64) -> (State, u64) {
        let mut word = self.word(first / WORD_BLOCKS);
        let state = State::of(word >> (2 * (first % WORD_BLOCKS)));
        let mut at = first;
        loop {
            let inside = at % WORD_BLOCKS;
            let differing = (word ^ state.word()) >> (2 * inside);
            if differing != 0 {
                at += u64::from(differing.trailing_zeros() / 2);
                break;
            }
            at += WORD_BLOCKS - inside;
            if at >= end {
                break;
            }
            word = self.word(at / WORD_BLOCKS);
        }
        (state, at.min(end))
    }

    /// Whether all blocks of `first..end` have the state `state`.
    pub(crate) fn all(&self, first: u64, end: u64, state: State) -> bool {
        self.run(first, end) == (state, end)
    }

    /// The words with all blocks of `first..end` in `state`, or nothing if they already are. The caller holds their locks.
    pub(crate) fn change(&self, first: u64, end: u64, state: State) -> Option<Change> {
        let (low, high) = (first / WORD_BLOCKS, end.div_ceil(WORD_BLOCKS));
        let mut changed = false;
        let words = (low..high)
            .map(|index| {
                let start = index * WORD_BLOCKS;
                let from = first.saturating_sub(start);
                let to = (end - start).min(WORD_BLOCKS);
                let mask = (u64::MAX << (2 * from)) & (u64::MAX >> (64 - 2 * to));
                let old = self.word(index);
                let new = (old & !mask) | (state.word() & mask);
                changed |= new != old;
                new
            })
            .collect();
        changed.then_some(Change { first_word: low, words })
    }

    /// Applies `change` in memory and marks its pages dirty. The caller holds the locks of its blocks.
    pub(crate) fn apply(&self, change: &Change) {
        let mut last = None;
        for (value, index) in change.words.iter().zip(change.first_word..) {
            let i = to_usize(index);
            let page = self.pages[i / PAGE_WORDS].get_or_init(Page::new);
            page.words[i % PAGE_WORDS].store(*value, Ordering::Release);
            if let Some((p, before)) = last.replace((i / PAGE_WORDS, page))
                && p != i / PAGE_WORDS
            {
                before.dirty.store(true, Ordering::Release);
            }
        }
        if let Some((_, page)) = last {
            page.dirty.store(true, Ordering::Release);
        }
    }

    /// Writes the words of `change` to a map file, with their new values (`after`) or with their current values in memory.
    pub(crate) fn write(&self, file: &dyn RawFile, change: &Change, after: bool) -> io::Result<()> {
        let bytes: Vec<u8> = change
            .words
            .iter()
            .zip(change.first_word..)
            .flat_map(|(new, index)| if after { *new } else { self.word(index) }.to_le_bytes())
            .collect();
        file.write_at(&mut [io::IoSlice::new(&bytes)], MAP_OFFSET + change.first_word * 8)
    }

    /// Returns the current content of the dirty pages and marks them clean.
    pub(crate) fn take_dirty(&self) -> Vec<DirtyPage> {
        let mut out = Vec::new();
        for (slot, index) in self.pages.iter().zip(0_u64..) {
            if let Some(page) = slot.get()
                && page.dirty.swap(false, Ordering::AcqRel)
            {
                let mut bytes = page.bytes();
                bytes.truncate(to_usize((self.words * 8).saturating_sub(index * PAGE_BYTES as u64)));
                out.push(DirtyPage { index, bytes });
            }
        }
        out
    }

    /// Marks pages dirty again that could not be written.
    pub(crate) fn mark_dirty(&self, pages: &[DirtyPage]) {
        for page in pages {
            if let Some(p) = self.pages[to_usize(page.index)].get() {
                p.dirty.store(true, Ordering::Release);
            }
        }
    }

    /// Writes pages to a map file, adjacent ones in one call.
    pub(crate) fn write_pages(file: &dyn RawFile, pages: &[DirtyPage]) -> io::Result<()> {
        for neighbours in pages.chunk_by(|a, b| a.index + 1 == b.index) {
            for batch in neighbours.chunks(64) {
                let mut parts: Vec<_> = batch.iter().map(|p| io::IoSlice::new(&p.bytes)).collect();
                file.write_at(&mut parts, MAP_OFFSET + batch[0].index * PAGE_BYTES as u64)?;
            }
        }
        Ok(())
    }
}

//! A small disk in memory that checks that its caller keeps the contract of [`BlockDevice`], records what was written, and fails on
//! request.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::block::{BlockDevice, BlockInfo, BlockRun};

/// The properties of a disk.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) block: u32,
    pub(super) blocks: u32,
    pub(super) read_only: bool,
    pub(super) thin: bool,
}

/// When calls fail.
#[derive(Clone, Copy)]
pub(super) struct Trouble {
    /// Calls that still succeed.
    pub(super) after: u32,
    pub(super) error: io::ErrorKind,
}

pub(super) struct Disk {
    kind: Kind,
    state: Mutex<State>,
}

struct State {
    data: Vec<u8>,
    written: Vec<Range<u64>>,
    trouble: Option<Trouble>,
}

impl Disk {
    pub(super) fn new(kind: Kind, trouble: Option<Trouble>) -> Self {
        // No two blocks alike, and none of them zero.
        // (By the block: what runs millions of times must not be instrumented by the byte.)
        let mut data = Vec::with_capacity((kind.block * kind.blocks) as usize);
        for i in 1..=kind.blocks {
            data.resize((kind.block * i) as usize, (i * 7).to_le_bytes()[0]);
        }
        Self { kind, state: Mutex::new(State { data, written: Vec::new(), trouble }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ranges that were written or discarded since the last call.
    pub(super) fn take_written(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.state().written)
    }

    pub(super) fn repair(&self) {
        self.state().trouble = None;
    }

    pub(super) fn grow(&self, blocks: u32) {
        let mut state = self.state();
        let len = state.data.len() + (self.kind.block * blocks) as usize;
        state.data.resize(len, 0xee);
    }

    /// Checks a call and finds its range.
    fn enter(&self, state: &mut State, offset: u64, len: u64) -> io::Result<Range<usize>> {
        let block = u64::from(self.kind.block);
        let end = offset.saturating_add(len);
        let size = state.data.len() as u64;
        let whole = offset.is_multiple_of(block) && len.is_multiple_of(block);
        assert!(whole, "{offset}+{len} is not whole blocks of {block}");
        assert!(end <= size, "{offset}+{len} reaches outside of {size} bytes");
        if let Some(trouble) = &mut state.trouble {
            match trouble.after.checked_sub(1) {
                Some(left) => trouble.after = left,
                None => return Err(trouble.error.into()),
            }
        }
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(index(offset)..index(end))
    }

    fn change(&self, offset: u64, len: u64, f: impl FnOnce(&mut [u8])) -> io::Result<()> {
        assert!(!self.kind.read_only, "a write to a read-only disk");
        let mut state = self.state();
        let range = self.enter(&mut state, offset, len)?;
        f(&mut state.data[range]);
        state.written.push(offset..offset + len);
        Ok(())
    }
}

impl BlockDevice for Disk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.state().data.len() as u64,
            logical_block: self.kind.block,
            physical_block: 4096,
            read_only: self.kind.read_only,
            volatile_cache: self.kind.thin,
            discard: self.kind.thin,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        let range = self.enter(&mut state, offset, buf.len() as u64)?;
        buf.copy_from_slice(&state.data[range]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(offset, buf.len() as u64, |to| to.copy_from_slice(buf))
    }

    fn flush(&self) -> io::Result<()> {
        self.enter(&mut self.state(), 0, 0).map(|_| ())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(self.kind.thin, "a discard that was not offered");
        self.change(offset, len, |to| to.fill(0))
    }

    /// Runs of blocks that are zero (not mapped) or not.
    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        assert!(len > 0, "the status of nothing");
        let mut state = self.state();
        let range = self.enter(&mut state, offset, len)?;
        let zeros = [0; 4096];
        let block = self.kind.block as usize;
        let mut zero = state.data[range].chunks(block).map(|b| b == &zeros[..block]);
        let first = zero.next() == Some(true);
        let blocks = 1 + zero.take_while(|z| *z == first).count();
        Ok(BlockRun { len: (blocks * block) as u64, mapped: !first })
    }
}

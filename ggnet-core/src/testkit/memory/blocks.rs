//! [`Blocks`]: the written blocks of a disk, in memory; and [`Layered`], the disk that they form over another one.
//!
//! Invariants: a block that was never written reads from the disk below, or as zeros if there is none; the disk below is never written to.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    block::{BlockDevice, BlockInfo, BlockRun},
    testkit::disk::{check, check_write},
};

pub(super) const BLOCK: usize = 4096;

/// Written blocks by number; `None`: discarded, zeros.
#[derive(Debug, Default)]
pub(super) struct Blocks(RwLock<HashMap<u64, Option<Box<[u8]>>>>);

impl Blocks {
    /// The bytes of the blocks that have some.
    pub(super) fn bytes(&self) -> u64 {
        let blocks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (blocks.values().filter(|block| block.is_some()).count() * BLOCK) as u64
    }
}

/// Blocks over a disk.
pub(super) struct Layered {
    pub(super) blocks: Arc<Blocks>,
    /// None: zeros.
    pub(super) below: Option<Arc<dyn BlockDevice>>,
    pub(super) size: u64,
}

impl Layered {
    /// The whole block `number` as the disk below has it, zeros after the end.
    fn below_block(&self, number: u64) -> io::Result<Box<[u8]>> {
        let mut block = vec![0; BLOCK].into_boxed_slice();
        if let Some(below) = &self.below {
            let at = number * BLOCK as u64;
            let len = usize::try_from(self.size - at).unwrap_or(BLOCK).min(BLOCK);
            below.read_at(&mut block[..len], at)?;
        }
        Ok(block)
    }

    /// The block `number` to be changed in part: what was written of it, else what is below.
    fn taken(&self, blocks: &mut HashMap<u64, Option<Box<[u8]>>>, number: u64) -> io::Result<Box<[u8]>> {
        match blocks.remove(&number) {
            Some(Some(block)) => Ok(block),
            Some(None) => Ok(vec![0; BLOCK].into_boxed_slice()),
            None => self.below_block(number),
        }
    }
}

/// The parts of `[offset, offset + len)` in each block: block number, place within the block, place within the request.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK as u64).unwrap_or(0);
        let n = (BLOCK - within).min(len - done);
        let piece = (at / BLOCK as u64, within..within + n, done..done + n);
        done += n;
        Some(piece)
    })
}

impl BlockDevice for Layered {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.size,
            logical_block: 512,
            physical_block: 4096,
            read_only: false,
            discard: true,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(&self.info(), offset, buf.len() as u64)?;
        let blocks = self.blocks.0.read().unwrap_or_else(PoisonError::into_inner);
        for (number, within, request) in pieces(offset, buf.len()) {
            match blocks.get(&number) {
                Some(Some(block)) => buf[request].copy_from_slice(&block[within]),
                Some(None) => buf[request].fill(0),
                None => buf[request].copy_from_slice(&self.below_block(number)?[within]),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_write(&self.info(), offset, buf.len() as u64)?;
        let mut blocks = self.blocks.0.write().unwrap_or_else(PoisonError::into_inner);
        for (number, within, request) in pieces(offset, buf.len()) {
            let mut block = self.taken(&mut blocks, number)?;
            block[within].copy_from_slice(&buf[request]);
            blocks.insert(number, Some(block));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_write(&self.info(), offset, len)?;
        let mut blocks = self.blocks.0.write().unwrap_or_else(PoisonError::into_inner);
        let end = offset + len;
        for number in offset / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            let first = number * BLOCK as u64;
            let (from, to) = (offset.max(first) - first, end.min(first + BLOCK as u64) - first);
            // The disk's last block may be short; to its end is all of it.
            let whole = from == 0 && (to == BLOCK as u64 || first + to == self.size);
            let zeroed = if whole {
                None
            } else {
                let mut block = self.taken(&mut blocks, number)?;
                let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(BLOCK);
                block[range].fill(0);
                Some(block)
            };
            blocks.insert(number, zeroed);
        }
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockRun>> {
        check(&self.info(), offset, len)?;
        let blocks = self.blocks.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut runs: Vec<BlockRun> = Vec::new();
        for (number, within, _) in pieces(offset, usize::try_from(len).unwrap_or(usize::MAX)) {
            let mapped = !matches!(blocks.get(&number), Some(None));
            let len = within.len() as u64;
            let full = runs.len() == limit;
            match runs.last_mut() {
                Some(run) if run.mapped == mapped => run.len += len,
                _ if full => break,
                _ => runs.push(BlockRun { len, mapped }),
            }
        }
        Ok(runs)
    }
}

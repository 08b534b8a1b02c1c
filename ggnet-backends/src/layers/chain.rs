//! Reading through layers: a layer over any device, and a frozen layer as a device itself, so that a version is a chain of layers over a
//! raw disk.
//!
//! A frozen layer is the folder of a writeback that is not written any more: its durable map is complete, so freezing copies nothing.
//! Invariants: nothing in a chain is ever opened for writing; one version is one device, and so one page cache, for all disks over it; a
//! block is read from the topmost layer that has it, otherwise from the base.

use std::{io, path::Path, sync::Arc};

use ggnet_core::block::{BlockDevice, BlockInfo, BlockRun};

use super::{
    busy::or_busy,
    format::{BLOCK, DATA, DURABLE, HEADER_LEN, Header, Kind},
    map::{BlockMap, State},
    to_usize,
};
use crate::files::{Files, Open, RawFile};

const SECTOR: u64 = 512;

/// Whether a read may block on disk I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// No: returns `Ok(false)` if it would block.
    Never,
    /// Yes.
    Allowed,
}

/// A layer that is not written any more and the disk below it, as a read-only disk.
pub(crate) struct FrozenLayer {
    map: BlockMap,
    data: Arc<dyn RawFile>,
    size: u64,
    below: Arc<dyn BlockDevice>,
}

impl FrozenLayer {
    /// Opens the layer in `dir` over the disk below it, which must have the same size.
    pub(crate) fn open(files: &dyn Files, dir: &Path, below: Arc<dyn BlockDevice>) -> io::Result<Self> {
        let size = below.info().size_bytes;
        let header = frozen_header(files, dir)?;
        if header.size != size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the layer does not belong to a disk of {size} bytes"),
            ));
        }
        let file = files.open(&dir.join(DURABLE), Open::Read)?;
        let data = files.open(&dir.join(DATA), Open::Read)?;
        Ok(Self { map: BlockMap::load(&*file, size)?, data, size, below })
    }

    fn read(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<bool> {
        end_of(offset, buf.len() as u64, self.size)?;
        read_through(&self.map, &*self.data, &*self.below, buf, offset, wait).map_err(or_busy)
    }
}

impl BlockDevice for FrozenLayer {
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
        runs(offset, len, limit, |at, end| run_through(&self.map, &*self.below, at, end)).map_err(or_busy)
    }
}

/// The header of the layer in `dir`, if the layer can be read without its hot map: it must have a durable map, and a data file as long as
/// the disk. `InvalidData` describes the problem.
pub(crate) fn frozen_header(files: &dyn Files, dir: &Path) -> io::Result<Header> {
    let bad = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let header = read_header(&*files.open(&dir.join(DURABLE), Open::Read)?)?;
    let len = files.open(&dir.join(DATA), Open::Read)?.size()?;
    match header.kind {
        Kind::Hot => bad("the durable map is a hot map".to_owned()),
        Kind::Durable if len != header.size => {
            bad(format!("the data file has {len} bytes instead of {}", header.size))
        }
        Kind::Durable => Ok(header),
    }
}

/// Reads a map file's header.
pub(crate) fn read_header(file: &dyn RawFile) -> io::Result<Header> {
    let mut bytes = [0; HEADER_LEN];
    match file.read_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the header is truncated"))
        }
        other => other,
    }?;
    Header::decode(&bytes)
}

/// The properties of a version's disk.
pub(crate) const fn frozen_info(size_bytes: u64) -> BlockInfo {
    BlockInfo { size_bytes, logical_block: 512, physical_block: 4096, read_only: true, discard: false }
}

/// The error of a write to a version.
pub(crate) fn never_written() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "an image version is read-only")
}

/// The end of a range; `InvalidInput` unless it consists of whole sectors and is inside a disk of `size` bytes.
pub(crate) fn end_of(offset: u64, len: u64, size: u64) -> io::Result<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= size && offset.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR) => Ok(end),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are not whole sectors of a disk of {size} bytes"),
        )),
    }
}

/// Fills `buf` from `offset` of the disk below a layer; returns `false` only if that would block and `wait` forbids it.
pub(crate) fn read_below(
    below: &dyn BlockDevice,
    buf: &mut [u8],
    offset: u64,
    wait: Wait,
) -> io::Result<bool> {
    match wait {
        Wait::Never => below.try_read_at(buf, offset),
        Wait::Allowed => below.read_at(buf, offset).map(|()| true),
    }
}

/// Fills `buf` from `offset` of a disk that consists of a layer and the disk `below` it; returns `false` like [`read_below`].
pub(crate) fn read_through(
    map: &BlockMap,
    data: &dyn RawFile,
    below: &dyn BlockDevice,
    buf: &mut [u8],
    offset: u64,
    wait: Wait,
) -> io::Result<bool> {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let end = at + rest.len() as u64;
        let (state, stop) = map.run(at / BLOCK, end.div_ceil(BLOCK));
        let len = to_usize((stop * BLOCK).min(end) - at);
        let (part, next) = rest.split_at_mut(len);
        let done = match state {
            State::Zero => {
                part.fill(0);
                true
            }
            State::Present => read_file(data, part, at, wait)?,
            State::Absent => read_below(below, part, at, wait)?,
        };
        if !done {
            return Ok(false);
        }
        at += len as u64;
        rest = next;
    }
    Ok(true)
}

/// Whether `offset` of a layer and the disk below it is mapped, and where the run of bytes with the same state ends, at most at `end`.
pub(crate) fn run_through(
    map: &BlockMap,
    below: &dyn BlockDevice,
    offset: u64,
    end: u64,
) -> io::Result<(bool, u64)> {
    let (state, stop) = map.run(offset / BLOCK, end.div_ceil(BLOCK));
    let stop = (stop * BLOCK).min(end);
    Ok(match state {
        State::Zero => (false, stop),
        State::Present => (true, stop),
        State::Absent => {
            let runs = below.block_status(offset, stop - offset, 1)?;
            // If a device reports nothing about a range, the range may contain data.
            let said = runs.first().filter(|run| run.len > 0);
            said.map_or((true, stop), |run| (run.mapped, (offset + run.len).min(stop)))
        }
    })
}

/// The runs from `offset` on, at most `limit` runs and `len` bytes; `run` returns the run at one offset. Adjacent runs of the same kind are
/// not merged: finding the end of a merged run could mean scanning 100,000 extents.
pub(crate) fn runs(
    offset: u64,
    len: u64,
    limit: usize,
    run: impl Fn(u64, u64) -> io::Result<(bool, u64)>,
) -> io::Result<Vec<BlockRun>> {
    let (mut at, end, mut runs) = (offset, offset + len, Vec::new());
    while at < end && runs.len() < limit {
        let (mapped, stop) = run(at, end)?;
        runs.push(BlockRun { len: stop - at, mapped });
        at = stop;
    }
    Ok(runs)
}

/// Fills `buf` from one of our files; returns `false` like [`read_below`].
pub(crate) fn read_file(file: &dyn RawFile, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<bool> {
    match wait {
        Wait::Never => file.try_read_at(buf, offset),
        Wait::Allowed => file.read_at(buf, offset).map(|()| true),
    }
}

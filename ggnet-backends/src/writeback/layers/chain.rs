//! A version as a chain (a raw base file and, above it, frozen layers), and the reading through layers.
//!
//! A frozen layer is a writeback's folder that nobody writes any more: its durable map says all there is to know, so freezing
//! copies nothing. Invariants: nothing in a chain is ever opened for writing; one version is one open file, and so one page
//! cache, for all the disks that stand on it; a block is read from the topmost layer that knows it, else from the base.

use std::{io, path::Path, sync::Arc};

use ggnet_core::{block::BlockRun, nouns::ImageVersionId};

use super::{
    files::{Files, Open, RawFile},
    format::{BLOCK, DATA, DURABLE, HEADER_LEN, Header, Kind},
    map::{BlockMap, State},
    to_usize,
};

/// Whether a read may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// No: `Ok(false)` where it would.
    Never,
    /// Yes.
    Allowed,
}

/// A layer that is not written any more.
pub(super) struct FrozenLayer {
    map: BlockMap,
    data: Arc<dyn RawFile>,
}

impl FrozenLayer {
    /// Opens the layer in `dir`, which must be of a disk of `size` bytes.
    pub(super) fn open(files: &dyn Files, dir: &Path, size: u64) -> io::Result<Self> {
        let file = files.open(&dir.join(DURABLE), Open::Read)?;
        let header = read_header(&*file)?;
        let data = files.open(&dir.join(DATA), Open::Read)?;
        if header.kind != Kind::Durable || header.size != size || data.size()? != size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the layer is not one of a disk of {size} bytes"),
            ));
        }
        Ok(Self { map: BlockMap::load(&*file, size)?, data })
    }
}

/// Reads a map file's header.
pub(super) fn read_header(file: &dyn RawFile) -> io::Result<Header> {
    let mut bytes = [0; HEADER_LEN];
    match file.read_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the header is cut short"))
        }
        other => other,
    }?;
    Header::decode(&bytes)
}

/// What stands below a mutable layer.
pub(super) struct Chain {
    version: ImageVersionId,
    frozen: Vec<FrozenLayer>,
    base: Arc<dyn RawFile>,
}

impl Chain {
    /// A chain; `frozen` from the topmost down.
    pub(super) fn new(version: ImageVersionId, frozen: Vec<FrozenLayer>, base: Arc<dyn RawFile>) -> Self {
        Self { version, frozen, base }
    }

    /// The version that it is.
    pub(super) const fn version(&self) -> ImageVersionId {
        self.version
    }

    /// All of it, to read from.
    pub(super) fn below(&self) -> Below<'_> {
        Below { layers: &self.frozen, base: &*self.base }
    }
}

/// The part of a chain below some layer.
#[derive(Clone, Copy)]
pub(super) struct Below<'a> {
    layers: &'a [FrozenLayer],
    base: &'a dyn RawFile,
}

impl Below<'_> {
    /// Fills `buf` from `offset`; `false` only if that would wait and `wait` forbids it.
    pub(super) fn read(self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<bool> {
        match self.layers.split_first() {
            None => read_file(self.base, buf, offset, wait),
            Some((top, layers)) => {
                read_through(&top.map, &*top.data, Below { layers, ..self }, buf, offset, wait)
            }
        }
    }

    /// Whether `offset` is mapped, and where the run of bytes like it ends, at most at `end`.
    pub(super) fn run(self, offset: u64, end: u64) -> io::Result<(bool, u64)> {
        match self.layers.split_first() {
            None => self.base.run(offset, end),
            Some((top, layers)) => run_through(&top.map, Below { layers, ..self }, offset, end),
        }
    }
}

/// Fills `buf` from `offset` of a disk made of a layer and what is `below` it.
pub(super) fn read_through(
    map: &BlockMap,
    data: &dyn RawFile,
    below: Below<'_>,
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
            State::Absent => below.read(part, at, wait)?,
        };
        if !done {
            return Ok(false);
        }
        at += len as u64;
        rest = next;
    }
    Ok(true)
}

/// As [`Below::run`], for a layer and what is below it.
pub(super) fn run_through(
    map: &BlockMap,
    below: Below<'_>,
    offset: u64,
    end: u64,
) -> io::Result<(bool, u64)> {
    let (state, stop) = map.run(offset / BLOCK, end.div_ceil(BLOCK));
    let stop = (stop * BLOCK).min(end);
    match state {
        State::Zero => Ok((false, stop)),
        State::Present => Ok((true, stop)),
        State::Absent => below.run(offset, stop),
    }
}

/// The runs from `offset` on, at most `limit` of them and `len` bytes, by what `run` tells of one place. Neighbours that are alike stay
/// apart: in a layer of scattered blocks the end of the like may be a hundred thousand away.
pub(super) fn runs(
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

fn read_file(file: &dyn RawFile, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<bool> {
    match wait {
        Wait::Never => file.try_read_at(buf, offset),
        Wait::Allowed => file.read_at(buf, offset).map(|()| true),
    }
}

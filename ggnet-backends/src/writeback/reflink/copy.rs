//! A raw copy of a version: with shared blocks, or, if that is impossible and configured, a full copy without the holes.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use ggnet_core::error::{Error, Result};
use rustix::{fs::SeekFrom, io::Errno};

use crate::{cloning, files::check_len};

const PIECE: usize = 1 << 20;

/// Opens a version's file for reading. Errors: `NotFound`, `Corrupt` if it has another length.
pub(super) fn open_base(path: &Path, size_bytes: u64) -> Result<File> {
    let at = |e| Error::io(format!("Opening {}", path.display()), e);
    let file = File::open(path).map_err(at)?;
    check_len(path, file.metadata().map_err(at)?.len(), size_bytes)?;
    Ok(file)
}

/// Makes a new file of mode 0600 a copy of `base`, synced to disk; returns whether it shares its blocks. Errors: those for which
/// [`cloning::cannot`] returns true if blocks cannot be shared and `full` does not allow a full copy. The caller removes the incomplete
/// file.
pub(super) fn make(base: &File, new: &Path, full: bool) -> io::Result<bool> {
    let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    let shared = match cloning::clone_file(&copy, base) {
        Err(e) if full && cloning::cannot(&e) => {
            copy_data(base, &copy)?;
            false
        }
        other => other.map(|()| true)?,
    };
    copy.sync_all()?;
    Ok(shared)
}

/// Copies everything except holes.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let end = from.metadata()?.len();
    to.set_len(end)?;
    let (mut at, mut piece) = (0, vec![0; PIECE]);
    while let Some((start, stop)) = data(from, at, end)? {
        at = start;
        while at < stop {
            let len = usize::try_from(stop - at).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut piece[..len], at)?;
            to.write_all_at(&piece[..len], at)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// The start and the end of the next data at or after `at`.
fn data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) if start >= end => Ok(None),
        Ok(start) => Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?.min(end)))),
        // Only a hole follows.
        Err(Errno::NXIO) => Ok(None),
        // This file system does not report holes.
        Err(Errno::INVAL) => Ok(Some((at, end))),
        Err(e) => Err(e.into()),
    }
}

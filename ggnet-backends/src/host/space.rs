//! The free space of a folder's file system.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Finding, Level};

/// The space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Total bytes.
    pub total: u64,
    /// Bytes that we can still write (without the space reserved for root).
    pub available: u64,
    /// Files that can still be created; `None` if the file system has no such limit.
    pub files_available: Option<u64>,
}

/// The space of the file system of `dir`, or of its nearest existing parent.
///
/// # Errors
/// If the file system cannot be read.
pub fn space(dir: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(&nearest(dir)?)?;
    Ok(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        // btrfs and others create inodes as needed and report none.
        files_available: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// `dir`, or its nearest existing parent.
pub(super) fn nearest(dir: &Path) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    let there = dir
        .ancestors()
        .find(|at| !matches!(at.symlink_metadata(), Err(e) if e.kind() == io::ErrorKind::NotFound));
    Ok(there.unwrap_or(&dir).to_owned())
}

/// Whether at least `wanted` bytes can be written in `dir`: a warning if not, a failure if almost nothing is left.
#[must_use]
pub fn free_space(dir: &Path, wanted: u64) -> Finding {
    let what = format!("free space for {}", dir.display());
    match space(dir) {
        Ok(space) => judge(what, space, wanted),
        Err(e) => Finding::unknown(what, &e),
    }
}

fn judge(what: String, space: Space, wanted: u64) -> Finding {
    /// The minimum space that a database and a few small files need.
    const FLOOR: u64 = 16 << 20;
    let mend = "Free space there, or configure another data folder";
    let why = format!("{} of {} are free", human(space.available), human(space.total));
    if space.available < FLOOR {
        return Finding::bad(Level::Fail, what, why, mend);
    }
    if space.files_available.is_some_and(|n| n < 100) {
        return Finding::bad(Level::Fail, what, "The file system has no inodes left", mend);
    }
    if space.available < wanted {
        return Finding::bad(
            Level::Warn,
            what,
            format!("{why}, but {} are recommended", human(wanted)),
            mend,
        );
    }
    Finding::ok(what, why)
}

/// `12.3 GiB`.
fn human(bytes: u64) -> String {
    let unit =
        [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter().find(|(bits, _)| bytes >> bits > 0);
    match unit {
        Some((bits, name)) => {
            let tenths = (u128::from(bytes) * 10) >> bits;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let here = space(dir.path()).unwrap();
        assert!(here.total > 0 && here.available <= here.total, "{here:?}");
        assert_eq!(space(&dir.path().join("not/yet/made")).unwrap().total, here.total);
        assert_eq!(free_space(dir.path(), u64::MAX).level, Level::Warn);
        assert_eq!(free_space(Path::new("/proc"), 1).level, Level::Fail, "nothing can be written there");
    }

    #[test]
    fn the_rule() {
        let judge = |available, files, wanted| {
            judge("x".into(), Space { total: 1 << 40, available, files_available: files }, wanted).level
        };
        assert_eq!(judge(10 << 30, Some(1000), 1 << 30), Level::Ok);
        assert_eq!(judge(10 << 30, None, 20 << 30), Level::Warn);
        assert_eq!(judge(1 << 20, None, 0), Level::Fail);
        assert_eq!(judge(10 << 30, Some(3), 0), Level::Fail);
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(human(0), "0 bytes");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(u64::MAX), "16777215.9 TiB");
    }
}

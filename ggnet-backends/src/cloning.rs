//! Copies that share their blocks with the original (FICLONE, ioctl_ficlone(2)), and whether a file system can make them.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};

/// Makes `to`, an empty file, a copy of `from` that shares its blocks; see [`cannot`] for its errors.
#[cfg(feature = "writeback-reflink")]
pub(crate) fn clone_file(to: &File, from: &File) -> io::Result<()> {
    loop {
        match rustix::fs::ioctl_ficlone(to, from) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether an error of a clone says that it cannot be made here at all: no such file system, or two of them.
pub(crate) fn cannot(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS)
    )
}

/// Whether files of the folder `from` can be cloned into the folder `to`: tries it with two files without names, of which nothing is
/// left. Errors: those of the folders, `StorageFull` among them.
pub(crate) fn possible(from: &Path, to: &Path) -> io::Result<bool> {
    let nameless = |dir: &Path| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    };
    let (mut original, copy) = match (nameless(from), nameless(to)) {
        // A file system without nameless files (NFS, FAT) has no clones that we know of either.
        (Err(Errno::OPNOTSUPP), _) | (_, Err(Errno::OPNOTSUPP)) => return Ok(false),
        (original, copy) => (original?, copy?),
    };
    // More than what a file system might keep beside the inode.
    original.write_all(&[1; 1 << 16])?;
    match rustix::fs::ioctl_ficlone(&copy, &original).map_err(io::Error::from) {
        Ok(()) => Ok(true),
        Err(e) if cannot(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The name of the file system that a path is on, by its magic number (statfs(2)), or that number.
pub(crate) fn file_system(path: &Path) -> String {
    let kind = match rustix::fs::statfs(path) {
        Ok(stat) => stat.f_type,
        Err(e) => return format!("a file system that does not answer ({e})"),
    };
    let known: [(u32, &str); 10] = [
        (0x5846_5342, "XFS"),
        (0x9123_683e, "btrfs"),
        (0xef53, "ext4"),
        (0x0102_1994, "tmpfs"),
        (0x6969, "NFS"),
        (0x794c_7630, "overlayfs"),
        (0x2fc1_2fc1, "ZFS"),
        (0xca45_1a4e, "bcachefs"),
        (0xf2f5_2010, "F2FS"),
        (0x6573_5546, "FUSE"),
    ];
    let name = known.iter().find(|(magic, _)| i64::from(*magic) == kind).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("a file system of type {kind:#x}"))
}

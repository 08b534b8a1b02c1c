//! Copies that share their blocks with the original (FICLONE, ioctl_ficlone(2)), and checks whether a file system supports them.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};

/// Makes `to`, which must be an empty file, a copy of `from` that shares its blocks. See [`cannot`] for the errors.
#[cfg(feature = "writeback-reflink")]
pub(crate) fn clone_file(to: &File, from: &File) -> io::Result<()> {
    loop {
        match rustix::fs::ioctl_ficlone(to, from) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether the error of a clone means that it is impossible here: the file system does not support it, or the files are on two file
/// systems.
pub(crate) fn cannot(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS)
    )
}

/// Whether files in the folder `from` can be cloned into the folder `to`. Tries it with two unnamed files, so nothing is left behind.
/// Errors: those of the folders, including `StorageFull`.
pub(crate) fn possible(from: &Path, to: &Path) -> io::Result<bool> {
    let nameless = |dir: &Path| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR).map(File::from)
    };
    let (mut original, copy) = match (nameless(from), nameless(to)) {
        // A file system without unnamed files (NFS, FAT) does not support clones as far as we know.
        (Err(Errno::OPNOTSUPP), _) | (_, Err(Errno::OPNOTSUPP)) => return Ok(false),
        (original, copy) => (original?, copy?),
    };
    // More than a file system might store inside the inode.
    original.write_all(&[1; 1 << 16])?;
    match rustix::fs::ioctl_ficlone(&copy, &original).map_err(io::Error::from) {
        Ok(()) => Ok(true),
        Err(e) if cannot(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The name of the file system of a path, by its magic number (statfs(2)); the number itself if it is unknown.
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

//! The served folder, with file operations that cannot leave it.
//!
//! The kernel resolves every path below the folder's own descriptor (openat2 with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`, Linux 5.6),
//! so that no `..`, no symbolic link and no race with a rename leads outside. The last component of a path is only used relative to its
//! opened parent, by calls that do not follow links. The crate cap-std is not used, because it follows links within the folder, which must
//! be rejected here, and adds eight crates for what rustix, already a dependency, does in one call.
//!
//! Invariants: no symbolic link is followed, not even our own; the name of a new file appears only after its bytes are on disk; files and
//! folders created here are world-readable whatever our umask is, because in.tftpd serves no others.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// The open folder. Paths of its methods are relative to it and separated by `/`; the empty path is the folder itself.
pub(super) struct Root(OwnedFd);

/// What exists under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing.
    Absent,
    /// A symbolic link, with its text.
    Link(String),
    /// Anything else.
    Other,
}

/// The content of a file.
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    /// Whether in.tftpd can read it.
    pub(super) world_readable: bool,
}

impl Root {
    /// Opens the folder. Only here links are followed, because the operator may have replaced the folder with a link.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(CWD, path, FOLDER, Mode::empty())?))
    }

    fn open_at(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        loop {
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                // The kernel could not determine whether a concurrent rename led outside the folder.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// The open parent folder of `path`, and its last component.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.open_at(parent, FOLDER)?, name))
    }

    /// Creates a folder and its parents with mode 0755; existing ones are not changed.
    pub(super) fn make_dirs(&self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]).filter(|(at, _)| *at > 0) {
            let (parent, name) = self.parent(&path[..at])?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => rustix::fs::fchmod(self.open_at(&path[..at], FOLDER)?, Mode::from_raw_mode(0o755))?,
                // If this is not a folder, the next call that enters it reports that.
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads a regular file.
    pub(super) fn read(&self, path: &str) -> io::Result<Content> {
        // NONBLOCK: a FIFO of this name must not block us.
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
        let stat = rustix::fs::fstat(&fd)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let world_readable = Mode::from_raw_mode(stat.st_mode).contains(Mode::ROTH);
        let mut bytes = Vec::new();
        File::from(fd).read_to_end(&mut bytes)?;
        Ok(Content { bytes, world_readable })
    }

    /// Writes a new file, mode 0644, and syncs it to disk. After an error, no file is left.
    pub(super) fn write_new(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
        let written = file
            .write_all(bytes)
            .and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?))
            .and_then(|()| file.sync_all());
        if written.is_err() {
            // The cause of the failed write matters; the next call removes the rest.
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
        }
        written
    }

    /// Renames; replaces an existing file.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
    }

    /// What exists under a name; `Absent` also if a parent does not exist or is not a folder.
    pub(super) fn entry(&self, path: &str) -> io::Result<Entry> {
        let (parent, name) = match self.parent(path) {
            Err(e) if is_nothing(&e) => return Ok(Entry::Absent),
            other => other?,
        };
        match rustix::fs::readlinkat(parent, name, Vec::new()) {
            // A link text that is not UTF-8 is not ours: an empty text has no owner.
            Ok(text) => Ok(Entry::Link(text.into_string().unwrap_or_default())),
            Err(Errno::NOENT) => Ok(Entry::Absent),
            Err(Errno::INVAL) => Ok(Entry::Other),
            Err(e) => Err(e.into()),
        }
    }

    /// Creates a symbolic link under a free name.
    pub(super) fn symlink(&self, text: &str, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::symlinkat(text, parent, name)?)
    }

    /// Removes a file or a link; success if it does not exist.
    pub(super) fn unlink(&self, path: &str) -> io::Result<()> {
        self.remove(path, AtFlags::empty())
    }

    /// Removes an empty folder; success if it does not exist.
    pub(super) fn rmdir(&self, path: &str) -> io::Result<()> {
        self.remove(path, AtFlags::REMOVEDIR)
    }

    fn remove(&self, path: &str, flags: AtFlags) -> io::Result<()> {
        let removed =
            self.parent(path).and_then(|(parent, name)| Ok(rustix::fs::unlinkat(parent, name, flags)?));
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The names in a folder and their kinds; names that are not UTF-8 are skipped, because they are not ours.
    pub(super) fn names(&self, path: &str) -> io::Result<Vec<(String, FileType)>> {
        let mut names = Vec::new();
        let fd = self.open_at(path, FOLDER)?;
        for entry in Dir::read_from(fd.as_fd())? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not report the kind here.
                FileType::Unknown => match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e.into()),
                },
                known => known,
            };
            names.push((name.to_owned(), kind));
        }
        Ok(names)
    }

    /// The mode of a folder.
    pub(super) fn folder_mode(&self, path: &str) -> io::Result<Mode> {
        Ok(Mode::from_raw_mode(rustix::fs::fstat(self.open_at(path, FOLDER)?)?.st_mode))
    }
}

/// Whether an error means that a path does not exist: a part of it is missing or is not a folder.
pub(super) fn is_nothing(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV))
}

/// Whether an error means that something else is in the place of a folder: a file, or a link, which is not followed.
pub(super) fn is_in_the_way(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOTDIR | Errno::LOOP | Errno::XDEV))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn nothing_leads_out() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        File::create(&secret).unwrap().write_all(b"s").unwrap();
        symlink(outside.path(), inside.path().join("link")).unwrap();
        symlink(&secret, inside.path().join("file")).unwrap();
        symlink("real", inside.path().join("within")).unwrap();
        std::fs::create_dir(inside.path().join("real")).unwrap();
        let root = Root::open(inside.path()).unwrap();
        let outside_name = outside.path().file_name().unwrap().to_str().unwrap();
        for path in
            ["link/secret", "file", &format!("../{outside_name}/secret"), "real/../file", "/etc/passwd"]
        {
            assert!(root.read(path).is_err(), "{path}");
            assert!(root.names(path).is_err(), "{path}");
        }
        for path in ["link/new", "within/new", "file"] {
            assert!(root.write_new(path, b"x").is_err(), "{path}");
            assert!(root.symlink("x", path).is_err(), "{path}");
        }
        assert!(is_in_the_way(&root.make_dirs("link/a/b").unwrap_err()));
        root.unlink("file").unwrap();
        assert!(root.unlink("link/secret").is_err());
        assert_eq!(std::fs::read(&secret).unwrap(), b"s");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_made_is_for_everybody_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.make_dirs("a/b").unwrap();
        root.make_dirs("a/b").unwrap();
        root.write_new("a/b/c", b"x").unwrap();
        assert_eq!(root.write_new("a/b/c", b"y").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/c")), (0o755, 0o755, 0o644));
        assert!(root.read("a/b/c").unwrap().world_readable);
        assert!(root.read("a/b").is_err());
        assert_eq!(root.entry("a/b/c").unwrap(), Entry::Other);
        assert_eq!(root.entry("a/b/c/d").unwrap(), Entry::Absent);
    }
}

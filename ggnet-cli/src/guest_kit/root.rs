//! Writes a kit below a folder with untrusted content: the root of a mounted image.
//!
//! ```text
//!  compare every file ─▶ one exists with other content, and no `force` ─▶ error, nothing is written
//!                    └─▶ write each file that is missing or belongs to an older kit; the manifest last
//! ```
//!
//! Every path is resolved by the kernel as the guest itself would see it (openat2 with `RESOLVE_IN_ROOT` and `RESOLVE_NO_MAGICLINKS`,
//! Linux 5.6): absolute links and `..` end at the folder, so that no link of a hostile image leads outside it. A new file is created
//! relative to its opened parent, by calls that follow no link.
//!
//! Invariants: no file of the operator with another meaning is replaced without `force`; each file is replaced atomically; a file that is
//! already right is not touched, so that a second run changes nothing.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use serde::Serialize;

use super::{Kit, KitFile, MANIFEST, Manifest};

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
/// The temporary name of a new file, in its final folder. Programs that read such folders skip names with a leading dot.
const NEW: &str = ".ggnet-guest-kit.new";
/// A longer file is not one of the kit's and is not read further.
const LONGEST: u64 = 1 << 20;

/// An open folder; all paths below are relative to it.
pub struct Root(OwnedFd);

/// What was done with a file, or is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It did not exist.
    Written,
    /// It existed with the right content.
    Unchanged,
    /// It existed with other text of the same meaning and was not changed.
    Kept,
    /// It was an unchanged file of an older kit, or `force` was given.
    Replaced,
}

/// Why a kit was not written.
#[derive(Debug)]
pub enum Refused {
    /// These files exist with other content; nothing was written.
    InTheWay(Vec<&'static str>),
    /// A file could not be read or written: its path, and why.
    Io(&'static str, io::Error),
}

impl Root {
    /// Opens the folder. Only here links are followed anywhere, because the operator named the path.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(CWD, path, FOLDER, Mode::empty())?))
    }

    /// Writes a kit; returns what was done with each file, in the kit's order.
    ///
    /// # Errors
    /// A file exists with other content (then nothing was written), or cannot be read or written (then the files before it may be written).
    pub fn write(&self, kit: &Kit, force: bool) -> Result<Vec<(KitFile, Done)>, Refused> {
        let manifest = self.read(MANIFEST).map_err(|e| Refused::Io(MANIFEST, e))?;
        let older = manifest.and_then(|bytes| Manifest::parse(&bytes));
        let mut plan = Vec::new();
        let mut in_the_way = Vec::new();
        for file in &kit.files {
            let there = self.read(file.path).map_err(|e| Refused::Io(file.path, e))?;
            match decide(file, there.as_deref(), older.as_ref()) {
                Some(done) => plan.push((file.clone(), done)),
                None if force => plan.push((file.clone(), Done::Replaced)),
                None => in_the_way.push(file.path),
            }
        }
        if !in_the_way.is_empty() {
            return Err(Refused::InTheWay(in_the_way));
        }
        for (file, done) in &plan {
            if matches!(done, Done::Written | Done::Replaced) {
                self.put(file.path, file.text.as_bytes()).map_err(|e| Refused::Io(file.path, e))?;
            }
        }
        Ok(plan)
    }

    fn open_at(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                // The kernel could not tell whether a rename under way led out of the folder.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Reads a file; none if it does not exist. Returns empty bytes if it is too long or no regular file, because then it is not ours.
    fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        // NONBLOCK: opening a FIFO of this name must not block.
        let fd = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let stat = rustix::fs::fstat(&fd)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(Some(Vec::new()));
        }
        let mut bytes = Vec::new();
        File::from(fd).take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST {
            bytes.clear();
        }
        Ok(Some(bytes))
    }

    /// Writes a file atomically with mode 0644 and syncs it; creates missing folders above it with mode 0755.
    fn put(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        for (at, _) in folder.match_indices('/').chain([(folder.len(), "")]).filter(|(at, _)| *at > 0) {
            let (above, name) = folder[..at].rsplit_once('/').unwrap_or(("", &folder[..at]));
            match rustix::fs::mkdirat(self.open_at(above, FOLDER)?, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let made = self.open_at(&folder[..at], FOLDER)?;
                    rustix::fs::fchmod(made, Mode::from_raw_mode(0o755))?;
                }
                // If it is no folder, the next step fails.
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let parent = self.open_at(folder, FOLDER)?;
        // Left behind by a killed run.
        match rustix::fs::unlinkat(&parent, NEW, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&parent, NEW, flags, Mode::from_raw_mode(0o644))?);
        let written = file
            .write_all(bytes)
            .and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?))
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(rustix::fs::renameat(&parent, NEW, &parent, name)?));
        if written.is_err() {
            // The error to report is the first one.
            let _ = rustix::fs::unlinkat(&parent, NEW, AtFlags::empty());
        }
        written
    }

    /// The stat of a path; none if it does not exist.
    pub fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        match self.open_at(path, OFlags::PATH | OFlags::CLOEXEC) {
            Ok(fd) => Ok(Some(rustix::fs::fstat(fd)?)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The UTF-8 names in a folder; none if there is no such folder.
    pub fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let fd = match self.open_at(path, FOLDER) {
            Ok(fd) => fd,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(fd)? {
            names.extend(entry?.file_name().to_str().ok().map(ToOwned::to_owned));
        }
        Ok(names)
    }
}

/// What to do with a file of which `there` exists; none if it is not ours.
fn decide(file: &KitFile, there: Option<&[u8]>, older: Option<&Manifest>) -> Option<Done> {
    let Some(there) = there else { return Some(Done::Written) };
    if there == file.text.as_bytes() {
        return Some(Done::Unchanged);
    }
    let ours = if file.path == MANIFEST {
        older.is_some()
    } else {
        older.is_some_and(|m| m.wrote(file.path, there))
    };
    if ours {
        return Some(Done::Replaced);
    }
    let same = file.path != MANIFEST
        && std::str::from_utf8(there).is_ok_and(|there| meaning(there).eq(meaning(&file.text)));
    same.then_some(Done::Kept)
}

/// The lines of a text without comments and empty lines.
fn meaning(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of tests need not survive a power cut")]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    const DROP_IN: &str = "etc/systemd/system/iscsid.service.d/ggnet-guest-kit.conf";
    const AUTO: &str = "etc/iscsi/iscsi.initramfs";

    fn write(folder: &Path, force: bool) -> Result<Vec<Done>, Refused> {
        let done = Root::open(folder).unwrap().write(&Kit::debian(), force)?;
        Ok(done.into_iter().map(|(_, done)| done).collect())
    }

    fn put(folder: &Path, path: &str, text: &str) -> PathBuf {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn a_second_run_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(dir.path(), false).unwrap(), [Done::Written; 5]);
        let state = || {
            let of = |f: &KitFile| {
                let meta = dir.path().join(f.path).metadata().unwrap();
                (meta.ino(), meta.mtime_nsec(), meta.permissions().mode() & 0o7777)
            };
            Kit::debian().files.iter().map(of).collect::<Vec<_>>()
        };
        let before = state();
        assert!(before.iter().all(|(_, _, mode)| *mode == 0o644));
        assert_eq!(
            dir.path().join("etc/udev/rules.d").metadata().unwrap().permissions().mode() & 0o7777,
            0o755
        );
        assert_eq!(write(dir.path(), false).unwrap(), [Done::Unchanged; 5]);
        assert_eq!(state(), before);
    }

    #[test]
    fn a_file_of_the_operator_is_replaced_by_force_only_and_nothing_is_written_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = put(dir.path(), AUTO, "ISCSI_TARGET_NAME=iqn.2026-01.org.example:mine\n");
        match write(dir.path(), false) {
            Err(Refused::InTheWay(paths)) => assert_eq!(paths, [AUTO]),
            other => panic!("{other:?}"),
        }
        assert!(!dir.path().join(DROP_IN).exists());
        assert!(fs::read_to_string(&file).unwrap().contains("mine"));
        assert_eq!(write(dir.path(), true).unwrap()[2], Done::Replaced);
        assert!(!fs::read_to_string(&file).unwrap().contains("mine"));
    }

    #[test]
    fn a_file_that_means_the_same_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = put(dir.path(), AUTO, "\n# mine\n  ISCSI_AUTO=true\n");
        assert_eq!(write(dir.path(), false).unwrap()[2], Done::Kept);
        assert!(fs::read_to_string(file).unwrap().contains("# mine"));
    }

    #[test]
    fn an_older_kit_is_replaced_unless_somebody_changed_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Kit::debian().files;
        files.pop();
        for file in &mut files {
            file.text += "OLD=1\n";
        }
        let old = Kit::new("debian", 0, files);
        Root::open(dir.path()).unwrap().write(&old, false).unwrap();
        put(dir.path(), DROP_IN, "[Service]\nNice=5\n");
        match write(dir.path(), false) {
            Err(Refused::InTheWay(paths)) => assert_eq!(paths, [DROP_IN]),
            other => panic!("{other:?}"),
        }
        fs::remove_file(dir.path().join(DROP_IN)).unwrap();
        let done = write(dir.path(), false).unwrap();
        assert_eq!(done, [Done::Written, Done::Replaced, Done::Replaced, Done::Replaced, Done::Replaced]);
        assert_eq!(write(dir.path(), false).unwrap(), [Done::Unchanged; 5]);
    }

    #[test]
    fn links_of_a_hostile_image_lead_nowhere_outside() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = put(outside.path(), "secret", "ISCSI_AUTO=true\n");
        let etc = dir.path().join("etc");
        fs::create_dir_all(etc.join("systemd")).unwrap();
        fs::create_dir_all(etc.join("iscsi")).unwrap();
        // A link to a folder, one to a file, one that goes up, and one with the name of the temporary file.
        symlink(outside.path(), etc.join("udev")).unwrap();
        symlink(&secret, dir.path().join(AUTO)).unwrap();
        symlink("../../../../../../../../../../../../../..", etc.join("systemd/system")).unwrap();
        symlink(&secret, etc.join("iscsi").join(NEW)).unwrap();
        // In the guest the links lead to folders of its own, which do not exist.
        assert!(matches!(write(dir.path(), false), Err(Refused::Io(..))));
        fs::create_dir_all(dir.path().join(outside.path().strip_prefix("/").unwrap())).unwrap();
        write(dir.path(), false).unwrap();

        let inside = dir.path().join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("rules.d/70-ggnet-guest-kit.rules").exists());
        assert!(dir.path().join("iscsid.service.d/ggnet-guest-kit.conf").exists(), "`..` ends at the root");
        assert!(dir.path().join(AUTO).symlink_metadata().unwrap().is_file(), "the link itself was replaced");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "ISCSI_AUTO=true\n");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(AUTO)).unwrap();
        assert!(matches!(write(dir.path(), false), Err(Refused::InTheWay(_))));
        assert!(matches!(write(dir.path(), true), Err(Refused::Io(AUTO, _))), "a folder is not removed");
    }
}

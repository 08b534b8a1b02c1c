//! [`TempFile`]: the file that a conversion writes, until it is whole.
//!
//! ```text
//!   create (O_EXCL, flock) ──▶ written, synced ──▶ renamed to its name (never over another file), folder synced
//!            └────────────────────┴──▶ dropped: unlinked
//! ```
//! Who owns it: the process that holds its flock(2). The lock goes with the process, so a file that nobody locks was left by a
//! killed one, and [`clean`] removes it. (qemu-img does not outlive us, see `run`.) A process id in the name would lie after a
//! reboot and across PID namespaces.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::error::{Error, ErrorKind, Result};
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};

use super::blocking;

const INFIX: &str = ".partial-";
const RANDOM_DIGITS: usize = 16;

/// A file under a temporary name beside its destination, locked; unlinked when dropped before [`TempFile::publish`].
pub(super) struct TempFile {
    dir: Arc<OwnedFd>,
    dir_path: PathBuf,
    temp_name: OsString,
    final_name: OsString,
    file: Option<Arc<File>>,
    published: bool,
}

impl TempFile {
    /// Makes the file with `size` bytes, all of them a hole.
    pub(super) async fn create(destination: &Path, size: u64) -> Result<Self> {
        let destination = destination.to_owned();
        blocking(move || Self::create_now(&destination, size)).await
    }

    fn create_now(destination: &Path, size: u64) -> Result<Self> {
        let shown = destination.display();
        let Some(final_name) = destination.file_name() else {
            return Err(Error::invalid("destination", format!("{shown} names no file")));
        };
        let dir_path = match destination.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        // qemu-img runs in this folder, so the name must hold wherever we stand.
        let dir_path =
            std::path::absolute(&dir_path).map_err(|e| Error::io("finding the current folder", e))?;
        let dir = open_dir(&dir_path)?;
        match rustix::fs::statat(&dir, final_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(exists(destination)),
            Err(e) => return Err(Error::io(format_args!("looking for {shown}"), e.into())),
        }
        let mut temp = Self {
            dir: Arc::new(dir),
            dir_path,
            temp_name: OsString::new(),
            final_name: final_name.to_owned(),
            file: None,
            published: true,
        };
        let file = loop {
            let name = temp_name(final_name)?;
            if let Some(file) = create_locked(&temp.dir, &name)? {
                temp.temp_name = name;
                temp.published = false;
                break file;
            }
        };
        file.set_len(size)
            .map_err(|e| Error::io(format_args!("making a file of {size} bytes for {shown}"), e))?;
        temp.file = Some(Arc::new(file));
        Ok(temp)
    }

    /// The folder that it is in.
    pub(super) fn dir_path(&self) -> &Path {
        &self.dir_path
    }

    /// Its name in that folder: letters, digits, dots, dashes and underscores only.
    pub(super) fn temp_name(&self) -> &OsStr {
        &self.temp_name
    }

    /// The open file.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        self.file.clone().ok_or_else(|| Error::internal("A temporary file without its handle"))
    }

    /// Gives it its name, unless a file has that name already (`Conflict`), and makes the name durable.
    ///
    /// Dropped half-way: the file is there whole, or not at all.
    pub(super) async fn publish(self) -> Result<()> {
        blocking(move || self.publish_now()).await
    }

    fn publish_now(mut self) -> Result<()> {
        let destination = self.dir_path.join(&self.final_name);
        let (dir, from, to) = (self.dir.as_fd(), &self.temp_name, &self.final_name);
        let named = match rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
            // A file system that cannot do it (NFS): a hard link does not replace anything either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())
                    .and_then(|()| rustix::fs::unlinkat(dir, from, AtFlags::empty()))
            }
            other => other,
        };
        match named {
            Ok(()) => self.published = true,
            Err(Errno::EXIST) => return Err(exists(&destination)),
            Err(e) => return Err(Error::io(format_args!("naming {}", destination.display()), e.into())),
        }
        if let Err(e) = rustix::fs::fsync(dir) {
            // Not durable is not there: better none than one that a power cut takes back.
            let _ = rustix::fs::unlinkat(dir, to, AtFlags::empty());
            return Err(Error::io(format_args!("syncing {}", self.dir_path.display()), e.into()));
        }
        // Closed before the caller hears of it: its lock must not be in the way of whoever opens the file next.
        self.file = None;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.published {
            // The name goes at once; a failure leaves a file that `clean` removes.
            if let Err(e) = rustix::fs::unlinkat(&*self.dir, &self.temp_name, AtFlags::empty()) {
                tracing::warn!(file = ?self.dir_path.join(&self.temp_name), error = %e, "could not remove a temporary file");
            }
        }
        let file = self.file.take();
        // The last close of an unlinked file frees all its blocks, which takes long for a large one: not on a runtime thread.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

/// Removes the temporary files of `dir` that no process holds. A folder that does not exist has none.
pub(super) async fn clean(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    blocking(move || clean_now(&dir)).await
}

fn clean_now(path: &Path) -> Result<()> {
    let dir = match open_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let reading = |e: std::io::Error| Error::io(format_args!("reading {}", path.display()), e);
    for entry in std::fs::read_dir(path).map_err(reading)? {
        let name = entry.map_err(reading)?.file_name();
        if is_temp_name(&name) {
            remove_unless_held(&dir, &name)
                .map_err(|e| Error::io(format_args!("removing {}", path.join(&name).display()), e.into()))?;
        }
    }
    Ok(())
}

fn remove_unless_held(dir: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        // Gone meanwhile, or nothing that we made.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
        Err(e) => return Err(e),
    };
    let stat = rustix::fs::fstat(&fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Ok(());
    }
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(()),
        Err(e) => return Err(e),
    }
    // Published between our open and our lock: the name is no longer this file's.
    if !still_named(dir, name, &fd)? {
        return Ok(());
    }
    tracing::info!(?name, "removing what a killed conversion left");
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// A new file under `name`, locked; none when `clean` of another process was quicker than our lock.
fn create_locked(dir: &OwnedFd, name: &OsStr) -> Result<Option<File>> {
    let doing = || format!("creating the temporary file {}", name.display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io(doing(), e.into()))?;
    let locked = match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => still_named(dir, name, &fd),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e),
    };
    match locked {
        Ok(true) => Ok(Some(fd.into())),
        Ok(false) => Ok(None),
        Err(e) => {
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
            Err(Error::io(doing(), e.into()))
        }
    }
}

fn still_named(dir: &OwnedFd, name: &OsStr, fd: &OwnedFd) -> Result<bool, Errno> {
    let ours = rustix::fs::fstat(fd)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(format_args!("opening the folder {}", path.display()), e.into()))
}

fn exists(destination: &Path) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} exists already", destination.display()))
}

/// `.<name>.partial-<16 hexadecimal digits>`, the name cut and cleaned so that it needs no quoting anywhere.
fn temp_name(final_name: &OsStr) -> Result<OsString> {
    let random = getrandom::u64().map_err(|e| Error::internal("No random numbers").with_source(e))?;
    let clean: String = final_name
        .as_bytes()
        .iter()
        .take(100)
        .map(|b| if b.is_ascii_alphanumeric() || b"._-".contains(b) { char::from(*b) } else { '_' })
        .collect();
    Ok(format!(".{clean}{INFIX}{random:016x}").into())
}

fn is_temp_name(name: &OsStr) -> bool {
    let Some((front, random)) = name.to_str().and_then(|n| n.rsplit_once(INFIX)) else {
        return false;
    };
    front.starts_with('.')
        && random.len() == RANDOM_DIGITS
        && random.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

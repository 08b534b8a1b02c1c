//! [`SinkFile`]: the file that a conversion writes, the sink of an image store.
//!
//! ```text
//!   create (what was there is unlinked, O_EXCL) ──▶ written ──▶ finish: it still has its name
//!            └────────────────────────────────────┴──▶ dropped: unlinked, if it still has its name
//! ```
//! A conversion begins with a file of its own, never with an earlier one's: a qemu-img that was killed a moment ago may still be in its last
//! write, and writes into a file without a name.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::error::{Error, ErrorKind, Result};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::blocking;

/// See the module.
pub(super) struct SinkFile {
    dir: Arc<OwnedFd>,
    dir_path: PathBuf,
    name: OsString,
    file: Option<Arc<File>>,
    finished: bool,
}

impl SinkFile {
    /// Makes the file with `size` bytes, all of them a hole, mode 0600.
    pub(super) async fn create(path: &Path, size: u64) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || Self::create_now(&path, size)).await
    }

    fn create_now(path: &Path, size: u64) -> Result<Self> {
        let shown = path.display();
        let Some(name) = path.file_name() else {
            return Err(Error::invalid("sink", format!("{shown} names no file")));
        };
        let dir_path = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        // qemu-img runs in this folder, so the name must hold wherever we stand.
        let dir_path =
            std::path::absolute(&dir_path).map_err(|e| Error::io("finding the current folder", e))?;
        let dir = open_dir(&dir_path)?;
        let doing = |e: Errno| Error::io(format_args!("creating {shown}"), e.into());
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(doing(e)),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(doing)?;
        let file = Arc::new(File::from(fd));
        let made = Self {
            dir: Arc::new(dir),
            dir_path,
            name: name.to_owned(),
            file: Some(Arc::clone(&file)),
            finished: false,
        };
        file.set_len(size)
            .map_err(|e| Error::io(format_args!("making a file of {size} bytes for {shown}"), e))?;
        Ok(made)
    }

    /// The folder that it is in.
    pub(super) fn dir_path(&self) -> &Path {
        &self.dir_path
    }

    /// Its name in that folder.
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Its whole path.
    pub(super) fn path(&self) -> PathBuf {
        self.dir_path.join(&self.name)
    }

    /// The open file.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        self.file.clone().ok_or_else(|| Error::internal("A sink without its handle"))
    }

    /// Leaves it where it is, unless another conversion has taken its name meanwhile (`Conflict`).
    ///
    /// Dropped half-way: it is left.
    pub(super) async fn finish(self) -> Result<()> {
        blocking(move || self.finish_now()).await
    }

    fn finish_now(mut self) -> Result<()> {
        let named = self.is_named();
        // Whichever it is, another one's file is not ours to remove.
        self.finished = true;
        let shown = self.path();
        match named {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                ErrorKind::Conflict,
                format!("Something else was put in the place of {} during the conversion", shown.display()),
            )),
            Err(e) => Err(Error::io(format_args!("looking at {}", shown.display()), e.into())),
        }
    }

    /// Whether the name is still this file's.
    fn is_named(&self) -> Result<bool, Errno> {
        let Some(file) = &self.file else { return Ok(false) };
        let ours = rustix::fs::fstat(file)?;
        match rustix::fs::statat(&*self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Drop for SinkFile {
    fn drop(&mut self) {
        if !self.finished {
            // The name goes at once, and the space with the last process that has it open. A failure leaves a file that means nothing.
            let removed = self.is_named().and_then(|ours| {
                if ours { rustix::fs::unlinkat(&*self.dir, &self.name, AtFlags::empty()) } else { Ok(()) }
            });
            if let Err(e) = removed {
                tracing::warn!(file = ?self.path(), error = %e, "could not remove half an image");
            }
        }
        let file = self.file.take();
        // The last close of an unlinked file frees all its blocks, which takes long for a large one: not on a runtime thread.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(format_args!("opening the folder {}", path.display()), e.into()))
}

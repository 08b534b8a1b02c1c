//! [`SinkFile`]: the output file of a conversion, the sink of an image store.
//!
//! ```text
//!   create (an existing file is unlinked, O_EXCL) ──▶ written, and still has its name ──▶ kept
//!            └─────────────────────────────────────┴──▶ dropped: unlinked, if it still has its name
//! ```
//! A conversion always starts with a new file: a qemu-img that was just killed may still be in its last write, which then goes to a file
//! without a name.

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
    /// Creates the file with `size` bytes as one hole, mode 0600.
    pub(super) async fn create(path: &Path, size: u64) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || Self::create_now(&path, size)).await
    }

    fn create_now(path: &Path, size: u64) -> Result<Self> {
        let shown = path.display();
        let Some(name) = path.file_name() else {
            return Err(Error::invalid("sink", format!("{shown} is not a path of a file")));
        };
        let dir_path = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        // qemu-img runs in this folder, so the path must be valid in any working folder.
        let dir_path =
            std::path::absolute(&dir_path).map_err(|e| Error::io("finding the current folder", e))?;
        let dir = open_dir(&dir_path)?;
        let doing = |e: Errno| Error::io(format_args!("creating {shown}"), e.into());
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(doing(e)),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => {
                let what = format!("Another conversion is writing to {shown}");
                return Err(Error::new(ErrorKind::Busy, what).with_hint("Try again when it has ended"));
            }
            other => other.map_err(doing)?,
        };
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

    /// The folder of the file.
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

    /// Checks that the name still belongs to this file; otherwise `Conflict`, which can be retried: a dropped conversion may still have
    /// been writing to this name.
    pub(super) async fn require_ours(&self) -> Result<()> {
        let (dir, name, file, shown) = (Arc::clone(&self.dir), self.name.clone(), self.file()?, self.path());
        blocking(move || match is_named(&dir, &name, &file) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let what = format!("{} was replaced while the conversion ran", shown.display());
                Err(Error::new(ErrorKind::Conflict, what).retryable(true))
            }
            Err(e) => Err(Error::io(format_args!("inspecting {}", shown.display()), e.into())),
        })
        .await
    }

    /// Keeps the file.
    pub(super) fn keep(mut self) {
        self.finished = true;
    }
}

/// Whether a name belongs to this file.
fn is_named(dir: &OwnedFd, name: &OsStr, file: &File) -> Result<bool, Errno> {
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

impl Drop for SinkFile {
    fn drop(&mut self) {
        let file = self.file.take();
        if let Some(file) = file.as_deref().filter(|_| !self.finished) {
            // The name is removed at once, the space is freed when the last process closes the file. If this fails, a file without a
            // meaning is left.
            let removed = is_named(&self.dir, &self.name, file).and_then(|ours| {
                if ours { rustix::fs::unlinkat(&*self.dir, &self.name, AtFlags::empty()) } else { Ok(()) }
            });
            if let Err(e) = removed {
                tracing::warn!(file = ?self.path(), error = %e, "cannot remove an incomplete image");
            }
        }
        // The last close of an unlinked file frees all its blocks, which takes long for a large file, so it must not run on a runtime
        // thread.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(format_args!("opening the folder {}", path.display()), e.into()))
}

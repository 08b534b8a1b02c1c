//! [`Source`]: an opened source file, the only thing that is ever passed to qemu-img.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::{
    error::{Error, Result, code},
    nouns::ImageFormat,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{blocking, header};
use crate::run::Stdin;

/// A regular file, open for reading.
pub(super) struct Source {
    file: Arc<File>,
    stamp: Stamp,
}

/// The attributes that change when a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    mtime: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::io("reading the source's attributes", e))?;
        Ok(Self { len: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()) })
    }
}

impl Source {
    /// Opens `path`, which must be a regular file and not a symbolic link.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || Self::open_now(&path)).await
    }

    fn open_now(path: &PathBuf) -> Result<Self> {
        let shown = crate::run::Arg::plain(path).shown();
        let refuse =
            |what: &str| Err(Error::invalid("path", format!("{shown} is {what}, not a regular file")));
        // NONBLOCK: opening a FIFO without a writer must not hang. NOCTTY: a terminal must not become our controlling terminal.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file: File = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::LOOP) => return refuse("a symbolic link"),
            Err(Errno::NXIO) => return refuse("a socket or a device"),
            Err(e) => return Err(Error::io(format_args!("opening {shown}"), e.into())),
        };
        let meta = file.metadata().map_err(|e| Error::io(format_args!("inspecting {shown}"), e))?;
        if meta.is_dir() {
            return refuse("a folder");
        }
        if !meta.is_file() {
            return refuse("a device, socket or pipe");
        }
        let stamp = Stamp::of(&file)?;
        Ok(Self { file: Arc::new(file), stamp })
    }

    /// The file as a program's stdin.
    pub(super) fn stdin(&self) -> Stdin {
        Stdin::File(self.file.clone())
    }

    /// The format according to the file's own bytes.
    pub(super) async fn sniff(&self) -> Result<ImageFormat> {
        self.look(header::sniff).await
    }

    /// The size of the disk according to the file's own bytes, if `format` has such a field.
    pub(super) async fn stated_size(&self, format: ImageFormat) -> Result<Option<u64>> {
        self.look(move |head, tail, _| Ok(header::stated_size(format, head, tail))).await
    }

    /// Reads the file's first and last bytes and its length.
    async fn look<T: Send + 'static>(
        &self,
        f: impl FnOnce(&[u8], &[u8], u64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (file, len) = (self.file.clone(), self.stamp.len);
        blocking(move || {
            let head = read(&file, 0, header::HEAD)?;
            let tail = read(&file, len.saturating_sub(header::TAIL as u64), header::TAIL)?;
            f(&head, &tail, len)
        })
        .await
    }

    /// `Conflict` if the file was written to since it was opened.
    pub(super) async fn require_unchanged(&self) -> Result<()> {
        let (file, before) = (self.file.clone(), self.stamp);
        let now = blocking(move || Stamp::of(&file)).await?;
        if now == before {
            return Ok(());
        }
        Err(Error::new(code::import_source_changed(), "The source was written to while it was read")
            .with_hint("Stop what writes to it (a running virtual machine?), then import it again"))
    }
}

/// Up to `len` bytes at `offset`; fewer at the end of the file.
fn read(file: &File, mut offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], offset) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                offset += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("reading the source's header", e)),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

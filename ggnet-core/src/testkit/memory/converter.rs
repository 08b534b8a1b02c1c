//! [`MemoryConverter`]: copies raw images. The one backend here that works on real files, since files are what it is asked for.
//!
//! ```text
//!   .<destination>.<random>.ggnet-part ──copied, synced──▶ <destination> (by a hard link, which never replaces a file)
//! ```
//! Invariants: whatever ends a conversion removes its temporary file; a temporary file that is still there belongs to a killed
//! process, and [`clean`](ImageConverter::clean) removes it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::world::World;
use crate::{
    error::{Error, ErrorKind, Result},
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, Health, ImageConverter, ImageProbe, Progress},
};

const CHUNK: usize = 64 * 1024;
const SUFFIX: &str = ".ggnet-part";

/// Raw to raw.
#[derive(Debug)]
pub struct MemoryConverter {
    health: World<()>,
}

impl MemoryConverter {
    /// A converter.
    #[must_use]
    pub fn new() -> Self {
        Self { health: World::default() }
    }

    /// A handle by which a test sets its health.
    #[must_use]
    pub fn world(&self) -> World<()> {
        self.health.clone()
    }
}

impl Default for MemoryConverter {
    fn default() -> Self {
        Self::new()
    }
}

/// Removes the temporary file however the conversion ends. Shared with the file tasks, which outlive a dropped future by a moment.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn temporary_name(destination: &Path) -> Result<PathBuf> {
    let name = destination.file_name().ok_or_else(|| {
        Error::invalid("destination", format!("{} has no file name", destination.display()))
    })?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    // Unique, so that two conversions to one destination do not write into each other's file.
    hidden.push(format!(".{}{SUFFIX}", uuid::Uuid::new_v4().simple()));
    Ok(destination.with_file_name(hidden))
}

/// The other formats' magic numbers: a file that bears one is not taken for raw.
fn probe(path: &Path) -> Result<ImageProbe> {
    let doing = format!("Reading {}", path.display());
    let mut file = File::open(path).map_err(|e| Error::io(&doing, e))?;
    let meta = file.metadata().map_err(|e| Error::io(&doing, e))?;
    let mut head = Vec::new();
    file.by_ref().take(72).read_to_end(&mut head).map_err(|e| Error::io(&doing, e))?;
    let known: [&[u8]; 5] = [b"QFI\xfb", b"vhdxfile", b"conectix", b"KDMV", b"# Disk DescriptorFile"];
    let vdi = head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]);
    if vdi || known.iter().any(|magic| head.starts_with(magic)) {
        let message = format!("{} is not a raw image, and this converter reads only raw", path.display());
        return Err(Error::new(ErrorKind::Unsupported, message).with_operation("probe"));
    }
    Ok(ImageProbe {
        format: ImageFormat::Raw,
        virtual_size: meta.len().next_multiple_of(512),
        actual_size: meta.blocks() * 512,
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("A file task died").with_source(e))?
}

/// Copies one chunk, leaving zeros as holes; how many bytes there were.
fn copy_chunk(source: &File, target: &File, at: u64) -> io::Result<usize> {
    let mut buf = vec![0; CHUNK];
    let mut have = 0;
    while have < CHUNK {
        match source.read_at(&mut buf[have..], at + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if buf[..have].iter().any(|b| *b != 0) {
        target.write_all_at(&buf[..have], at)?;
    }
    Ok(have)
}

#[async_trait]
impl ImageConverter for MemoryConverter {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn probe(&self, path: &Path) -> Result<ImageProbe> {
        let path = path.to_owned();
        blocking(move || probe(&path)).await.map_err(|e| e.with_backend("memory"))
    }

    async fn convert(
        &self,
        spec: &ConvertSpec,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<Converted> {
        let convert = convert(spec, &progress, &cancel);
        convert.await.map_err(|e| e.with_backend("memory").with_operation("convert"))
    }

    async fn clean(&self, destination_dir: &Path) -> Result<()> {
        let dir = destination_dir.to_owned();
        let work = move || {
            let doing = format!("Cleaning {}", dir.display());
            for entry in std::fs::read_dir(&dir).map_err(|e| Error::io(&doing, e))? {
                let entry = entry.map_err(|e| Error::io(&doing, e))?;
                let name = entry.file_name();
                let name = name.as_encoded_bytes();
                if name.starts_with(b".") && name.ends_with(SUFFIX.as_bytes()) {
                    std::fs::remove_file(entry.path()).map_err(|e| Error::io(&doing, e))?;
                }
            }
            Ok(())
        };
        blocking(work).await.map_err(|e| e.with_backend("memory").with_operation("clean"))
    }

    async fn health(&self) -> Health {
        self.health.health()
    }
}

async fn convert(spec: &ConvertSpec, progress: &Progress, cancel: &CancellationToken) -> Result<Converted> {
    if spec.format != ImageFormat::Raw {
        let message = format!("This converter reads only raw images, not {}", spec.format.qemu_name());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let temporary = Arc::new(Temporary(temporary_name(&spec.destination)?));
    let (from, to, part) = (spec.source.clone(), spec.destination.clone(), Arc::clone(&temporary));
    let open = move || {
        let source = File::open(&from).map_err(|e| Error::io(format!("Opening {}", from.display()), e))?;
        let len = source.metadata().map_err(|e| Error::io(format!("Reading {}", from.display()), e))?.len();
        if to.try_exists().map_err(|e| Error::io(format!("Looking for {}", to.display()), e))? {
            return Err(Error::new(ErrorKind::Conflict, format!("{} exists", to.display())));
        }
        let doing = format!("Making {}", part.0.display());
        let target = File::create_new(&part.0).map_err(|e| Error::io(&doing, e))?;
        target.set_len(len.next_multiple_of(512)).map_err(|e| Error::io(&doing, e))?;
        Ok((source, target, len))
    };
    let (source, target, len) = blocking(open).await?;
    let (source, target) = (Arc::new(source), Arc::new(target));
    progress(0);
    let mut at = 0;
    while at < len {
        if cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Conflict, "The conversion was cancelled"));
        }
        let (source, target) = (Arc::clone(&source), Arc::clone(&target));
        let copy = move || copy_chunk(&source, &target, at).map_err(|e| Error::io("Copying the image", e));
        let n = blocking(copy).await?;
        if n == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "The source became shorter while it was read"));
        }
        at += n as u64;
        // 999 at most: 1000 is said when the destination is there.
        progress(u16::try_from(u128::from(at) * 999 / u128::from(len)).unwrap_or(999));
    }
    let to = spec.destination.clone();
    let finish = move || {
        let doing = format!("Finishing {}", to.display());
        target.sync_all().map_err(|e| Error::io(&doing, e))?;
        std::fs::hard_link(&temporary.0, &to).map_err(|e| Error::io(&doing, e))
    };
    if cancel.is_cancelled() {
        return Err(Error::new(ErrorKind::Conflict, "The conversion was cancelled"));
    }
    blocking(finish).await?;
    progress(1000);
    Ok(Converted { size_bytes: len.next_multiple_of(512) })
}

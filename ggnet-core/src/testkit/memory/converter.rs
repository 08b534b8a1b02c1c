//! [`MemoryConverter`]: copies raw images into a file or a device. The source is a real file, because the port takes the path of a file.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::world::World;
use crate::{
    block::BlockDevice,
    error::{Error, ErrorKind, Result},
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, Health, ImageConverter, ImageProbe, Progress, Sink, SinkForm},
};

/// Whole sectors.
const CHUNK: usize = 64 * 1024;

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

    /// A handle with which a test sets its health.
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

/// Checks the magic numbers of the other formats: a file with one of them is not raw.
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

/// Where the bytes go, opened.
enum Out {
    File(File),
    Blocks(Arc<dyn BlockDevice>),
}

impl Out {
    /// Empty, and as large as the disk: the remains of an earlier conversion are discarded.
    fn open(sink: &Sink, size: u64) -> Result<Self> {
        match sink {
            Sink::File(path) => {
                let doing = format!("Making {}", path.display());
                let file = File::create(path).map_err(|e| Error::io(&doing, e))?;
                file.set_len(size).map_err(|e| Error::io(&doing, e))?;
                Ok(Self::File(file))
            }
            Sink::Blocks(device) => {
                let have = device.info().size_bytes;
                if have != size {
                    let message = format!("The sink has {have} bytes, but the image has {size}");
                    return Err(Error::invalid("sink", message));
                }
                device.discard(0, size).map_err(|e| Error::io("Emptying the sink", e))?;
                Ok(Self::Blocks(Arc::clone(device)))
            }
        }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, at),
            Self::Blocks(device) => device.write_at(bytes, at),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_all(),
            Self::Blocks(device) => device.flush(),
        }
    }
}

/// Copies one chunk, leaving zeros as holes; what there was, with zeros up to a whole sector, and its length without them.
fn copy_chunk(source: &File, out: &Out, at: u64) -> io::Result<(Vec<u8>, usize)> {
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
    buf.truncate(have.next_multiple_of(512));
    if buf.iter().any(|b| *b != 0) {
        out.write_at(&buf, at)?;
    }
    Ok((buf, have))
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

    fn sinks(&self) -> Vec<SinkForm> {
        vec![SinkForm::File, SinkForm::Blocks]
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

    async fn health(&self) -> Health {
        self.health.health()
    }
}

fn was_cancelled() -> Error {
    Error::new(ErrorKind::Conflict, "The conversion was cancelled")
}

async fn convert(spec: &ConvertSpec, progress: &Progress, cancel: &CancellationToken) -> Result<Converted> {
    if spec.format != ImageFormat::Raw {
        let message = format!("This converter reads only raw images, not {}", spec.format.qemu_name());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    if cancel.is_cancelled() {
        return Err(was_cancelled());
    }
    // A file task that starts only after this future was dropped does nothing: another conversion may write to the sink by then.
    let stop = CancellationToken::new();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (from, sink, size) = (spec.source.clone(), spec.sink.clone(), spec.virtual_size);
    let stopped = stop.clone();
    let open = move || {
        if stopped.is_cancelled() {
            return Err(was_cancelled());
        }
        let source = File::open(&from).map_err(|e| Error::io(format!("Opening {}", from.display()), e))?;
        let len = source.metadata().map_err(|e| Error::io(format!("Reading {}", from.display()), e))?.len();
        if len.next_multiple_of(512) != size {
            let message = format!("{} has {len} bytes, but had {size} when it was probed", from.display());
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok((source, Out::open(&sink, size)?, len))
    };
    let (source, out, len) = blocking(open).await?;
    let (source, out) = (Arc::new(source), Arc::new(out));
    let mut hash = Sha256::new();
    progress(0);
    let mut at = 0;
    while at < len {
        if cancel.is_cancelled() {
            return Err(was_cancelled());
        }
        let (source, out, stopped) = (Arc::clone(&source), Arc::clone(&out), stop.clone());
        let copy = move || {
            if stopped.is_cancelled() {
                return Err(was_cancelled());
            }
            copy_chunk(&source, &out, at).map_err(|e| Error::io("Copying the image", e))
        };
        let (bytes, n) = blocking(copy).await?;
        if n == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "The source became shorter while it was read"));
        }
        hash.update(&bytes);
        at += n as u64;
        // 999 at most: 1000 is reported when everything is written.
        progress(u16::try_from(u128::from(at) * 999 / u128::from(len)).unwrap_or(999));
    }
    if cancel.is_cancelled() {
        return Err(was_cancelled());
    }
    blocking(move || out.sync().map_err(|e| Error::io("Finishing the image", e))).await?;
    progress(1000);
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Converted { size_bytes: size, sha256 })
}

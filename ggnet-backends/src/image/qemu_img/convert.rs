//! The conversion: `qemu-img convert` into the sink's file, then a check of the result, and its hash.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::FileExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use ggnet_core::{
    checksum::sha256_file,
    error::{Error, ErrorKind, Result, code},
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, Progress, Sink},
};
use tokio_util::sync::CancellationToken;

use super::{QemuImg, blocking, failure::explain, probe::source_options, sink::SinkFile, source::Source};
use crate::run::{Invocation, Limits, LineSink};

/// Address space of a converting qemu-img: the tables of the largest image, eight requests of 2 MiB, thread stacks and arenas.
const ADDRESS_SPACE: u64 = 4 << 30;
/// The share of the conversion in the progress, of 1000; the rest is the hash, which mostly reads data in memory.
const CONVERTED: u16 = 800;

impl QemuImg {
    /// A whole conversion. If it is dropped at any point, qemu-img is killed and the sink's file is unlinked.
    pub(super) async fn convert_whole(&self, spec: &ConvertSpec, progress: &Progress) -> Result<Converted> {
        let Sink::File(path) = &spec.sink else {
            return Err(Error::new(ErrorKind::Unsupported, "qemu-img can only write to a file")
                .with_hint("Choose an image store whose drafts are files"));
        };
        let source = Source::open(&spec.source).await?;
        // Raw must be specified, never detected: its bytes are copied, whatever they contain.
        if spec.format != ImageFormat::Raw {
            let found = source.sniff().await?;
            if found != spec.format {
                let (found, stated) = (found.qemu_name(), spec.format.qemu_name());
                return Err(Error::invalid("format", format!("The image is {found}, not {stated}"))
                    .with_code(code::format_mismatch(found, stated)));
            }
        }
        let size = self.inspect(&source, spec.format).await?.virtual_size;
        if size != spec.virtual_size {
            let why = format!(
                "The disk has {size} bytes now, but had {} bytes when it was probed",
                spec.virtual_size
            );
            return Err(Error::new(code::import_source_changed(), why)
                .with_hint("Wait until no program writes to the file, then import it again"));
        }
        let sink = SinkFile::create(path, size).await?;
        let share = Share::new(progress);
        let out = self.runner.run(self.converting(&source, spec.format, &sink, size, &share)).await?;
        if !out.success() {
            // A copy into the import folder that is still running; qemu-img's own message would not say so.
            source.require_unchanged().await?;
            return Err(explain(&out, "The conversion failed", ErrorKind::Internal));
        }
        source.require_unchanged().await?;
        let file = sink.file()?;
        blocking(move || verify(&file, size)).await?;
        let hashed = sha256_file(&sink.path(), share.of_hash(), CancellationToken::new()).await;
        // Checks the owner of the file first.
        sink.require_ours().await?;
        let sha256 = hashed?;
        sink.keep();
        progress(1000);
        Ok(Converted { size_bytes: size, sha256 })
    }

    fn converting(
        &self,
        source: &Source,
        format: ImageFormat,
        sink: &SinkFile,
        size: u64,
        share: &Share,
    ) -> Invocation {
        let mut run = self.invocation().args(["convert", "-p", "-n", "-S", "4k"]);
        if let Some(rate) = self.config.rate_limit {
            run = run.arg("-r").arg(rate.to_string());
        }
        // No other process opens it, and on NFS a lock may hang.
        let target = option("driver=raw,file.driver=file,file.locking=off,file.filename=", sink.name());
        run.args(["--image-opts", "--target-image-opts"])
            .arg(source_options(format))
            .arg(target)
            .stdin(source.stdin())
            .current_dir(sink.dir_path())
            .time_limit(Duration::from_secs(self.config.convert_timeout_secs))
            .limits(Limits {
                address_space: Some(ADDRESS_SPACE),
                cpu_seconds: None,
                file_size: Some(size.next_multiple_of(1 << 16)),
            })
            .in_background()
            .on_line(share.of_conversion())
    }
}

/// An option of qemu with a name as its value, in which commas are doubled.
fn option(key: &str, name: &OsStr) -> OsString {
    let mut bytes = key.as_bytes().to_vec();
    for byte in name.as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

/// Checks that the file is as large as the disk and can be read.
fn verify(file: &File, size: u64) -> Result<()> {
    let len = file.metadata().map_err(|e| Error::io("looking at the converted file", e))?.len();
    if len != size {
        return Err(Error::internal(format!("qemu-img wrote {len} bytes for a disk of {size} bytes")));
    }
    let mut sector = [0; 512];
    for offset in [0, size - 512] {
        file.read_exact_at(&mut sector, offset).map_err(|e| Error::io("reading the converted file", e))?;
    }
    Ok(())
}

/// Combines the progress of both parts of a conversion: reports only increases, and 1000 only at the end.
struct Share {
    progress: Progress,
    last: Arc<AtomicU16>,
}

impl Share {
    fn new(progress: &Progress) -> Self {
        Self { progress: progress.clone(), last: Arc::default() }
    }

    /// The observer of one part: maps its progress of 0 to 1000 to `from` to `from + of`.
    fn part(&self, from: u16, of: u16) -> impl Fn(u16) + Send + Sync + use<> {
        let (progress, last) = (self.progress.clone(), Arc::clone(&self.last));
        move |done| {
            let share = u32::from(done.min(1000)) * u32::from(of) / 1000;
            let now = from.saturating_add(u16::try_from(share).unwrap_or(of)).min(999);
            if last.fetch_max(now, Ordering::Relaxed) < now {
                progress(now);
            }
        }
    }

    /// Converts qemu-img's `    (12.34/100%)` to our progress.
    fn of_conversion(&self) -> LineSink {
        let part = self.part(0, CONVERTED);
        Arc::new(move |line| {
            if let Some(done) = per_mille(line) {
                part(done);
            }
        })
    }

    fn of_hash(&self) -> Progress {
        Arc::new(self.part(CONVERTED, 1000 - CONVERTED))
    }
}

pub(super) fn per_mille(line: &str) -> Option<u16> {
    let percent = line.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    let (whole, fraction) = percent.split_once('.')?;
    let tenth = fraction.get(..1)?.parse::<u16>().ok()?;
    whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenth)
}

//! The conversion itself: `qemu-img convert` into a temporary file, then sync, verify and rename.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result, code},
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, Progress},
};

use super::{QemuImg, blocking, failure::explain, probe::source_options, source::Source, temp::TempFile};
use crate::run::{Invocation, Limits, LineSink};

/// Address space of a converting qemu-img: tables of the largest image, eight requests of 2 MiB, threads' stacks and arenas.
const ADDRESS_SPACE: u64 = 4 << 30;

impl QemuImg {
    /// All of a conversion. Dropped at any point: qemu-img is killed and the temporary file unlinked.
    pub(super) async fn convert_whole(&self, spec: &ConvertSpec, progress: &Progress) -> Result<Converted> {
        let source = Source::open(&spec.source).await?;
        // Raw is stated, never concluded: its bytes are copied, whatever they spell.
        if spec.format != ImageFormat::Raw {
            let found = source.sniff().await?;
            if found != spec.format {
                let (found, stated) = (found.qemu_name(), spec.format.qemu_name());
                return Err(Error::invalid("format", format!("The image is {found}, not {stated}"))
                    .with_code(code::format_mismatch(found, stated)));
            }
        }
        let size = self.inspect(&source, spec.format).await?.virtual_size;
        let temp = TempFile::create(&spec.destination, size).await?;
        let out = self.runner.run(self.converting(&source, spec.format, &temp, size, progress)).await?;
        if !out.success() {
            // A copy into the import folder that still runs; the tool's own words would not say so.
            source.require_unchanged().await?;
            return Err(explain(&out, "The conversion failed", ErrorKind::Internal));
        }
        source.require_unchanged().await?;
        let file = temp.file()?;
        blocking(move || settle(&file, size)).await?;
        temp.publish().await?;
        progress(1000);
        Ok(Converted { size_bytes: size })
    }

    fn converting(
        &self,
        source: &Source,
        format: ImageFormat,
        temp: &TempFile,
        size: u64,
        progress: &Progress,
    ) -> Invocation {
        let mut run = self.invocation().args(["convert", "-p", "-n", "-S", "4k"]);
        if let Some(rate) = self.config.rate_limit {
            run = run.arg("-r").arg(rate.to_string());
        }
        // The lock on the target is ours (flock); on NFS qemu-img's own would collide with it.
        let target = format!(
            "driver=raw,file.driver=file,file.locking=off,file.filename={}",
            temp.temp_name().display()
        );
        run.args(["--image-opts", "--target-image-opts"])
            .arg(source_options(format))
            .arg(target)
            .stdin(source.stdin())
            .current_dir(temp.dir_path())
            .time_limit(Duration::from_secs(self.config.convert_timeout_secs))
            .limits(Limits {
                address_space: Some(ADDRESS_SPACE),
                cpu_seconds: None,
                file_size: Some(size.next_multiple_of(1 << 16)),
            })
            .in_background()
            .on_line(reporter(progress))
    }
}

/// Checks that the file is as large as the disk and can be read, and makes it durable.
fn settle(file: &File, size: u64) -> Result<()> {
    let len = file.metadata().map_err(|e| Error::io("looking at the converted file", e))?.len();
    if len != size {
        return Err(Error::internal(format!("qemu-img made {len} bytes of a disk of {size}")));
    }
    file.sync_all().map_err(|e| Error::io("syncing the converted file", e))?;
    let mut sector = [0; 512];
    for offset in [0, size - 512] {
        file.read_exact_at(&mut sector, offset).map_err(|e| Error::io("reading the converted file", e))?;
    }
    Ok(())
}

/// Turns qemu-img's `    (12.34/100%)` into per mille: only what is more than before, and 1000 only when all is done.
fn reporter(progress: &Progress) -> LineSink {
    let progress = progress.clone();
    let last = AtomicU16::new(0);
    Arc::new(move |line| {
        if let Some(now) = per_mille(line).map(|p| p.min(999))
            && last.fetch_max(now, Ordering::Relaxed) < now
        {
            progress(now);
        }
    })
}

pub(super) fn per_mille(line: &str) -> Option<u16> {
    let percent = line.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    let (whole, fraction) = percent.split_once('.')?;
    let tenth = fraction.get(..1)?.parse::<u16>().ok()?;
    whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenth)
}

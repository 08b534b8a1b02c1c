//! [`QemuImg`]: the `ImageConverter` that runs `qemu-img`.
//!
//! ```text
//!   open (no symlink, regular) ──▶ header ──▶ info ──▶ check ──▶ convert ──▶ verify ──▶ hash
//!                                  └ ours      └──── qemu-img, limited ───┘        ours
//! ```
//! Invariants:
//! * qemu-img never guesses: the format comes from the file's magic number, which we read, and is always passed to qemu-img as the driver.
//!   An image that would make qemu-img open a second file (backing file, external data file, separate extents) is rejected because of its
//!   header, before qemu-img opens it, and again because of the output of `qemu-img info`.
//! * qemu-img never gets the source's name. The opened and checked file is its stdin, passed as `/proc/self/fd/0`: no name, however
//!   hostile, is parsed as a protocol or as options, and the file cannot be replaced between check and use.
//! * The source is opened read-only.
//! * The raw bytes are written directly into the file that the image store specifies. Every outcome except success removes it. The store
//!   makes it durable when it seals it.
//!
//! Callers must know: a *raw* file that starts with the magic number of another format is what an attacker creates who controls the raw
//! disk of a guest. `probe` reports what the bytes say; a caller that knows the format specifies it, and `convert` with
//! [`ImageFormat::Raw`] copies bytes and does not interpret them.
//!
//! Internal snapshots are ignored: the current state of the disk is imported, as a guest would see it.

mod config;
mod convert;
mod descriptor;
mod failure;
mod header;
mod probe;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use ggnet_core::{
    error::{Error, ErrorKind, Result, code},
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, Health, ImageConverter, ImageProbe, Progress, SinkForm},
};
use tokio_util::sync::CancellationToken;

use crate::run::{CommandRunner, Invocation, Limits};

pub use config::QemuImgConfig;
pub use descriptor::descriptor;

use probe::SECTOR;
use source::Source;

/// This backend's name in the configuration.
pub const NAME: &str = "qemu-img";

/// The command that installs the program.
const INSTALL: &str = "apt-get install qemu-utils";

/// Converts disk images with `qemu-img`.
pub struct QemuImg {
    config: QemuImgConfig,
    runner: Arc<dyn CommandRunner>,
}

impl QemuImg {
    /// A converter that runs `config.program` with `runner`.
    pub fn new(config: QemuImgConfig, runner: Arc<dyn CommandRunner>) -> Self {
        Self { config, runner }
    }

    /// The installed version, as the program reports it: `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
    ///
    /// # Errors
    /// `Unavailable` if it is missing or its output is not that of qemu-img.
    pub async fn version(&self) -> Result<String> {
        let limits = Limits { address_space: Some(2 << 30), cpu_seconds: Some(10), file_size: Some(0) };
        let out = self.runner.run(self.invocation().arg("--version").limits(limits)).await?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let version = text.lines().next().and_then(|l| l.strip_prefix("qemu-img version "));
        match version {
            Some(version) if out.success() => Ok(version.trim().to_owned()),
            _ => Err(out
                .failure(ErrorKind::Unavailable, format!("{} is not qemu-img", self.config.program.display()))
                .with_hint(INSTALL)),
        }
    }

    fn invocation(&self) -> Invocation {
        Invocation::new(&self.config.program, INSTALL)
    }

    /// The properties of `source` in the format `format`, or why it cannot be imported.
    async fn inspect(&self, source: &Source, format: ImageFormat) -> Result<ImageProbe> {
        let probe = self.info(source, format).await?;
        // If qemu-img reads another size than the one in the image, it would truncate or extend the disk without an error.
        let stated = source.stated_size(format).await?;
        if let Some(stated) =
            stated.filter(|s| s.checked_next_multiple_of(SECTOR) != Some(probe.virtual_size))
        {
            let read = probe.virtual_size;
            let why = format!("The image says that its disk has {stated} bytes, and qemu-img reads {read}");
            return Err(Error::new(code::image_damaged(&why), why)
                .with_hint("Convert it to qcow2 where it was made, and import that"));
        }
        self.check(source, format).await?;
        Ok(probe)
    }
}

#[async_trait]
impl ImageConverter for QemuImg {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn probe(&self, path: &Path) -> Result<ImageProbe> {
        let work = async {
            let source = Source::open(path).await?;
            let format = source.sniff().await?;
            self.inspect(&source, format).await
        };
        work.await.map_err(|e| in_context(e, "probe", path))
    }

    fn sinks(&self) -> Vec<SinkForm> {
        vec![SinkForm::File]
    }

    async fn convert(
        &self,
        spec: &ConvertSpec,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<Converted> {
        let work = self.convert_whole(spec, &progress);
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                let message = "The conversion was cancelled; nothing of it is left";
                Err(Error::new(code::import_cancelled(), message).retryable(false))
            }
            done = work => done,
        };
        result.map_err(|e| in_context(e, "convert", &spec.source))
    }

    async fn health(&self) -> Health {
        match self.version().await {
            Ok(_) => Health::Up,
            Err(e) => Health::Down(match e.hint() {
                Some(hint) => format!("{}; {hint}", e.explain()),
                None => e.to_string(),
            }),
        }
    }
}

fn in_context(e: Error, operation: &'static str, path: &Path) -> Error {
    let subject = crate::run::Arg::plain(path).shown();
    e.with_backend(NAME).with_operation(operation).with_subject(subject)
}

/// Runs file system calls on a thread that may block.
///
/// If the future is dropped, `work` still completes, and its result is dropped.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal("A file-system call did not end").with_source(e)),
    }
}

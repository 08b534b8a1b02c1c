//! [`QemuImg`]: the `ImageConverter` that runs `qemu-img`.
//!
//! ```text
//!   open (no symlink, regular) ──▶ header ──▶ info ──▶ check ──▶ convert ──▶ verify ──▶ hash
//!                                  └ ours      └──── qemu-img, limited ───┘        ours
//! ```
//! Invariants:
//! * qemu-img never guesses: the format comes from the file's magic, read by us, and is always named to it as the driver. An
//!   image that would make qemu-img open a second file (backing file, external data file, separate extents) is refused from its
//!   header, before qemu-img sees it, and once more from what `qemu-img info` says.
//! * qemu-img never sees the source's name. The file that was opened and checked is its stdin, named `/proc/self/fd/0`: no name,
//!   however hostile, is parsed as a protocol or as options, and nobody can swap the file between check and use.
//! * The source is opened for reading only.
//! * The raw bytes go straight into the file that the image store names. Every way out that is not success removes it; making it safe
//!   from a power cut is the store's, when it seals it.
//!
//! What a caller must know: a *raw* file that begins with another format's magic is what an attacker makes who controls a guest's
//! raw disk. `probe` reports what the bytes say; a caller who knows better states the format, and `convert` with
//! [`ImageFormat::Raw`] copies bytes and interprets none.
//!
//! Internal snapshots do not matter: the disk's current state is imported, as a guest would see it, and the rest is left out.

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

/// What installs the program.
const INSTALL: &str = "apt-get install qemu-utils";

/// Converts disk images with `qemu-img`.
pub struct QemuImg {
    config: QemuImgConfig,
    runner: Arc<dyn CommandRunner>,
}

impl QemuImg {
    /// A converter that runs `config.program` by `runner`.
    pub fn new(config: QemuImgConfig, runner: Arc<dyn CommandRunner>) -> Self {
        Self { config, runner }
    }

    /// The installed version, as the program says it: `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
    ///
    /// # Errors
    /// `Unavailable` when it is missing or does not answer as qemu-img does.
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

    /// What `source` is as `format`, or why it cannot be imported.
    async fn inspect(&self, source: &Source, format: ImageFormat) -> Result<ImageProbe> {
        let probe = self.info(source, format).await?;
        // A tool that reads another size than the image names would cut the disk short, or lengthen it, and say nothing.
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

/// Runs file-system calls where they may block.
///
/// Dropped half-way: `work` runs on to its end, and its result is dropped there.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal("A file-system call did not end").with_source(e)),
    }
}

//! `qemu-img info` and `qemu-img check`, in a child process with limited memory and time that cannot write.

use std::time::Duration;

use ggnet_core::{
    error::{Error, ErrorKind, Result, code},
    nouns::ImageFormat,
    ports::ImageProbe,
};
use serde::Deserialize;

use super::{QemuImg, failure::explain, header::refused, source::Source};
use crate::run::{Invocation, Limits, Output};

/// The name that qemu-img uses for the file that it gets as stdin.
pub(super) const STDIN: &str = "/proc/self/fd/0";

/// A disk consists of whole sectors of this size.
pub(super) const SECTOR: u64 = 512;

/// The limits of a probe: 2 GiB are enough for the tables of the largest image that can be imported (64 MiB for 16 TiB) plus qemu-img's
/// stacks and arenas, and 30 s of CPU time are enough to check the tables of tens of TiB. A lying header cannot use more.
const LIMITS: Limits = Limits { address_space: Some(2 << 30), cpu_seconds: Some(30), file_size: Some(0) };

/// The part of the output of `qemu-img info --output=json` that we need.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    actual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: Specific,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Specific {
    data_file: Option<String>,
    encrypt: Option<serde_json::Value>,
    #[serde(default)]
    corrupt: bool,
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: String,
}

/// The options with which qemu-img opens its stdin as `format`: it probes nothing and parses no name.
pub(super) fn source_options(format: ImageFormat) -> String {
    // By default qemu-img uses the geometry of a VHD as its size unless it knows the tool that created it, which truncates the disk.
    let size = if format == ImageFormat::Vhd { ",force_size_calc=current_size" } else { "" };
    format!("driver={}{size},file.driver=file,file.filename={STDIN}", format.qemu_name())
}

impl QemuImg {
    fn probing(&self, source: &Source, command: &str, format: ImageFormat) -> Invocation {
        self.invocation()
            .args([command, "--output=json", "--image-opts"])
            .arg(source_options(format))
            .stdin(source.stdin())
            .limits(LIMITS)
            .time_limit(Duration::from_secs(self.config.probe_timeout_secs))
    }

    /// The output of qemu-img about `source`, rejected if the image refers to anything outside itself.
    pub(super) async fn info(&self, source: &Source, format: ImageFormat) -> Result<ImageProbe> {
        let out = self.runner.run(self.probing(source, "info", format)).await?;
        if !out.success() {
            let what = format!("Cannot open the image as {}", format.qemu_name());
            return Err(explain(&out, &what, ErrorKind::Corrupt));
        }
        let info: Info = serde_json::from_slice(&out.stdout).map_err(|e| {
            out.failure(ErrorKind::Corrupt, "Cannot read the output of qemu-img about the image")
                .with_source(e)
        })?;
        self.judge(&info, format, &out)
    }

    fn judge(&self, info: &Info, format: ImageFormat, out: &Output) -> Result<ImageProbe> {
        let refuse = |why: &str| Err(refused(why));
        if info.format != format.qemu_name() {
            return Err(Error::internal(format!(
                "qemu-img opened {} as {}",
                format.qemu_name(),
                info.format
            )));
        }
        let specific = info.format_specific.as_ref().map(|s| &s.data);
        if info.backing_filename.is_some() {
            return refuse("it has a backing file");
        }
        if specific.is_some_and(|s| s.data_file.is_some()) {
            return refuse("its data is in an external data file");
        }
        if specific.is_some_and(|s| s.extents.iter().any(|e| e.filename != STDIN)) {
            return refuse("its data is in other files");
        }
        if info.encrypted || specific.is_some_and(|s| s.encrypt.is_some()) {
            return refuse("it is encrypted");
        }
        if specific.is_some_and(|s| s.corrupt) {
            let why = "The image is marked as corrupt";
            return Err(out.failure(code::image_damaged(why), why));
        }
        // A raw file may end inside a sector: qemu-img fills the last one with zeros, which becomes part of the disk.
        let virtual_size = info.virtual_size.next_multiple_of(SECTOR);
        if virtual_size == 0 {
            return refuse("its disk has a size of 0");
        }
        let max = self.config.max_virtual_size;
        if virtual_size > max {
            return refuse(&format!("it claims a disk of {virtual_size} bytes, and the limit is {max}"));
        }
        Ok(ImageProbe { format, virtual_size, actual_size: info.actual_size })
    }

    /// Detects a truncated or damaged image. qemu-img reads data after the end of a file as zeros, so a conversion alone would succeed with
    /// a silently wrong disk. (`info` already compares a VHD with its length; for raw there is nothing to check.)
    pub(super) async fn check(&self, source: &Source, format: ImageFormat) -> Result<()> {
        if matches!(format, ImageFormat::Raw | ImageFormat::Vhd) {
            return Ok(());
        }
        let out = self.runner.run(self.probing(source, "check", format)).await?;
        match out.code {
            // 3: leaked clusters. They waste space but do no harm.
            Some(0 | 3) => Ok(()),
            Some(2) => Err(out
                .failure(code::image_damaged("truncated"), "The image is truncated or damaged")
                .with_hint("Copy it again from its source; compare the checksums to make sure that the copy is complete")),
            _ => Err(explain(&out, "Cannot check the image", ErrorKind::Corrupt)),
        }
    }
}

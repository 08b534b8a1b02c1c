//! [`ImageConverter`]: turns a disk image of any known format into the raw bytes of a version.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Health, Sink, SinkForm};
use crate::{error::Result, nouns::ImageFormat};

/// What a file is, determined without trusting it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProbe {
    /// Its format.
    pub format: ImageFormat,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// The bytes that the file takes on the host.
    pub actual_size: u64,
}

/// A conversion.
#[derive(Clone, Debug)]
pub struct ConvertSpec {
    /// The file to read; never changed.
    pub source: PathBuf,
    /// Its format, always named to the tool: an untrusted file is never probed by the converting call.
    pub format: ImageFormat,
    /// The disk's size in bytes, as the probe found it.
    pub virtual_size: u64,
    /// Where the raw bytes go: the sink of a version's draft. It is not read before the conversion has succeeded.
    pub sink: Sink,
}

/// A finished conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the raw disk, in lower-case hexadecimal.
    pub sha256: String,
}

/// The callback for progress, in per mille; called from the converting task.
pub type Progress = std::sync::Arc<dyn Fn(u16) + Send + Sync>;

/// Conversion of disk images.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait ImageConverter: Send + Sync + 'static {
    /// The converter's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Determines what a file is. `Invalid` (field `path`) for a file with a backing file, an external data file or encryption, and for one
    /// whose format is not in [`ImageFormat`]; `Corrupt` for a truncated file or one with false headers; `NotFound`; `Permission`;
    /// `Unavailable` when the tool is missing, with the line that installs it.
    async fn probe(&self, path: &Path) -> Result<ImageProbe>;

    /// The forms of sink that it can write to; constant.
    fn sinks(&self) -> Vec<SinkForm>;

    /// Writes the raw disk to the sink, and hashes it. `Full` when the disk is full; `Corrupt` for a source that cannot be read to its end;
    /// `Unsupported` for a form of sink outside [`ImageConverter::sinks`]. On every failure, on `cancel` and when the future is dropped the
    /// source is untouched, nothing is left outside the sink, and the contents of the sink are undefined; a second conversion to it starts
    /// from the beginning.
    async fn convert(
        &self,
        spec: &ConvertSpec,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<Converted>;

    /// The converter's health: down when the tool is missing.
    async fn health(&self) -> Health;
}

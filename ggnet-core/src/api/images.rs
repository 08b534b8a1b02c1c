//! Images and versions on the wire.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::nouns::{Image, ImageFormat, ImageState, ImageVersion, JobId, Name};

/// An image with its versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageResponse {
    /// The image.
    #[serde(flatten)]
    pub image: Image,
    /// Whether it can be booted.
    pub state: ImageState,
    /// Its versions, oldest first.
    pub versions: Vec<VersionResponse>,
}

/// A version, with the progress of its import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionResponse {
    /// The version.
    #[serde(flatten)]
    pub version: ImageVersion,
    /// The progress of the import, in per mille, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_per_mille: Option<u16>,
}

/// `POST /api/v1/images/import`: from a path in an allowed folder of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportImageRequest {
    /// The image to add a version to; created if there is no image of this name.
    pub name: Name,
    /// The file on the server: below one of the folders that the server's configuration allows.
    pub path: PathBuf,
    /// Its format; if left out, determined by the probe.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// The SHA-256 that the file should have, in hexadecimal.
    #[serde(default)]
    pub sha256: Option<String>,
    /// A comment on this version.
    #[serde(default)]
    pub comment: String,
    /// Whether machines boot it from their next boot on (default true).
    #[serde(default = "yes")]
    pub make_current: bool,
}

const fn yes() -> bool {
    true
}

/// An import that has started; watch the version until it is `ready` or `failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportResponse {
    /// The image.
    pub image: Image,
    /// The version that is being created.
    pub version: VersionResponse,
    /// The job that creates it; `None` if it could not be read.
    #[serde(default)]
    pub job: Option<JobId>,
}

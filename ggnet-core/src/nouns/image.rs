//! [`Image`] and [`ImageVersion`]: a sequence of immutable disks, one of them current.
//!
//! ```text
//!   importing ──▶ ready ──▶ (deleted)
//!     │   ▲
//!     ▼   │ retry of its job
//!    failed ──▶ (deleted)
//! ```
//! A version is never opened for writing once it is `ready`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Failure, ImageId, ImageVersionId, Name, SessionId, Timestamp};

/// A disk format that qemu-img reads. GGnet serves raw disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Microsoft's older virtual disk (qemu-img calls it `vpc`).
    Vhd,
    /// Microsoft's newer virtual disk.
    Vhdx,
    /// VMware's virtual disk.
    Vmdk,
    /// VirtualBox's virtual disk.
    Vdi,
}

/// Whether an image can be booted: derived from its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageState {
    /// No version is ready yet and one is being imported.
    Importing,
    /// A current version exists.
    Ready,
    /// No version is ready, and none is being imported.
    Empty,
}

/// An image: a name for a sequence of versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name, unique.
    pub name: Name,
    /// Free text for people.
    #[serde(default)]
    pub description: String,
    /// The version that machines boot unless they are pinned to another.
    #[serde(default)]
    pub current: Option<ImageVersionId>,
    /// The highest number that a version of it ever had. The number of a deleted version is not used again, so that it never means two
    /// versions.
    #[serde(default)]
    pub last_version: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Grows with every change.
    pub revision: u64,
}

/// The state of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// Its bytes are being created.
    Importing,
    /// Complete, checked and immutable.
    Ready,
    /// It could not be created; nothing of it is left.
    Failed,
}

/// Where a version's bytes came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VersionSource {
    /// A file on the server.
    Import {
        /// Its path.
        path: PathBuf,
        /// Its format, as found by the probe or as stated.
        format: Option<ImageFormat>,
        /// The expected SHA-256 of the file; checked before anything is converted.
        expected_sha256: Option<String>,
    },
    /// The writes of a stopped session, published.
    Writeback {
        /// The session.
        session: SessionId,
        /// The version that they are based on.
        base: ImageVersionId,
    },
}

/// One immutable version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVersion {
    /// Its id, by which the image store knows its bytes.
    pub id: ImageVersionId,
    /// The image it belongs to.
    pub image: ImageId,
    /// 1, 2, 3 … within the image.
    pub number: u32,
    /// Its state.
    pub state: VersionState,
    /// The operator's comment.
    #[serde(default)]
    pub comment: String,
    /// Where its bytes came from.
    pub source: VersionSource,
    /// Size of the disk in bytes; 0 until ready.
    pub size_bytes: u64,
    /// SHA-256 of the raw disk, in hexadecimal; `None` until ready, and for a version made from a machine's writes, which is never read as
    /// a whole.
    pub sha256: Option<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Which failure that was, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// When its creation began.
    pub created_at: Timestamp,
    /// When it became ready or failed.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
}

impl ImageFormat {
    /// The name that qemu-img's `-f` takes.
    #[must_use]
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }

    /// The format with this name in qemu-img.
    #[must_use]
    pub fn from_qemu_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::Qcow2, Self::Vhd, Self::Vhdx, Self::Vmdk, Self::Vdi]
            .into_iter()
            .find(|f| f.qemu_name() == name)
    }
}

//! Options of `ggnet image`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use ggnet_core::nouns::{ImageFormat, Name};

use super::{
    Yes,
    values::{VersionRef, image, noun, one_of, version},
};

const FORMATS: &[&str] = &["raw", "qcow2", "vhd", "vhdx", "vmdk", "vdi"];

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all images
    #[command(visible_alias = "ls", after_help = "Example:\n  ggnet image list")]
    List,
    /// Show one image and its versions
    #[command(after_help = "Example:\n  ggnet image show debian")]
    Show {
        /// The image's name or id.
        #[arg(value_parser = image)]
        image: String,
    },
    /// Import a file on the server as a new version of an image
    #[command(after_help = "\
The file must be on the server, below one of its import folders; `ggnet server` lists these.

Examples:
  ggnet image import debian /var/lib/ggnet/import/debian.qcow2
  ggnet image import debian /var/lib/ggnet/import/debian-2.raw --comment \"drivers\" --no-current
  ggnet image import debian-13 /var/lib/ggnet/import/debian-13.vhdx --no-wait --output json

Ctrl-C stops waiting; the import continues.")]
    Import(Import),
    /// Choose the version that machines boot from their next boot on
    #[command(after_help = "Example:\n  ggnet image set-current debian:3")]
    SetCurrent {
        /// The version: IMAGE:NUMBER or its id.
        #[arg(value_parser = version)]
        version: VersionRef,
    },
    /// Remove an image with all its versions; fails if one is in use
    #[command(visible_alias = "rm", after_help = "Example:\n  ggnet image remove debian --yes")]
    Remove {
        /// The image's name or id.
        #[arg(value_parser = image)]
        image: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
    /// Remove one version; fails if it is in use
    #[command(after_help = "Example:\n  ggnet image remove-version debian:2 --yes")]
    RemoveVersion {
        /// The version: IMAGE:NUMBER or its id.
        #[arg(value_parser = version)]
        version: VersionRef,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
    /// Cancel a running import
    #[command(after_help = "\
Examples:
  ggnet image cancel debian                               the import that is running
  ggnet image cancel debian:3")]
    Cancel {
        /// The version: IMAGE:NUMBER, its id, or the image whose import is running.
        #[arg(value_parser = version)]
        version: VersionRef,
    },
}

/// The options of an import.
#[derive(Debug, Args)]
pub struct Import {
    /// The image to add a version to; created if it does not exist.
    #[arg(value_parser = noun::<Name>)]
    pub name: Name,
    /// The file's absolute path on the server.
    pub path: PathBuf,
    /// The file's format. Default: the server detects it.
    #[arg(long, value_parser = one_of::<ImageFormat>(FORMATS))]
    pub format: Option<ImageFormat>,
    /// The file's expected SHA-256, 64 hexadecimal digits. The import fails if it differs.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    /// A comment on this version.
    #[arg(long, default_value = "")]
    pub comment: String,
    /// Do not make the new version the current one: machines continue to boot the version that is current now.
    #[arg(long)]
    pub no_current: bool,
    /// Do not wait for the import to end.
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,
    /// Wait at most this long, then exit with code 6; the import continues.
    #[arg(long, value_name = "SECONDS", value_parser = super::session::seconds)]
    pub timeout: Option<Duration>,
}

fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a SHA-256 is 64 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_64_digits() {
        assert_eq!(sha256(&"AB".repeat(32)), Ok("ab".repeat(32)));
        assert!(sha256("abc").is_err());
        assert!(sha256(&"zz".repeat(32)).is_err());
    }
}

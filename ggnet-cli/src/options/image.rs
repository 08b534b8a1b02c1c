//! `ggnet image …`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use ggnet_core::nouns::{ImageFormat, Name};

use super::{
    Yes,
    values::{VersionRef, image, noun, one_of, version},
};

const FORMATS: &[&str] = &["raw", "qcow2", "vhd", "vhdx", "vmdk", "vdi"];

/// What to do with images.
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
    /// Make a version of an image from a file on the server
    #[command(after_help = "\
The file lies on the server, below one of its import folders; `ggnet server` names them.

Examples:
  ggnet image import debian /srv/ggnet/import/debian.qcow2
  ggnet image import debian /srv/ggnet/import/debian-2.raw --format raw --comment \"with drivers\" --no-current
  ggnet image import windows /srv/ggnet/import/win.vhdx --no-wait --output json

Ctrl-C stops the waiting, not the import.")]
    Import(Import),
    /// Say which version machines boot from their next boot on
    #[command(after_help = "Example:\n  ggnet image set-current debian:3")]
    SetCurrent {
        /// The version: IMAGE:NUMBER, or its id.
        #[arg(value_parser = version)]
        version: VersionRef,
    },
    /// Remove an image with all its versions; nothing may use it
    #[command(visible_alias = "rm", after_help = "Example:\n  ggnet image remove debian --yes")]
    Remove {
        /// The image's name or id.
        #[arg(value_parser = image)]
        image: String,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
    /// Remove one version; nothing may use it
    #[command(after_help = "Example:\n  ggnet image remove-version debian:2 --yes")]
    RemoveVersion {
        /// The version: IMAGE:NUMBER, or its id.
        #[arg(value_parser = version)]
        version: VersionRef,
        /// Confirmation.
        #[command(flatten)]
        yes: Yes,
    },
    /// Cancel an import under way
    #[command(after_help = "\
Examples:
  ggnet image cancel debian                               the one that is being imported
  ggnet image cancel debian:3")]
    Cancel {
        /// The version: IMAGE:NUMBER, its id, or the image whose import is under way.
        #[arg(value_parser = version)]
        version: VersionRef,
    },
}

/// An import.
#[derive(Debug, Args)]
pub struct Import {
    /// The image to add a version to; made when there is none of this name.
    #[arg(value_parser = noun::<Name>)]
    pub name: Name,
    /// The file's absolute path on the server.
    pub path: PathBuf,
    /// Its format; left out: the server finds out.
    #[arg(long, value_parser = one_of::<ImageFormat>(FORMATS))]
    pub format: Option<ImageFormat>,
    /// The SHA-256 that the file must have, 64 hexadecimal digits.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    /// What to say of this version.
    #[arg(long, default_value = "")]
    pub comment: String,
    /// Machines go on booting the version that is current now.
    #[arg(long)]
    pub no_current: bool,
    /// Do not wait for its end.
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,
    /// Wait at most this long; the import goes on.
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

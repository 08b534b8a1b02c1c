//! The guest kit: the files that a Linux image needs to run from a GGnet disk for weeks.
//!
//! [`Kit`] is pure data: paths and bytes, which are the same on every host for a version of the kit. [`root`] writes it below a folder,
//! [`tar`] makes an archive of it, [`initramfs`] rebuilds the image's initramfs.
//!
//! A kit's last file is its manifest, `etc/ggnet/guest-kit.json`: it contains the name and version of the kit and the checksums of its
//! files. With the checksums a newer kit recognises the unchanged files of an older one.
//!
//! Invariants: every file except the manifest says in comments why it is needed; paths are relative, without `..`, and contain no
//! directory that may be a symbolic link in a distribution (`lib`, `bin`, `sbin`).

pub mod initramfs;
pub mod root;
pub mod tar;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The path of the manifest, the same in every kit.
pub const MANIFEST: &str = "etc/ggnet/guest-kit.json";

/// A file of a kit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitFile {
    /// Its path below the root.
    pub path: &'static str,
    /// Its content.
    pub text: String,
    /// Whether the initramfs must be rebuilt after it changes.
    pub in_initramfs: bool,
}

/// A kit.
#[derive(Clone, Debug)]
pub struct Kit {
    /// Its name.
    pub name: &'static str,
    /// Its version; increased with every change of a file.
    pub version: u32,
    /// Its files; the manifest is the last.
    pub files: Vec<KitFile>,
}

/// The content of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// A description of the file, for people.
    about: String,
    /// The kit's name.
    pub kit: String,
    /// Its version.
    pub version: u32,
    /// Its files.
    pub files: Vec<Listed>,
}

/// A file in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its path below the root.
    pub path: String,
    /// The SHA-256 of what the kit wrote.
    pub sha256: String,
}

impl Kit {
    /// The kit for Debian 12 and its derivatives: systemd, initramfs-tools, open-iscsi.
    pub fn debian() -> Self {
        let file = |path, text: &str, in_initramfs| KitFile { path, text: text.to_owned(), in_initramfs };
        Self::new(
            "debian",
            1,
            vec![
                file(
                    "etc/systemd/system/iscsid.service.d/ggnet-guest-kit.conf",
                    include_str!("debian/iscsid.conf"),
                    false,
                ),
                file("etc/udev/rules.d/70-ggnet-guest-kit.rules", include_str!("debian/udev.rules"), false),
                file("etc/iscsi/iscsi.initramfs", include_str!("debian/iscsi.initramfs"), true),
                // These files are sourced in the order of their names; the last one wins.
                file(
                    "etc/initramfs-tools/conf.d/zz-ggnet-guest-kit",
                    include_str!("debian/initramfs.conf"),
                    true,
                ),
            ],
        )
    }

    fn new(name: &'static str, version: u32, mut files: Vec<KitFile>) -> Self {
        let listed = |f: &KitFile| Listed { path: f.path.to_owned(), sha256: sha256(f.text.as_bytes()) };
        let manifest = Manifest {
            about:
                "Files that `ggnet guest-kit` put here, so that this system keeps its root on a GGnet disk"
                    .to_owned(),
            kit: name.to_owned(),
            version,
            files: files.iter().map(listed).collect(),
        };
        // Cannot fail: it contains only strings and numbers.
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
        files.push(KitFile { path: MANIFEST, text, in_initramfs: false });
        Self { name, version, files }
    }
}

impl Manifest {
    /// Parses a manifest; none if the bytes are no manifest.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Whether a kit wrote exactly these bytes to this path.
    pub fn wrote(&self, path: &str, bytes: &[u8]) -> bool {
        self.files.iter().any(|f| f.path == path && f.sha256 == sha256(bytes))
    }
}

/// SHA-256 in lower-case hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Cannot fail: it writes to a string.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_says_why_it_is_there_and_stays_below_the_root() {
        for KitFile { path, text, .. } in Kit::debian().files {
            assert!(!path.starts_with('/') && path.split('/').all(|p| !p.is_empty() && p != ".."), "{path}");
            assert!(!["lib", "bin", "sbin"].contains(&path.split('/').next().unwrap()), "{path}");
            assert!(text.ends_with('\n'), "{path}");
            if path != MANIFEST {
                assert!(text.starts_with("# GGnet guest kit: "), "{path}");
            }
        }
    }

    /// If you change a file, increase the kit's version and update this checksum.
    #[test]
    fn a_change_of_the_kit_is_a_new_version() {
        let kit = Kit::debian();
        let all: String = kit.files.iter().map(|f| f.path.to_owned() + "\n" + &f.text).collect();
        assert_eq!(
            (kit.version, sha256(all.as_bytes()).as_str()),
            (1, "212ba597d6d0438aca08415548d8deb880de687b3fad7c329032187c9062864d")
        );
    }

    #[test]
    fn the_manifest_names_the_kit_and_knows_its_files() {
        let kit = Kit::debian();
        let (last, rest) = kit.files.split_last().unwrap();
        assert_eq!(last.path, MANIFEST);
        let manifest = Manifest::parse(last.text.as_bytes()).unwrap();
        assert_eq!((manifest.kit.as_str(), manifest.version), ("debian", kit.version));
        for file in rest {
            assert!(manifest.wrote(file.path, file.text.as_bytes()), "{}", file.path);
            assert!(!manifest.wrote(file.path, b"changed"), "{}", file.path);
        }
        assert_eq!(Manifest::parse(b"{}"), None);
    }
}

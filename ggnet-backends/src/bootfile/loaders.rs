//! The loaders that firmware fetches first: Debian's `ipxe` package, read into a bundle named `loaders`.
//!
//! Invariant: what the host does not have is named, with the command that installs it; an empty bundle is no error, because
//! a host may serve machines whose firmware is iPXE already.

use std::path::Path;

use bytes::Bytes;
use ggnet_core::{
    Error, Result,
    ports::{BootBundle, BootFileStore, BootPath, Health},
    registry::{Finding, Key, Level},
};

/// Where Debian's `ipxe` package puts its loaders.
pub const DEBIAN_IPXE_DIR: &str = "/usr/lib/ipxe";

/// The loaders we look for: BIOS over the card's own driver, UEFI with iPXE's drivers, UEFI over the firmware's driver, and the one
/// that PXELINUX loads like a kernel.
pub const LOADER_FILES: [&str; 4] = ["undionly.kpxe", "ipxe.efi", "snponly.efi", "ipxe.lkrn"];

/// The key of a section that names another folder.
pub(crate) const DIR_KEY: Key =
    ("loaders_dir", "The folder from which the loaders are read at start; default: /usr/lib/ipxe");

/// The loaders of this host.
#[derive(Clone, Debug)]
pub struct Loaders {
    /// What was found; its id is `loaders`.
    pub bundle: BootBundle,
    /// What was not.
    pub missing: Vec<&'static str>,
    /// What an operator should do about it; none when nothing is missing.
    pub hint: Option<String>,
}

/// Reads the loaders from `dir` (usually [`DEBIAN_IPXE_DIR`]). Dropped half-way: nothing happened.
///
/// # Errors
/// When a file is there but cannot be read.
pub async fn read_loaders(dir: &Path) -> Result<Loaders> {
    let mut bundle = BootBundle { id: "loaders".parse()?, files: std::collections::BTreeMap::new() };
    let mut missing = Vec::new();
    for name in LOADER_FILES {
        let path = dir.join(name);
        match tokio::fs::read(&path).await {
            // A package that was cut short.
            Ok(bytes) if bytes.is_empty() => missing.push(name),
            Ok(bytes) => {
                bundle.files.insert(name.parse::<BootPath>()?, Bytes::from(bytes));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing.push(name),
            Err(e) => return Err(Error::io(format!("Reading the loader {}", path.display()), e)),
        }
    }
    let hint = (!missing.is_empty())
        .then(|| format!("{} not found in {}: apt-get install ipxe", missing.join(", "), dir.display()));
    Ok(Loaders { bundle, missing, hint })
}

/// Puts the host's loaders into a store: Debian's package `ipxe`, or another folder.
///
/// # Errors
/// As [`read_loaders`], and as the store says.
pub(crate) async fn ensure_in(store: &dyn BootFileStore, dir: &Path) -> Result<Loaders> {
    let found = read_loaders(dir).await?;
    if let Some(hint) = &found.hint {
        tracing::warn!(dir = %dir.display(), missing = ?found.missing, %hint, "boot loaders are missing");
    }
    store.ensure(&found.bundle).await?;
    Ok(found)
}

/// Whether the loaders are there that firmware is given unless something else is configured.
pub(crate) async fn look(dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, whom) in [("undionly.kpxe", "PCs with a BIOS"), ("ipxe.efi", "PCs with UEFI")] {
        let (what, path) = (format!("boot loader {file}"), dir.join(file));
        findings.push(if tokio::fs::metadata(&path).await.is_ok_and(|meta| meta.is_file()) {
            Finding::ok(what, format!("Found at {}", path.display()))
        } else {
            let why = format!("{} is missing; GGnet cannot serve a loader to {whom}", path.display());
            Finding::bad(Level::Warn, what, why, "apt-get install ipxe")
        });
    }
    findings
}

impl Loaders {
    /// How a server that offers loaders is with these: without both of the usual ones only machines boot that have iPXE already.
    #[must_use]
    pub fn health(&self) -> Health {
        let Some(hint) = &self.hint else { return Health::Up };
        let why = format!("{hint}, then restart the server");
        if ["undionly.kpxe", "ipxe.efi"].iter().all(|usual| self.missing.contains(usual)) {
            Health::Blocked(why)
        } else {
            Health::Degraded(why)
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a package")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn debians_package_has_a_bios_and_an_efi_loader() {
        let loaders = read_loaders(Path::new(DEBIAN_IPXE_DIR)).await.unwrap();
        assert!(loaders.missing.is_empty(), "{:?}", loaders.hint);
        assert_eq!(loaders.bundle.id.as_str(), "loaders");
        let efi = &loaders.bundle.files[&"ipxe.efi".parse::<BootPath>().unwrap()];
        assert!(efi.starts_with(b"MZ"), "not a PE image");
    }

    #[tokio::test]
    async fn one_that_is_empty_is_missing_and_health_tells() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        put("undionly.kpxe", b"");
        let health = read_loaders(dir.path()).await.unwrap().health();
        assert!(matches!(health, Health::Blocked(why) if why.contains("undionly.kpxe")));
        put("ipxe.efi", b"MZ");
        let health = read_loaders(dir.path()).await.unwrap().health();
        assert!(
            matches!(health, Health::Degraded(why) if why.contains("undionly.kpxe") && !why.contains("ipxe.efi"))
        );
        LOADER_FILES.iter().for_each(|name| put(name, b"MZ"));
        assert_eq!(read_loaders(dir.path()).await.unwrap().health(), Health::Up);
    }

    #[tokio::test]
    async fn what_is_missing_is_named_with_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let loaders = read_loaders(dir.path()).await.unwrap();
        assert_eq!(loaders.missing, LOADER_FILES);
        assert!(loaders.hint.unwrap().contains("apt-get install ipxe"));
        assert!(loaders.bundle.files.is_empty());
    }
}

//! The loaders that firmware fetches first: Debian's `ipxe` package, read into a bundle named `loaders`.
//!
//! Invariant: each loader that the host does not have is reported with the command that installs it. An empty bundle is not an error,
//! because all machines may have iPXE as their firmware.

use std::path::Path;

use bytes::Bytes;
use ggnet_core::{
    Error, Result,
    ports::{BootBundle, BootFileStore, BootPath, Health},
    registry::{Finding, Key, Level},
};

/// The folder of the loaders in Debian's package `ipxe`.
pub const DEBIAN_IPXE_DIR: &str = "/usr/lib/ipxe";

/// The loaders to look for: BIOS with the driver of the network card, UEFI with iPXE's drivers, UEFI with the firmware's driver, and the
/// one that PXELINUX loads as a kernel.
pub const LOADER_FILES: [&str; 4] = ["undionly.kpxe", "ipxe.efi", "snponly.efi", "ipxe.lkrn"];

/// The key of a section that sets another folder.
pub(crate) const DIR_KEY: Key =
    ("loaders_dir", "The folder from which the loaders are read at start; default: /usr/lib/ipxe");

/// The loaders of this host.
#[derive(Clone, Debug)]
pub struct Loaders {
    /// The loaders that were found; the bundle's id is `loaders`.
    pub bundle: BootBundle,
    /// The loaders that were not found.
    pub missing: Vec<&'static str>,
    /// What the operator should do; `None` if no loader is missing.
    pub hint: Option<String>,
}

/// Reads the loaders from `dir` (usually [`DEBIAN_IPXE_DIR`]). If the future is dropped, nothing has happened.
///
/// # Errors
/// If a file exists but cannot be read.
pub async fn read_loaders(dir: &Path) -> Result<Loaders> {
    let mut bundle = BootBundle { id: "loaders".parse()?, files: std::collections::BTreeMap::new() };
    let mut missing = Vec::new();
    for name in LOADER_FILES {
        let path = dir.join(name);
        match tokio::fs::read(&path).await {
            // A partly installed package.
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

/// Adds the host's loaders to a store, from Debian's package `ipxe` or from another folder.
///
/// # Errors
/// Those of [`read_loaders`] and of the store.
pub(crate) async fn ensure_in(store: &dyn BootFileStore, dir: &Path) -> Result<Loaders> {
    let found = read_loaders(dir).await?;
    if let Some(hint) = &found.hint {
        tracing::warn!(dir = %dir.display(), missing = ?found.missing, %hint, "boot loaders are missing");
    }
    store.ensure(&found.bundle).await?;
    Ok(found)
}

/// Checks whether the loaders exist that firmware gets by default.
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
    /// The health of a server that offers these loaders: without the two usual ones, only machines that already have iPXE can boot.
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

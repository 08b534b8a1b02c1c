//! The boot file for firmware, by its architecture; the same for every DHCP backend.

use std::collections::BTreeMap;

use ggnet_core::{Error, Result, ports::BootPath};

use super::arch::Arch;

/// The loader for an architecture. Debian's `ipxe` only has BIOS and x86-64 UEFI loaders; others must be configured. An empty text removes
/// a default.
pub(super) fn loader(loaders: &BTreeMap<Arch, String>, arch: Arch) -> Option<&str> {
    let default = match arch.0 {
        0 => "undionly.kpxe",
        7 | 9 | 16 => "ipxe.efi",
        _ => "",
    };
    Some(loaders.get(&arch).map_or(default, String::as_str)).filter(|loader| !loader.is_empty())
}

/// Rejects names that a boot file cannot have.
///
/// # Errors
/// `Invalid`, field `loaders`.
pub(super) fn validate(loaders: &BTreeMap<Arch, String>) -> Result<()> {
    for loader in loaders.values().filter(|loader| !loader.is_empty() && !loader.contains("://")) {
        loader.parse::<BootPath>().map_err(|e| Error::invalid("loaders", e.message().to_owned()))?;
    }
    // A DHCP option holds 255 bytes, which also have to contain a prefix and a port number.
    if let Some(long) = loaders.values().find(|loader| loader.len() > 180) {
        return Err(Error::invalid("loaders", format!("The loader {long:?} is longer than 180 bytes")));
    }
    Ok(())
}

/// Rejects a path that cannot be between the port and the file in an HTTP boot URL.
///
/// # Errors
/// `Invalid`, field `http_files`.
pub(super) fn validate_http_files(http_files: &str) -> Result<()> {
    if !http_files.is_empty() && !http_files.starts_with('/') || http_files.len() > 40 {
        let message = format!("http_files must be a short path that starts with a slash, not {http_files:?}");
        return Err(Error::invalid("http_files", message));
    }
    Ok(())
}

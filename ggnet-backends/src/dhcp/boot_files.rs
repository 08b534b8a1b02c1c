//! [`BootFiles`]: the boot file of a machine, a script for iPXE and a loader for firmware. Used by the backend that answers itself and by
//! those that configure a daemon.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ggnet_core::nouns::MacAddr;

use super::{arch::Arch, loaders};

/// The location and the names of boot files.
pub(super) struct BootFiles<'a> {
    /// Our address.
    pub(super) advertise: Ipv4Addr,
    /// The port of our HTTP server.
    pub(super) http_port: u16,
    /// The path of the boot files on it.
    pub(super) http_files: &'a str,
    /// Whether the name of a loader is `<mac>/<loader>`.
    pub(super) mac_prefix: bool,
    /// Loaders by architecture, in addition to the default ones.
    pub(super) loaders: &'a BTreeMap<Arch, String>,
}

impl BootFiles<'_> {
    /// The script for iPXE. Without a card: the script that requests the machine's script with the MAC address of the card that booted.
    pub(super) fn script(&self, card: Option<MacAddr>) -> String {
        let name = card.map_or_else(|| "first".to_owned(), MacAddr::hyphenated);
        format!("{}/boot/{name}.ipxe", self.base())
    }

    /// Whether there is a loader for an architecture.
    #[cfg(feature = "dhcp-proxy")]
    pub(super) fn has_loader(&self, arch: Arch) -> bool {
        loaders::loader(self.loaders, arch).is_some()
    }

    /// The loader for an architecture: a path for TFTP or, `over_http`, a URL. With a card its name includes the MAC address, if
    /// configured.
    pub(super) fn loader(&self, arch: Arch, over_http: bool, card: Option<MacAddr>) -> Option<String> {
        let loader = loaders::loader(self.loaders, arch)?;
        if loader.contains("://") {
            return Some(loader.to_owned());
        }
        let path = match card {
            Some(mac) if self.mac_prefix => format!("{}/{loader}", mac.hyphenated()),
            _ => loader.to_owned(),
        };
        Some(if over_http { format!("{}{}/{path}", self.base(), self.http_files) } else { path })
    }

    fn base(&self) -> String {
        format!("http://{}:{}", self.advertise, self.http_port)
    }
}

//! [`BootFiles`]: what a machine is told to load, iPXE its script and firmware its loader; the same for a backend that answers and for
//! those that write beforehand what a daemon will answer.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ggnet_core::nouns::MacAddr;

use super::{arch::Arch, loaders};

/// Where boot files are, and which.
pub(super) struct BootFiles<'a> {
    /// Our address.
    pub(super) advertise: Ipv4Addr,
    /// The port of our HTTP server.
    pub(super) http_port: u16,
    /// Where it has the boot files.
    pub(super) http_files: &'a str,
    /// Whether loaders are named as `<mac>/<loader>`.
    pub(super) mac_prefix: bool,
    /// Loaders by architecture, added to the default ones.
    pub(super) loaders: &'a BTreeMap<Arch, String>,
}

impl BootFiles<'_> {
    /// The script for iPXE. Without a card: the script that asks with the card that booted.
    pub(super) fn script(&self, card: Option<MacAddr>) -> String {
        let name = card.map_or_else(|| "first".to_owned(), MacAddr::hyphenated);
        format!("{}/boot/{name}.ipxe", self.base())
    }

    /// Whether there is a loader for an architecture.
    #[cfg(feature = "dhcp-proxy")]
    pub(super) fn has_loader(&self, arch: Arch) -> bool {
        loaders::loader(self.loaders, arch).is_some()
    }

    /// The loader for an architecture: a path for TFTP or, `over_http`, a URL. With a card it is named after it, where that is wanted.
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

//! [`BootFiles`]: what a registered machine is told to load, for the daemons that we write for; they must know all of it before it asks.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ggnet_core::{Error, Result, ports::DhcpHost};

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
    /// The script for iPXE.
    pub(super) fn script(&self, host: &DhcpHost) -> String {
        format!("{}/boot/{}.ipxe", self.base(), only_card(host).as_deref().unwrap_or("first"))
    }

    /// The loader for each architecture that has one.
    pub(super) fn loaders(&self, host: &DhcpHost) -> Vec<(Arch, String)> {
        let mut archs = vec![Arch(0), Arch(7), Arch(9), Arch(16)];
        archs.extend(self.loaders.keys().copied());
        archs.sort_unstable();
        archs.dedup();
        let file = |arch: Arch| {
            let loader = loaders::loader(self.loaders, arch)?;
            let path = match only_card(host) {
                Some(mac) if self.mac_prefix => format!("{mac}/{loader}"),
                _ => loader.to_owned(),
            };
            Some(match (loader.contains("://"), boots_over_http(arch)) {
                (true, _) => loader.to_owned(),
                (false, true) => format!("{}{}/{path}", self.base(), self.http_files),
                (false, false) => path,
            })
        };
        archs.into_iter().filter_map(|arch| Some((arch, file(arch)?))).collect()
    }

    fn base(&self) -> String {
        format!("http://{}:{}", self.advertise, self.http_port)
    }
}

/// Whether firmware of this architecture boots over HTTP (option 93, RFC 5970 section 3.3).
pub(super) fn boots_over_http(arch: Arch) -> bool {
    (15..=19).contains(&arch.0)
}

/// One card: named, so that server and log tell it apart. Several: the script that asks with the card that booted.
fn only_card(host: &DhcpHost) -> Option<String> {
    if let [mac] = host.macs.as_slice() { Some(mac.hyphenated()) } else { None }
}

/// The address that machines are told.
///
/// # Errors
/// `Invalid`, field `advertise`, when there is none.
pub(super) fn require_advertise(advertise: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
    advertise.ok_or_else(|| {
        Error::invalid("advertise", "Machines must be told an IPv4 address to boot from")
            .with_hint("Set network.advertise, or advertise in the section [dhcp]")
    })
}

//! What the backends that write for a DHCP daemon of the host have in common: a registered machine's boot files, all of which the
//! daemon must know before the machine asks.

use std::net::Ipv4Addr;

use ggnet_core::{Error, Result, nouns::MacAddr, ports::DhcpHost};

use super::{arch::Arch, boot_files::BootFiles};

/// The script that iPXE on this machine is told.
pub(super) fn script(boot: &BootFiles<'_>, host: &DhcpHost) -> String {
    boot.script(only_card(host))
}

/// The loader for each architecture that has one.
pub(super) fn loaders(boot: &BootFiles<'_>, host: &DhcpHost) -> Vec<(Arch, String)> {
    let mut archs = vec![Arch(0), Arch(7), Arch(9), Arch(16)];
    archs.extend(boot.loaders.keys().copied());
    archs.sort_unstable();
    archs.dedup();
    let file = |arch| Some((arch, boot.loader(arch, boots_over_http(arch), only_card(host))?));
    archs.into_iter().filter_map(file).collect()
}

/// Whether firmware of this architecture boots over HTTP (option 93, RFC 5970 section 3.3).
pub(super) fn boots_over_http(arch: Arch) -> bool {
    (15..=19).contains(&arch.0)
}

/// One card: named, so that server and log tell it apart. Several: none, because which of them boots is not known yet.
fn only_card(host: &DhcpHost) -> Option<MacAddr> {
    if let [mac] = host.macs.as_slice() { Some(*mac) } else { None }
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

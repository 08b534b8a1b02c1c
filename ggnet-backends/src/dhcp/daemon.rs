//! What the backends for DHCP daemons of the host have in common: the boot files of a registered machine, which the daemon must know in
//! advance; the advertised address; and the requirements on the host.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use ggnet_core::{
    Error, Result,
    nouns::MacAddr,
    ports::DhcpHost,
    registry::{BoundBy, Finding, Key, Level, Settings, Socket, Wiring, or_decided},
};
use serde::de::DeserializeOwned;

use super::{arch::Arch, boot_files::BootFiles, section};
use crate::{
    host,
    service::{Service, State},
};

/// The key of the advertised address.
pub(super) const ADVERTISE: Key =
    ("advertise", "The IPv4 address that machines boot from; default: network.advertise");

/// The script for iPXE on this machine.
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

/// One card: the name includes its MAC address, so that server and log can identify the machine. Several cards: no MAC address, because it
/// is not known yet which card boots.
fn only_card(host: &DhcpHost) -> Option<MacAddr> {
    if let [mac] = host.macs.as_slice() { Some(*mac) } else { None }
}

/// The advertised address.
///
/// # Errors
/// `Invalid`, field `advertise`, if it is not set.
pub(super) fn require_advertise(advertise: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
    advertise.ok_or_else(|| {
        Error::invalid("advertise", "The IPv4 address that machines boot from is not set")
            .with_hint("Set network.advertise, or advertise in the section [dhcp]")
    })
}

/// Reads a section. The addresses of the interfaces are not known here, so the default is `network.advertise`.
pub(super) fn read<T: DeserializeOwned>(backend: &str, wiring: &Wiring, table: Settings) -> Result<T> {
    let table = match wiring.advertise {
        Some(IpAddr::V4(address)) => or_decided(table, "advertise", address.to_string()),
        _ => table,
    };
    section::read(backend, wiring, table)
}

/// The daemon's sockets.
pub(super) fn sockets(ports: &[u16]) -> Vec<Socket> {
    let socket =
        |port: &u16| Socket::udp((Ipv4Addr::UNSPECIFIED, *port).into(), "DHCP").bound_by(BoundBy::Other);
    ports.iter().map(socket).collect()
}

/// Whether the daemon is installed and the folders that it reads are writable. Blocking.
pub(super) fn look(program: &str, package: &str, folders: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![host::program(Path::new(program), package, Level::Fail)];
    findings.extend(host::starters());
    findings.extend(folders.iter().map(|folder| host::writable_folder(folder, Level::Fail)));
    findings
}

/// Whether the daemon runs. GGnet starts it only if a start command is configured; otherwise nothing answers.
pub(super) async fn look_at_service(service: &Service) -> Finding {
    let what = service.label();
    match service.state().await {
        Ok(State::Running) => Finding::ok(what, "Running"),
        Ok(State::Stopped(why)) => Finding::bad(Level::Warn, what, why, "start it before machines boot"),
        Ok(State::Suspended(why)) => Finding::bad(Level::Warn, what, why, "continue it before machines boot"),
        Err(e) => Finding::failed(Level::Warn, what, &e),
    }
}

//! The descriptor of the DHCP backend "proxy".

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ggnet_core::{
    Result,
    ports::DhcpBackend,
    registry::{BoundBy, Descriptor, Finding, Settings, Socket, Wiring},
};

use super::{NAME, ProxyDhcp, ProxyDhcpConfig, server::BOOT_SERVER};
use crate::dhcp::section;

/// The DHCP backend "proxy".
#[must_use]
pub fn descriptor() -> Descriptor<dyn DhcpBackend> {
    Descriptor::new(NAME, make)
        .summary("ProxyDHCP beside any DHCP server that assigns addresses")
        .keys(&[
            ("interfaces", "The interfaces to answer on; default: network.interfaces"),
            ("advertise", "By interface: the IPv4 address that machines boot from; default: network.advertise, or its own"),
            ("unknown", "What an unregistered machine gets: \"ignore\" or \"answer\"; default: \"ignore\""),
            ("relays", "Also accept requests that a DHCP relay sends to the interface's address; default: false"),
        ])
        .keys(section::KEYS)
        .check(check)
        .listens(listens)
}

fn read(wiring: &Wiring, table: Settings) -> Result<ProxyDhcpConfig> {
    let mut config: ProxyDhcpConfig = section::read(NAME, wiring, table)?;
    if config.interfaces.is_empty() {
        config.interfaces.clone_from(&wiring.interfaces);
    }
    if let (true, Some(IpAddr::V4(address))) = (config.advertise.is_empty(), wiring.advertise) {
        config.advertise = config.interfaces.iter().map(|name| (name.clone(), address)).collect();
    }
    Ok(config)
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn DhcpBackend>> {
    Ok(Arc::new(ProxyDhcp::start(read(&wiring, table)?).await?))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config = read(&wiring, table)?;
    config.validate()?;
    Ok(section::mac_paths(&wiring, config.mac_prefix).into_iter().collect())
}

/// A DHCP server of this host may use port 67 too; this is intended.
fn listens(wiring: &Wiring, table: Settings) -> Result<Vec<Socket>> {
    let socket = |interface: &String, port: u16| {
        let at = (Ipv4Addr::UNSPECIFIED, port).into();
        Socket::udp(at, "proxyDHCP").on(interface).bound_by(BoundBy::UsShared)
    };
    let interfaces = read(wiring, table)?.interfaces;
    Ok(interfaces.iter().flat_map(|name| [67, BOOT_SERVER].map(|port| socket(name, port))).collect())
}

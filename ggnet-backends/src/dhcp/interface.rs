//! Network interfaces by name: sockets that receive and send on one interface only, and the address of the host there.
//!
//! Invariant: every socket is opened with SO_REUSEADDR, because a DHCP server or client of the host may use the port too, and never with
//! SO_REUSEPORT, which would distribute packets among the sockets instead of copying them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use ggnet_core::{Error, ErrorKind, Result, nouns::MacAddr};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    carrier::{self, Carrier},
    links::{Link, links},
    udp::PktinfoSocket,
};

/// ENODEV: SO_BINDTODEVICE fails with it if the interface does not exist.
const NO_SUCH_DEVICE: i32 = 19;

/// A socket on `interface`, bound to `address`, that can send broadcasts.
pub(super) fn open(interface: &str, address: SocketAddrV4) -> Result<PktinfoSocket> {
    check_name(interface)?;
    let open = || -> io::Result<PktinfoSocket> {
        let socket = on_device(interface)?;
        socket.bind(&SocketAddr::V4(address).into())?;
        PktinfoSocket::new(socket)
    };
    open().map_err(|e| bind_error(interface, address, e))
}

/// The source address of the host on this interface, one of the interface's own. It is read each time, because DHCP may change it.
pub(super) fn address(interface: &str) -> Result<Ipv4Addr> {
    check_name(interface)?;
    let ask = || -> io::Result<Option<Ipv4Addr>> {
        // Connecting a UDP socket sends nothing: the kernel selects the source address, which we read.
        let socket = on_device(interface)?;
        socket.connect(&SocketAddr::from((Ipv4Addr::BROADCAST, 67)).into())?;
        let picked = socket.local_addr()?.as_socket_ipv4().map(|a| *a.ip());
        // For an interface without an address the kernel uses the address of another interface, through which clients cannot reach us from
        // there. A label (`eth0:1`) may be in the place of the name.
        let known = if_addrs::get_if_addrs()?;
        let own = |k: &&if_addrs::Interface| k.name.split(':').next() == Some(interface);
        Ok(picked.filter(|ip| known.iter().filter(own).any(|k| k.ip() == IpAddr::V4(*ip))))
    };
    match ask() {
        Ok(Some(ip)) => Ok(ip),
        Ok(None) => Err(no_address(interface)),
        Err(e) if e.kind() == io::ErrorKind::NetworkUnreachable => Err(no_address(interface)),
        Err(e) => Err(bind_error(interface, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), e)),
    }
}

/// The index of the interface, if it can be served, and its carrier. An interface that is deleted and created again has another index.
///
/// # Errors
/// `NotFound`; `Invalid` for a port of a bridge or a bond, which receives no packets itself; the error says which interface to use instead.
pub(super) fn look(interface: &str) -> Result<(u32, Carrier)> {
    check_name(interface)?;
    let all = links()
        .map_err(|e| Error::io(format!("Looking up interface {interface}"), e).with_subject(interface))?;
    match all.iter().find(|link| link.name == interface) {
        None => Err(no_such(interface)),
        Some(Link { port_of: Some(master), .. }) => Err(Error::invalid(
            "interfaces",
            format!("{interface} is a port of {master}, which receives its packets"),
        )
        .with_subject(interface)
        .with_hint(format!("Use {master} instead: --interface {master} (network.interfaces)"))),
        Some(link) => Ok((link.index, carrier::of(&all, interface))),
    }
}

/// There is no interface of this name.
pub(super) fn no_such(interface: &str) -> Error {
    Error::not_found("network interface", interface)
        .with_hint("ip -brief link lists the interfaces of this host")
}

/// The interface's MAC address.
pub(super) async fn hardware_address(interface: &str) -> Result<MacAddr> {
    check_name(interface)?;
    let path = format!("/sys/class/net/{interface}/address");
    let text = tokio::fs::read_to_string(&path).await.map_err(|e| {
        Error::io(format!("Reading the hardware address from {path}"), e).with_subject(interface)
    })?;
    text.trim().parse()
}

fn on_device(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

fn check_name(interface: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_graphic() && b != b'/';
    // IFNAMSIZ is 16, including the terminating zero.
    if (1..16).contains(&interface.len()) && interface.bytes().all(good) && !matches!(interface, "." | "..") {
        Ok(())
    } else {
        Err(Error::invalid("interfaces", format!("{interface:?} is not the name of a network interface")))
    }
}

fn no_address(interface: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("Interface {interface} has no IPv4 address"))
        .with_subject(interface)
        .with_hint(format!("Add one (ip address add … dev {interface}) or set an advertised address for it"))
}

fn bind_error(interface: &str, address: SocketAddrV4, source: io::Error) -> Error {
    if source.raw_os_error() == Some(NO_SUCH_DEVICE) {
        return no_such(interface).with_source(source);
    }
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => Some(
            "DHCP's ports need a capability: setcap 'cap_net_bind_service=+ep' on the server's binary, or \
             AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit (before Linux 5.7 also CAP_NET_RAW)"
                .to_owned(),
        ),
        io::ErrorKind::AddrInUse => Some(format!(
            "Another program uses the port exclusively (ss -ulpn 'sport = :{}' shows which); dnsmasq shares it with \
             `bind-dynamic` in its configuration",
            address.port()
        )),
        _ => None,
    };
    let error =
        Error::io(format!("Binding to {address} on interface {interface}"), source).with_subject(interface);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let e = address("nosuchif0").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.to_string().contains("nosuchif0"), "{e}");
        for bad in ["", "a/b", "..", "with space", "sixteen-letters-"] {
            assert_eq!(address(bad).unwrap_err().field(), Some("interfaces"), "{bad:?}");
        }
    }

    #[test]
    fn a_port_that_needs_a_capability_says_so() {
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        let e = bind_error("br0", SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), refused);
        assert_eq!(e.kind(), ErrorKind::Permission);
        assert!(e.hint().unwrap().contains("cap_net_bind_service"));
    }
}

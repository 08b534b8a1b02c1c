//! Which DHCP servers does a network have? One DISCOVER as a BIOS and one as a UEFI machine, and every OFFER that comes back.
//!
//! Nothing is leased: no OFFER is ever accepted. The machine we pretend to be has the interface's own hardware address, so a
//! server that knows only its own machines may stay silent, and so does our proxyDHCP unless that address is registered.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ggnet_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{
    interface,
    proxy::packet::{Offer, discover},
};
use crate::udp::RECEIVE_BUFFER;

/// DISCOVER is repeated at this pace, as firmware does.
const REPEAT: Duration = Duration::from_secs(1);

/// One OFFER of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpServerSeen {
    /// Where the packet came from.
    pub from: Ipv4Addr,
    /// The server's identifier (option 54).
    pub server: Option<Ipv4Addr>,
    /// The address offered; none from a proxyDHCP, which leaves addresses to others.
    pub address: Option<Ipv4Addr>,
    /// Where the boot file is (next-server).
    pub next_server: Option<Ipv4Addr>,
    /// The boot file or URL.
    pub boot_file: Option<String>,
    /// The vendor class (option 60): `PXEClient` from a server that answers PXE.
    pub vendor_class: Option<String>,
    /// The architecture we asked as (option 93): 0 BIOS, 7 UEFI x86-64.
    pub architecture: u16,
}

impl DhcpServerSeen {
    /// Whether it answers beside a server that gives out addresses.
    #[must_use]
    pub const fn is_proxy(&self) -> bool {
        self.address.is_none()
    }
}

/// Asks on `interface` and collects every different OFFER for `wait`. Needs the right to bind port 68. Dropped half-way: the
/// socket is closed, nothing stays behind.
///
/// # Errors
/// `NotFound` for an interface that is not there, `Permission`, or `Busy` when a DHCP client has port 68 for itself.
pub async fn probe(interface: &str, wait: Duration) -> Result<Vec<DhcpServerSeen>> {
    let mac = interface::hardware_address(interface).await?;
    let socket = interface::open(interface, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68))?;
    let first = getrandom::u32().map_err(|e| Error::internal(format!("No random number: {e}")))?;
    let questions = [(first, 0u16), (first.wrapping_add(1), 7)];
    let mut seen: Vec<DhcpServerSeen> = Vec::new();
    let mut buffer = vec![0; RECEIVE_BUFFER];
    let mut tick = tokio::time::interval(REPEAT);
    let end = tokio::time::sleep(wait);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(seen),
            _ = tick.tick() => for (xid, arch) in questions {
                let everybody = SocketAddr::from((Ipv4Addr::BROADCAST, 67));
                socket
                    .send(&discover(xid, mac, arch)?, everybody, None)
                    .await
                    .map_err(|e| Error::io(format!("Sending DISCOVER on {interface}"), e).with_subject(interface))?;
            },
            received = socket.recv(&mut buffer) => {
                let received = received
                    .map_err(|e| Error::io(format!("Receiving on {interface}"), e).with_subject(interface))?;
                let SocketAddr::V4(from) = received.peer else { continue };
                for datagram in received.datagrams(&buffer) {
                    let Some(offer) = Offer::decode(datagram) else { continue };
                    let Some((_, architecture)) = questions.iter().find(|(xid, _)| *xid == offer.xid) else { continue };
                    let one = DhcpServerSeen {
                        from: *from.ip(),
                        server: offer.server,
                        address: offer.address,
                        next_server: offer.next_server,
                        boot_file: offer.boot_file,
                        vendor_class: offer.vendor_class,
                        architecture: *architecture,
                    };
                    if !seen.contains(&one) {
                        seen.push(one);
                    }
                }
            }
        }
    }
}

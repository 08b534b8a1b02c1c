//! Finds the DHCP servers of a network: sends one DISCOVER as a BIOS and one as a UEFI machine, and collects every OFFER.
//!
//! Nothing is leased, because no OFFER is accepted. The simulated machine has the interface's own MAC address, so a server that only
//! answers its own machines may not respond, including our proxyDHCP unless that address is registered.

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

/// DISCOVER is repeated at this interval, as firmware does.
const REPEAT: Duration = Duration::from_secs(1);

/// One OFFER of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpServerSeen {
    /// The source address of the packet.
    pub from: Ipv4Addr,
    /// The server's identifier (option 54).
    pub server: Option<Ipv4Addr>,
    /// The offered address; `None` from a proxyDHCP server, which does not assign addresses.
    pub address: Option<Ipv4Addr>,
    /// The server of the boot file (next-server).
    pub next_server: Option<Ipv4Addr>,
    /// The boot file or URL.
    pub boot_file: Option<String>,
    /// The vendor class (option 60): `PXEClient` from a server that supports PXE.
    pub vendor_class: Option<String>,
    /// The architecture in our request (option 93): 0 BIOS, 7 UEFI x86-64.
    pub architecture: u16,
}

impl DhcpServerSeen {
    /// Whether this server answers in addition to one that assigns addresses.
    #[must_use]
    pub const fn is_proxy(&self) -> bool {
        self.address.is_none()
    }
}

/// Sends on `interface` and collects all different OFFERs for the time `wait`. Needs permission to bind port 68. If the future is dropped,
/// the socket is closed and nothing else remains.
///
/// # Errors
/// `NotFound` if the interface does not exist, `Permission`, or `Busy` if a DHCP client uses port 68 exclusively.
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

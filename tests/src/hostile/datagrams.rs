//! Floods over UDP: TFTP requests and DHCP messages.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use ggnet_core::nouns::MacAddr;
use tokio::net::UdpSocket;

use super::{PORTAL, Round, SERVER, source};

/// A flood: so many packets, 500 a second. Faster ones overflow the socket's buffer where a debug build has a part of a busy processor, and
/// what a machine sends is lost with them before the server can do anything about it.
const FLOOD: u32 = 20_000;
const BURST: u32 = 20;
const REST: Duration = Duration::from_millis(40);

fn read_request(path: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = format!("\0\x01{path}\0octet\0").into_bytes();
    for (name, value) in options {
        packet.extend(format!("{name}\0{value}\0").bytes());
    }
    packet
}

/// 512 read requests from 32 sources that ask for 30 s between retransmissions, and never a word more.
pub(super) async fn reads_never_acknowledged() -> Result<Round> {
    let request = read_request("ipxe.efi", &[("timeout", "30")]);
    let mut sockets = Vec::new();
    for n in 1..=32 {
        for port in 2000..2016_u16 {
            let socket = UdpSocket::bind((source(n), port)).await?;
            socket.send_to(&request, (SERVER, 69)).await?;
            sockets.push(socket);
        }
        tokio::time::sleep(REST / 8).await;
    }
    Ok(Round::new(format!("{} TFTP requests with timeout=30", sockets.len()), sockets))
}

/// 20,000 read requests with a long name that nothing has.
pub(super) async fn reads_to_refuse() -> Result<Round> {
    let request = read_request(&"\u{1}no-such-file".repeat(80), &[]);
    let mut sockets = Vec::new();
    for n in 1..=16 {
        sockets.push(UdpSocket::bind((source(100 + n), 0)).await?);
    }
    flood(|n| {
        let socket = &sockets[n as usize % sockets.len()];
        let request = &request;
        async move { socket.send_to(request, (SERVER, 69)).await.map(drop) }
    })
    .await?;
    Ok(Round::new(format!("{FLOOD} TFTP requests of {} bytes to refuse", request.len()), sockets))
}

/// 20,000 DISCOVERs of a registered machine, each with 127 architectures that do not exist.
pub(super) async fn discovers(mac: &str) -> Result<Round> {
    let mac: MacAddr = mac.parse()?;
    let socket = UdpSocket::bind((PORTAL, 68)).await?;
    socket.set_broadcast(true)?;
    flood(|n| {
        let (socket, packet) = (&socket, discover(mac, n));
        async move { socket.send_to(&packet, (Ipv4Addr::BROADCAST, 67)).await.map(drop) }
    })
    .await?;
    Ok(Round::new(format!("{FLOOD} DISCOVERs with made-up architectures"), vec![socket]))
}

async fn flood<F: Future<Output = std::io::Result<()>>>(mut send: impl FnMut(u32) -> F) -> Result<()> {
    for n in 0..FLOOD {
        send(n).await?;
        if n % BURST == 0 {
            tokio::time::sleep(REST).await;
        }
    }
    Ok(())
}

/// A DHCPDISCOVER of a PXE client (RFC 2131 section 2, RFC 4578 section 2.1).
fn discover(mac: MacAddr, n: u32) -> Vec<u8> {
    let mut packet = vec![0; 236];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[4..8].copy_from_slice(&n.to_be_bytes());
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&mac.octets());
    packet.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 60, 9]);
    packet.extend(b"PXEClient");
    packet.extend([93, 254]);
    for i in 0..127 {
        packet.extend((60_000 + u16::try_from((n * 127 + i) % 5000).unwrap_or(0)).to_be_bytes());
    }
    packet.push(255);
    packet
}

//! A machine's firmware, iPXE or operating system that asks for an address, packet by packet: the tests do not trust a codec of ours.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use ggnet_core::nouns::MacAddr;
use socket2::{Domain, Protocol, Socket, Type};

/// When a request is sent again (RFC 2131 section 4.1): a busy host may drop a packet.
const AGAIN: Duration = Duration::from_secs(4);
/// How often a request is sent.
pub const TIMES: u32 = 10;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Asks {
    /// Firmware of this architecture (option 93), for PXE.
    Firmware(u8),
    /// Firmware of this architecture, for HTTP boot.
    Http(u8),
    /// iPXE on firmware of this architecture.
    Ipxe(u8),
}

/// An OFFER.
#[derive(Clone, Debug)]
pub struct Offer {
    pub xid: u32,
    pub address: Ipv4Addr,
    pub next_server: Ipv4Addr,
    file: String,
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Offer {
    /// The boot file: option 67, which comes to those who ask for it, or the field.
    pub fn boot_file(&self) -> Option<String> {
        let option = self.options.get(&67).map(|v| String::from_utf8(v.clone()).unwrap());
        let option = option.map(|text| text.trim_end_matches('\0').to_owned());
        option.or_else(|| Some(self.file.clone())).filter(|file| !file.is_empty())
    }
}

/// Where a machine asks; on eth0 of the calling thread's namespace.
pub fn socket() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).unwrap();
    socket.set_read_timeout(Some(AGAIN)).unwrap();
    socket.into()
}

/// The next answer, to any request; none came for [`AGAIN`].
pub fn receive(socket: &UdpSocket) -> Option<Offer> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((length, _)) => Some(parse(&buffer[..length])),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(e) => panic!("receiving an answer: {e}"),
    }
}

/// The answer to one request, which is sent again as firmware does: an answer must come.
pub fn offered(xid: u32, mac: MacAddr, asks: Asks) -> Offer {
    let socket = socket();
    for _ in 0..TIMES {
        socket.send_to(&discover(xid, mac, asks), "255.255.255.255:67").unwrap();
        while let Some(offer) = receive(&socket) {
            if offer.xid == xid {
                return offer;
            }
        }
    }
    panic!("no answer to {TIMES} requests");
}

/// DHCPDISCOVER.
pub fn discover(xid: u32, mac: MacAddr, asks: Asks) -> Vec<u8> {
    let mut b = vec![0; 240];
    b[..3].copy_from_slice(&[1, 1, 6]);
    b[4..8].copy_from_slice(&xid.to_be_bytes());
    // Answered by broadcast.
    b[10] = 0x80;
    b[28..34].copy_from_slice(&mac.octets());
    b[236..240].copy_from_slice(&[99, 130, 83, 99]);
    b.extend([53, 1, 1, 55, 9, 1, 3, 6, 12, 43, 54, 60, 66, 67]);
    let (class, arch) = match asks {
        Asks::Firmware(arch) | Asks::Ipxe(arch) => (format!("PXEClient:Arch:{arch:05}:UNDI:003016"), arch),
        Asks::Http(arch) => (format!("HTTPClient:Arch:{arch:05}:UNDI:003016"), arch),
    };
    b.extend([60, u8::try_from(class.len()).unwrap()]);
    b.extend(class.as_bytes());
    b.extend([93, 2, 0, arch, 94, 3, 1, 3, 16, 97, 17, 0]);
    b.extend([5; 16]);
    if let Asks::Ipxe(_) = asks {
        b.extend(b"\x4d\x04iPXE\xaf\x03\xb0\x01\x01");
    }
    b.push(255);
    b.resize(b.len().max(300), 0);
    b
}

fn parse(bytes: &[u8]) -> Offer {
    let ip = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    assert_eq!((bytes[0], &bytes[236..240]), (2, &[99, 130, 83, 99][..]), "not a reply");
    let mut options = BTreeMap::new();
    let mut at = 240;
    while bytes[at] != 255 {
        if bytes[at] == 0 {
            at += 1;
            continue;
        }
        let length = usize::from(bytes[at + 1]);
        options.insert(bytes[at], bytes[at + 2..at + 2 + length].to_vec());
        at += 2 + length;
    }
    let file: Vec<u8> = bytes[108..236].iter().copied().take_while(|b| *b != 0).collect();
    Offer {
        xid: u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
        address: ip(16),
        next_server: ip(20),
        file: String::from_utf8(file).unwrap(),
        options,
    }
}

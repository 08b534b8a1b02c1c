//! Converts DHCP packets to and from `dhcproto`: the parts of a request that the policy needs, and the bytes of a reply.
//!
//! Requests are parsed with the `borrowed` parser, which keeps the raw bytes of every option. Invariants: decoding never panics, whatever
//! the input (`borrowed::Message::chaddr` trusts the packet's own length field, so that is checked first); a malformed option is treated as
//! absent.

use std::net::Ipv4Addr;

use dhcproto::{
    Encodable, Encoder,
    v4::{
        self, DhcpOption, DhcpOptions, HType, MessageType, Opcode, OptionCode, UnknownOption,
        borrowed::Message,
    },
};
use ggnet_core::{Error, Result, nouns::MacAddr};

use super::arch::Arch;

/// Encapsulated options are complete if they end with this.
const END: u8 = 255;
/// PXE_DISCOVERY_CONTROL = 8 (PXE 2.1, table 2-1): use the boot file of this packet, do not contact a boot server and show no menu.
const PXE_USE_BOOT_FILE: [u8; 4] = [6, 1, 8, END];
/// The `file` field holds 128 bytes, including the terminating zero.
const FILE_FIELD: usize = 127;
/// Relays and old clients drop shorter packets (RFC 1542 section 2.1).
const MIN_PACKET: usize = 300;

/// The boot protocol of the client (option 60).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dhcp) enum Class {
    /// PXE: a file over TFTP.
    Pxe,
    /// UEFI HTTP boot: a URL.
    Http,
}

impl Class {
    const fn name(self) -> &'static str {
        match self {
            Self::Pxe => "PXEClient",
            Self::Http => "HTTPClient",
        }
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dhcp) enum Kind {
    /// DISCOVER.
    Discover,
    /// REQUEST.
    Request,
    /// INFORM.
    Inform,
    /// Anything else.
    Other,
}

/// The parts of a request that the policy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dhcp) struct Request {
    pub(in crate::dhcp) kind: Kind,
    pub(in crate::dhcp) xid: u32,
    pub(in crate::dhcp) flags: u16,
    pub(in crate::dhcp) ciaddr: Ipv4Addr,
    pub(in crate::dhcp) giaddr: Ipv4Addr,
    pub(in crate::dhcp) mac: MacAddr,
    /// `None`: the request is from an operating system.
    pub(in crate::dhcp) class: Option<Class>,
    /// The list in option 93; without it the architecture in option 60, otherwise BIOS.
    pub(in crate::dhcp) archs: Vec<Arch>,
    pub(in crate::dhcp) ipxe: bool,
    /// The server from which the client wants a reply (option 54).
    pub(in crate::dhcp) server: Option<Ipv4Addr>,
    /// Option 97, which is echoed.
    pub(in crate::dhcp) machine_id: Option<Vec<u8>>,
    /// Option 82 from a relay, which is echoed (RFC 3046 section 2.2).
    pub(in crate::dhcp) relay_info: Option<Vec<u8>>,
}

impl Request {
    /// Parses a request; the error describes why it is not one.
    pub(in crate::dhcp) fn decode(bytes: &[u8]) -> std::result::Result<Self, &'static str> {
        let message = Message::new(bytes).map_err(|_| "shorter than a DHCP packet")?;
        if message.opcode() != Opcode::BootRequest {
            return Err("not a request");
        }
        if message.htype() != HType::Eth || message.hlen() != 6 {
            return Err("not from an Ethernet card");
        }
        let octets: [u8; 6] = message.chaddr().try_into().map_err(|_| "not from an Ethernet card")?;
        let mut request = Self {
            kind: Kind::Other,
            xid: message.xid(),
            flags: message.flags().into(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            mac: MacAddr::new(octets).map_err(|_| "not a valid MAC address of a network card")?,
            class: None,
            archs: Vec::new(),
            ipxe: false,
            server: None,
            machine_id: None,
            relay_info: None,
        };
        let mut class_says = None;
        for option in message.opts() {
            let data = option.data();
            match u8::from(option.code()) {
                53 => {
                    request.kind = match data {
                        [1] => Kind::Discover,
                        [3] => Kind::Request,
                        [8] => Kind::Inform,
                        _ => Kind::Other,
                    }
                }
                54 => request.server = four(data),
                60 => (request.class, class_says) = class_of(data),
                77 => request.ipxe |= is_ipxe_class(data),
                82 => request.relay_info = Some(data.to_vec()),
                93 => {
                    request.archs =
                        data.as_chunks::<2>().0.iter().map(|b| Arch(u16::from_be_bytes(*b))).collect();
                }
                97 => request.machine_id = Some(data.to_vec()),
                175 => request.ipxe = true,
                _ => {}
            }
        }
        if request.archs.is_empty() {
            request.archs.push(class_says.unwrap_or(Arch(0)));
        }
        Ok(request)
    }
}

fn four(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}

/// `PXEClient:Arch:00007:UNDI:003016` and similar.
fn class_of(data: &[u8]) -> (Option<Class>, Option<Arch>) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split(':');
    let class = match parts.next().map(|first| first.trim_end_matches('\0')) {
        Some("PXEClient") => Some(Class::Pxe),
        Some("HTTPClient") => Some(Class::Http),
        _ => return (None, None),
    };
    let arch = match (parts.next(), parts.next()) {
        (Some("Arch"), Some(number)) => number.parse().ok().map(Arch),
        _ => None,
    };
    (class, arch)
}

/// iPXE sends only the text; RFC 3004 requires a length before it, which some relays add.
fn is_ipxe_class(data: &[u8]) -> bool {
    data == b"iPXE" || data == b"\x04iPXE"
}

/// A reply before it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dhcp) struct Reply {
    /// ACK for a boot server request, otherwise OFFER.
    pub(in crate::dhcp) ack: bool,
    pub(in crate::dhcp) xid: u32,
    pub(in crate::dhcp) flags: u16,
    pub(in crate::dhcp) ciaddr: Ipv4Addr,
    pub(in crate::dhcp) giaddr: Ipv4Addr,
    pub(in crate::dhcp) mac: MacAddr,
    pub(in crate::dhcp) class: Class,
    /// Our address: server identifier and next-server.
    pub(in crate::dhcp) server: Ipv4Addr,
    /// The path or URL.
    pub(in crate::dhcp) boot_file: String,
    pub(in crate::dhcp) machine_id: Option<Vec<u8>>,
    pub(in crate::dhcp) relay_info: Option<Vec<u8>>,
}

impl Reply {
    /// The packet's bytes.
    pub(in crate::dhcp) fn encode(&self) -> Result<Vec<u8>> {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = v4::Message::new_with_id(
            self.xid,
            self.ciaddr,
            zero,
            self.server,
            self.giaddr,
            &self.mac.octets(),
        );
        message.set_opcode(Opcode::BootReply).set_flags(self.flags.into());
        if self.boot_file.len() <= FILE_FIELD {
            message.set_fname_str(&self.boot_file);
        }
        let options = message.opts_mut();
        let kind = if self.ack { MessageType::Ack } else { MessageType::Offer };
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(self.server));
        options.insert(DhcpOption::ClassIdentifier(self.class.name().as_bytes().to_vec()));
        // For an HTTP client, option 43 would have a meaning in its own vendor class.
        if self.class == Class::Pxe {
            options.insert(DhcpOption::VendorExtensions(PXE_USE_BOOT_FILE.to_vec()));
        }
        options.insert(DhcpOption::TFTPServerName(self.server.to_string().into_bytes()));
        options.insert(DhcpOption::BootfileName(self.boot_file.as_bytes().to_vec()));
        if let Some(id) = &self.machine_id {
            options.insert(DhcpOption::ClientMachineIdentifier(id.clone()));
        }
        encode(&message, self.relay_info.as_deref())
    }
}

/// A DISCOVER as firmware of this architecture sends it, requesting a broadcast reply.
pub(in crate::dhcp) fn discover(xid: u32, mac: MacAddr, arch: u16) -> Result<Vec<u8>> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(xid, zero, zero, zero, zero, &mac.octets());
    message.set_flags(v4::Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Discover));
    options.insert(DhcpOption::ParameterRequestList(
        [1, 3, 6, 43, 54, 60, 66, 67, 97].map(OptionCode::from).to_vec(),
    ));
    options.insert(DhcpOption::ClassIdentifier(format!("PXEClient:Arch:{arch:05}:UNDI:003016").into_bytes()));
    raw(options, 93, &arch.to_be_bytes());
    raw(options, 94, &[1, 3, 16]);
    let machine_id: Vec<u8> = [0; 11].into_iter().chain(mac.octets()).collect();
    options.insert(DhcpOption::ClientMachineIdentifier(machine_id));
    encode(&message, None)
}

fn raw(options: &mut DhcpOptions, code: u8, data: &[u8]) {
    options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data.to_vec())));
}

/// `relay_info` is appended after all other options (RFC 3046 section 2.1). `dhcproto` would write it twice if given as raw bytes, and a
/// parsed version might not be identical byte for byte.
fn encode(message: &v4::Message, relay_info: Option<&[u8]>) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(MIN_PACKET);
    message
        .encode(&mut Encoder::new(&mut bytes))
        .map_err(|e| Error::internal("Encoding a DHCP packet failed").with_source(e))?;
    if let Some(info) = relay_info {
        if bytes.pop() != Some(END) {
            return Err(Error::internal("An encoded DHCP packet has no end mark"));
        }
        for part in info.chunks(255) {
            bytes.extend([82, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
            bytes.extend_from_slice(part);
        }
        bytes.push(END);
    }
    bytes.resize(bytes.len().max(MIN_PACKET), 0);
    Ok(bytes)
}

/// An OFFER as a client receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dhcp) struct Offer {
    pub(in crate::dhcp) xid: u32,
    pub(in crate::dhcp) server: Option<Ipv4Addr>,
    pub(in crate::dhcp) address: Option<Ipv4Addr>,
    pub(in crate::dhcp) next_server: Option<Ipv4Addr>,
    pub(in crate::dhcp) boot_file: Option<String>,
    pub(in crate::dhcp) vendor_class: Option<String>,
}

impl Offer {
    /// Parses an OFFER; `None` for anything else.
    pub(in crate::dhcp) fn decode(bytes: &[u8]) -> Option<Self> {
        let message = Message::new(bytes).ok()?;
        if message.opcode() != Opcode::BootReply {
            return None;
        }
        let some = |ip: Ipv4Addr| (!ip.is_unspecified()).then_some(ip);
        let text = |data: &[u8]| {
            let text = String::from_utf8_lossy(data).trim_end_matches('\0').to_owned();
            (!text.is_empty()).then_some(text)
        };
        let mut offer = Self {
            xid: message.xid(),
            server: None,
            address: some(message.yiaddr()),
            next_server: some(message.siaddr()),
            boot_file: text(message.fname()),
            vendor_class: None,
        };
        let mut is_offer = false;
        for option in message.opts() {
            let data = option.data();
            match u8::from(option.code()) {
                53 => is_offer = data == [2],
                54 => offer.server = four(data),
                60 => offer.vendor_class = text(data),
                67 => offer.boot_file = text(data).or(offer.boot_file),
                _ => {}
            }
        }
        is_offer.then_some(offer)
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;

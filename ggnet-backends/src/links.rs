//! The network interfaces of this process's network namespace, as the kernel lists them through rtnetlink(7): name, index, master, and
//! whether they can carry packets. `/sys/class/net` is not usable, because it shows the namespace in which it was mounted.
//!
//! Sends one request (RTM_GETLINK, dump) on a new socket and reads the responses until NLMSG_DONE. Lengths are checked before each slice;
//! truncated or unknown data is skipped, never guessed.

use std::io::{self, Read as _};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its current name; an interface can be renamed.
    pub(crate) name: String,
    /// Its index: if an interface is deleted and created again with the same name, the index changes.
    pub(crate) index: u32,
    /// The name of the bridge, bond or team that receives all its packets; `None` if it has no master.
    pub(crate) port_of: Option<String>,
    /// Whether it is up.
    pub(crate) up: bool,
    /// Whether it has a carrier, for example a plugged-in cable. True if the kernel does not report it.
    pub(crate) carrier: bool,
    /// The kind of virtual interface: `bridge`, `veth`, `tun` (also for tap); `None` for hardware.
    pub(crate) kind: Option<String>,
}

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// NLM_F_REQUEST and NLM_F_DUMP.
const DUMP: u16 = 0x1 | 0x300;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER: u16 = 33;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
/// Mask for an attribute's type: the upper two bits encode its format.
const TYPE_MASK: u16 = 0x3fff;
const IFF_UP: u32 = 1;
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
/// The kernel does not send larger pieces.
const BUFFER: usize = 64 << 10;
/// The kernel responds at once; this limit is for a kernel that does not.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Lists all interfaces. Takes tens of microseconds and does not wait for hardware.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn links() -> io::Result<Vec<Link>> {
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut request = Vec::with_capacity(HEADER + LINK_HEADER);
    let length = u32::try_from(HEADER + LINK_HEADER).unwrap_or(0);
    request.extend(length.to_ne_bytes());
    request.extend(RTM_GETLINK.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    // Sequence number and port; then an ifinfomsg of zeros: every family, every interface.
    request.resize(HEADER + LINK_HEADER, 0);
    // A netlink socket without a destination address sends to the kernel.
    socket.send(&request)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = (&socket).read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(named(&found)),
                NLMSG_ERROR => {
                    let code = u32_at(body, 0).map_or(0, |code| i32::from_ne_bytes(code.to_ne_bytes()));
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
                RTM_NEWLINK => found.extend(link(body)),
                _ => {}
            }
            rest = next;
        }
    }
}

/// A link whose master is still an index.
type Unnamed = (Link, Option<u32>);

fn named(found: &[Unnamed]) -> Vec<Link> {
    let name_of =
        |index: u32| found.iter().find(|(link, _)| link.index == index).map(|(l, _)| l.name.clone());
    let named = found.iter().map(|(link, master)| Link { port_of: master.and_then(name_of), ..link.clone() });
    named.collect()
}

/// The first message: its type, its body and the bytes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(bytes, 4)?, body, next))
}

fn link(body: &[u8]) -> Option<Unnamed> {
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    let (mut name, mut master, mut takes_all, mut carrier, mut own_kind) = (None, None, false, true, None);
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_MASTER => master = u32_at(value, 0),
            IFLA_CARRIER => carrier = value.first() != Some(&0),
            IFLA_LINKINFO => {
                let info = |wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, v)| text(v));
                own_kind = info(IFLA_INFO_KIND);
                // A member of a VRF still receives its own packets.
                takes_all = info(IFLA_INFO_SLAVE_KIND)
                    .is_some_and(|kind| matches!(kind.as_str(), "bridge" | "bond" | "team"));
            }
            _ => {}
        }
    }
    let link = Link { name: name?, index, port_of: None, up: flags & IFF_UP != 0, carrier, kind: own_kind };
    Some((link, master.filter(|_| takes_all)))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The text up to the terminating zero.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_what_it_lists_elsewhere() {
        let mut names: Vec<String> = links().unwrap().into_iter().map(|l| l.name).collect();
        let table = std::fs::read_to_string("/proc/net/dev").unwrap();
        let mut there: Vec<String> =
            table.lines().skip(2).map(|l| l.rsplit_once(':').unwrap().0.trim().to_owned()).collect();
        names.sort();
        there.sort();
        assert_eq!(names, there);
        let lo = links().unwrap().into_iter().find(|l| l.name == "lo").unwrap();
        assert_eq!((lo.index, lo.port_of, lo.up, lo.carrier, lo.kind), (1, None, true, true, None));
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        let mut body = vec![0; LINK_HEADER];
        body[4] = 7;
        body.extend([9, 0, 3, 0, b'b', b'r', b'0', b'7', 0, 0, 0, 0]);
        let found =
            Link { name: "br07".into(), index: 7, port_of: None, up: false, carrier: true, kind: None };
        assert_eq!(link(&body), Some((found, None)));
        for length in 0..LINK_HEADER + 9 {
            assert_eq!(link(&body[..length]), None, "{length}");
        }
        for bytes in [&[][..], &[0; 16], &[255; 16], &[17, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(message(bytes).is_none(), "{bytes:?}");
        }
        assert_eq!(attributes(&[0; 64]).count(), 0, "an attribute without a length ends the list");
    }
}

//! The properties that must hold for every datagram to proxyDHCP. The fuzz target `dhcp_packet` and the test `fuzz_corpus` run them.
//!
//! Input: one byte that selects port, registration and configuration, then the datagram.
//!
//! The assertions are the purpose of this module: a violated property panics.

use std::net::Ipv4Addr;

use dhcproto::v4::{Opcode, borrowed::Message};

use super::packet::{Kind, Offer, Reply, Request};
use super::policy::{Port, decide};
use super::{ProxyDhcpConfig, Unknown};

/// The content of a reply in addition to what it echoes: the fixed part, our options, and the longest boot file twice.
const MAX_OWN: usize = 700;

/// Decodes a datagram as a request and as an offer, decides, and decodes the reply.
pub fn packet(input: &[u8]) {
    let Some((&choice, datagram)) = input.split_first() else { return };
    let _ = Offer::decode(datagram);
    let Ok(request) = Request::decode(datagram) else { return };
    assert!(datagram.len() >= 240, "a packet shorter than its fixed part is read");
    assert!(!request.archs.is_empty(), "a request without an architecture");
    let echoed =
        [&request.machine_id, &request.relay_info].into_iter().flatten().map(Vec::len).sum::<usize>();
    assert!(echoed <= datagram.len() - 240, "more is kept of a request than it has");

    let port = if choice & 1 == 0 { Port::Dhcp } else { Port::BootServer };
    let (registered, mac_prefix) = (choice & 2 != 0, choice & 4 != 0);
    let unknown = if choice & 8 == 0 { Unknown::Ignore } else { Unknown::Answer };
    let config = ProxyDhcpConfig { unknown, mac_prefix, ..ProxyDhcpConfig::default() };
    let ours = Ipv4Addr::new(10, 77, 0, 1);
    let decision = decide(&request, port, &config, ours, registered);
    assert!(decision.seen.len() <= 2, "{} observations of one packet", decision.seen.len());
    match decision.reply {
        Err(reason) => {
            assert!(!reason.is_empty() && reason.len() <= 4096, "a reason of {} bytes", reason.len());
        }
        Ok((reply, _)) => {
            let question = match port {
                Port::Dhcp => request.kind == Kind::Discover,
                Port::BootServer => matches!(request.kind, Kind::Request | Kind::Inform),
            };
            assert!(question && request.class.is_some(), "an answer to what is no question of firmware");
            assert!(registered || unknown == Unknown::Answer, "an answer to a stranger");
            answer(&request, &reply, echoed);
        }
    }
}

fn answer(request: &Request, reply: &Reply, echoed: usize) {
    let Ok(bytes) = reply.encode() else { unreachable!("a reply that cannot be encoded: {reply:?}") };
    // Each 255 bytes of a long option cost a header of two.
    let most = MAX_OWN + echoed + echoed / 255 * 2;
    assert!((300..=most).contains(&bytes.len()), "a reply of {} bytes, {echoed} of them echoed", bytes.len());
    let Ok(message) = Message::new(&bytes) else { unreachable!("a reply that cannot be read") };
    assert_eq!((message.opcode(), message.xid()), (Opcode::BootReply, request.xid));
    assert_eq!(message.chaddr(), request.mac.octets());
    assert_eq!((message.yiaddr(), message.giaddr()), (Ipv4Addr::UNSPECIFIED, request.giaddr));
    let options: Vec<(u8, Vec<u8>)> =
        message.opts().map(|o| (u8::from(o.code()), o.data().to_vec())).collect();
    for (code, echo) in [(97, &request.machine_id), (82, &request.relay_info)] {
        let found: Vec<_> = options.iter().filter(|(c, _)| *c == code).map(|(_, data)| data).collect();
        // An option without data may be omitted.
        let want = echo.as_ref().filter(|e| !e.is_empty());
        assert_eq!(found.into_iter().find(|f| !f.is_empty()), want, "option {code} is not echoed");
    }
    if request.relay_info.as_ref().is_some_and(|i| !i.is_empty()) {
        assert_eq!(options.last().map(|(code, _)| *code), Some(82), "a relay's option is not the last");
    }
    let offer = Offer::decode(&bytes);
    assert_eq!(offer.is_none(), reply.ack, "an OFFER that is none, or an ACK that is one");
    if let Some(offer) = offer {
        assert_eq!((offer.xid, offer.address, offer.server), (request.xid, None, Some(reply.server)));
        assert_eq!(offer.boot_file.as_deref(), Some(reply.boot_file.as_str()));
        assert_eq!(offer.next_server, Some(reply.server));
    }
}

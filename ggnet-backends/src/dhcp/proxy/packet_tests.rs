//! The codec with packets as firmware sends them, with mutated packets and with noise.

use proptest::prelude::*;

use super::*;

fn mac() -> MacAddr {
    "52:54:00:aa:00:01".parse().unwrap()
}

/// A packet from the UEFI firmware of a PC, optionally with iPXE's options.
fn firmware(ipxe: bool) -> Vec<u8> {
    let mut bytes = discover(7, mac(), 7).unwrap();
    if ipxe {
        let end = bytes.iter().rposition(|&b| b == 255).unwrap();
        bytes.truncate(end);
        bytes.extend_from_slice(b"\x4d\x04iPXE\xaf\x03\xb0\x01\x01\xff");
    }
    bytes
}

fn reply() -> Reply {
    Reply {
        ack: false,
        xid: 7,
        flags: 0x8000,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        mac: mac(),
        class: Class::Pxe,
        server: Ipv4Addr::new(10, 77, 0, 1),
        boot_file: "52-54-00-aa-00-01/undionly.kpxe".into(),
        machine_id: Some(vec![0; 17]),
        relay_info: Some(vec![1, 2, 3, 4]),
    }
}

fn options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    Message::new(bytes).unwrap().opts().map(|o| (u8::from(o.code()), o.data().to_vec())).collect()
}

#[test]
fn firmware_and_ipxe_are_told_apart() {
    let request = Request::decode(&firmware(false)).unwrap();
    assert_eq!((request.kind, request.class, request.ipxe), (Kind::Discover, Some(Class::Pxe), false));
    assert_eq!((request.xid, request.mac, request.flags), (7, mac(), 0x8000));
    assert_eq!(request.archs, [Arch(7)]);
    assert!(Request::decode(&firmware(true)).unwrap().ipxe);
}

#[test]
fn a_list_of_architectures_is_kept_whole_and_option_60_helps_where_93_is_missing() {
    let mut bytes = discover(7, mac(), 7).unwrap();
    let at = bytes.windows(4).position(|w| w == [93, 2, 0, 7]).unwrap();
    bytes.splice(at..at + 4, [93, 5, 0, 11, 0, 16, 9]);
    assert_eq!(Request::decode(&bytes).unwrap().archs, [Arch(11), Arch(16)]);
    bytes.splice(at..at + 7, []);
    assert_eq!(Request::decode(&bytes).unwrap().archs, [Arch(7)]);
}

#[test]
fn a_reply_bears_every_mark_that_firmware_looks_for() {
    let bytes = reply().encode().unwrap();
    assert!(bytes.len() >= 300);
    let message = Message::new(&bytes).unwrap();
    assert_eq!(message.opcode(), Opcode::BootReply);
    assert_eq!(message.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(message.siaddr(), Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(message.fname(), b"52-54-00-aa-00-01/undionly.kpxe");
    assert_eq!(
        options(&bytes),
        [
            (43, vec![6, 1, 8, 255]),
            (53, vec![2]),
            (54, vec![10, 77, 0, 1]),
            (60, b"PXEClient".to_vec()),
            (66, b"10.77.0.1".to_vec()),
            (67, b"52-54-00-aa-00-01/undionly.kpxe".to_vec()),
            (97, vec![0; 17]),
            (82, vec![1, 2, 3, 4]),
        ]
    );
}

#[test]
fn a_long_url_travels_in_option_67_alone() {
    let url = format!("http://10.77.0.1:8080/{}", "a".repeat(150));
    let bytes = Reply { boot_file: url.clone(), class: Class::Http, ..reply() }.encode().unwrap();
    assert_eq!(Message::new(&bytes).unwrap().fname(), b"");
    assert!(options(&bytes).contains(&(67, url.into_bytes())));
    assert!(!options(&bytes).iter().any(|(code, _)| *code == 43));
}

#[test]
fn a_hardware_address_longer_than_the_packet_is_refused() {
    let mut bytes = firmware(false);
    bytes.truncate(250);
    bytes[2] = 255;
    assert!(Request::decode(&bytes).is_err());
    assert_eq!(Offer::decode(&bytes), None);
}

#[test]
fn our_own_offer_reads_back() {
    let offer = Offer::decode(&reply().encode().unwrap()).unwrap();
    assert_eq!(offer.address, None);
    assert_eq!(offer.server, Some(Ipv4Addr::new(10, 77, 0, 1)));
    assert_eq!(offer.boot_file.as_deref(), Some("52-54-00-aa-00-01/undionly.kpxe"));
    assert_eq!(offer.vendor_class.as_deref(), Some("PXEClient"));
    assert_eq!(Offer::decode(&firmware(false)), None);
}

proptest! {
    #[test]
    fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = Request::decode(&bytes);
        let _ = Offer::decode(&bytes);
    }

    #[test]
    fn mutated_packets_decode_without_a_panic(
        ipxe: bool, cut in 0usize..400, changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..12),
    ) {
        for mut bytes in [firmware(ipxe), reply().encode().unwrap()] {
            for (at, value) in &changes {
                if let Some(b) = bytes.get_mut(*at) { *b = *value; }
            }
            bytes.truncate(bytes.len().min(cut + 100));
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert!(!request.archs.is_empty());
            }
            let _ = Offer::decode(&bytes);
        }
    }
}

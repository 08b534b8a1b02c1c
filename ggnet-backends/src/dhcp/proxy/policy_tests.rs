//! Every rule of the policy.

use ggnet_core::nouns::{Firmware, MacAddr};

use super::*;
use crate::dhcp::proxy::packet::discover;

const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn mac() -> MacAddr {
    "52:54:00:aa:00:01".parse().unwrap()
}

fn ask(arch: u16) -> Request {
    Request::decode(&discover(7, mac(), arch).unwrap()).unwrap()
}

fn config() -> ProxyDhcpConfig {
    ProxyDhcpConfig { http_port: 8080, ..ProxyDhcpConfig::default() }
}

fn answer(request: &Request, config: &ProxyDhcpConfig) -> (Option<Reply>, Vec<Observation>) {
    let decision = decide(request, Port::Dhcp, config, US, true);
    (decision.reply.ok().map(|(reply, _)| reply), decision.seen)
}

#[test]
fn each_architecture_gets_its_loader_or_none() {
    for (arch, loader) in [
        (0, Some("52-54-00-aa-00-01/undionly.kpxe")),
        (6, None),
        (7, Some("52-54-00-aa-00-01/ipxe.efi")),
        (9, Some("52-54-00-aa-00-01/ipxe.efi")),
        (11, None),
        (15, None),
        (19, None),
    ] {
        let (reply, seen) = answer(&ask(arch), &config());
        assert_eq!(reply.map(|r| r.boot_file).as_deref(), loader, "arch {arch}");
        match (&seen[..], loader) {
            ([Observation::AddressOffered { boot_file, ipxe: false, .. }], Some(l)) => {
                assert_eq!(boot_file, l);
            }
            ([Observation::NotAnswered { reason, .. }], None) => {
                assert!(reason.contains(&arch.to_string()), "{reason}");
            }
            other => panic!("arch {arch}: {other:?}"),
        }
    }
}

#[test]
fn the_first_architecture_with_a_loader_decides() {
    let mut request = ask(0);
    request.archs = vec![Arch(11), Arch(7)];
    let (reply, seen) = answer(&request, &config());
    assert_eq!(reply.unwrap().boot_file, "52-54-00-aa-00-01/ipxe.efi");
    assert!(matches!(&seen[..], [Observation::AddressOffered { firmware: Firmware::Uefi, .. }]));
}

#[test]
fn loaders_can_be_added_replaced_and_taken_away() {
    let mut c = config();
    c.mac_prefix = false;
    c.loaders.insert(Arch(11), "arm/snp.efi".into());
    c.loaders.insert(Arch(7), "https://boot.example/ipxe.efi".into());
    c.loaders.insert(Arch(0), String::new());
    assert_eq!(answer(&ask(11), &c).0.unwrap().boot_file, "arm/snp.efi");
    assert_eq!(answer(&ask(7), &c).0.unwrap().boot_file, "https://boot.example/ipxe.efi");
    assert_eq!(answer(&ask(9), &c).0.unwrap().boot_file, "ipxe.efi");
    assert_eq!(answer(&ask(0), &c).0, None);
}

#[test]
fn http_boot_gets_a_url_and_its_own_class() {
    let mut request = ask(16);
    request.class = Some(Class::Http);
    let reply = answer(&request, &config()).0.unwrap();
    assert_eq!(reply.class, Class::Http);
    assert_eq!(reply.boot_file, "http://10.77.0.1:8080/files/52-54-00-aa-00-01/ipxe.efi");
}

#[test]
fn ipxe_gets_its_script_even_where_no_loader_is_needed() {
    let mut request = ask(11);
    request.ipxe = true;
    let (reply, seen) = answer(&request, &config());
    assert_eq!(reply.unwrap().boot_file, "http://10.77.0.1:8080/boot/52-54-00-aa-00-01.ipxe");
    assert!(matches!(&seen[..], [Observation::AddressOffered { ipxe: true, .. }]));
}

#[test]
fn an_operating_system_is_ignored_and_not_observed() {
    let mut request = ask(0);
    request.class = None;
    assert_eq!(answer(&request, &config()), (None, vec![]));
    for kind in [Kind::Request, Kind::Inform, Kind::Other] {
        let request = Request { kind, ..ask(0) };
        assert_eq!(answer(&request, &config()), (None, vec![]));
    }
}

#[test]
fn an_unknown_machine_is_observed_and_answered_only_when_wanted() {
    let unknown = |c: &ProxyDhcpConfig, ipxe| decide(&Request { ipxe, ..ask(7) }, Port::Dhcp, c, US, false);
    let silent = unknown(&config(), false);
    assert!(silent.reply.is_err());
    assert_eq!(silent.seen, [Observation::UnknownAsked { mac: mac(), firmware: Firmware::Uefi }]);
    let open = ProxyDhcpConfig { unknown: Unknown::Answer, ..config() };
    let (reply, _) = unknown(&open, true).reply.unwrap();
    assert_eq!(reply.boot_file, "http://10.77.0.1:8080/boot/first.ipxe");
    let (reply, _) = unknown(&open, false).reply.unwrap();
    assert_eq!(reply.boot_file, "52-54-00-aa-00-01/ipxe.efi");
    assert!(matches!(
        &unknown(&open, false).seen[..],
        [Observation::UnknownAsked { .. }, Observation::AddressOffered { .. }]
    ));
}

#[test]
fn a_boot_server_request_is_acknowledged_to_its_sender_without_a_second_observation() {
    let request = Request { kind: Kind::Request, server: Some(US), ..ask(0) };
    let decision = decide(&request, Port::BootServer, &config(), US, true);
    let (reply, to) = decision.reply.unwrap();
    assert!(reply.ack && to == To::Sender && decision.seen.is_empty());
    let other = Request { server: Some(Ipv4Addr::new(10, 77, 0, 9)), ..request };
    assert!(decide(&other, Port::BootServer, &config(), US, true).reply.is_err());
    assert!(decide(&ask(0), Port::BootServer, &config(), US, true).reply.is_err());
}

#[test]
fn replies_go_to_the_relay_to_the_clients_address_or_to_everybody() {
    let to = |request: Request| decide(&request, Port::Dhcp, &config(), US, true).reply.unwrap().1;
    let relay = Ipv4Addr::new(10, 9, 0, 1);
    let client = Ipv4Addr::new(10, 77, 0, 50);
    assert_eq!(to(ask(0)), To::Address("255.255.255.255:68".parse().unwrap()));
    assert_eq!(to(Request { flags: 0, ..ask(0) }), To::Address("255.255.255.255:68".parse().unwrap()));
    assert_eq!(to(Request { ciaddr: client, ..ask(0) }), To::Address("10.77.0.50:68".parse().unwrap()));
    let relayed = Request { giaddr: relay, relay_info: Some(vec![1, 1, 7]), ..ask(0) };
    let (reply, to) = decide(&relayed, Port::Dhcp, &config(), US, true).reply.unwrap();
    assert_eq!(to, To::Address("10.9.0.1:67".parse().unwrap()));
    assert_eq!((reply.giaddr, reply.relay_info), (relay, Some(vec![1, 1, 7])));
}

//! The host's interfaces change while we listen: removed and added again, renamed, without an address or a carrier, added to a bridge.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use ggnet_backends::{
    dhcp::proxy::{ProxyDhcp, ProxyDhcpConfig},
    host::{self, Level},
};
use ggnet_core::ports::{DhcpBackend as _, Health};

use crate::{
    netns::{Link, inside, run, with_namespaces},
    support::*,
};

#[test]
fn an_interface_without_an_address_is_said() {
    with_namespaces("interfaces::an_interface_without_an_address_is_said", || {
        let link = Link::new();
        run("iproute2", "ip", &["-n", &link.server, "link", "add", "bare", "type", "bridge"]);
        run("iproute2", "ip", &["-n", &link.server, "link", "set", "bare", "up"]);
        let health = |interfaces: &[&str]| {
            let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
            inside(&link.server, move || {
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                    let dhcp = ProxyDhcp::start(ProxyDhcpConfig { interfaces, ..config() }).await.unwrap();
                    let health = dhcp.health().await;
                    dhcp.shutdown().await;
                    health
                })
            })
        };
        let until = |interfaces: &[&str], wanted: &dyn Fn(&Health) -> bool| {
            let end = Instant::now() + PATIENCE;
            // The kernel sees a bridge's carrier a moment later.
            loop {
                match health(interfaces) {
                    found if wanted(&found) => break,
                    found => assert!(Instant::now() < end, "{interfaces:?}: {found:?}"),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        let up = |found: &Health| *found == Health::Up;
        until(&["br0"], &up);
        let said = |why: &str| why.contains("Interface bare has no IPv4 address");
        let down = health(&["bare"]);
        assert!(matches!(&down, Health::Down(why) if said(why)), "{down:?}");
        let degraded = health(&["br0", "bare"]);
        assert!(matches!(&degraded, Health::Degraded(why) if said(why)), "{degraded:?}");
        run("iproute2", "ip", &["-n", &link.server, "addr", "add", "10.99.0.1/24", "dev", "bare"]);
        let ip = |line: &str| {
            let line = format!("-n {} {line}", link.server);
            run("iproute2", "ip", &line.split(' ').collect::<Vec<_>>());
        };
        ip("link add first type veth peer name machine");
        ip("link set first master bare up");
        ip("link set machine up");
        until(&["br0", "bare"], &up);
        // Nothing is connected to it any more, as on a host whose virtual machines are off: the next one brings the carrier back.
        ip("link del first");
        let waits =
            |found: &Health| matches!(found, Health::Degraded(why) if why.contains("no carrier on bare"));
        until(&["bare"], &waits);
    });
}

#[test]
fn an_interface_without_carrier_is_said_and_mends_when_its_cable_is_back() {
    with_namespaces(
        "interfaces::an_interface_without_carrier_is_said_and_mends_when_its_cable_is_back",
        || {
            let link = Link::new();
            let ip = |ns: &str, line: &str| {
                let line = format!("-n {ns} {line}");
                run("iproute2", "ip", &line.split(' ').collect::<Vec<_>>());
            };
            ip(&link.server, "link add enp3s0 type veth peer name far");
            ip(&link.server, "addr add 10.99.0.1/24 dev enp3s0");
            ip(&link.server, "link set enp3s0 up");
            let alone = Ours::start(&link, ProxyDhcpConfig { interfaces: vec!["enp3s0".into()], ..config() });
            wait_health(&alone, deaf(&["no carrier on enp3s0"]));
            drop(alone);

            // Beside one that works: machines there boot.
            let both = vec!["br0".into(), "enp3s0".into()];
            let ours = Ours::start(&link, ProxyDhcpConfig { interfaces: both, ..config() });
            let one = |h: &Health| matches!(h, Health::Degraded(why) if why.contains("no carrier on enp3s0"));
            wait_health(&ours, one);
            ip(&link.server, "link set far up");
            wait_health(&ours, |h| *h == Health::Up);
            // Every cable of the bridge is out, and then one is back.
            ip(&link.server, "link set far down");
            ip(&link.client, "link set eth0 down");
            ip(&link.other, "link set eth0 down");
            wait_health(&ours, deaf(&["no carrier on br0", "no carrier on enp3s0"]));
            ip(&link.client, "link set eth0 up");
            wait_health(&ours, one);
        },
    );
}

/// Checks the health of our DHCP backend from outside until it is as expected.
fn wait_health(ours: &Ours, wanted: impl Fn(&Health) -> bool) -> Health {
    let end = Instant::now() + PATIENCE;
    loop {
        let health = ours.health();
        if wanted(&health) {
            return health;
        }
        assert!(Instant::now() < end, "health stays {health:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn deaf(words: &'static [&'static str]) -> impl Fn(&Health) -> bool {
    move |health| matches!(health, Health::Down(why) if words.iter().all(|word| why.contains(word)))
}

#[test]
fn sockets_follow_an_interface_that_is_deleted_renamed_enslaved_or_gets_another_address() {
    with_namespaces(
        "interfaces::sockets_follow_an_interface_that_is_deleted_renamed_enslaved_or_gets_another_address",
        || {
            let link = Link::new();
            let ip = |line: &str| {
                let line = format!("-n {} {line}", link.server);
                run("iproute2", "ip", &line.split(' ').collect::<Vec<_>>());
            };
            let ours = Ours::start(&link, config());
            let boots = |xid: u32, from: Ipv4Addr| {
                let question = Question::new(xid, KNOWN).pxe(0).bytes();
                let answer = inside(&link.client, move || {
                    let (socket, end) = (client(68), Instant::now() + PATIENCE);
                    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                    loop {
                        // The machine repeats its request, because a bridge drops packets until the kernel has seen its new port's carrier.
                        socket.send_to(&question, "255.255.255.255:67").unwrap();
                        let mut buffer = [0; 2048];
                        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                            break parse(&buffer[..length], peer);
                        }
                        assert!(Instant::now() < end, "question {xid}: nobody answers");
                    }
                });
                assert_eq!((answer.xid, answer.siaddr, answer.from.ip()), (xid, from, from.into()));
            };
            boots(1, US);

            // Deleted and created again with the same name.
            ip("link del br0");
            wait_health(&ours, deaf(&["br0", "No network interface"]));
            ip("link add br0 type bridge");
            ip("addr add 10.77.0.1/24 dev br0");
            ip("link set br0 up");
            ip("link set pc master br0");
            wait_health(&ours, |h| *h == Health::Up);
            boots(2, US);

            // Another address: the responses contain it, and nothing needs to be bound again.
            ip("addr del 10.77.0.1/24 dev br0");
            ip("addr add 10.77.0.7/24 dev br0");
            wait_health(&ours, |h| *h == Health::Up);
            boots(3, Ipv4Addr::new(10, 77, 0, 7));
            ip("addr del 10.77.0.7/24 dev br0");
            wait_health(&ours, deaf(&["br0", "no IPv4 address"]));
            ip("addr add 10.77.0.1/24 dev br0");

            // Renamed: only the configured name is served.
            ip("link set br0 name elsewhere");
            wait_health(&ours, deaf(&["br0", "No network interface"]));
            ip("link set elsewhere name br0");
            wait_health(&ours, |h| *h == Health::Up);
            boots(4, US);

            // Another interface gets its name between two checks: health may never have been down, but the sockets belong to the new one.
            ip("link set br0 name elsewhere");
            ip("link add br0 type bridge");
            ip("addr del 10.77.0.1/24 dev elsewhere");
            ip("addr add 10.77.0.1/24 dev br0");
            ip("link set br0 up");
            ip("link set pc master br0");
            boots(5, US);

            // It becomes a port of a bridge: the bridge receives its packets.
            ip("link set br0 name lan");
            ip("link add br0 type veth peer name far");
            ip("addr add 10.77.5.1/24 dev br0");
            ip("link set br0 up");
            ip("link set far up");
            wait_health(&ours, |h| *h == Health::Up);
            ip("link set br0 master lan");
            wait_health(&ours, deaf(&["br0 is a port of lan", "--interface lan"]));
            ip("link set br0 nomaster");
            wait_health(&ours, |h| *h == Health::Up);
        },
    );
}

#[test]
fn a_port_of_a_bridge_is_refused_and_the_printed_cure_boots_machines() {
    with_namespaces("interfaces::a_port_of_a_bridge_is_refused_and_the_printed_cure_boots_machines", || {
        let link = Link::new();
        let refused = inside(&link.server, || {
            let config = ProxyDhcpConfig { interfaces: vec!["pc".into()], ..config() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(ProxyDhcp::start(config)).err().unwrap()
        });
        assert!(refused.message().contains("pc is a port of br0"), "{}", refused.report());
        let hint = refused.hint().unwrap();
        let named = hint.split("--interface ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        // The check reports the same, with the same hint.
        let found = inside(&link.server, || host::interface("pc"));
        assert!(found.why.contains("port of br0"), "{found}");
        assert!(found.mend.as_ref().unwrap().contains(&format!("--interface {named}")), "{found}");
        // The kernel sees a new bridge's carrier a moment later.
        let end = Instant::now() + PATIENCE;
        while inside(&link.server, || host::interface("br0").level) != Level::Ok {
            assert!(Instant::now() < end, "br0 is not taken for good");
            std::thread::sleep(Duration::from_millis(50));
        }

        let _ours = Ours::start(&link, ProxyDhcpConfig { interfaces: vec![named], ..config() });
        let answers = ask(&link, &Question::new(1, KNOWN).pxe(0), &[US]);
        boot_offer(of(&answers, US), "52-54-00-aa-00-01/undionly.kpxe");
    });
}

#[test]
fn an_address_that_is_listened_on_and_lost_is_said_and_served_again_when_it_is_back() {
    with_namespaces(
        "interfaces::an_address_that_is_listened_on_and_lost_is_said_and_served_again_when_it_is_back",
        || {
            let link = Link::new();
            let ip = |line: &str| {
                let line = format!("-n {} {line}", link.server);
                run("iproute2", "ip", &line.split(' ').collect::<Vec<_>>());
            };
            let ours = Ours::start_tftp_on(&link, config(), "10.77.0.1:69".parse().unwrap());
            run("iproute2", "ip", &["-n", &link.client, "addr", "add", "10.77.0.50/24", "dev", "eth0"]);
            let asked = || {
                inside(&link.client, || {
                    let socket = UdpSocket::bind("10.77.0.50:0").unwrap();
                    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                    // A new bridge starts forwarding with a delay: the client repeats its request.
                    let end = Instant::now() + PATIENCE;
                    while {
                        socket.send_to(b"\0\x01nothing\0octet\0", (US, 69)).unwrap();
                        socket.recv_from(&mut [0; 600]).is_err()
                    } {
                        assert!(Instant::now() < end, "TFTP does not answer");
                    }
                });
            };
            asked();
            assert_eq!(ours.file_health(), Health::Up);
            ip("link del br0");
            let end = Instant::now() + PATIENCE;
            while !deaf(&["TFTP", "10.77.0.1"])(&ours.file_health()) {
                assert!(Instant::now() < end, "{:?}", ours.file_health());
                std::thread::sleep(Duration::from_millis(50));
            }
            ip("link add br0 type bridge");
            ip("addr add 10.77.0.1/24 dev br0");
            ip("link set br0 up");
            ip("link set pc master br0");
            while ours.file_health() != Health::Up {
                assert!(Instant::now() < end, "{:?}", ours.file_health());
                std::thread::sleep(Duration::from_millis(50));
            }
            // The new bridge has the lowest address of its only port, the old one had that of two: the client may have cached another.
            run("iproute2", "ip", &["-n", &link.client, "neigh", "flush", "dev", "eth0"]);
            asked();
        },
    );
}

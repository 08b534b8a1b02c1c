//! ProxyDHCP on a real link: dnsmasq assigns the addresses, we send the boot responses, and clients receive both.

#![expect(clippy::disallowed_methods, reason = "the peers under test are programs of the host")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

#[path = "../netns/mod.rs"]
mod netns;

mod interfaces;
mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use ggnet_backends::dhcp::{
    probe::{DhcpServerSeen, probe},
    proxy::{ProxyDhcpConfig, Unknown},
};
use ggnet_core::{
    nouns::{Firmware, MacAddr},
    ports::Observation,
};
use netns::{Link, inside, run, with_namespaces};
use support::*;

#[test]
fn another_host_gives_the_address_and_we_give_the_boot_file() {
    with_namespaces("another_host_gives_the_address_and_we_give_the_boot_file", || {
        let dir = tempfile::tempdir().unwrap();
        let link = Link::new();
        let _dnsmasq = Dnsmasq::start(&link.other, "eth0", dir.path());
        let ours = Ours::start(&link, config());
        let mac: MacAddr = KNOWN.parse().unwrap();
        for (xid, question, file, firmware, ipxe) in [
            (1, Question::new(1, KNOWN).pxe(0), "52-54-00-aa-00-01/undionly.kpxe", Firmware::Bios, false),
            (2, Question::new(2, KNOWN).pxe(7), "52-54-00-aa-00-01/ipxe.efi", Firmware::Uefi, false),
            (
                3,
                Question::new(3, KNOWN).pxe(0).ipxe(),
                "http://10.77.0.1:8080/boot/52-54-00-aa-00-01.ipxe",
                Firmware::Bios,
                true,
            ),
        ] {
            let answers = ask(&link, &question, &[OTHER, US]);
            assert_eq!(answers.len(), 2, "question {xid}");
            assert_ne!(of(&answers, OTHER).yiaddr, Ipv4Addr::UNSPECIFIED);
            boot_offer(of(&answers, US), file);
            let offered = Observation::AddressOffered { mac, firmware, boot_file: file.to_owned(), ipxe };
            assert_eq!(ours.seen.wait(1), [offered]);
        }
        // These get an address from dnsmasq and nothing from us; a response of ours would arrive before it.
        ask(&link, &Question::new(4, KNOWN), &[OTHER]);
        ask(&link, &Question::new(5, STRANGER).pxe(7), &[OTHER]);
        ask(&link, &Question::new(6, KNOWN).pxe(11), &[OTHER]);
        let answers = ask(&link, &Question::new(7, KNOWN).pxe(0), &[US]);
        assert!(answers.iter().all(|a| a.xid == 7));
        let seen = ours.seen.wait(3);
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(
            seen[0],
            Observation::UnknownAsked { mac: STRANGER.parse().unwrap(), firmware: Firmware::Uefi }
        );
        assert!(
            matches!(&seen[1], Observation::NotAnswered { reason, .. } if reason.contains("efi-arm64")),
            "{seen:?}"
        );
        assert!(matches!(&seen[2], Observation::AddressOffered { .. }));
    });
}

#[test]
fn the_boot_server_port_acknowledges_and_the_loader_comes_by_tftp() {
    with_namespaces("the_boot_server_port_acknowledges_and_the_loader_comes_by_tftp", || {
        let link = Link::new();
        let ours = Ours::start(&link, config());
        run("iproute2", "ip", &["-n", &link.client, "addr", "add", "10.77.0.50/24", "dev", "eth0"]);
        let mut request = Question::new(9, KNOWN).pxe(0);
        (request.kind, request.ciaddr) = (3, Ipv4Addr::new(10, 77, 0, 50));
        let answer = inside(&link.client, move || {
            let socket = client(4011);
            for noise in [&b""[..], &[1, 1, 255], &[255; 300], &[0; 600]] {
                socket.send_to(noise, (US, 4011)).unwrap();
                socket.send_to(noise, "255.255.255.255:67").unwrap();
            }
            let mut elsewhere = request.clone();
            elsewhere.xid = 8;
            elsewhere.options.extend([54, 4, 10, 77, 0, 9]);
            socket.send_to(&elsewhere.bytes(), (US, 4011)).unwrap();
            socket.send_to(&request.bytes(), (US, 4011)).unwrap();
            receive(&socket)
        });
        assert_eq!((answer.xid, answer.from), (9, SocketAddr::from((US, 4011))));
        assert_eq!(answer.options[&53], [5]);
        assert_eq!(answer.file, "52-54-00-aa-00-01/undionly.kpxe");
        assert_eq!(ours.seen.take(), [], "a boot server request follows a DISCOVER that was observed");
        // The link's MTU is 1500, so a client that requests blocks of 8192 gets 1468.
        let oack = inside(&link.client, || {
            let socket = UdpSocket::bind("10.77.0.50:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(b"\0\x01undionly.kpxe\0octet\0blksize\x008192\0", (US, 69)).unwrap();
            let mut buffer = [0; 600];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(b"\0\x05\0\0\0", from).unwrap();
            buffer[..length].to_vec()
        });
        assert_eq!(oack, b"\0\x06blksize\x001468\0");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("got").to_str().unwrap().to_owned();
        let got = inside(&link.client, move || {
            let url = "tftp://10.77.0.1/52-54-00-aa-00-01/undionly.kpxe";
            run("curl", "curl", &["-sS", "--max-time", "60", "--tftp-blksize", "1468", "-o", &out, url]);
            std::fs::read(&out).unwrap()
        });
        assert_eq!(got, vec![7; 100_000]);
        let sent = ours.seen.wait(1).remove(0);
        assert!(
            matches!(&sent, Observation::BootFileSent { mac: Some(mac), path, .. }
                if mac.to_string() == KNOWN && path == "undionly.kpxe"),
            "{sent:?}"
        );
    });
}

/// Gets an address with udhcpc as an operating system does, and sets it on eth0.
fn lease(link: &Link, dir: &Path) -> Ipv4Addr {
    let script = dir.join("udhcpc.sh");
    let text = "#!/bin/sh\n[ \"$1\" = bound ] && ip addr add \"$ip/24\" dev \"$interface\" && echo \"$ip\" >\"${0%.sh}.ip\"\nexit 0\n";
    std::fs::File::create(&script)
        .and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes()))
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = script.to_str().unwrap().to_owned();
    inside(&link.client, move || {
        run("udhcpc", "udhcpc", &["-i", "eth0", "-f", "-q", "-n", "-t", "20", "-T", "1", "-s", &path]);
    });
    std::fs::read_to_string(dir.join("udhcpc.ip")).unwrap().trim().parse().unwrap()
}

fn hardware_address(link: &Link) -> String {
    let shown = run("iproute2", "ip", &["-n", &link.client, "-o", "link", "show", "eth0"]);
    let after = shown.split("link/ether ").nth(1).unwrap();
    after.split(' ').next().unwrap().to_owned()
}

/// Renews according to RFC 2131 section 4.3.2: unicast, from the leased address, to the server's.
fn renew(link: &Link, address: Ipv4Addr, xid: u32) -> Answer {
    let mut request = Question::new(xid, &hardware_address(link));
    (request.kind, request.ciaddr) = (3, address);
    inside(&link.client, move || {
        let socket = client(68);
        socket.send_to(&request.bytes(), (US, 67)).unwrap();
        receive(&socket)
    })
}

#[test]
fn a_dhcp_server_on_our_own_host_keeps_its_clients() {
    with_namespaces("a_dhcp_server_on_our_own_host_keeps_its_clients", || {
        for we_start_second in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let link = Link::new();
            let (dnsmasq, ours) = if we_start_second {
                let dnsmasq = Dnsmasq::start(&link.server, "br0", dir.path());
                (dnsmasq, Ours::start(&link, config()))
            } else {
                let ours = Ours::start(&link, config());
                (Dnsmasq::start(&link.server, "br0", dir.path()), ours)
            };
            let address = lease(&link, dir.path());
            assert_eq!(ours.seen.take(), [], "an operating system's DISCOVER is none of our business");
            let renewed = renew(&link, address, 21);
            assert_eq!((renewed.xid, renewed.yiaddr), (21, address), "second: {we_start_second}");
            assert_eq!(renewed.options[&53], [5]);
            assert!(dnsmasq.log().matches("DHCPACK").count() >= 2, "{}", dnsmasq.log());
            // Both answer firmware, from the same address, with two packets.
            let (question, known) = (Question::new(22, KNOWN).pxe(0).bytes(), Duration::from_secs(30));
            let answers = inside(&link.client, move || {
                let socket = client(68);
                socket.set_read_timeout(Some(known)).unwrap();
                socket.send_to(&question, "255.255.255.255:67").unwrap();
                [receive(&socket), receive(&socket)]
            });
            let ours = answers.iter().find(|a| a.yiaddr.is_unspecified()).expect("no boot offer");
            boot_offer(ours, "52-54-00-aa-00-01/undionly.kpxe");
            assert!(answers.iter().any(|a| !a.yiaddr.is_unspecified()), "no address offered: {answers:?}");
        }
    });
}

#[test]
fn a_relays_question_is_answered_to_the_relay() {
    with_namespaces("a_relays_question_is_answered_to_the_relay", || {
        let link = Link::new();
        let _ours =
            Ours::start(&link, ProxyDhcpConfig { relays: true, unknown: Unknown::Answer, ..config() });
        run("iproute2", "ip", &["-n", &link.client, "addr", "add", "10.77.0.60/24", "dev", "eth0"]);
        let mut question = Question::new(31, STRANGER).pxe(7).ipxe();
        question.giaddr = Ipv4Addr::new(10, 77, 0, 60);
        question.options.extend([82, 3, 1, 1, 9]);
        let answer = inside(&link.client, move || {
            let relay = client(67);
            relay.send_to(&question.bytes(), (US, 67)).unwrap();
            receive(&relay)
        });
        assert_eq!((answer.xid, answer.from), (31, SocketAddr::from((US, 67))));
        assert_eq!(answer.file, "http://10.77.0.1:8080/boot/first.ipxe");
        assert_eq!(answer.options[&82], [1, 1, 9]);
    });
}

/// The prefix that the child of the next test prints before its result.
const PROBED: &str = "probed ";
const PROBE_HERE: &str = "GGNET_TEST_PROBE";

#[test]
fn a_probe_sees_every_server_of_the_link() {
    let name = "a_probe_sees_every_server_of_the_link";
    if std::env::var_os(PROBE_HERE).is_some() {
        // Inside the client's namespace, where /sys shows its interfaces.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(probe("eth0", Duration::from_secs(3))).unwrap();
        println!("\n{PROBED}{}", serde_json::to_string(&seen).unwrap());
        return;
    }
    with_namespaces(name, || {
        let dir = tempfile::tempdir().unwrap();
        let link = Link::new();
        let _dnsmasq = Dnsmasq::start(&link.other, "eth0", dir.path());
        let _ours = Ours::start(&link, ProxyDhcpConfig { unknown: Unknown::Answer, ..config() });
        let exe = std::env::current_exe().unwrap();
        let child = std::process::Command::new("ip")
            .args(["netns", "exec", &link.client, exe.to_str().unwrap(), "--exact", name, "--nocapture"])
            .env(PROBE_HERE, "1")
            .output()
            .unwrap_or_else(|e| panic!("ip: {e}; apt-get install iproute2"));
        let printed = String::from_utf8_lossy(&child.stdout);
        let line =
            printed.lines().find_map(|l| l.strip_prefix(PROBED)).unwrap_or_else(|| panic!("{child:?}"));
        let seen: Vec<DhcpServerSeen> = serde_json::from_str(line).unwrap();
        assert_eq!(seen.len(), 4, "two servers, each asked as BIOS and as UEFI: {seen:?}");
        for (architecture, loader) in [(0, "undionly.kpxe"), (7, "ipxe.efi")] {
            let addresses = seen
                .iter()
                .find(|s| s.server == Some(OTHER) && s.architecture == architecture)
                .unwrap_or_else(|| panic!("{seen:?}"));
            assert!(!addresses.is_proxy() && addresses.boot_file.is_none(), "{addresses:?}");
            let boot = seen
                .iter()
                .find(|s| s.server == Some(US) && s.architecture == architecture)
                .unwrap_or_else(|| panic!("{seen:?}"));
            assert!(boot.is_proxy() && boot.from == US, "{boot:?}");
            assert_eq!(boot.next_server, Some(US));
            assert!(boot.boot_file.as_ref().is_some_and(|f| f.ends_with(loader)), "{boot:?}");
            assert_eq!(boot.vendor_class.as_deref(), Some("PXEClient"));
        }
    });
}

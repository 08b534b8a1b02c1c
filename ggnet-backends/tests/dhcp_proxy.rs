//! ProxyDHCP on a real link: dnsmasq gives the addresses, we give the boot answers, and clients see both.

#![expect(clippy::disallowed_methods, reason = "the peers under test are programs of the host")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod netns;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ggnet_backends::{
    bootfile::builtin::{BuiltinBootFiles, TftpConfig},
    dhcp::{
        probe::{DhcpServerSeen, probe},
        proxy::{ProxyDhcp, ProxyDhcpConfig, Unknown},
    },
    host::{self, Level},
};
use ggnet_core::{
    nouns::{DeviceType, Firmware, MacAddr},
    ports::{BootBundle, BootFileStore, DhcpBackend, DhcpHost, Health, Observation, Observer},
};
use netns::{Link, Running, inside, run, with_namespaces};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(30);
const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const KNOWN: &str = "52:54:00:aa:00:01";
const STRANGER: &str = "52:54:00:aa:00:99";

#[derive(Default)]
struct Seen(Mutex<Vec<Observation>>);

impl Observer for Seen {
    fn observe(&self, observation: Observation) {
        self.0.lock().unwrap().push(observation);
    }
}

impl Seen {
    fn take(&self) -> Vec<Observation> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Takes them once there are `count`: a client may have its answer before the observation is told.
    fn wait(&self, count: usize) -> Vec<Observation> {
        let end = Instant::now() + PATIENCE;
        while self.0.lock().unwrap().len() < count {
            assert!(Instant::now() < end, "fewer than {count} observations: {:?}", self.take());
            std::thread::yield_now();
        }
        self.take()
    }
}

/// Our two backends in the server's namespace, on a thread of their own.
struct Ours {
    seen: Arc<Seen>,
    /// How DHCP and the boot files are.
    ask: tokio::sync::mpsc::UnboundedSender<mpsc::Sender<[Health; 2]>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ours {
    fn start(link: &Link, config: ProxyDhcpConfig) -> Self {
        Self::start_with(link, config, TftpConfig::default())
    }

    fn start_tftp_on(link: &Link, config: ProxyDhcpConfig, listen: SocketAddr) -> Self {
        Self::start_with(link, config, TftpConfig { listen: vec![listen], ..TftpConfig::default() })
    }

    fn start_with(link: &Link, config: ProxyDhcpConfig, tftp: TftpConfig) -> Self {
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel::<mpsc::Sender<[Health; 2]>>();
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let observer = Arc::clone(&seen);
        let thread = netns::thread(&link.server, move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let dhcp = ProxyDhcp::start(config).await.unwrap();
                dhcp.attach(observer.clone());
                let host = DhcpHost {
                    id: "m1".parse().unwrap(),
                    name: "pc".parse().unwrap(),
                    macs: vec![KNOWN.parse().unwrap()],
                    fixed_address: None,
                    device_type: DeviceType::X64,
                };
                dhcp.ensure(&host).await.unwrap();
                let files = BuiltinBootFiles::new();
                files.attach(observer);
                let loader = ("undionly.kpxe".parse().unwrap(), Bytes::from(vec![7; 100_000]));
                let bundle = BootBundle { id: "loaders".parse().unwrap(), files: [loader].into() };
                files.ensure(&bundle).await.unwrap();
                files.serve_tftp(tftp).await.unwrap();
                ready.send(()).unwrap();
                let answer = async {
                    while let Some(to) = asked.recv().await {
                        to.send([dhcp.health().await, files.health().await]).unwrap();
                    }
                };
                tokio::select! {
                    _ = stopped => {}
                    () = answer => {}
                }
                dhcp.shutdown().await;
                files.shutdown().await;
            });
        });
        is_ready.recv_timeout(PATIENCE).expect("our backends did not start");
        Self { seen, ask, stop: Some(stop), thread: Some(thread) }
    }

    fn healths(&self) -> [Health; 2] {
        let (to, answer) = mpsc::channel();
        self.ask.send(to).unwrap();
        answer.recv_timeout(PATIENCE).unwrap()
    }

    fn health(&self) -> Health {
        let [dhcp, _] = self.healths();
        dhcp
    }

    fn file_health(&self) -> Health {
        let [_, files] = self.healths();
        files
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "our backends panicked");
    }
}

fn config() -> ProxyDhcpConfig {
    ProxyDhcpConfig { interfaces: vec!["br0".into()], http_port: 8080, ..ProxyDhcpConfig::default() }
}

/// dnsmasq for addresses alone.
struct Dnsmasq {
    _process: Running,
    log: PathBuf,
}

impl Dnsmasq {
    fn start(ns: &str, interface: &'static str, dir: &Path) -> Self {
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let log = PathBuf::from(at("dnsmasq.log"));
        let arguments: Vec<String> = [
            // In this mode it keeps its user and group; an unprivileged user namespace lets nobody change them.
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-dynamic",
            "--log-dhcp",
            "--no-ping",
            "--dhcp-authoritative",
            "--dhcp-range=10.77.0.100,10.77.0.199,1h",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([
            format!("--interface={interface}"),
            format!("--dhcp-leasefile={}", at("leases")),
            format!("--log-facility={}", at("dnsmasq.log")),
            format!("--pid-file={}", at("pid")),
        ])
        .collect();
        let mut process = inside(ns, move || Running::start("dnsmasq-base", "dnsmasq", &arguments));
        let end = Instant::now() + PATIENCE;
        // The sockets are bound before this line is written.
        while !std::fs::read_to_string(&log).is_ok_and(|text| {
            text.contains("DHCP, sockets bound exclusively") || text.contains("DHCP, IP range")
        }) {
            assert!(!process.ended() && Instant::now() < end, "dnsmasq: {:?}", std::fs::read_to_string(&log));
            std::thread::yield_now();
        }
        Self { _process: process, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// An answer, taken apart by hand: the test does not trust the codec it tests.
#[derive(Debug)]
struct Answer {
    from: SocketAddr,
    xid: u32,
    yiaddr: Ipv4Addr,
    siaddr: Ipv4Addr,
    file: String,
    options: BTreeMap<u8, Vec<u8>>,
}

fn parse(bytes: &[u8], from: SocketAddr) -> Answer {
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
    Answer {
        from,
        xid: u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
        yiaddr: ip(16),
        siaddr: ip(20),
        file: String::from_utf8(file).unwrap(),
        options,
    }
}

#[derive(Clone)]
struct Question {
    xid: u32,
    mac: MacAddr,
    kind: u8,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    options: Vec<u8>,
}

impl Question {
    fn new(xid: u32, mac: &str) -> Self {
        let zero = Ipv4Addr::UNSPECIFIED;
        Self { xid, mac: mac.parse().unwrap(), kind: 1, ciaddr: zero, giaddr: zero, options: Vec::new() }
    }

    fn pxe(mut self, arch: u8) -> Self {
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:003016");
        self.options.extend([60, u8::try_from(class.len()).unwrap()]);
        self.options.extend(class.bytes());
        self.options.extend([93, 2, 0, arch, 94, 3, 1, 3, 16, 97, 17]);
        self.options.extend([5; 17]);
        self
    }

    fn ipxe(mut self) -> Self {
        self.options.extend(b"\x4d\x04iPXE\xaf\x03\xb0\x01\x01");
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut b = vec![0; 240];
        b[..3].copy_from_slice(&[1, 1, 6]);
        b[4..8].copy_from_slice(&self.xid.to_be_bytes());
        // An answer by broadcast, unless there is an address to answer to.
        b[10] = if self.ciaddr.is_unspecified() { 0x80 } else { 0 };
        b[12..16].copy_from_slice(&self.ciaddr.octets());
        b[24..28].copy_from_slice(&self.giaddr.octets());
        b[28..34].copy_from_slice(&self.mac.octets());
        b[236..240].copy_from_slice(&[99, 130, 83, 99]);
        b.extend([53, 1, self.kind, 55, 7, 1, 3, 6, 43, 60, 66, 67]);
        b.extend(&self.options);
        b.push(255);
        b.resize(b.len().max(300), 0);
        b
    }
}

/// A client's socket on eth0; call it inside the client's namespace.
fn client(port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

fn receive(socket: &UdpSocket) -> Answer {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("no answer");
    parse(&buffer[..length], from)
}

/// Asks by broadcast and collects answers until every one of `servers` answered. What came from others is kept, too.
fn ask(link: &Link, question: &Question, servers: &[Ipv4Addr]) -> Vec<Answer> {
    let (bytes, xid, servers) = (question.bytes(), question.xid, servers.to_vec());
    inside(&link.client, move || {
        let socket = client(68);
        socket.send_to(&bytes, "255.255.255.255:67").unwrap();
        let mut answers: Vec<Answer> = Vec::new();
        while !servers.iter().all(|server| answers.iter().any(|a| a.options[&54] == server.octets())) {
            answers.push(receive(&socket));
        }
        assert!(answers.iter().all(|a| a.xid == xid), "an answer to an older question: {answers:?}");
        answers
    })
}

fn of(answers: &[Answer], server: Ipv4Addr) -> &Answer {
    answers.iter().find(|a| a.options[&54] == server.octets()).unwrap()
}

fn boot_offer(answer: &Answer, file: &str) {
    assert_eq!(answer.from, SocketAddr::from((US, 67)));
    assert_eq!((answer.yiaddr, answer.siaddr), (Ipv4Addr::UNSPECIFIED, US));
    assert_eq!(answer.file, file);
    assert_eq!(answer.options[&53], [2]);
    assert_eq!(answer.options[&60], b"PXEClient");
    assert_eq!(answer.options[&43], [6, 1, 8, 255]);
    assert_eq!(answer.options[&66], b"10.77.0.1");
    assert_eq!(answer.options[&67], file.as_bytes());
    assert_eq!(answer.options[&97], [5; 17]);
}

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
        // These get an address from dnsmasq and nothing from us; an answer of ours would come before that to the last question.
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
        // The link's MTU is 1500, so a client that wants blocks of 8192 gets 1468.
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

#[test]
fn an_interface_without_an_address_is_said() {
    with_namespaces("an_interface_without_an_address_is_said", || {
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
        // Nothing is connected to it any more, as on a host whose virtual machines are off: the next one brings it up.
        ip("link del first");
        let waits =
            |found: &Health| matches!(found, Health::Degraded(why) if why.contains("no carrier on bare"));
        until(&["bare"], &waits);
    });
}

#[test]
fn an_interface_without_carrier_is_said_and_mends_when_its_cable_is_back() {
    with_namespaces("an_interface_without_carrier_is_said_and_mends_when_its_cable_is_back", || {
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
    });
}

/// Takes an address by udhcpc as an operating system does, and gives it to eth0.
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

/// Renews as RFC 2131 section 4.3.2 has it: unicast, from the leased address, to the server's.
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
            // Both answer firmware, from one address, by two packets.
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

/// What the child of the next test prints before its result.
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

/// The health of our DHCP backend, looked at from outside until it is as wanted.
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
        "sockets_follow_an_interface_that_is_deleted_renamed_enslaved_or_gets_another_address",
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
                        // A machine asks again, too: a bridge drops packets until the kernel has seen its new port's carrier.
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

            // Deleted and made again under its name.
            ip("link del br0");
            wait_health(&ours, deaf(&["br0", "No network interface"]));
            ip("link add br0 type bridge");
            ip("addr add 10.77.0.1/24 dev br0");
            ip("link set br0 up");
            ip("link set pc master br0");
            wait_health(&ours, |h| *h == Health::Up);
            boots(2, US);

            // Another address: the answers bear it, and nothing needs to be bound.
            ip("addr del 10.77.0.1/24 dev br0");
            ip("addr add 10.77.0.7/24 dev br0");
            wait_health(&ours, |h| *h == Health::Up);
            boots(3, Ipv4Addr::new(10, 77, 0, 7));
            ip("addr del 10.77.0.7/24 dev br0");
            wait_health(&ours, deaf(&["br0", "no IPv4 address"]));
            ip("addr add 10.77.0.1/24 dev br0");

            // Renamed: its name is what is served.
            ip("link set br0 name elsewhere");
            wait_health(&ours, deaf(&["br0", "No network interface"]));
            ip("link set elsewhere name br0");
            wait_health(&ours, |h| *h == Health::Up);
            boots(4, US);

            // Another takes its name between two looks: health may never have been down, but the sockets are the new one's.
            ip("link set br0 name elsewhere");
            ip("link add br0 type bridge");
            ip("addr del 10.77.0.1/24 dev elsewhere");
            ip("addr add 10.77.0.1/24 dev br0");
            ip("link set br0 up");
            ip("link set pc master br0");
            boots(5, US);

            // It becomes a bridge's port: the bridge takes its packets.
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
    with_namespaces("a_port_of_a_bridge_is_refused_and_the_printed_cure_boots_machines", || {
        let link = Link::new();
        let refused = inside(&link.server, || {
            let config = ProxyDhcpConfig { interfaces: vec!["pc".into()], ..config() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(ProxyDhcp::start(config)).err().unwrap()
        });
        assert!(refused.message().contains("pc is a port of br0"), "{}", refused.report());
        let hint = refused.hint().unwrap();
        let named = hint.split("--interface ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        // The check says the same, with the same cure.
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
        "an_address_that_is_listened_on_and_lost_is_said_and_served_again_when_it_is_back",
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
                    // A bridge that was just made forwards a moment later: a client asks again, too.
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
            asked();
        },
    );
}

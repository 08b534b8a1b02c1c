//! A link with dnsmasq for addresses and our two backends in the server's namespace, and clients that receive from both.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ggnet_backends::{
    bootfile::builtin::{BuiltinBootFiles, TftpConfig},
    dhcp::proxy::{ProxyDhcp, ProxyDhcpConfig},
};
use ggnet_core::{
    nouns::{DeviceType, MacAddr},
    ports::{
        BootBundle, BootFileStore, DhcpBackend, DhcpBackendExt as _, DhcpHost, Health, Observation, Observer,
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use crate::netns::{self, Link, Running, inside};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const KNOWN: &str = "52:54:00:aa:00:01";
pub const STRANGER: &str = "52:54:00:aa:00:99";

#[derive(Default)]
pub struct Seen(Mutex<Vec<Observation>>);

impl Observer for Seen {
    fn observe(&self, observation: Observation) {
        self.0.lock().unwrap().push(observation);
    }
}

impl Seen {
    pub fn take(&self) -> Vec<Observation> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Takes them once there are `count`: a client may have its response before the observation is reported.
    pub fn wait(&self, count: usize) -> Vec<Observation> {
        let end = Instant::now() + PATIENCE;
        while self.0.lock().unwrap().len() < count {
            assert!(Instant::now() < end, "fewer than {count} observations: {:?}", self.take());
            std::thread::yield_now();
        }
        self.take()
    }
}

/// Our two backends in the server's namespace, on their own thread.
pub struct Ours {
    pub seen: Arc<Seen>,
    /// The health of DHCP and of the boot files.
    pub ask: tokio::sync::mpsc::UnboundedSender<mpsc::Sender<[Health; 2]>>,
    pub stop: Option<oneshot::Sender<()>>,
    pub thread: Option<JoinHandle<()>>,
}

impl Ours {
    pub fn start(link: &Link, config: ProxyDhcpConfig) -> Self {
        Self::start_with(link, config, TftpConfig::default())
    }

    pub fn start_tftp_on(link: &Link, config: ProxyDhcpConfig, listen: SocketAddr) -> Self {
        Self::start_with(link, config, TftpConfig { listen: vec![listen], ..TftpConfig::default() })
    }

    pub fn start_with(link: &Link, config: ProxyDhcpConfig, tftp: TftpConfig) -> Self {
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

    pub fn healths(&self) -> [Health; 2] {
        let (to, answer) = mpsc::channel();
        self.ask.send(to).unwrap();
        answer.recv_timeout(PATIENCE).unwrap()
    }

    pub fn health(&self) -> Health {
        let [dhcp, _] = self.healths();
        dhcp
    }

    pub fn file_health(&self) -> Health {
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

pub fn config() -> ProxyDhcpConfig {
    ProxyDhcpConfig { interfaces: vec!["br0".into()], http_port: 8080, ..ProxyDhcpConfig::default() }
}

/// dnsmasq for addresses alone.
pub struct Dnsmasq {
    _process: Running,
    pub log: PathBuf,
}

impl Dnsmasq {
    pub fn start(ns: &str, interface: &'static str, dir: &Path) -> Self {
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let log = PathBuf::from(at("dnsmasq.log"));
        let arguments: Vec<String> = [
            // In this mode it keeps its user and group, because an unprivileged user namespace does not allow changing them.
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

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// A response, parsed by hand: the test does not use the codec under test.
#[derive(Debug)]
pub struct Answer {
    pub from: SocketAddr,
    pub xid: u32,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub file: String,
    pub options: BTreeMap<u8, Vec<u8>>,
}

pub fn parse(bytes: &[u8], from: SocketAddr) -> Answer {
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
pub struct Question {
    pub xid: u32,
    pub mac: MacAddr,
    pub kind: u8,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub options: Vec<u8>,
}

impl Question {
    pub fn new(xid: u32, mac: &str) -> Self {
        let zero = Ipv4Addr::UNSPECIFIED;
        Self { xid, mac: mac.parse().unwrap(), kind: 1, ciaddr: zero, giaddr: zero, options: Vec::new() }
    }

    pub fn pxe(mut self, arch: u8) -> Self {
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:003016");
        self.options.extend([60, u8::try_from(class.len()).unwrap()]);
        self.options.extend(class.bytes());
        self.options.extend([93, 2, 0, arch, 94, 3, 1, 3, 16, 97, 17]);
        self.options.extend([5; 17]);
        self
    }

    pub fn ipxe(mut self) -> Self {
        self.options.extend(b"\x4d\x04iPXE\xaf\x03\xb0\x01\x01");
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut b = vec![0; 240];
        b[..3].copy_from_slice(&[1, 1, 6]);
        b[4..8].copy_from_slice(&self.xid.to_be_bytes());
        // Responds by broadcast, unless the client has an address.
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
pub fn client(port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

pub fn receive(socket: &UdpSocket) -> Answer {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("no answer");
    parse(&buffer[..length], from)
}

/// Sends a broadcast request and collects responses until every one of `servers` responded. Responses from others are kept, too.
pub fn ask(link: &Link, question: &Question, servers: &[Ipv4Addr]) -> Vec<Answer> {
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

pub fn of(answers: &[Answer], server: Ipv4Addr) -> &Answer {
    answers.iter().find(|a| a.options[&54] == server.octets()).unwrap()
}

pub fn boot_offer(answer: &Answer, file: &str) {
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

//! Each long-lived task of a running server is ended by its name, some by a return and some by a panic: health names it, and its service
//! recovers. The server has the default configuration and one interface, in its own network namespace.

#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "starts itself again in a namespace, and waits")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use ggnet_core::{
    nouns::{MacAddr, MachineId, ResourceId},
    registry::Registry,
    supervisor::faults::{self, End},
};
use ggnet_server::{config::Config, serve::Server};
use socket2::{Domain, Protocol, Socket, Type};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Set in the process that runs in the namespace.
const INSIDE: &str = "GGNET_TEST_NETWORK_NAMESPACE";
const HTTP: &str = "127.0.0.1:8080";

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A persistent connection, like that of a monitoring system.
struct Monitor(TcpStream);

impl Monitor {
    fn new() -> Self {
        let stream = TcpStream::connect(HTTP).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(stream)
    }

    /// Status and body of `/health/ready`.
    fn ready(&mut self) -> (u16, String) {
        self.0.write_all(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut got = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let length = self.0.read(&mut piece).unwrap();
            assert!(length > 0, "the connection was closed");
            got.extend(&piece[..length]);
            let text = String::from_utf8(got.clone()).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length =
                head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if Some(body.len()) == length {
                return (head[9..12].parse().unwrap(), body.to_owned());
            }
        }
    }

    fn wait_until_ready(&mut self) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let (status, body) = self.ready();
            if status == 200 {
                return;
            }
            assert!(Instant::now() < end, "never ready: {body}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn udp(port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.into()
}

/// A BIOS machine's DISCOVER (RFC 2131, PXE 2.1), answered by broadcast.
fn discover(mac: MacAddr) -> Vec<u8> {
    let mut packet = vec![0; 240];
    packet[..3].copy_from_slice(&[1, 1, 6]);
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&mac.octets());
    packet[236..].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend([53, 1, 1, 93, 2, 0, 0, 94, 3, 1, 3, 16, 60, 32]);
    packet.extend(b"PXEClient:Arch:00000:UNDI:003016");
    packet.push(255);
    packet
}

/// Sends the packet until there is a response.
fn answered(socket: &UdpSocket, packet: &[u8], to: &str) {
    until(to, || {
        socket.send_to(packet, to).unwrap();
        socket.recv_from(&mut [0; 2000]).ok()
    });
}

/// Uses every service of the server like a machine, an operator or the orchestrator. `mac` must not have been used yet.
async fn all_is_served(server: &Server, data: &Path, mac: MacAddr) {
    // DHCP.
    answered(&udp(68), &discover(mac), "255.255.255.255:67");
    // TFTP: "no such file" is a response, too.
    answered(&udp(0), b"\0\x01nothing\0octet\0", "127.0.0.1:69");
    // iSCSI: the target closes a connection without a login; without an accept loop it would stay open.
    let mut portal = TcpStream::connect("127.0.0.1:3260").unwrap();
    portal.set_read_timeout(Some(TIMEOUT)).unwrap();
    portal.write_all(&[0x3f; 96]).unwrap();
    let mut rest = Vec::new();
    let ended = portal.read_to_end(&mut rest).map_err(|e| e.kind());
    assert!(matches!(ended, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{ended:?}");
    // HTTP, on a new connection.
    Monitor::new().wait_until_ready();
    // Observations are recorded.
    let read = server.orchestrator.read();
    wait(|| async { read.seen_machine(mac).await.is_ok() }).await;
    // Orphans are removed: here the writeback that a crash left.
    let instance = &server.orchestrator.config().instance;
    let id = ResourceId::generation(MachineId::generate(), 1);
    let orphan = data.join("writebacks").join(format!("{instance}-{id}"));
    std::fs::create_dir(&orphan).unwrap();
    wait(|| async { !orphan.exists() }).await;
}

async fn wait<F: Future<Output = bool>>(look: impl Fn() -> F) {
    let reached = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, reached).await.expect("it never came");
}

#[test]
fn each_long_lived_task_that_ends_is_named_by_health_and_its_service_recovers() {
    if std::env::var_os(INSIDE).is_some() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: folder.path().join("data"), ..Config::default() };
        config.network.interfaces = vec!["lo".to_owned()];
        config.session.reconcile_interval = Duration::from_millis(200);
        config.dhcp.settings["unknown"] = "answer".into();
        let mut registry = Registry::new();
        ggnet_backends::register(&mut registry);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(Server::start(&config, &registry)).unwrap();
        let mut monitor = Monitor::new();
        monitor.wait_until_ready();
        let names = faults::names();
        assert_eq!(
            names,
            [
                "TFTP on 0.0.0.0:69",
                "proxyDHCP on lo",
                "the HTTP accept loop of 127.0.0.1:8080",
                "the iSCSI accept loop of 0.0.0.0:3260",
                "the monitor of image files",
                "the reconciler",
                "the writer of observations",
            ]
        );
        let data = config.data_dir.clone();
        runtime.block_on(all_is_served(&server, &data, "52:54:00:bb:00:00".parse().unwrap()));
        for (n, name) in names.iter().enumerate() {
            let how = if n % 2 == 0 { End::Return } else { End::Panic };
            assert_eq!(faults::end(name, how), 1);
            until(&format!("health names {name} after {how:?}"), || {
                let (status, body) = monitor.ready();
                assert!(status == 200 || body.contains(name), "another task: {body}");
                (status == 503 && body.contains(r#""ready":false"#)).then_some(())
            });
            monitor.wait_until_ready();
            let mac = format!("52:54:00:bb:{:02x}:00", n + 1).parse().unwrap();
            runtime.block_on(all_is_served(&server, &data, mac));
        }
        assert_eq!(faults::names(), names);
        runtime.block_on(server.stop());
        assert_eq!(faults::names(), [""; 0], "a stop ends them all");
        return;
    }
    let script = "ip link set lo up && ip addr add 10.78.0.1/24 dev lo && exec \"$@\"";
    let name = "each_long_lived_task_that_ends_is_named_by_health_and_its_service_recovers";
    let out = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("apt-get install util-linux iproute2");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

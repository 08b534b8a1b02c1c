//! The built-in TFTP server with real clients (tftp-hpa, curl), and with raw sockets where a client must misbehave.

#![expect(clippy::disallowed_methods, reason = "the clients under test are programs of the host")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use ggnet_backends::bootfile::builtin::{BuiltinBootFiles, TftpConfig};
use ggnet_core::{
    ErrorKind,
    nouns::MacAddr,
    ports::{BootBundle, BootFileStore, Health, Observation, Observer},
};
use tokio::{net::UdpSocket, time::timeout};

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Seen(Mutex<Vec<Observation>>);

impl Observer for Seen {
    fn observe(&self, observation: Observation) {
        self.0.lock().unwrap().push(observation);
    }
}

impl Seen {
    async fn sent(&self, count: usize) -> Vec<(Option<MacAddr>, String)> {
        timeout(PATIENCE, async {
            loop {
                let sent: Vec<_> = self
                    .0
                    .lock()
                    .unwrap()
                    .iter()
                    .map(|o| match o {
                        Observation::BootFileSent { mac, path, .. } => (*mac, path.clone()),
                        other => panic!("unexpected {other:?}"),
                    })
                    .collect();
                if sent.len() >= count {
                    return sent;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the files were not observed as sent")
    }
}

struct Server {
    store: BuiltinBootFiles,
    seen: Arc<Seen>,
    address: SocketAddr,
}

impl Server {
    async fn start(files: &[(&str, Vec<u8>)], config: TftpConfig) -> Self {
        let store = BuiltinBootFiles::new();
        let seen = Arc::new(Seen::default());
        store.attach(seen.clone());
        let files = files.iter().map(|(p, b)| (p.parse().unwrap(), Bytes::from(b.clone()))).collect();
        store.ensure(&BootBundle { id: "test".parse().unwrap(), files }).await.unwrap();
        let address = store.serve_tftp(config).await.unwrap()[0];
        Self { store, seen, address }
    }
}

fn config() -> TftpConfig {
    TftpConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], ..TftpConfig::default() }
}

fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

/// Runs a client; a missing one fails with the command that installs it.
async fn client(package: &'static str, argv: Vec<String>, dir: &Path) -> std::process::Output {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || {
        Command::new(&argv[0])
            .args(&argv[1..])
            .current_dir(dir)
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}; apt-get install {package}", argv[0]))
    })
    .await
    .unwrap()
}

fn argv(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|s| (*s).to_owned()).collect()
}

async fn curl(server: SocketAddr, path: &str, extra: &[&str], dir: &Path) -> Vec<u8> {
    let url = format!("tftp://{server}/{path}");
    let mut line = argv(&["curl", "-sS", "--max-time", "120", "-o", "out", &url]);
    line.extend(extra.iter().map(|s| (*s).to_owned()));
    let output = client("curl", line, dir).await;
    assert!(output.status.success(), "curl {url}: {output:?}");
    std::fs::read(dir.join("out")).unwrap()
}

async fn tftp_hpa(server: SocketAddr, mode: &str, path: &str, dir: &Path) -> Vec<u8> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let line = argv(&["tftp", "-m", mode, &ip, &port, "-c", "get", path, "got"]);
    let output = client("tftp-hpa", line, dir).await;
    assert!(output.status.success() && output.stderr.is_empty(), "tftp get {path}: {output:?}");
    std::fs::read(dir.join("got")).unwrap()
}

fn rrq(path: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = format!("\0\x01{path}\0octet\0").into_bytes();
    for (name, value) in options {
        packet.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    packet
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 70_000];
    let (length, from) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.expect("no answer").unwrap();
    buffer.truncate(length);
    (buffer, from)
}

/// Fetches in lock step with its own socket; `after_first` runs when the first block has arrived.
async fn fetch(
    socket: &UdpSocket,
    server: SocketAddr,
    path: &str,
    after_first: impl AsyncFnOnce(),
) -> Vec<u8> {
    socket.send_to(&rrq(path, &[]), server).await.unwrap();
    let (mut file, mut expected, mut after_first) = (Vec::new(), 1u16, Some(after_first));
    loop {
        let (packet, from) = receive(socket).await;
        assert_eq!(packet[..2], [0, 3], "not DATA: {:?}", String::from_utf8_lossy(&packet));
        let number = u16::from_be_bytes([packet[2], packet[3]]);
        if number == expected {
            file.extend_from_slice(&packet[4..]);
            expected = expected.wrapping_add(1);
        }
        if let Some(first) = after_first.take() {
            first().await;
        }
        let [high, low] = number.to_be_bytes();
        socket.send_to(&[0, 4, high, low], from).await.unwrap();
        if packet.len() < 516 {
            return file;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tftp_hpa_and_curl_fetch_what_is_stored() {
    let loader = bytes(150_001);
    let server = Server::start(&[("boot/x.kpxe", loader.clone()), ("even", bytes(1024))], config()).await;
    let dir = tempfile::tempdir().unwrap();
    assert!(tftp_hpa(server.address, "binary", "boot/x.kpxe", dir.path()).await == loader);
    assert!(tftp_hpa(server.address, "binary", "even", dir.path()).await == bytes(1024));
    for block in ["8", "512", "1428", "65464"] {
        let got = curl(server.address, "boot/x.kpxe", &["--tftp-blksize", block], dir.path()).await;
        assert!(got == loader, "curl with blocks of {block}");
    }
    let no_options = curl(server.address, "boot/x.kpxe", &["--tftp-no-options"], dir.path()).await;
    assert!(no_options == loader);
    let sent = server.seen.sent(7).await;
    assert_eq!(sent.iter().filter(|s| **s == (None, "boot/x.kpxe".to_owned())).count(), 6);
    server.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_comes_back_from_netascii_as_it_was() {
    let text = b"one\ntwo\r\nthree\rfour\n".repeat(100);
    let lines = vec![b'\n'; (1 << 20) + 1];
    let server = Server::start(&[("t", text.clone()), ("lines", lines.clone())], config()).await;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(tftp_hpa(server.address, "ascii", "t", dir.path()).await, text);
    assert!(tftp_hpa(server.address, "ascii", "lines", dir.path()).await == lines);
    // The sent data is longer than the file, and its size is not known in advance: the size is not acknowledged.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"\0\x01t\0netascii\0tsize\x000\0blksize\x00600\0", server.address).await.unwrap();
    assert_eq!(receive(&socket).await.0, b"\0\x06blksize\x00600\0");
}

/// The memory that this process uses now.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_in_netascii_need_no_memory_of_the_files_size() {
    let many = TftpConfig { max_transfers_per_client: 1000, ..config() };
    let server = Server::start(&[("lines", vec![b'\n'; 1 << 20])], many).await;
    let before = resident();
    let mut clients = Vec::new();
    for _ in 0..250 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"\0\x01lines\0netascii\0", server.address).await.unwrap();
        let (block, _) = receive(&socket).await;
        assert_eq!(block[..6], [0, 3, 0, 1, b'\r', b'\n']);
        clients.push(socket);
    }
    // Converted completely they are 500 MiB; the files of the tests that run in parallel are a third of the limit.
    let grown = resident().saturating_sub(before);
    assert!(grown < 300 << 20, "{grown} bytes for 250 transfers of 1 MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_65535_blocks_roll_over() {
    let big = bytes(512 * 66_000 + 5);
    let server = Server::start(&[("big", big.clone())], config()).await;
    let dir = tempfile::tempdir().unwrap();
    assert!(curl(server.address, "big", &["--tftp-no-options"], dir.path()).await == big);
    assert!(tftp_hpa(server.address, "binary", "big", dir.path()).await == big);
    server.seen.sent(2).await;
}

#[tokio::test]
async fn a_mac_prefix_is_an_alias_and_names_the_machine() {
    let server = Server::start(&[("undionly.kpxe", b"loader".to_vec())], config()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for path in ["52-54-00-AA-00-01/undionly.kpxe", "\\undionly.kpxe", "/52-54-00-aa-00-01\\undionly.kpxe"] {
        assert_eq!(fetch(&socket, server.address, path, async || {}).await, b"loader", "{path}");
    }
    let mac = Some("52:54:00:aa:00:01".parse().unwrap());
    let name = "undionly.kpxe".to_owned();
    assert_eq!(server.seen.sent(3).await, [(mac, name.clone()), (None, name.clone()), (mac, name)]);
}

#[tokio::test]
async fn a_size_probe_that_ends_with_error_and_a_new_request_from_the_same_port() {
    let file = bytes(3000);
    let server = Server::start(&[("x", file.clone())], config()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..20 {
        socket.send_to(&rrq("x", &[("tsize", "0"), ("blksize", "1456")]), server.address).await.unwrap();
        let (oack, from) = receive(&socket).await;
        assert_eq!(oack, b"\0\x06tsize\x003000\0blksize\x001456\0");
        socket.send_to(b"\0\x05\0\x08aborted\0", from).await.unwrap();
        assert!(fetch(&socket, server.address, "x", async || {}).await == file);
    }
    // The ERROR may be lost: a new request from that port replaces the old transfer anyway.
    socket.send_to(&rrq("x", &[("tsize", "0")]), server.address).await.unwrap();
    let (_, probed) = receive(&socket).await;
    assert!(fetch(&socket, server.address, "x", async || {}).await == file);
    // The same request again before any response is not a new transfer: the response comes from the port that the client may know.
    socket.send_to(&rrq("x", &[("tsize", "0")]), server.address).await.unwrap();
    let (_, first) = receive(&socket).await;
    assert_ne!(probed, first);
    socket.send_to(&rrq("x", &[("tsize", "0")]), server.address).await.unwrap();
    let (_, second) = receive(&socket).await;
    assert_eq!(first, second, "a repeated request got a second port");
}

#[tokio::test]
async fn what_is_not_served_is_refused_with_its_code() {
    let server = Server::start(&[("x", vec![1])], config()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (request, code) in [
        (rrq("nothing", &[]), 1),
        (rrq("../etc/passwd", &[]), 2),
        (rrq("a b", &[]), 2),
        (b"\0\x01x\0mail\0".to_vec(), 4),
        (b"\0\x02x\0octet\0".to_vec(), 2),
    ] {
        socket.send_to(&request, server.address).await.unwrap();
        let (answer, from) = receive(&socket).await;
        assert_eq!(answer[..4], [0, 5, 0, code], "{}", String::from_utf8_lossy(&request));
        assert_ne!(from, server.address, "an answer comes from a port of its own");
    }
    // Noise gets no response: the next response is for the next request.
    for noise in [&b""[..], b"\0", b"\xff\xff", b"\0\x04\0\x01", b"\0\x05\0\x01x\0", b"\0\x01x"] {
        socket.send_to(noise, server.address).await.unwrap();
    }
    assert_eq!(fetch(&socket, server.address, "x", async || {}).await, [1]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::File::create(dir.path().join("up")).unwrap();
    let (ip, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let put =
        client("tftp-hpa", argv(&["tftp", "-m", "binary", &ip, &port, "-c", "put", "up"]), dir.path()).await;
    let said = String::from_utf8_lossy(&put.stdout).into_owned() + &String::from_utf8_lossy(&put.stderr);
    assert!(said.contains("Error code 2") && said.contains("read-only"), "{said}");
}

/// A relay between a client and the server that drops every `nth` packet, in both directions.
async fn lossy_relay(server: SocketAddr, nth: usize) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut from_client, mut from_server) = (vec![0; 70_000], vec![0; 70_000]);
        let (mut client, mut transfer, mut count) = (None, server, 0);
        loop {
            tokio::select! {
                r = front.recv_from(&mut from_client) => {
                    let (length, peer) = r.unwrap();
                    client = Some(peer);
                    count += 1;
                    let to = if from_client[1] == 1 { server } else { transfer };
                    if count % nth != 0 {
                        back.send_to(&from_client[..length], to).await.unwrap();
                    }
                }
                r = back.recv_from(&mut from_server) => {
                    let (length, peer) = r.unwrap();
                    transfer = peer;
                    count += 1;
                    if count % nth != 0 {
                        front.send_to(&from_server[..length], client.unwrap()).await.unwrap();
                    }
                }
            }
        }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_nth_packet_may_be_lost() {
    let file = bytes(100_000);
    let quick = TftpConfig { retransmit_ms: 20, retries: 12, ..config() };
    let server = Server::start(&[("x", file.clone())], quick).await;
    let dir = tempfile::tempdir().unwrap();
    for nth in [7, 5, 23] {
        let (relay, task) = lossy_relay(server.address, nth).await;
        // With options curl requests a timeout of 5 s, which the server then uses.
        let got = curl(relay, "x", &["--tftp-no-options"], dir.path()).await;
        assert!(got == file, "every {nth}th packet lost");
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_at_once() {
    let file = bytes(30_000);
    let many =
        TftpConfig { max_transfers: 200, max_unanswered: 200, max_transfers_per_client: 200, ..config() };
    let server = Server::start(&[("x", file.clone())], many).await;
    // Every client gets a first block before any client continues: so all two hundred transfers are open together.
    let together = Arc::new(tokio::sync::Barrier::new(200));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (together, address) = (Arc::clone(&together), server.address);
        clients.spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            fetch(&socket, address, "x", async || {
                together.wait().await;
            })
            .await
        });
    }
    while let Some(got) = clients.join_next().await {
        assert!(got.unwrap() == file);
    }
    assert_eq!(server.seen.sent(200).await.len(), 200);
}

#[tokio::test]
async fn a_client_beyond_its_limit_is_dropped_and_served_when_it_asks_again() {
    let server =
        Server::start(&[("x", vec![7; 600])], TftpConfig { max_transfers_per_client: 1, ..config() }).await;
    let first = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let second = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    first.send_to(&rrq("x", &[]), server.address).await.unwrap();
    let (_, from) = receive(&first).await;
    first.send_to(&[0, 4, 0, 1], from).await.unwrap();
    receive(&first).await;
    second.send_to(&rrq("x", &[]), server.address).await.unwrap();
    second.send_to(&rrq("nothing", &[]), server.address).await.unwrap();
    let (answer, _) = receive(&second).await;
    assert_eq!(answer[..2], [0, 5], "the dropped request was answered");
    first.send_to(&[0, 4, 0, 2], from).await.unwrap();
    server.seen.sent(1).await;
    assert_eq!(fetch(&second, server.address, "x", async || {}).await, [7; 600]);
}

#[tokio::test]
async fn requests_in_a_clients_name_do_not_keep_it_waiting() {
    let server =
        Server::start(&[("x", vec![7; 600])], TftpConfig { max_transfers_per_client: 3, ..config() }).await;
    // From its address and never acknowledged, as another host may send them.
    let mut others = Vec::new();
    for _ in 0..9 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&rrq("x", &[("timeout", "255")]), server.address).await.unwrap();
        receive(&socket).await;
        others.push(socket);
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(fetch(&client, server.address, "x", async || {}).await, [7; 600]);
}

#[tokio::test]
async fn the_answer_comes_from_the_address_that_was_asked() {
    let any = TftpConfig { listen: vec!["0.0.0.0:0".parse().unwrap()], ..config() };
    let server = Server::start(&[("x", vec![1; 600])], any).await;
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let ip: IpAddr = ip.parse().unwrap();
        let asked = SocketAddr::new(ip, server.address.port());
        for request in [rrq("x", &[]), rrq("nothing", &[])] {
            socket.send_to(&request, asked).await.unwrap();
            let (_, from) = receive(&socket).await;
            assert_eq!(from.ip(), ip);
        }
        assert_eq!(fetch(&socket, asked, "x", async || {}).await, vec![1; 600]);
    }
}

#[tokio::test]
async fn ipv6_is_served_beside_ipv4() {
    let both = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
    let store = BuiltinBootFiles::new();
    let files = [("x".parse().unwrap(), Bytes::from_static(b"six"))].into();
    store.ensure(&BootBundle { id: "test".parse().unwrap(), files }).await.unwrap();
    let bound = store
        .serve_tftp(TftpConfig { listen: both, ..config() })
        .await
        .expect("this test needs ::1 (sysctl net.ipv6.conf.lo.disable_ipv6=0)");
    let socket = UdpSocket::bind("[::1]:0").await.unwrap();
    assert_eq!(fetch(&socket, bound[1], "x", async || {}).await, b"six");
}

#[tokio::test]
async fn a_taken_port_is_busy_and_names_the_address() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let store = BuiltinBootFiles::new();
    let e = store.serve_tftp(TftpConfig { listen: vec![address], ..config() }).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.to_string().contains(&address.to_string()) && e.hint().is_some(), "{e}");
    assert_eq!(store.health().await, Health::Up, "without TFTP it is a store in memory");
}

#[tokio::test]
async fn shutdown_cuts_transfers_and_frees_the_port() {
    let server = Server::start(&[("x", vec![1; 5000])], config()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&rrq("x", &[]), server.address).await.unwrap();
    receive(&socket).await;
    server.store.shutdown().await;
    let (answer, _) = receive(&socket).await;
    assert_eq!(answer[..4], [0, 5, 0, 0], "a cut transfer tells its client");
    UdpSocket::bind(server.address).await.expect("the port is still taken");
    assert!(server.seen.0.lock().unwrap().is_empty(), "a cut transfer was observed as sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_probes_the_size_and_asks_the_same_again_at_once_is_answered() {
    let server = Server::start(&[("x", bytes(5000))], config()).await;
    let probe = rrq("x", &[("tsize", "0"), ("blksize", "1456")]);
    for round in 0..300 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&probe, server.address).await.unwrap();
        let (answer, from) = receive(&socket).await;
        assert_eq!(answer[..2], [0, 6], "round {round}");
        // As firmware does: it aborts, then requests the same file again.
        socket.send_to(b"\0\x05\0\x08User aborted the transfer\0", from).await.unwrap();
        socket.send_to(&probe, server.address).await.unwrap();
        let (answer, from) = receive(&socket).await;
        assert_eq!(answer[..2], [0, 6], "round {round}");
        socket.send_to(&[0, 4, 0, 0], from).await.unwrap();
        let (answer, from) = receive(&socket).await;
        assert_eq!(answer[..4], [0, 3, 0, 1], "round {round}: the transfer that answers goes on");
        socket.send_to(b"\0\x05\0\0enough\0", from).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_nobody_acknowledges_keep_no_client_waiting() {
    let few = TftpConfig { max_unanswered: 8, max_transfers_per_client: 1000, ..config() };
    let server = Server::start(&[("x", vec![7; 1000])], few).await;
    // A transfer in progress: its client has acknowledged a block.
    let under_way = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    under_way.send_to(&rrq("x", &[]), server.address).await.unwrap();
    let (_, from) = receive(&under_way).await;
    under_way.send_to(&[0, 4, 0, 1], from).await.unwrap();
    let (block, _) = receive(&under_way).await;
    assert_eq!(block[..4], [0, 3, 0, 2]);
    // With many addresses, with the longest possible timeout, and never a response.
    let mut flood = Vec::new();
    for _ in 0..200 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&rrq("x", &[("timeout", "255")]), server.address).await.unwrap();
        flood.push(socket);
    }
    for socket in &flood {
        receive(socket).await;
    }
    let honest = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(fetch(&honest, server.address, "x", async || {}).await, vec![7; 1000]);
    under_way.send_to(&[0, 4, 0, 2], from).await.unwrap();
    assert_eq!(server.seen.sent(2).await.len(), 2, "nor does one that is under way lose its place");
}

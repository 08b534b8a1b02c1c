//! A thousand registered machines request their boot script at once, and each request starts a session. Also: single starts by the same
//! requests, synced commits per start, and the server's memory with a thousand live sessions.
//!
//! `cargo bench -p ggnet-benches --bench crowd`; after `--` the number of rounds. The server is a process of its own; the clients share its
//! cores. Each client is a connection of its own, like a machine's iPXE. Nothing is asserted about time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "files that are thrown away; clients, which are waited for")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ggnet_benches::{TABLE, Times, bench_server::BenchServer, heading, memory, noise, spread};
use ggnet_core::nouns::WritebackPolicy;
use ggnet_tests::Api;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

const MACHINES: u32 = 1000;
/// Machines that start one after the other.
const SINGLE: u32 = 200;
/// Clients per source address: the server accepts at most 256 connections from one.
const OF_ONE_ADDRESS: u32 = 200;

fn main() {
    println!("{}", heading("cargo bench -p ggnet-benches --bench crowd"));
    // Cargo passes `--bench`.
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(5_u32);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();

    let folder = tempfile::Builder::new().prefix("ggnet-bench-image-").tempdir().unwrap();
    let file = folder.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, noise(1 << 20)).unwrap();
    let server = BenchServer::start(env!("CARGO_BIN_EXE_bench-server"), file.parent().unwrap()).unwrap();
    let api = &server.api;
    let image = api.import_and_wait("disk", &file, |_| {}).unwrap().version.image;
    for n in 0..MACHINES {
        api.add_machine(&format!("pc-{n:04}"), &mac(n).replace('-', ":"), image, WritebackPolicy::Discard)
            .unwrap();
    }
    let http: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();

    let before = synced(api);
    let single: Vec<Duration> =
        (0..SINGLE).map(|n| runtime.block_on(boot(http, n, Instant::now())).took).collect();
    let of_one = (synced(api) - before) as f64 / f64::from(SINGLE);
    stop_all(api);
    println!("Boot scripts that start a session:\n\n{TABLE}");
    println!(
        "{}",
        Times::new(single).row(&format!("one at a time ({of_one:.2} synced commits each)"), "-, p99 ≤ 5")
    );

    let (mut each, mut all, mut commits, mut again) = (vec![], vec![], vec![], 0);
    for round in 0..rounds {
        let before = synced(api);
        let begun = Instant::now();
        let boots = runtime.block_on(crowd(http));
        all.push(begun.elapsed());
        commits.push((synced(api) - before) as f64);
        again += boots.iter().map(|boot| boot.tries - 1).sum::<u32>();
        each.extend(boots.iter().map(|boot| boot.took));
        if round + 1 < rounds {
            stop_all(api);
        }
    }
    println!("{}", Times::new(all).row(&format!("{MACHINES} at once, the last answer"), "-, ≤ 1000"));
    println!("{}", Times::new(each).row(&format!("{MACHINES} at once, each"), "-"));
    println!("\nSynced commits for {MACHINES} at once: {} (aim ≤ 50)", spread(commits.into_iter()));
    println!("Retries in all rounds: {again}");
    let m = memory(server.pid()).unwrap();
    println!(
        "Memory with {} live sessions: {} MiB resident, {} MiB of them anonymous (aim ≤ 64)",
        api.live_sessions().unwrap().total,
        m.rss_kib / 1024,
        m.anon_kib / 1024
    );
}

/// As iPXE writes it in its URL.
fn mac(n: u32) -> String {
    format!("52-54-00-00-{:02x}-{:02x}", n / 256, n % 256)
}

fn synced(api: &Api) -> u64 {
    let metrics = api.metrics().unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("ggnet_store_synced_commits_total "));
    line.unwrap_or_else(|| panic!("the store counts no commits: {metrics}")).parse().unwrap()
}

fn stop_all(api: &Api) {
    for session in api.live_sessions().unwrap().items {
        api.stop_session(session.session.id, true).unwrap();
    }
}

/// How one machine got its script.
struct Boot {
    took: Duration,
    tries: u32,
}

/// All machines at once; each time is measured from the same moment.
async fn crowd(http: SocketAddr) -> Vec<Boot> {
    let begun = Instant::now();
    let clients: Vec<_> = (0..MACHINES).map(|n| tokio::spawn(boot(http, n, begun))).collect();
    let mut boots = Vec::with_capacity(clients.len());
    for client in clients {
        boots.push(client.await.unwrap());
    }
    boots
}

/// Requests the script until it is given. Retries after the time that the server says, as iPXE does.
async fn boot(http: SocketAddr, n: u32, begun: Instant) -> Boot {
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = ask(http, n).await;
        if answer.starts_with("HTTP/1.1 200") {
            assert!(answer.contains("sanboot"), "{answer}");
            return Boot { took: begun.elapsed(), tries };
        }
        let after = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")?.trim().parse().ok());
        let after = after.unwrap_or_else(|| panic!("machine {n}: {answer}"));
        tokio::time::sleep(Duration::from_secs(after)).await;
    }
}

async fn ask(http: SocketAddr, n: u32) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    let of = u8::try_from(1 + n / OF_ONE_ADDRESS).unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 1, of)), 0)).unwrap();
    let mut stream = socket.connect(http).await.unwrap();
    let request = format!("GET /boot/{}.ipxe HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n", mac(n));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

//! Lists of the API, a page of a thousand each: the real server with 1,000 machines that all have a live session.
//!
//! `cargo bench -p ggnet-benches --bench lists`; after `--` how many rounds. Nothing is asserted about time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "files that are thrown away")]

use std::time::{Duration, Instant};

use ggnet_benches::{TABLE, Times, bench_server::BenchServer, heading, noise};
use ggnet_core::nouns::WritebackPolicy;

const MACHINES: u32 = 1000;

/// What is asked for, and beside it what is aimed at.
const LISTS: [(&str, &str); 8] = [
    ("/api/v1/sessions?live=true&per_page=1000", "-, ≤ 15"),
    ("/api/v1/sessions?live=true&per_page=100", "-"),
    ("/api/v1/machines?per_page=1000", "-"),
    ("/api/v1/images", "-"),
    ("/api/v1/targets", "-"),
    ("/api/v1/events?limit=1000", "-"),
    ("/api/v1/events?newest=true&limit=100", "-"),
    ("/metrics", "-"),
];

fn main() {
    println!("{}", heading("cargo bench -p ggnet-benches --bench lists"));
    // Cargo passes `--bench`.
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(100_u32);
    let folder = tempfile::Builder::new().prefix("ggnet-bench-image-").tempdir().unwrap();
    let file = folder.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, noise(1 << 20)).unwrap();
    let server = BenchServer::start(env!("CARGO_BIN_EXE_bench-server"), file.parent().unwrap()).unwrap();
    let image = server.api.import_and_wait("disk", &file, |_| {}).unwrap().version.image;
    for n in 0..MACHINES {
        let mac = format!("52:54:00:00:{:02x}:{:02x}", n / 256, n % 256);
        let machine =
            server.api.add_machine(&format!("pc-{n:04}"), &mac, image, WritebackPolicy::Discard).unwrap();
        server.api.start_session(machine.id).unwrap();
    }
    println!("{MACHINES} machines with a live session each, over one kept connection:\n\n{TABLE}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (path, aim) in LISTS {
        let mut bytes = 0;
        let times: Vec<Duration> = (0..rounds)
            .map(|_| {
                let begun = Instant::now();
                let body = runtime.block_on(async {
                    let sent = client.get(format!("{}{path}", server.url)).bearer_auth(&server.token);
                    let answer = sent.send().await.unwrap().error_for_status().unwrap();
                    answer.bytes().await.unwrap()
                });
                bytes = body.len();
                begun.elapsed()
            })
            .collect();
        println!("{}", Times::new(times).row(&format!("GET {path} ({} KiB)", bytes >> 10), aim));
    }
}

//! Sessions over the built-in stack in this process, then the real server with 1,000 machines and 100 live sessions.
//!
//! The stack is what the server wires: SQLite, layers, the built-in target, boot files and proxyDHCP (on no network), made by
//! the same `Server::start`. Nothing is asserted about time; every table says where and under which load it was made.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "files that are thrown away; sleeps on the main thread, beside no runtime"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use ggnet_benches::{TABLE, Times, bench_server::BenchServer, cpu_time, heading, memory, noise};
use ggnet_core::nouns::{ImageId, Machine, MachineId, Principal, SessionId, StopReason, WritebackPolicy};
use ggnet_core::orchestrator::{Orchestrator, StartRequest, StopRequest};
use ggnet_core::registry::Registry;
use ggnet_server::{config::Config, serve::Server};
use ggnet_tests::Api;

const IMAGE_BYTES: usize = 64 << 20;
const AT_ONCE: u32 = 100;
const ROUNDS: u32 = 200;

fn main() {
    println!("{}", heading("cargo bench -p ggnet-benches --bench room"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let image = tempfile::Builder::new().prefix("ggnet-bench-image-").tempdir().unwrap();
    let file = image.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, noise(IMAGE_BYTES)).unwrap();
    runtime.block_on(in_process(&file));
    real_server(&file);
}

fn config(data: &Path, imports: &Path) -> String {
    format!(
        "data_dir = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[target]\nlisten = [\"127.0.0.1:0\"]\n[images]\nimport_dirs = [{imports:?}]\n"
    )
}

/// Start and stop, one after the other and 100 at once.
async fn in_process(file: &Path) {
    let data = tempfile::Builder::new().prefix("ggnet-bench-").tempdir().unwrap();
    let text = config(data.path(), file.parent().unwrap());
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    let server = Server::start(&Config::parse(&text, "bench").unwrap(), &registry).await.unwrap();
    let token = server.new_token.as_ref().unwrap().expose().to_owned();
    let url = format!("http://{}", server.http);
    let imported = file.to_owned();
    // The API's client blocks.
    let machines = tokio::task::spawn_blocking(move || {
        let api = Api::new(&url, &token).unwrap();
        let image = import(&api, &imported);
        (0..AT_ONCE).map(|n| add(&api, n, image).id).collect::<Vec<_>>()
    })
    .await
    .unwrap();
    let o = &server.orchestrator;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let (id, took) = start(o.clone(), machines[n as usize % machines.len()]).await;
        starts.push(took);
        stops.push(stop(o.clone(), id).await);
    }
    println!("Sessions, built-in stack in one process, image of {} MiB:\n\n{TABLE}", IMAGE_BYTES >> 20);
    println!("{}", Times::new(starts).row("start, one at a time", "< 5000, p99 ≤ 10"));
    println!("{}", Times::new(stops).row("stop, one at a time", "< 3000, -"));
    let (mut each_start, mut each_stop, mut all_start, mut all_stop) = (vec![], vec![], vec![], vec![]);
    for _ in 0..5 {
        let begun = Instant::now();
        let tasks: Vec<_> = machines.iter().map(|m| tokio::spawn(start(o.clone(), *m))).collect();
        let mut ids = Vec::new();
        for task in tasks {
            let (id, took) = task.await.unwrap();
            ids.push(id);
            each_start.push(took);
        }
        all_start.push(begun.elapsed());
        let begun = Instant::now();
        let tasks: Vec<_> = ids.into_iter().map(|id| tokio::spawn(stop(o.clone(), id))).collect();
        for task in tasks {
            each_stop.push(task.await.unwrap());
        }
        all_stop.push(begun.elapsed());
    }
    println!("{}", Times::new(all_start).row("100 starts at once, all", "-, ≤ 1000"));
    println!("{}", Times::new(each_start).row("100 starts at once, each", "< 5000, -"));
    println!("{}", Times::new(all_stop).row("100 stops at once, all", "-"));
    println!("{}", Times::new(each_stop).row("100 stops at once, each", "< 3000, -"));
    server.stop().await;
}

async fn start(o: Orchestrator, machine: MachineId) -> (SessionId, Duration) {
    let begun = Instant::now();
    let started = o
        .sessions()
        .start(StartRequest { machine, image: None, data_disks: vec![], by: Principal::embedder() })
        .await
        .unwrap();
    (started.session.id, begun.elapsed())
}

async fn stop(o: Orchestrator, session: SessionId) -> Duration {
    let begun = Instant::now();
    o.sessions()
        .stop(StopRequest { session, force: false, reason: StopReason::Operator, by: Principal::embedder() })
        .await
        .unwrap();
    begun.elapsed()
}

fn import(api: &Api, file: &Path) -> ImageId {
    api.import_and_wait("disk", file, |_| {}).unwrap().version.image
}

fn add(api: &Api, n: u32, image: ImageId) -> Machine {
    let mac = format!("52:54:00:00:{:02x}:{:02x}", n / 256, n % 256);
    api.add_machine(&format!("pc-{n:04}"), &mac, image, WritebackPolicy::Discard).unwrap()
}

/// Memory, CPU and latency of the server as a process of its own.
fn real_server(file: &Path) {
    let server = BenchServer::start(env!("CARGO_BIN_EXE_bench-server"), file.parent().unwrap()).unwrap();
    let (api, url, token, pid) = (&server.api, &server.url, &server.token, server.pid());

    println!("\nThe server as a process (floor: < 512 MB, 50 % CPU; aim: < 150 MB beside the page cache):\n");
    println!("| state | VmRSS MiB | anonymous MiB | CPU in 5 s |\n|---|---|---|---|");
    let line = |what: &str| {
        let before = cpu_time(pid).unwrap();
        std::thread::sleep(Duration::from_secs(5));
        let used = cpu_time(pid).unwrap() - before;
        let m = memory(pid).unwrap();
        let percent = used.as_secs_f64() / 5.0 * 100.0;
        println!("| {what} | {} | {} | {percent:.1} % |", m.rss_kib / 1024, m.anon_kib / 1024);
    };
    line("empty");
    let image = import(api, file);
    let machines: Vec<_> = (0..1000).map(|n| add(api, n, image).id).collect();
    line("1,000 machines");
    for machine in &machines[..AT_ONCE as usize] {
        api.start_session(*machine).unwrap();
    }
    line("1,000 machines, 100 live sessions");

    println!("\nThe API then, over one kept connection:\n\n{TABLE}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for path in ["/api/v1/machines?per_page=100", "/api/v1/sessions/stats", "/health/ready"] {
        let times = (0..300).map(|_| {
            let begun = Instant::now();
            runtime.block_on(async {
                let sent = client.get(format!("{url}{path}")).bearer_auth(token).send().await.unwrap();
                sent.error_for_status().unwrap().bytes().await.unwrap()
            });
            begun.elapsed()
        });
        println!("{}", Times::new(times.collect()).row(&format!("GET {path}"), "-"));
    }
    let mac = "52-54-00-00-00-00";
    let times = (0..100).map(|_| {
        let begun = Instant::now();
        api.plain("HEAD", &format!("/boot/{mac}.ipxe")).unwrap();
        begun.elapsed()
    });
    println!("{}", Times::new(times.collect()).row("HEAD /boot/<mac>.ipxe", "< 1000, -"));
}

//! The built-in target beside the kernel's own (LIO), with the same initiator and the same file, in a machine whose kernel has both.
//!
//! `bench-lio ROUNDS`, as root of such a machine: the part `lio` of `make bench-iscsi` boots one and runs this in it. Prints a table
//! of ratios. Both serve a raw file in memory, through the page cache; the machine's busy time less the client's is what they cost,
//! because LIO has no process of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a program is started here, beside no runtime that it could block")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ggnet_backends::target::lio_configfs::{LioConfig, LioConfigfs};
use ggnet_benches::initiator::Connection;
use ggnet_benches::initiator::Direction::{Read, Write};
use ggnet_benches::load::{self, Load, Order, Place};
use ggnet_benches::{INITIATOR, busy_time, contender::noise_file, cpu_time_of_us, spread, target};
use ggnet_core::block::Disk;
use ggnet_core::nouns::{ImageFormat, InstanceId, Iqn, ResourceId};
use ggnet_core::ports::{Access, LunSpec, TargetBackend as _, TargetSpec};
use ggnet_tests::{Process, wait};

const DISK: usize = 64 << 20;
const TIME: Duration = Duration::from_secs(2);

/// A target that is there to be measured.
struct Side {
    portal: SocketAddr,
    target: String,
}

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if args.next_if(|a| a == "serve").is_some() {
        return runtime.block_on(target::serve(args)).unwrap();
    }
    let rounds: u64 = args.next().unwrap().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = noise_file(dir.path().join("disk"), DISK).unwrap();
    let lio = runtime.block_on(lio(&file));
    let (_process, ours) = ours(&file, dir.path());
    println!("| | LIO | ggnet, raw file | / LIO |\n|---|---|---|---|");
    for (name, direction, bytes, depth, order) in [
        ("read, sequential, 128 KiB, depth 32", Read, 128 << 10, 32, Order::Sequential),
        ("write, sequential, 128 KiB, depth 32", Write, 128 << 10, 32, Order::Sequential),
        ("read, random, 4 KiB, depth 1", Read, 4 << 10, 1, Order::Random),
        ("read, random, 4 KiB, depth 32", Read, 4 << 10, 32, Order::Random),
        ("write, random, 4 KiB, depth 32", Write, 4 << 10, 32, Order::Random),
    ] {
        let mut rows: [Vec<(f64, f64)>; 2] = Default::default();
        for seed in 0..rounds {
            for (row, side) in rows.iter_mut().zip([&lio, &ours]) {
                let load = Load { direction, bytes, depth, order, span: DISK as u64, time: TIME };
                let connection = Connection::login(side.portal, &side.target, INITIATOR, 0).unwrap();
                let before = (busy_time().unwrap(), cpu_time_of_us().unwrap());
                let done = load::run(vec![(connection, Place { start: 0, seed })], load).unwrap();
                let client = cpu_time_of_us().unwrap() - before.1;
                let server = (busy_time().unwrap() - before.0).saturating_sub(client);
                row.push((server.as_secs_f64() * 1e6 / done.commands as f64, done.rate()));
            }
        }
        let line = |what: &str, get: fn(&(f64, f64)) -> f64| {
            let [lio, ours] = &rows;
            println!(
                "| {name}: {what} | {} | {} | {} |",
                spread(lio.iter().map(get)),
                spread(ours.iter().map(get)),
                spread(ours.iter().zip(lio).map(|(o, l)| get(o) / get(l)))
            );
        };
        line("CPU µs per request, busy less client", |s| s.0);
        line("requests a second", |s| s.1);
    }
}

/// The kernel's target on the file, by our own backend. It stays when this process ends.
async fn lio(file: &Path) -> Side {
    let prefix: Iqn = "iqn.2024-01.org.example".parse().unwrap();
    let instance = InstanceId::generate();
    let backend = LioConfigfs::start(LioConfig::default(), prefix.clone(), instance.clone()).unwrap();
    let id: ResourceId = "bench.1".parse().unwrap();
    let iqn = Iqn::target(&prefix, &instance, &id).unwrap();
    let disk = Disk::File { path: PathBuf::from(file), format: ImageFormat::Raw };
    let lun = LunSpec { number: 0, disk, disk_key: "bench".into(), serial: "bench".into(), read_only: false };
    let access = Access::Initiator { name: INITIATOR.parse().unwrap(), chap: None };
    let endpoint =
        backend.ensure(&TargetSpec { id, iqn: iqn.clone(), luns: vec![lun], access }).await.unwrap();
    Side { portal: endpoint.listen[0], target: iqn.to_string() }
}

/// The built-in target on the same file, as a process.
fn ours(file: &Path, dir: &Path) -> (Process, Side) {
    let portal = SocketAddr::from(([127, 0, 0, 1], 4260));
    // The machine has no setpriv that would let it die with us; the machine ends after us anyway.
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["serve", &portal.to_string(), "1", "raw"]).arg(file);
    let mut server = Process::spawn("ggnet", command, &dir.join("log")).unwrap();
    let said = wait::until("the target's name", wait::BOOT, || {
        server.check_running()?;
        let said = server.log_text();
        Ok(said.contains("ready\n").then_some(said))
    });
    let target = said.unwrap().lines().find_map(|l| l.strip_prefix("target ")).unwrap().to_owned();
    (server, Side { portal, target })
}

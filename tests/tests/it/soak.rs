//! Machines that boot again and again leave nothing behind in the server: no memory, no descriptor, a stated piece of database each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ggnet_core::nouns::WritebackPolicy;
use ggnet_tests::process::{anonymous_memory, descriptors};
use ggnet_tests::{GgnetServer, Machine, ServerOptions, wait};

/// Machines that boot at the same time.
const MACHINES: u8 = 12;
/// How much more anonymous memory the server may have at the end than after the first fifth, in bytes.
const GROWTH: u64 = 8 << 20;
/// What a boot may add to the database, in bytes, beside its journal.
const OF_A_BOOT: u64 = 2048;
const JOURNAL: u64 = 16 << 20;

/// What the server holds while nobody boots.
#[derive(Debug)]
struct Held {
    memory: u64,
    descriptors: usize,
}

/// Boots machines so often in all.
pub fn leave_nothing_behind(boots: usize) {
    let dir = tempfile::Builder::new().prefix("ggnet-soak-").tempdir().unwrap();
    let file = dir.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, vec![0x55; 8 << 20]).unwrap();
    let options =
        ServerOptions { import_dirs: vec![file.parent().unwrap().into()], ..ServerOptions::default() };
    let server = GgnetServer::start(options).unwrap();
    let api = server.api().unwrap();
    let statuses = api.statuses().unwrap();
    let image = api.import_and_wait("disk", &file, |_| {}).unwrap().version.image;
    let mut machines: Vec<_> = (1..=MACHINES)
        .map(|n| {
            let mac = format!("52:54:00:ee:00:{n:02x}");
            api.add_machine(&format!("pc-{n}"), &mac, image, WritebackPolicy::Discard).unwrap();
            Machine::new(&server.url(), &mac).unwrap()
        })
        .collect();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    // What a server needs once is there after the first fifth: sessions, pools, caches, the allocator's arenas.
    machines = boot_all(&runtime, machines, boots / 5);
    let first = held(&server, None);
    println!("{first:?} after {} boots and {:?}", boots / 5, begun.elapsed());
    machines = boot_all(&runtime, machines, boots - boots / 5);
    let last = held(&server, Some(first.descriptors));
    let rate = boots as f64 / begun.elapsed().as_secs_f64();
    println!("{last:?} after {boots} boots and {:?}, {rate:.0} boots a second", begun.elapsed());
    drop(machines);

    assert!(last.memory <= first.memory + GROWTH, "from {first:?} to {last:?}");
    let database: u64 = ["ggnet.db", "ggnet.db-wal"]
        .iter()
        .map(|f| std::fs::metadata(server.data_dir().join(f)).map_or(0, |m| m.len()))
        .sum();
    println!("{} KiB of database, {} bytes for each boot", database >> 10, database / boots as u64);
    assert!(database <= JOURNAL + OF_A_BOOT * boots as u64, "{database} bytes of database");
    // Of each machine one session and its disks: this boot's, and the next one's where it asked again.
    assert_eq!(api.live_sessions().unwrap().items.len(), usize::from(MACHINES));
    let disks = std::fs::read_dir(server.data_dir().join("writebacks")).unwrap().count();
    assert!(disks <= 2 * usize::from(MACHINES), "{disks} writebacks");
    assert!(api.is_ready() && api.statuses().unwrap() == statuses, "{}", api.health().unwrap());
}

/// Boots the machines at the same time, so often in all; the first error fails the test.
fn boot_all(runtime: &tokio::runtime::Runtime, machines: Vec<Machine>, boots: usize) -> Vec<Machine> {
    let taken = Arc::new(AtomicUsize::new(0));
    let boot = |mut machine: Machine| {
        let taken = Arc::clone(&taken);
        async move {
            while taken.fetch_add(1, Relaxed) < boots {
                machine.boot().await.unwrap();
            }
            machine
        }
    };
    let running: Vec<_> = machines.into_iter().map(|machine| runtime.spawn(boot(machine))).collect();
    running.into_iter().map(|machine| runtime.block_on(machine).unwrap()).collect()
}

/// What the server holds, once what the last boots left to be done is done: no more descriptors than `most`.
fn held(server: &GgnetServer, most: Option<usize>) -> Held {
    let api = server.api().unwrap();
    wait::until("every machine to be seen offline", wait::SHORT, || {
        Ok(api.targets()?.iter().all(|t| t.connections.is_empty()).then_some(()))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let now = || Held {
        memory: anonymous_memory(server.pid()).unwrap(),
        descriptors: descriptors(server.pid()).unwrap(),
    };
    let settled = wait::until("descriptors to be given back", wait::SHORT, || {
        let held = now();
        Ok((held.descriptors <= most.unwrap_or(usize::MAX)).then_some(held))
    });
    settled.unwrap_or_else(|e| panic!("{e}: {:?}, {most:?} before", now()))
}

#[test]
fn five_hundred_boots_leave_nothing_behind() {
    leave_nothing_behind(500);
}

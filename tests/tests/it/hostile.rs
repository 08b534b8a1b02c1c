//! Everything that strangers and one hostile guest do over the network, at once, while registered machines boot.
//!
//! Nine kinds ([`KINDS`]) go on in rounds until the machines have booted. Afterwards the server's memory, database and log have grown by
//! no more than docs/threat-model.md states, no task of it has died, and it is as it was.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ggnet_core::nouns::{Cursor, EventKind, ImageId, WritebackPolicy};
use ggnet_tests::hostile::{Aims, KINDS};
use ggnet_tests::process::anonymous_memory;
use ggnet_tests::{Crowd, Guest, GuestImage, Lan, Process, wait};

use crate::pxe::by_our_loader;

const MIB: u64 = 1 << 20;
/// What the server's anonymous memory stays below: 256 MiB for what others make it hold, and what a debug build needs for itself.
const CEILING: u64 = (256 + 64) * MIB;
/// A registered machine's events: at once, and in ten seconds. What strangers do in its name is in it.
const EVENTS: usize = 60;
const EVERY: Duration = Duration::from_secs(10);
/// What the database may grow by: its journal, and so much for each event that is recorded.
const JOURNAL: u64 = 16 * MIB;
const OF_AN_EVENT: u64 = 4096;
/// What the log says of clients, and how many such lines it has at most in a second.
const LINES: [(&[&str], u64); 6] = [
    (&["TFTP read"], 200),
    (&["TFTP request", "too many TFTP transfers"], 10),
    (&["Answered"], 20),
    (&["login refused", "login put off", "login took too long"], 10),
    (&["logged in"], 100),
    (&["disconnected"], 100),
];
/// All other lines in a second, and the longest line, in bytes.
const OTHER_LINES: u64 = 5;
const LINE: usize = 600;

/// Machines that boot by our own initiator. In the first one's name the floods ask.
const MACHINES: [&str; 4] =
    ["52:54:00:dd:00:01", "52:54:00:dd:00:02", "52:54:00:dd:00:03", "52:54:00:dd:00:04"];
/// The machine whose user is hostile.
const GUEST: &str = "52:54:00:dd:00:10";
/// How often each machine boots while everything is under way.
const BOOTS: usize = 5;

/// A LAN with machines, and a crowd on it.
struct Room {
    aims: Aims,
    /// While it is there, machines boot.
    go_on: std::path::PathBuf,
    crowd: Crowd,
    lan: Lan,
    _dir: tempfile::TempDir,
}

impl Room {
    fn new(config: &str, import: &[&Path]) -> Self {
        let dir = tempfile::Builder::new().prefix("ggnet-hostile-").tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap();
        // Only the first block is not zero, so that comparing the others with zeros goes through to the end.
        let disk = folder.join("disk.raw");
        std::fs::write(&disk, [0xff; 512]).unwrap();
        std::fs::File::options().write(true).open(&disk).unwrap().set_len(256 * MIB).unwrap();
        let lan = Lan::new(config, &[&[folder.as_path()][..], import].concat()).unwrap();
        let version = lan.api().import_and_wait("disk", &disk, |_| {}).unwrap().version;
        for mac in MACHINES.iter().chain([&GUEST]) {
            add(&lan, mac, version.image);
        }
        let open_target = lan.api().export("open", version.id).unwrap().iqn.to_string();
        let aims = Aims { flooded: MACHINES[0].to_owned(), guest: GUEST.to_owned(), open_target };
        let go_on = folder.join("go-on");
        std::fs::write(&go_on, "").unwrap();
        Self { aims, go_on, crowd: Crowd::on(&lan).unwrap(), lan, _dir: dir }
    }

    /// Bytes of the database with its journal.
    fn database(&self) -> u64 {
        ["ggnet.db", "ggnet.db-wal"]
            .iter()
            .map(|file| std::fs::metadata(self.lan.data_dir().join(file)).map_or(0, |m| m.len()))
            .sum()
    }

    /// What strangers can cause of one machine's events.
    fn caused(&self, after: Option<&Cursor>, mac: &str) -> usize {
        let id = self.lan.api().machine(&name(mac)).unwrap().id;
        let events = self.lan.api().events(after, Some(id)).unwrap();
        let caused = |kind: &EventKind| {
            use EventKind::{BootDeclined, BootDiagnosis, BootFailed, BootStage};
            matches!(kind, BootStage { .. } | BootDiagnosis { .. } | BootDeclined { .. } | BootFailed { .. })
        };
        events.iter().filter(|e| caused(&e.event.kind)).count()
    }
}

fn name(mac: &str) -> String {
    format!("pc-{}", mac.replace(':', "-"))
}

fn add(lan: &Lan, mac: &str, image: ImageId) {
    lan.api().add_machine(&name(mac), mac, image, WritebackPolicy::Discard).unwrap();
}

/// How many lines of a member of the crowd contain this.
fn lines(process: &Process, text: &str) -> usize {
    process.log_text().lines().filter(|l| l.contains(text)).count()
}

/// Looks at a process's anonymous memory until it is asked for the most.
struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    fn of(pid: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let mut most = 0;
                while !over.load(Relaxed) {
                    most = most.max(anonymous_memory(pid).unwrap_or(0));
                    std::thread::sleep(Duration::from_millis(50));
                }
                most
            }
        });
        Self { over, thread }
    }

    fn most(self) -> u64 {
        self.over.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

/// Everything at once, until `meanwhile` has returned; then what must hold.
fn withstands(room: &Room, meanwhile: impl FnOnce(&mut Process)) {
    let (before, grown_from) = (room.database(), room.lan.server_log().len());
    let statuses = room.lan.api().statuses().unwrap();
    let (cursor, begun) = (room.lan.api().cursor().unwrap(), Instant::now());
    let watch = Watch::of(room.lan.server_pid());
    let mut machines = room.crowd.machines(&room.go_on.to_string_lossy(), &MACHINES).unwrap();
    let mut hostile: Vec<_> = KINDS.iter().map(|k| room.crowd.hostile(k, &room.aims).unwrap()).collect();
    for (kind, process) in KINDS.iter().zip(&mut hostile) {
        wait::until(&format!("a round of {}", kind.name), wait::BOOT, || {
            process.check_running()?;
            machines.check_running()?;
            Ok((lines(process, "round ") > 0).then_some(()))
        })
        .unwrap();
    }
    println!("all kinds are under way after {:?}", begun.elapsed());
    meanwhile(&mut machines);
    std::fs::remove_file(&room.go_on).unwrap();
    let ended = machines.wait(wait::BOOT).unwrap();
    assert!(ended.success(), "a machine did not boot:\n{}", machines.log_text());
    for (kind, process) in KINDS.iter().zip(&mut hostile) {
        process.check_running().unwrap();
        println!("{}: {}", kind.name, process.log_text().lines().last().unwrap_or_default());
    }
    drop(hostile);
    let most = watch.most();
    println!(
        "{} boots in {:?}; anonymous memory at most {} MiB",
        lines(&machines, " booted in "),
        begun.elapsed(),
        most / MIB
    );
    assert!(most < CEILING, "{} MiB of anonymous memory", most / MIB);

    wait::until("every part of the server to be as it was", Duration::from_secs(120), || {
        Ok((room.lan.api().is_ready() && room.lan.api().statuses()? == statuses).then_some(()))
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", room.lan.api().health()));
    check_growth(room, cursor.as_ref(), before, begun.elapsed());
    check_log(&room.lan.server_log()[grown_from..], begun.elapsed());
}

/// The database has grown by what is recorded, and what is recorded has its budget.
fn check_growth(room: &Room, cursor: Option<&Cursor>, before: u64, took: Duration) {
    let budget = EVENTS + usize::try_from(took.as_secs() / EVERY.as_secs()).unwrap() + 1;
    for mac in MACHINES.iter().chain([&GUEST]) {
        let caused = room.caused(cursor, mac);
        assert!(caused <= budget, "{caused} events of {mac}, {budget} have a place");
    }
    let events = room.lan.api().events(cursor, None).unwrap().len() as u64;
    let grown = room.database().saturating_sub(before);
    println!("{events} events; the database grew by {} KiB", grown >> 10);
    assert!(grown <= JOURNAL + events * OF_AN_EVENT, "{grown} bytes for {events} events");
}

/// The log has so many lines of each sort, none of them long, and tells of nothing that died.
fn check_log(log: &str, took: Duration) {
    let died = |l: &&str| l.contains("long-lived task") || l.contains("panicked");
    assert_eq!(log.lines().find(died), None);
    let seconds = took.as_secs() + 2;
    let longest = log.lines().max_by_key(|l| l.len()).unwrap_or_default();
    println!("{} KiB of log, the longest line: {longest}", log.len() >> 10);
    assert!(longest.len() <= LINE, "{longest}");
    let mut others: Vec<&str> = log.lines().collect();
    for (sort, a_second) in LINES {
        let (of_sort, rest): (Vec<&str>, _) =
            others.into_iter().partition(|line| sort.iter().any(|words| line.contains(words)));
        others = rest;
        println!("{} lines with {sort:?}", of_sort.len());
        assert!(
            of_sort.len() as u64 <= a_second * seconds,
            "{} lines with {sort:?} in {took:?}",
            of_sort.len()
        );
    }
    println!("{} other lines", others.len());
    let shown = || others.iter().rev().take(20).copied().collect::<Vec<_>>().join("\n");
    assert!(
        others.len() as u64 <= OTHER_LINES * seconds,
        "{} other lines in {took:?}:\n{}",
        others.len(),
        shown()
    );
}

#[test]
fn machines_boot_while_everything_hostile_happens_at_once() {
    let room = Room::new("", &[]);
    withstands(&room, |machines| {
        let so_far = MACHINES.map(|mac| lines(machines, mac));
        wait::until("each machine to boot", wait::BOOT, || {
            machines.check_running()?;
            let mut all = MACHINES.iter().zip(so_far);
            Ok(all.all(|(mac, before)| lines(machines, mac) >= before + BOOTS).then_some(()))
        })
        .unwrap();
    });
}

/// The same with a virtual PC that boots over the wire meanwhile.
pub fn a_bios_machine_boots_meanwhile() {
    let (templates, qcow2) = (by_our_loader(), GuestImage::get().unwrap().qcow2().canonicalize().unwrap());
    let config = format!("templates_dir = \"{}\"\n", templates.path().display());
    let room = Room::new(&config, &[qcow2.parent().unwrap()]);
    let golden = room.lan.api().import_and_wait("golden", &qcow2, |_| {}).unwrap().version;
    let mac = "52:54:00:dd:00:20";
    add(&room.lan, mac, golden.image);
    withstands(&room, |machines| {
        let tap = room.lan.tap().unwrap();
        let mut pc = Guest::builder("hostile-bios").mac(mac).tap(room.lan.ns(), &tap).boot().unwrap();
        let line = pc.wait_boot().unwrap_or_else(|e| panic!("{e:?}\n{}", room.lan.router_log()));
        assert_eq!((line.transport.as_str(), line.firmware.as_str()), ("iscsi", "bios"), "{line:?}");
        assert!(pc.serial_text().contains("Here runs undionly"));
        pc.sh("echo here >/root/mine && sync").unwrap();
        machines.check_running().unwrap();
    });
}

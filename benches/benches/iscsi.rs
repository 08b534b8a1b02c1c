//! The built-in iSCSI target beside Debian's `tgtd` and beside the floor, on the loopback, in interleaved rounds of one run.
//!
//! Contenders: `tgtd` on a raw file, our target on a raw file, our target on a layer over a base. Every round measures every
//! contender once, so that a machine that gets slower or busier does so for all of them; a ratio is taken inside of a round.
//! The server's CPU time is told twice: as its process's own, and as the machine's busy time less the client's, which also
//! has what the kernel does for it elsewhere (and what else runs on the machine: keep it quiet). Nothing is asserted.
//!
//! What has an interval is measured in pairs (`ggnet_benches::pairs`): our target beside the floor (`ggnet_benches::floor`), beside tgtd
//! with the initiators of others, one worker thread beside many, and this version beside the `bench-target` of another one.
//!
//! `cargo bench -p ggnet-benches --bench iscsi [-- [--rounds N] [--seconds S] [--only TEXT] [--against FILE] [PART…]]`, parts: shared,
//! own-cores, floor, others, scale, threads. With `--only` there are the workloads that have the text in their name; with `--against`
//! there is one part: this version beside the other one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "programs of others run here, beside no runtime")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ggnet_benches::contender::{Contender, noise_file};
use ggnet_benches::load::{self, Load, Order, Place};
use ggnet_benches::pairs::{self, Line};
use ggnet_benches::wire::Direction::{self, Read, Write};
use ggnet_benches::{INITIATOR, busy_time, cpu_time_of_us, heading, spread};
use ggnet_tests::{Process, process, wait};

const PROGRAM: &str = env!("CARGO_BIN_EXE_bench-target");
const FLOOR: &str = env!("CARGO_BIN_EXE_bench-floor");
const DISK: usize = 512 << 20;
const MIB: u64 = 1 << 20;
/// Clients at once in the workloads with many.
const MANY: usize = 16;
/// What a client touches where each has a span of its own.
const SPAN: u64 = 16 * MIB;
/// The target whose layer has every block of its own.
const WRITTEN: usize = MANY;
/// From this number on: targets whose layers are new.
const FRESH: usize = MANY + 1;
/// So many of them are used in a round.
const NEW_LAYERS: usize = 2;

struct Options {
    rounds: usize,
    time: Duration,
    parts: Vec<String>,
    /// What the names of the workloads must have in them.
    only: String,
    /// The program `bench-target` of another version.
    against: Option<String>,
}

fn main() {
    let options = options();
    println!("{}", heading("make bench-iscsi"));
    println!(
        "rounds:   {}, interleaved; {} s each; median (least to most) of the rounds; a ratio is of two measurements of the same round\n\
         disks:    {} MiB of random data, preallocated, in the page cache; ext4 or what the temporary folder is on\n\
         tgtd:     {}\n",
        options.rounds,
        options.time.as_secs_f64(),
        DISK >> 20,
        process::run(std::process::Command::new("dpkg-query").args(["-W", "-f", "${Version}", "tgt"]))
            .unwrap(),
    );
    if let Some(other) = &options.against {
        println!("## This version beside {other}\n");
        return versions(&options, other);
    }
    let part = |name: &str| options.parts.is_empty() || options.parts.iter().any(|p| p == name);
    if part("shared") {
        println!("## Client and server share all cores\n");
        loads(&options, &WORKLOADS, None);
    }
    if part("own-cores") {
        println!("## The client on core 0, the server on core 1\n");
        pin_us();
        loads(&options, &WORKLOADS[..8], Some(1));
    }
    if part("floor") {
        println!("## Beside the floor\n");
        beside_floor(&options);
    }
    if part("others") {
        println!("## Other initiators\n");
        others(&options);
    }
    if part("scale") {
        println!("## Many targets, many connections\n");
        scale(&options);
    }
    if part("threads") {
        println!("## One thread for all connections, or one for each core\n");
        threads(&options);
    }
}

fn options() -> Options {
    let mut options = Options {
        rounds: 7,
        time: Duration::from_secs(1),
        parts: Vec::new(),
        only: String::new(),
        against: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|v| v.parse::<u32>().ok()).expect("a number");
        match arg.as_str() {
            "--rounds" => options.rounds = number() as usize,
            "--seconds" => options.time = Duration::from_secs(number().into()),
            "--only" => options.only = args.next().expect("a text"),
            "--against" => options.against = Some(args.next().expect("a program")),
            // Cargo's own.
            "--bench" => {}
            part => options.parts.push(part.to_owned()),
        }
    }
    options
}

impl Options {
    fn wants(&self, workload: &str) -> bool {
        workload.contains(&self.only)
    }
}

/// What is measured.
struct Workload {
    name: &'static str,
    direction: Direction,
    bytes: usize,
    depth: u32,
    order: Order,
    clients: usize,
}

const fn workload(
    name: &'static str,
    direction: Direction,
    bytes: usize,
    depth: u32,
    order: Order,
    clients: usize,
) -> Workload {
    Workload { name, direction, bytes, depth, order, clients }
}

impl Workload {
    fn is_large(&self) -> bool {
        self.bytes > 64 * KIB
    }

    /// Which of the new layers it takes in a round: two workloads want one, and differ in their depth.
    fn turn(&self, round: usize) -> usize {
        round * NEW_LAYERS + usize::from(self.depth > 1)
    }

    /// The names of its CPU time and its rate.
    fn figures(&self) -> [&'static str; 2] {
        if self.is_large() { ["CPU s per GiB", "MiB/s"] } else { ["CPU µs per request", "IOPS"] }
    }
}

const KIB: usize = 1 << 10;
static WORKLOADS: [Workload; 12] = [
    workload("read, sequential, 128 KiB, depth 32", Read, 128 * KIB, 32, Order::Sequential, 1),
    workload("write, sequential, 128 KiB, depth 32", Write, 128 * KIB, 32, Order::Sequential, 1),
    workload("read, random, 4 KiB, depth 1", Read, 4 * KIB, 1, Order::Random, 1),
    workload("read, random, 4 KiB, depth 32", Read, 4 * KIB, 32, Order::Random, 1),
    workload("write, random, 4 KiB, depth 1", Write, 4 * KIB, 1, Order::Random, 1),
    workload("write, random, 4 KiB, depth 32", Write, 4 * KIB, 32, Order::Random, 1),
    workload("first write, 4 KiB, depth 1", Write, 4 * KIB, 1, Order::Once, 1),
    workload("first write, 4 KiB, depth 32", Write, 4 * KIB, 32, Order::Once, 1),
    workload("16 clients: read, random, 4 KiB, depth 1", Read, 4 * KIB, 1, Order::Random, MANY),
    workload("16 clients: read, random, 4 KiB, depth 32", Read, 4 * KIB, 32, Order::Random, MANY),
    workload("16 clients: read, sequential, 128 KiB, depth 4", Read, 128 * KIB, 4, Order::Sequential, MANY),
    workload("16 clients: write, random, 4 KiB, depth 8", Write, 4 * KIB, 8, Order::Random, MANY),
];

/// Random reads, by one client and by many.
fn random_reads() -> impl Iterator<Item = &'static Workload> {
    WORKLOADS.iter().filter(|w| w.name.contains("read, random"))
}

/// One measurement.
#[derive(Clone, Copy)]
struct Sample {
    /// The server's CPU time by its process, per unit.
    process: f64,
    /// The same as busy time less the client's.
    machine: f64,
    /// Commands or MiB a second.
    rate: f64,
    /// Microseconds; not every initiator tells.
    p99: f64,
}

/// Contenders that run side by side.
struct Setup {
    /// Files; gone with it.
    dir: tempfile::TempDir,
    contenders: Vec<Contender>,
}

impl Setup {
    /// Contenders whose files are in one folder; `make` gets a function that puts a name into it.
    fn new(make: impl FnOnce(&dyn Fn(&str) -> PathBuf) -> Vec<Contender>) -> Self {
        let dir = tempfile::Builder::new().prefix("ggnet-bench-iscsi-").tempdir().unwrap();
        let contenders = make(&|name: &str| dir.path().join(name));
        contenders.iter().filter(|c| c.layered).for_each(fill);
        Self { dir, contenders }
    }

    /// tgtd, and ours on a raw file and on layers.
    fn beside_tgtd(options: &Options, cpu: Option<usize>) -> Self {
        Self::new(|at| {
            let tgtd = Contender::tgtd(&noise(at("tgtd.raw")), MANY, cpu).unwrap();
            let [raw, layers] = ours(PROGRAM, "", options, cpu, at);
            vec![tgtd, raw, layers]
        })
    }

    /// One workload on one contender, once. `turn` tells fresh layers apart.
    fn measure(&self, w: &Workload, contender: usize, turn: usize, time: Duration) -> Sample {
        let c = &self.contenders[contender];
        let layers = c.layered;
        let large = w.is_large();
        let first = w.order == Order::Once;
        if first && !layers {
            // A new sparse file of the same size: its first writes are what a layer's are compared with.
            let file = std::fs::File::options().write(true).open(&c.file).unwrap();
            file.set_len(0).unwrap();
            file.set_len(DISK as u64).unwrap();
        }
        let target = |client: usize| match (layers, w.direction, w.clients) {
            (true, Write, 1) if first => FRESH + turn,
            (true, Write, 1) => WRITTEN,
            _ => client,
        };
        // Writers that share a file have a span each.
        let span = if w.direction == Write && w.clients > 1 { SPAN } else { DISK as u64 };
        let start = |client: usize| if span == SPAN { client as u64 * SPAN } else { 0 };
        let clients: Vec<_> = (0..w.clients)
            .map(|n| (c.login(target(n)).unwrap(), Place { start: start(n), seed: (turn * MANY + n) as u64 }))
            .collect();
        let load =
            Load { direction: w.direction, bytes: w.bytes, depth: w.depth, order: w.order, span, time };
        let before = (c.cpu_time().unwrap(), busy_time().unwrap(), cpu_time_of_us().unwrap());
        let outcome = load::run(clients, load).unwrap();
        let process = c.cpu_time().unwrap() - before.0;
        let client = cpu_time_of_us().unwrap() - before.2;
        let machine = (busy_time().unwrap() - before.1).saturating_sub(client);
        // Per request in microseconds, or per GiB in seconds.
        let unit = if large {
            outcome.commands as f64 * w.bytes as f64 / (1u64 << 30) as f64
        } else {
            outcome.commands as f64 / 1e6
        };
        let rate = if large { outcome.rate() * w.bytes as f64 / MIB as f64 } else { outcome.rate() };
        if first && !layers {
            // What was not written is a hole now and not in the page cache: without this the next round's reads would wait for it.
            let mut file = std::fs::File::open(&c.file).unwrap();
            std::io::copy(&mut file, &mut std::io::sink()).unwrap();
        }
        Sample {
            process: process.as_secs_f64() / unit,
            machine: machine.as_secs_f64() / unit,
            rate,
            p99: outcome.p99(),
        }
    }
}

/// Writes every block of one layer, so that all of them are its own.
fn fill(c: &Contender) {
    let all = Load {
        direction: Write,
        bytes: 128 * KIB,
        depth: 8,
        order: Order::Once,
        span: DISK as u64,
        time: Duration::from_secs(600),
    };
    let connection = c.login(WRITTEN).unwrap();
    load::run(vec![(connection, Place { start: 0, seed: 0 })], all).unwrap();
}

fn noise(file: PathBuf) -> PathBuf {
    noise_file(file, DISK).unwrap()
}

/// Ours on a raw file and on layers; `which` tells two versions apart.
fn ours(
    program: &str,
    which: &str,
    options: &Options,
    cpu: Option<usize>,
    at: &dyn Fn(&str) -> PathBuf,
) -> [Contender; 2] {
    let at = |name: &str| at(&format!("{name}{which}"));
    let count = FRESH + options.rounds * NEW_LAYERS;
    let (raw, base) = (noise(at("raw")), noise(at("base")));
    [
        Contender::raw(program, &raw, MANY, cpu, &at("raw.log")).unwrap(),
        Contender::layers(program, &base, &at("layers"), count, cpu, &at("layers.log")).unwrap(),
    ]
}

/// This version beside another one.
fn versions(options: &Options, other: &str) {
    let setup = Setup::new(|at| {
        let [other, this] = [(other, "-other"), (PROGRAM, "-this")]
            .map(|(program, which)| ours(program, which, options, None, at));
        other.into_iter().chain(this).collect()
    });
    let disks = [("raw file", [0, 2]), ("layers", [1, 3])];
    let mut lines = workload_lines(options, &setup, &WORKLOADS, &disks);
    lines.extend(tool_lines(options, &setup, &TOOLS[..ISCSI_PERF], &disks));
    println!("{}", pairs::table(options.rounds, ["other", "this"], &lines));
}

/// Ours beside the floor, and the floor on the runtime that ours uses beside the floor.
fn beside_floor(options: &Options) {
    let setup = Setup::new(|at| {
        let floor = |on_tokio: bool, name: &str| {
            Contender::floor(FLOOR, on_tokio, &noise(at(name)), MANY, &at(&format!("{name}.log"))).unwrap()
        };
        let [raw, layers] = ours(PROGRAM, "", options, None, at);
        vec![floor(false, "floor"), raw, layers, floor(true, "floor-tokio")]
    });
    let disks = [("raw file", [0, 1]), ("layers", [0, 2])];
    let mut lines = workload_lines(options, &setup, &WORKLOADS, &disks);
    lines.extend(tool_lines(options, &setup, &TOOLS[..ISCSI_PERF], &disks));
    println!("{}", pairs::table(options.rounds, ["floor", "ggnet"], &lines));
    let lines = workload_lines(options, &setup, random_reads(), &[("raw file", [0, 3])]);
    println!("{}", pairs::table(options.rounds, ["floor", "floor on tokio"], &lines));
}

/// Each workload on each of these disks: its name, and the contenders of both sides.
fn workload_lines<'a>(
    options: &Options,
    setup: &'a Setup,
    workloads: impl IntoIterator<Item = &'static Workload>,
    disks: &[(&str, [usize; 2])],
) -> Vec<Line<'a>> {
    let time = options.time;
    let mut lines = Vec::new();
    for w in workloads.into_iter().filter(|w| options.wants(w.name)) {
        for &(disk, sides) in disks {
            let measure = move |side: usize, round: usize| {
                let sample = setup.measure(w, sides[side], w.turn(round), time);
                [sample.process, sample.rate]
            };
            let what = format!("{}, {disk}", w.name);
            lines.push(Line { what, figures: w.figures(), measure: Box::new(measure) });
        }
    }
    lines
}

fn loads(options: &Options, workloads: &[Workload], cpu: Option<usize>) {
    let setup = Setup::beside_tgtd(options, cpu);
    let workloads: Vec<_> = workloads.iter().filter(|w| options.wants(w.name)).collect();
    let mut tables: Vec<[Vec<Sample>; 3]> = workloads.iter().map(|_| Default::default()).collect();
    for round in 0..options.rounds {
        for (w, table) in workloads.iter().zip(&mut tables) {
            for (n, samples) in table.iter_mut().enumerate() {
                samples.push(setup.measure(w, n, w.turn(round), options.time));
            }
        }
    }
    let names = setup.contenders.iter().map(|c| c.name).collect::<Vec<_>>();
    for (w, table) in workloads.iter().zip(&tables) {
        let [unit, rate] = w.figures();
        println!("{}\n", w.name);
        println!(
            "| | {} | {} | / tgtd | {} | / tgtd | layers / raw |\n|---|---|---|---|---|---|---|",
            names[0], names[1], names[2]
        );
        let line = |what: &str, get: fn(&Sample) -> f64| {
            let [tgtd, raw, layers] = table;
            println!(
                "| {what} | {} | {} | {} | {} | {} | {} |",
                spread(tgtd.iter().map(get)),
                spread(raw.iter().map(get)),
                spread(raw.iter().zip(tgtd).map(|(a, b)| get(a) / get(b))),
                spread(layers.iter().map(get)),
                spread(layers.iter().zip(tgtd).map(|(a, b)| get(a) / get(b))),
                spread(layers.iter().zip(raw).map(|(a, b)| get(a) / get(b))),
            );
        };
        line(&format!("{unit}, process"), |s| s.process);
        line(&format!("{unit}, busy less client"), |s| s.machine);
        line(rate, |s| s.rate);
        line("p99, µs", |s| s.p99);
        println!();
    }
}

/// Binds this process's threads to come to core 0.
fn pin_us() {
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// What a request costs when ten times as many targets are exported, and what a connection costs that does nothing.
fn scale(options: &Options) {
    const BUSY: usize = 100;
    const IDLE: usize = 500;
    let dir = tempfile::Builder::new().prefix("ggnet-bench-iscsi-").tempdir().unwrap();
    let base = noise_file(dir.path().join("base.raw"), DISK).unwrap();
    let [few, many] = [BUSY, 10 * BUSY].map(|count| {
        let at = |what: &str| dir.path().join(format!("{what}-{count}"));
        Contender::layers(PROGRAM, &base, &at("layers"), count, None, &at("log")).unwrap()
    });
    let measure = |side: usize, round: usize| {
        let c: &Contender = [&few, &many][side];
        // Spread over all that are exported.
        let step = c.targets.len() / BUSY;
        let place = |n| Place { start: 0, seed: (round * BUSY + n) as u64 };
        let clients = (0..BUSY).map(|n| (c.login(n * step).unwrap(), place(n))).collect();
        let (bytes, order, span) = (4 * KIB, Order::Random, DISK as u64);
        let load = Load { direction: Read, bytes, depth: 1, order, span, time: options.time };
        let before = c.cpu_time().unwrap();
        let outcome = load::run(clients, load).unwrap();
        let cpu = (c.cpu_time().unwrap() - before).as_secs_f64();
        [cpu * 1e6 / outcome.commands as f64, outcome.rate()]
    };
    let what = format!("{BUSY} clients: read, random, 4 KiB, depth 1, each on a layer of its own");
    let lines = [Line { what, figures: ["CPU µs per request", "IOPS"], measure: Box::new(measure) }];
    let sides = [BUSY, 10 * BUSY].map(|count| format!("{count} exported"));
    println!("{}", pairs::table(options.rounds, [&sides[0], &sides[1]], &lines));

    let before = few.memory().unwrap();
    let idle: Vec<_> = (0..IDLE).map(|n| few.login(n % BUSY).unwrap()).collect();
    let after = few.memory().unwrap();
    let (cpu, begun) = (few.cpu_time().unwrap(), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let used = (few.cpu_time().unwrap() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "\n{IDLE} logged in that do nothing: {:.1} KiB of anonymous memory each, {:.2} % of one core for all of them\n",
        (after.anon_kib.saturating_sub(before.anon_kib)) as f64 / IDLE as f64,
        used * 100.0
    );
    drop(idle);
}

/// A design tried: one worker thread for all connections beside the runtime's default of one for each core.
fn threads(options: &Options) {
    let setup = Setup::new(|at| {
        let file = noise(at("raw"));
        let contender = |workers: Option<usize>| {
            let log = at(&format!("log-{workers:?}"));
            Contender::raw_with_workers(PROGRAM, &file, MANY, workers, &log).unwrap()
        };
        vec![contender(None), contender(Some(1))]
    });
    let lines = workload_lines(options, &setup, random_reads(), &[("raw file", [0, 1])]);
    println!("{}", pairs::table(options.rounds, ["one for each core", "one"], &lines));
}

/// Runs a program that others wrote; the requests it made.
type Tool = fn(&Contender, &Path, Duration) -> f64;

/// They also check our own load generator. The floor has answers to the first [`ISCSI_PERF`] only.
static TOOLS: [(&str, Tool); 6] = [
    ("iscsi-perf: read, random, 4 KiB, depth 32", |c, _, t| perf(c, t, &["-r", "-m", "32", "-b", "8"])),
    ("iscsi-perf: read, random, 4 KiB, depth 1", |c, _, t| perf(c, t, &["-r", "-m", "1", "-b", "8"])),
    ("iscsi-perf: read, sequential, 128 KiB, depth 32", |c, _, t| perf(c, t, &["-m", "32", "-b", "256"])),
    ("qemu-img bench: read, 4 KiB, depth 32", |c, _, _| qemu_img(c, &[])),
    ("qemu-img bench: write, 4 KiB, depth 32", |c, _, _| qemu_img(c, &["-w"])),
    ("fio by qemu-nbd: randrw, 4 KiB, depth 16", fio),
];
const ISCSI_PERF: usize = 3;

/// Ours beside tgtd, for the initiators of others.
fn others(options: &Options) {
    let setup = Setup::beside_tgtd(options, None);
    let lines = tool_lines(options, &setup, &TOOLS, &[("raw file", [0, 1]), ("layers", [0, 2])]);
    println!("{}", pairs::table(options.rounds, ["tgtd", "ggnet"], &lines));
}

/// Each tool on each of these disks, as in [`workload_lines`].
fn tool_lines<'a>(
    options: &Options,
    setup: &'a Setup,
    tools: &[(&str, Tool)],
    disks: &[(&str, [usize; 2])],
) -> Vec<Line<'a>> {
    let time = options.time;
    let mut lines = Vec::new();
    for &(name, tool) in tools.iter().filter(|(name, _)| options.wants(name)) {
        for &(disk, sides) in disks {
            let measure = move |side: usize, _: usize| {
                let c = &setup.contenders[sides[side]];
                let (before, begun) = (c.cpu_time().unwrap(), Instant::now());
                let requests = tool(c, setup.dir.path(), time);
                let took = begun.elapsed();
                let cpu = c.cpu_time().unwrap() - before;
                [cpu.as_secs_f64() * 1e6 / requests, requests / took.as_secs_f64()]
            };
            let figures = ["CPU µs per request", "requests a second, start and end of the tool included"];
            lines.push(Line { what: format!("{name}, {disk}"), figures, measure: Box::new(measure) });
        }
    }
    lines
}

/// `iscsi-perf` (package libiscsi-bin); the requests it made.
fn perf(c: &Contender, time: Duration, args: &[&str]) -> f64 {
    let mut command = std::process::Command::new(process::tool("iscsi-perf", "libiscsi-bin").unwrap());
    command.args(["-i", INITIATOR, "-t", &time.as_secs().max(1).to_string()]).args(args).arg(c.url(0));
    let said = process::run(&mut command).unwrap().replace('\r', "\n");
    let average = regex_lite::Regex::new(r"iops average (\d+)").unwrap();
    let found = average.captures_iter(&said).last().unwrap_or_else(|| panic!("iscsi-perf said: {said}"));
    found[1].parse::<f64>().unwrap() * time.as_secs().max(1) as f64
}

/// `qemu-img bench` over QEMU's own initiator; the requests it made.
fn qemu_img(c: &Contender, args: &[&str]) -> f64 {
    const COUNT: u32 = 30_000;
    let mut command = std::process::Command::new(process::tool("qemu-img", "qemu-utils").unwrap());
    command.args(["bench", "-c", &COUNT.to_string(), "-d", "32", "-s", "4096", "-t", "none"]).args(args);
    command.args(["--image-opts", &image_options(c)]);
    process::run(&mut command).unwrap();
    f64::from(COUNT)
}

fn image_options(c: &Contender) -> String {
    // Target 0 is only read by the others; this one may be written.
    let (target, portal) = (&c.targets[MANY - 1], c.portal);
    format!(
        "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={target},file.lun={},file.initiator-name={INITIATOR}",
        c.lun
    )
}

/// fio through qemu-nbd's initiator (Debian's fio speaks NBD and no iSCSI); the requests it made.
fn fio(c: &Contender, dir: &Path, time: Duration) -> f64 {
    let socket = dir.join("nbd");
    let _ = std::fs::remove_file(&socket);
    let mut nbd = process::command(process::tool("qemu-nbd", "qemu-utils").unwrap());
    nbd.args(["-t", "-e", "4", "--cache=none", "-k"]).arg(&socket).args(["--image-opts", &image_options(c)]);
    let mut nbd = Process::spawn("qemu-nbd", nbd, &dir.join("nbd.log")).unwrap();
    wait::until("qemu-nbd", wait::SHORT, || {
        nbd.check_running()?;
        Ok(std::os::unix::net::UnixStream::connect(&socket).ok())
    })
    .unwrap();
    let mut command = std::process::Command::new(process::tool("fio", "fio").unwrap());
    command.args([
        "--name=x",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bs=4k",
        "--iodepth=16",
        "--size=400m",
        "--time_based",
    ]);
    command.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    command.arg(format!("--runtime={}", time.as_secs().max(1))).arg("--output-format=json");
    let said = process::run(command.current_dir(dir)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&said[said.find('{').unwrap()..]).unwrap();
    let total = |d: &str| json["jobs"][0][d]["total_ios"].as_f64().unwrap();
    total("read") + total("write")
}

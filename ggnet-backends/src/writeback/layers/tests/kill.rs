//! Kills a real process: a child writes, discards and flushes on real files, reports each acknowledged request through a pipe, and is
//! killed with SIGKILL during its work. All acknowledged writes must be there; a sector of a request in flight is old or new.
//!
//! The child is this test binary again; an environment variable makes it the writer. Its requests follow from the round's seed, so that
//! parent and child need no communication about them.

use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use ggnet_core::testkit::tier::rounds as rounds_of_tier;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

const ROUNDS_PER_DISK: u64 = 50;
const SECTORS: u64 = 900 * 8 + 5;
/// Marks a completed request; the test harness prints only text.
const DONE: u8 = 1;
const SETUP: &str = "GGNET_TEST_LAYERS_WRITER";

/// The requests of a round, without an end; a value of zero is a discard, `None` a flush.
struct Requests {
    rng: StdRng,
    round: u64,
    next: u64,
}

impl Requests {
    fn new(round: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(round), round, next: 0 }
    }
}

impl Iterator for Requests {
    type Item = Option<(std::ops::Range<u64>, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next += 1;
        let value = if self.rng.random_bool(0.2) { 0 } else { self.round << 32 | self.next };
        if self.rng.random_bool(0.01) {
            return Some(None);
        }
        let from = self.rng.random_range(0..SECTORS);
        let most = if self.rng.random_bool(0.05) { 600 } else { 20 };
        let len = self.rng.random_range(1..most);
        Some(Some((from..(from + len).min(SECTORS), value)))
    }
}

/// The child's part; in a normal test run it does nothing.
#[test]
fn writer() {
    let Ok(setup) = std::env::var(SETUP) else { return };
    let mut setup = setup.split(' ');
    let mut word = || setup.next().unwrap();
    let room_dir = PathBuf::from(word());
    let instance: InstanceId = word().parse().unwrap();
    let version: ImageVersionId = word().parse().unwrap();
    let round: u64 = word().parse().unwrap();
    // Bypasses the buffer of `std::io::stdout`: the mark must be in the pipe when a request is complete.
    let mut pipe = std::fs::OpenOptions::new().write(true).open("/proc/self/fd/1").unwrap();

    let base = open_raw(version, &room_dir.join("base.raw")).unwrap();
    let layer_folder =
        LayerFolder::open(Arc::new(OsFiles), room_dir.join("writebacks"), instance, "boot".into()).unwrap();
    let device = layer_folder.ensure(&id("a"), &base).unwrap();
    for request in Requests::new(round) {
        match request {
            None => device.flush().unwrap(),
            Some((range, 0)) => device.discard(range.start * 512, (range.end - range.start) * 512).unwrap(),
            Some((range, value)) => {
                let bytes =
                    value.to_le_bytes().repeat(usize::try_from((range.end - range.start) * 64).unwrap());
                device.write_at(&bytes, range.start * 512).unwrap();
            }
        }
        pipe.write_all(&[DONE]).unwrap();
    }
}

/// Kills the child even if the test fails.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn done(acknowledged: &[u8]) -> usize {
    acknowledged.iter().filter(|b| **b == DONE).count()
}

/// Starts a writer, kills it at a random time, and returns the number of requests that it acknowledged.
fn run_and_kill(room: &Room, round: u64, rng: &mut StdRng) -> usize {
    let setup = format!("{} {} {} {round}", room.tmp.path().display(), room.instance, room.base.id);
    #[expect(
        clippy::disallowed_methods,
        reason = "the test needs a bare child that it can kill at any instant"
    )]
    let mut command = Command::new(std::env::current_exe().unwrap());
    let child = command
        .args(["--exact", "writeback::layers::tests::kill::writer", "--nocapture", "--test-threads=1"])
        .env(SETUP, setup)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Reaped(child);
    let mut pipe = child.0.stdout.take().unwrap();
    let mut acknowledged = 0;
    let wanted = rng.random_range(0..60);
    let mut buf = [0; 64];
    while acknowledged < wanted {
        let n = pipe.read(&mut buf).unwrap();
        assert!(n > 0, "round {round}: the writer ended by itself");
        acknowledged += done(&buf[..n]);
    }
    // Not always right after an acknowledged request.
    for _ in 0..rng.random_range(0..2000) {
        std::hint::spin_loop();
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    loop {
        match pipe.read(&mut buf).unwrap() {
            0 => return acknowledged,
            n => acknowledged += done(&buf[..n]),
        }
    }
}

fn rounds(numbers: std::ops::Range<u64>) {
    let tag = |s: u64| 0xBA5E_0000_0000 | s;
    let base: Vec<u8> = (0..SECTORS).map(|s| tag(s).to_le_bytes().repeat(64)).collect::<Vec<_>>().concat();
    let mut room = Room::new(&base);
    let mut model: Vec<u64> = (0..SECTORS).map(tag).collect();
    for round in numbers {
        if round % ROUNDS_PER_DISK == 0 {
            room = Room::new(&base);
            model = (0..SECTORS).map(tag).collect();
            room.layer_folder("boot");
        }
        let mut rng = StdRng::seed_from_u64(!round);
        let acknowledged = run_and_kill(&room, round, &mut rng);
        let mut requests = Requests::new(round);
        for (range, value) in requests.by_ref().take(acknowledged).flatten() {
            for s in range {
                model[usize::try_from(s).unwrap()] = value;
            }
        }
        let in_flight = requests.next().unwrap();
        let device = room.layer_folder("boot").ensure(&id("a"), &room.base).unwrap();
        let disk = read(&*device, 0, usize::try_from(SECTORS * 512).unwrap());
        for ((sector, bytes), model) in (0..).zip(disk.as_chunks::<512>().0).zip(&mut model) {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(
                *bytes == *value.to_le_bytes().repeat(64),
                "round {round}: sector {sector} is torn inside"
            );
            let maybe = in_flight.as_ref().filter(|(range, _)| range.contains(&sector)).map(|(_, v)| *v);
            assert!(
                value == *model || Some(value) == maybe,
                "round {round}: sector {sector} reads {value:#x}, acknowledged was {model:#x}, in flight {maybe:x?}"
            );
            *model = value;
        }
    }
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    let all = rounds_of_tier(1000, 10_000);
    let half = all / 2 / ROUNDS_PER_DISK * ROUNDS_PER_DISK;
    std::thread::scope(|s| {
        let first = s.spawn(|| rounds(0..half));
        rounds(half..all);
        first.join().unwrap();
    });
}

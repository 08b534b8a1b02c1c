//! A hundred machines that read and write while their server is restarted, and while it is killed.
//!
//! Every machine has an initiator that does what Linux does (`ggnet_tests::initiator`) and a model of its disk: for each sector
//! the number of the last write that was acknowledged. Whatever it reads must be that write, or the image where it never wrote.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ggnet_core::api::SessionStartResponse;
use ggnet_core::nouns::{SessionId, WritebackPolicy};
use ggnet_tests::account::{self, MAX_SECTORS, SECTOR};
use ggnet_tests::{Account, Api, GgnetServer, Initiator, ServerOptions, refusal, wait};
use tokio::task::JoinHandle;

const MACHINES: usize = 100;
const IMAGE_BYTES: usize = 64 << 20;
/// Ends a test that would never end; asserted is nothing about time.
const HANG: Duration = Duration::from_secs(300);

#[test]
fn a_hundred_machines_under_load_see_no_error_when_the_server_restarts_or_dies() {
    let dir = tempfile::Builder::new().prefix("ggnet-load-").tempdir().unwrap();
    let image: Arc<[u8]> = random(IMAGE_BYTES, 1).into();
    let file = dir.path().canonicalize().unwrap().join("disk.raw");
    std::fs::write(&file, &image).unwrap();
    let mut server = GgnetServer::start(ServerOptions {
        import_dirs: vec![file.parent().unwrap().into()],
        ..ServerOptions::default()
    })
    .unwrap();
    let api = server.api().unwrap();
    let version = api.import_and_wait("disk", &file, |_| {}).unwrap();
    let machines: Vec<_> = (0..MACHINES)
        .map(|n| {
            let mac = format!("52:54:00:10:00:{n:02x}");
            api.add_machine(&format!("pc-{n:03}"), &mac, version.version.image, WritebackPolicy::Discard)
                .unwrap()
                .id
        })
        .collect();

    let begun = Instant::now();
    let started: Vec<SessionStartResponse> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            machines.iter().map(|machine| scope.spawn(|| server.api()?.start_session(*machine))).collect();
        starts.into_iter().map(|s| s.join().unwrap().unwrap()).collect()
    });
    println!("{MACHINES} sessions started at once, over the API: {:?}", begun.elapsed());

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut load = Load::begin(&runtime, &started, &image);
    let before = load.wait_all_served("the first operations");

    // By the book.
    let begun = Instant::now();
    server.stop().unwrap();
    let down = begun.elapsed();
    server.restart().unwrap();
    let ready = begun.elapsed();
    let between = load.wait_all_served("all to be served after the restart");
    println!(
        "restart: {down:?} to the end, {ready:?} to /health/ready, {:?} until all {MACHINES} are served again",
        begun.elapsed()
    );
    assert!(between.logins >= before.logins + MACHINES as u64, "somebody was never disconnected");

    // In the middle of whatever it does.
    let begun = Instant::now();
    server.kill_9().unwrap();
    server.restart().unwrap();
    let ready = begun.elapsed();
    let after = load.wait_all_served("all to be served after the kill");
    println!(
        "kill -9: {ready:?} to /health/ready, {:?} until all {MACHINES} are served again",
        begun.elapsed()
    );
    assert!(after.logins >= between.logins + MACHINES as u64, "somebody was never disconnected");
    println!("{} operations and {} logins of {MACHINES} machines", after.done, after.logins);

    // Each verifies all that it ever wrote, and logs out.
    load.end();
    let sessions: Vec<_> = started.iter().map(|s| s.session.session.id).collect();
    // A client that begins anew: the connections of the first one ended with the server.
    let api = server.api().unwrap();
    stop_all(&api, &sessions);
    assert!(api.targets().unwrap().is_empty());
    assert!(api.live_sessions().unwrap().items.is_empty());
    assert_eq!(entries(&server.data_dir().join("writebacks")), Vec::<String>::new());
    let kept = std::fs::read(server.version_file(version.version.id)).unwrap();
    assert!(kept == image[..], "the image has changed");
}

/// Stops as an operator does: without force. A logout is seen a moment after it was answered.
fn stop_all(api: &Api, sessions: &[SessionId]) {
    let begun = Instant::now();
    for id in sessions {
        wait::until("the session to be offline", wait::SHORT, || match api.stop_session(*id, false) {
            Ok(stopped) => Ok(Some(stopped)),
            Err(e) => {
                let refused = refusal::<()>(Err(e))?;
                if refused.status == 409 { Ok(None) } else { bail!("{refused}") }
            }
        })
        .unwrap();
    }
    println!("{} sessions stopped, one after the other: {:?}", sessions.len(), begun.elapsed());
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What all have done so far.
#[derive(Clone, Copy)]
struct Sum {
    done: u64,
    logins: u64,
}

/// What one has done so far.
#[derive(Default)]
struct Meter {
    done: AtomicU64,
    logins: AtomicU64,
    failed: AtomicBool,
}

struct Load<'r> {
    runtime: &'r tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    meters: Vec<Arc<Meter>>,
    /// The logins of each when it was last seen to be served.
    seen: Vec<u64>,
    workers: Vec<Option<JoinHandle<Result<()>>>>,
}

impl<'r> Load<'r> {
    fn begin(
        runtime: &'r tokio::runtime::Runtime,
        sessions: &[SessionStartResponse],
        image: &Arc<[u8]>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load =
            Self { runtime, stop, meters: Vec::new(), seen: vec![0; sessions.len()], workers: Vec::new() };
        for (n, session) in sessions.iter().enumerate() {
            let meter = Arc::new(Meter::default());
            let worker = Worker {
                account: account(session, n),
                number: n as u64 + 1,
                image: image.clone(),
                meter: meter.clone(),
                stop: load.stop.clone(),
            };
            load.meters.push(meter);
            load.workers.push(Some(runtime.spawn(worker.run())));
        }
        load
    }

    /// Waits until each has logged in since the last call, and has had a command done since then.
    fn wait_all_served(&mut self, what: &str) -> Sum {
        let mut from: Vec<Option<u64>> = vec![None; self.meters.len()];
        wait::until(what, HANG, || {
            let mut all = true;
            for (n, meter) in self.meters.iter().enumerate() {
                if meter.failed.load(SeqCst)
                    && let Some(worker) = self.workers[n].take()
                {
                    self.runtime.block_on(worker)??;
                }
                // Counted after a command: a login alone is no service.
                all &= meter.logins.load(SeqCst) > self.seen[n]
                    && meter.done.load(SeqCst) > *from[n].get_or_insert(meter.done.load(SeqCst));
            }
            Ok(all.then_some(()))
        })
        .unwrap();
        for (seen, meter) in self.seen.iter_mut().zip(&self.meters) {
            *seen = meter.logins.load(SeqCst);
        }
        Sum {
            done: self.meters.iter().map(|m| m.done.load(SeqCst)).sum(),
            logins: self.meters.iter().map(|m| m.logins.load(SeqCst)).sum(),
        }
    }

    fn end(&mut self) {
        self.stop.store(true, SeqCst);
        for worker in self.workers.iter_mut().filter_map(Option::take) {
            self.runtime
                .block_on(async { tokio::time::timeout(HANG, worker).await })
                .unwrap()
                .unwrap()
                .unwrap();
        }
    }
}

/// What the boot script tells the `n`th machine.
pub fn account(session: &SessionStartResponse, n: usize) -> Account {
    account::from_script(&session.boot_script, [0x80, 0, 0, 0, 0, u8::try_from(n).unwrap()]).unwrap()
}

/// One machine.
struct Worker {
    account: Account,
    number: u64,
    image: Arc<[u8]>,
    meter: Arc<Meter>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    async fn run(self) -> Result<()> {
        let done = self.work().await;
        self.meter.failed.store(done.is_err(), SeqCst);
        done
    }

    async fn work(&self) -> Result<()> {
        let sectors = self.image.len() / SECTOR;
        let mut model = vec![0_u64; sectors];
        let mut disk = account::log_in(self.account.clone()).await?;
        let mut dice = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut stamp = 0;
        while !self.stop.load(SeqCst) {
            let count = 1 + usize::try_from(next(&mut dice) % u64::from(MAX_SECTORS))?;
            let at = usize::try_from(next(&mut dice) % (sectors - count) as u64)?;
            match next(&mut dice) % 16 {
                0 => disk.flush().await?,
                1..9 => {
                    stamp += 1;
                    let data: Vec<u8> =
                        (at..at + count).flat_map(|s| stamped(self.number, s, stamp)).collect();
                    disk.write(at as u64, &data).await?;
                    model[at..at + count].fill(stamp);
                }
                _ => self.check(&mut disk, &model, at, count).await?,
            }
            self.meter.done.fetch_add(1, SeqCst);
            self.meter.logins.store(disk.logins(), SeqCst);
        }
        // All that was ever acknowledged, a run of sectors at a time.
        let mut at = 0;
        while let Some(skip) = model[at..].iter().position(|stamp| *stamp != 0) {
            at += skip;
            let count = usize::from(MAX_SECTORS).min(sectors - at);
            self.check(&mut disk, &model, at, count).await?;
            at += count;
        }
        // The server may be dead just now.
        let _ = disk.logout().await;
        Ok(())
    }

    /// Reads, and compares with what must be there.
    async fn check(&self, disk: &mut Initiator, model: &[u64], at: usize, count: usize) -> Result<()> {
        let got = disk.read(at as u64, u32::try_from(count)?).await?;
        for (sector, got) in (at..at + count).zip(got.chunks(SECTOR)) {
            let image = &self.image[sector * SECTOR..(sector + 1) * SECTOR];
            let right = match model[sector] {
                0 => got == image,
                stamp => got == stamped(self.number, sector, stamp),
            };
            ensure!(
                right,
                "machine {} sector {sector}: acknowledged was write {}, read was {:02x?}{}",
                self.number,
                model[sector],
                got.get(..24).context("short")?,
                if got == image { ", the image" } else { "" }
            );
        }
        Ok(())
    }
}

/// A sector that says whose it is, where it belongs and which write it was.
fn stamped(machine: u64, sector: usize, stamp: u64) -> [u8; SECTOR] {
    let words = [machine, sector as u64, stamp];
    let mut out = [0; SECTOR];
    for (n, chunk) in out.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&words[n % 3].to_be_bytes());
    }
    out
}

/// The next number of a sequence; it must not begin with zero.
pub fn next(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

/// Bytes that look like chance and follow from the seed, which must not be zero.
pub fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed;
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        out.extend(next(&mut x).to_le_bytes());
    }
    out.truncate(len);
    out
}

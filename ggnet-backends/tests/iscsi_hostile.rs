//! A room in which two hundred machines are hostile and ten are not: the ten are served, and the target's memory stays below a
//! ceiling.
//!
//! A program of its own: the memory measured is this process's, initiators and all.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "machines of the test, which it waits for")]

mod iscsi_support;
#[path = "iscsi_support/layer_disk.rs"]
mod layer_disk;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ggnet_core::testkit::tier::rounds;
use ggnet_iscsi::initiator::{Account, Bhs, Connection, Error, NO_TAG};
use ggnet_iscsi::{BlockDevice, BlockInfo, BlockRun, Chap, Exclusivity};
use iscsi_support::{Policy, Rig, Say as _, pattern, write_cdb};
use layer_disk::LayerDisk;

/// What the process's anonymous memory stays below, in bytes: docs/threat-model.md states it.
const CEILING: usize = 256 << 20;
const HOSTILE: usize = 200;
const GOOD: usize = 10;
/// A hostile machine's disk, and a good one's.
const DISK: u64 = 64 << 20;

type Keys = &'static [(&'static str, &'static str)];
const LONG: Keys =
    &[("MaxRecvDataSegmentLength", "16777215"), ("MaxBurstLength", "16777215"), ("InitialR2T", "No")];

/// What a hostile session does, again and again until the server closes it or an hour is over.
const DEEDS: [Deed; 10] = [
    Deed { name: "immediate writes whose data never comes", keys: &[], act: immediate_writes },
    Deed { name: "data in odd pieces", keys: &[], act: odd_pieces },
    Deed { name: "reads of which nothing is fetched", keys: LONG, act: reads_unread },
    Deed { name: "half PDUs behind a full queue", keys: LONG, act: half_pdus },
    Deed { name: "EXTENDED COPY over and over", keys: &[], act: copies },
    Deed { name: "VERIFY of the whole disk", keys: &[], act: verifies },
    Deed { name: "ORWRITE whose last piece never comes", keys: LONG, act: or_writes },
    Deed { name: "flushes without an end", keys: &[], act: flushes },
    Deed { name: "resets and text", keys: &[], act: resets },
    Deed { name: "noise", keys: &[], act: noise },
];

#[derive(Clone, Copy)]
struct Deed {
    name: &'static str,
    keys: Keys,
    /// Sends one round of it. It reads nothing, unless it must to go on.
    act: for<'a> fn(&'a mut Connection, u64) -> Act<'a>,
}

type Act<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// A header of a SCSI command.
fn command(i: &mut Connection, immediate: u8, flags: u8, cdb: &[u8], expected: u32) -> Bhs {
    let mut bhs = i.request(0x01 | immediate, flags);
    bhs.set_word(20, expected);
    bhs.set(32, cdb);
    bhs
}

/// The place of a transfer tag that was never told: the first of its slot.
const FIRST_TAG: u32 = 1 << 16;

fn immediate_writes(i: &mut Connection, _: u64) -> Act<'_> {
    Box::pin(async move {
        for _ in 0..64 {
            let bhs = command(i, 0x40, 0xa1, &write_cdb(0, 8, false), 4096);
            i.send(bhs, &[]).await?;
        }
        Ok(())
    })
}

fn odd_pieces(i: &mut Connection, _: u64) -> Act<'_> {
    Box::pin(async move {
        let bhs = command(i, 0, 0xa1, &write_cdb(0, 512, false), 256 << 10);
        let (itt, piece) = (i.numbers.itt, [9; 8191]);
        i.send(bhs, &[]).await?;
        for n in 0..8 {
            i.data_out(itt, FIRST_TAG, n, n * 8191, false, &piece).await?;
        }
        Ok(())
    })
}

fn reads_unread(i: &mut Connection, round: u64) -> Act<'_> {
    Box::pin(async move {
        let mut cdb = [0x28, 0, 0, 0, 0, 0, 0, 0x80, 0, 0];
        cdb[4] = round.to_le_bytes()[0] & 0x3f;
        let bhs = command(i, 0, 0xc1, &cdb, 16 << 20);
        i.send(bhs, &[]).await
    })
}

fn half_pdus(i: &mut Connection, round: u64) -> Act<'_> {
    Box::pin(async move {
        if round == 0 {
            for _ in 0..100 {
                let bhs = command(i, 0, 0xc1, &[0x28, 0, 0, 0, 0, 0, 0, 0x10, 0, 0], 2 << 20);
                i.send(bhs, &[]).await?;
            }
            let mut bhs = command(i, 0, 0xa1, &write_cdb(0, 512, false), 256 << 10);
            bhs.set_data_len(256 << 10);
            i.send_raw(&bhs.0).await?;
        }
        // All of the data but its end, as slowly as it may be.
        if round < 255 {
            i.send_raw(&[3; 1024]).await?;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(())
    })
}

fn copies(i: &mut Connection, _: u64) -> Act<'_> {
    Box::pin(async move {
        // As in SPC-4 section 6.3: one target by its NAA designator, four segments of 32 MiB.
        let mut list = vec![0; 16 + 32 + 4 * 28];
        (list[3], list[11]) = (32, 4 * 28);
        list[16..24].copy_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 8]);
        list[24..32].copy_from_slice(&0x3000_0000_0000_0001_u64.to_be_bytes());
        for n in 0..4 {
            let at = 48 + 28 * n;
            list[at..at + 4].copy_from_slice(&[2, 0, 0, 24]);
            list[at + 10..at + 12].copy_from_slice(&0x8000_u16.to_be_bytes());
            list[at + 20..at + 28].copy_from_slice(&0x8000_u64.to_be_bytes());
        }
        let len = u32::try_from(list.len()).unwrap();
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (0x83, list.len().to_le_bytes()[0]);
        let bhs = command(i, 0, 0xa1, &cdb, len);
        i.send(bhs, &list).await?;
        i.receive().await.map(|_| ())
    })
}

fn verifies(i: &mut Connection, _: u64) -> Act<'_> {
    Box::pin(async move {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (0x8f, 6);
        cdb[10..14].copy_from_slice(&u32::try_from(DISK / 512).unwrap().to_be_bytes());
        let bhs = command(i, 0, 0xa1, &cdb, 512);
        i.send(bhs, &[0; 512]).await?;
        i.receive().await.map(|_| ())
    })
}

fn or_writes(i: &mut Connection, round: u64) -> Act<'_> {
    Box::pin(async move {
        let mut cdb = [0; 16];
        cdb[0] = 0x8b;
        cdb[10..14].copy_from_slice(&0x8000_u32.to_be_bytes());
        if round == 0 {
            for _ in 0..4 {
                let bhs = command(i, 0, 0xa1, &cdb, 16 << 20);
                i.send(bhs, &[]).await?;
            }
        }
        // All of their data but the last piece: one for each R2T.
        if let Ok(n @ 0..63) = u32::try_from(round) {
            for slot in 0..4 {
                let itt = 2 + slot;
                i.data_out(itt, FIRST_TAG | slot, 0, n << 18, true, &vec![1; 256 << 10]).await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    })
}

fn flushes(i: &mut Connection, _: u64) -> Act<'_> {
    Box::pin(async move {
        for _ in 0..32 {
            let bhs = command(i, 0, 0x81, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
            i.send(bhs, &[]).await?;
        }
        for _ in 0..32 {
            i.receive().await?;
        }
        Ok(())
    })
}

fn resets(i: &mut Connection, _: u64) -> Act<'_> {
    Box::pin(async move {
        for _ in 0..16 {
            let bhs = i.request(0x42, 0x85);
            i.send(bhs, &[]).await?;
            let mut bhs = i.request(0x44, 0x00);
            bhs.0[1] = 0x40;
            bhs.set_word(20, NO_TAG);
            i.send(bhs, &[b'x'; 512]).await?;
        }
        i.receive().await.map(|_| ())
    })
}

fn noise(i: &mut Connection, round: u64) -> Act<'_> {
    Box::pin(async move {
        let bytes = pattern(48 + 512, round + 1);
        let mut bhs = Bhs(bytes[..48].try_into().unwrap());
        // Something that the session knows, with arbitrary fields.
        bhs.0[0] = [0x41, 0x05, 0x42, 0x40, 0x44, 0x10][usize::from(bhs.0[0]) % 6];
        bhs.0[4] = 0;
        i.send(bhs, &bytes[48..]).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(())
    })
}

/// A disk of which nothing is in memory: every read and write would wait.
struct Cold(LayerDisk);

impl BlockDevice for Cold {
    fn info(&self) -> BlockInfo {
        self.0.info()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        self.0.block_status(offset, len)
    }
}

/// A machine's target and disk.
async fn machine(rig: &Rig, dir: &Path, name: &str) -> String {
    let iqn = format!("iqn.2024-01.org.example:{name}");
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    rig.add(&iqn, Arc::new(Cold(LayerDisk::new(&folder, DISK, 512).await)));
    iqn
}

/// Anonymous memory of this process, in bytes.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// One good machine: writes, flushes, reads back. Fails on any error, and on a command that takes more than 30 s.
async fn good(account: Account, count: usize) -> Duration {
    let mut i = Connection::login(&account).await.unwrap();
    i.patience = Duration::from_secs(30);
    let mut worst = Duration::ZERO;
    for n in 0..count {
        let data = pattern(64 << 10, n as u64);
        let lba = u32::try_from(n % 512).unwrap() * 128;
        let from = Instant::now();
        assert_eq!(i.write(lba, false, &data).await.status(), 0);
        if n % 8 == 7 {
            i.command(0x81, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]).await.unwrap();
            assert_eq!(i.receive().await.unwrap().status(), 0);
        }
        let (back, end) = i.read(lba, 128, 512).await;
        assert_eq!(end.status(), 0);
        assert!(back == data);
        worst = worst.max(from.elapsed());
    }
    worst
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_good_machines_are_served_beside_two_hundred_hostile_ones() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(Policy::accept(Chap::None, Exclusivity::ByInitiatorName), |_| {});
    // As in a room, the server's threads do no machine's work. In one runtime a few hundred machines that never rest leave its other tasks
    // waiting for minutes, whatever the server does. Each kind of hostile machine has a thread, and so have the good ones.
    let (elsewhere, beside) = (DEEDS.map(|_| runtime()), runtime());
    let mut hostile = Vec::new();
    let (over, done) =
        (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; DEEDS.len()]));
    for n in 0..HOSTILE {
        let iqn = machine(&rig, dir.path(), &format!("hostile-{n}")).await;
        let (over, done) = (Arc::clone(&over), Arc::clone(&done));
        let (kind, deed) = (n % DEEDS.len(), DEEDS[n % DEEDS.len()]);
        let account = Account { target: Some(iqn), ..rig.account() }.say(deed.keys);
        hostile.push(elsewhere[kind].spawn(async move {
            let mut round = 0;
            let mut session = None;
            while !over.load(Relaxed) {
                if session.is_none() {
                    session = Connection::login(&account).await.ok();
                    round = 0;
                }
                let Some(i) = &mut session else { continue };
                // One that is not heard any more waits; it is the server's to close it or not.
                match tokio::time::timeout(Duration::from_secs(2), (deed.act)(i, round)).await {
                    Ok(Ok(())) => done[kind].fetch_add(1, Relaxed),
                    Ok(Err(_)) => {
                        session = None;
                        continue;
                    }
                    Err(_) => 0,
                };
                round += 1;
            }
        }));
    }
    let watch = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let mut most = 0;
            while !over.load(Relaxed) {
                most = most.max(anonymous());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            most
        }
    });
    // The hostile ones are in full swing when the good ones come.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (count, from) = (rounds(20, 200), Instant::now());
    let mut machines = Vec::new();
    for n in 0..GOOD {
        let iqn = machine(&rig, dir.path(), &format!("good-{n}")).await;
        let account = Account { target: Some(iqn), ..rig.account() };
        machines.push(beside.spawn(good(account, count)));
    }
    let mut worst = Duration::ZERO;
    for m in machines {
        worst = worst.max(m.await.unwrap());
    }
    let (took, leased) = (from.elapsed(), rig.server.occupancy().leased);
    over.store(true, Relaxed);
    let most = watch.await.unwrap();
    for h in hostile {
        h.await.unwrap();
    }
    let rate = (GOOD * count) as f64 / took.as_secs_f64();
    println!(
        "{GOOD} good machines: {rate:.0} writes and reads of 64 KiB a second, the slowest pair {worst:.1?}"
    );
    println!("anonymous memory at most {} MiB, {} MiB of it leased at the end", most >> 20, leased >> 20);
    for (deed, n) in DEEDS.iter().zip(done.iter()) {
        let n = n.load(Relaxed);
        println!("  {n:>7} rounds of {}", deed.name);
        assert!(n > 0, "nobody did {}", deed.name);
    }
    assert!(most < CEILING, "{} MiB of anonymous memory", most >> 20);
    elsewhere.into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    beside.shutdown_background();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

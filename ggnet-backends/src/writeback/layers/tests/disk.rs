//! The device compared with a plain array, through chains, and with many threads; on real files.

use std::{
    io,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
};

use ggnet_core::block::BlockRun;
use proptest::prelude::*;

use super::*;
use crate::layers::device::Device;

fn open(room: &Room, name: &str, frozen: &[PathBuf]) -> Arc<Device> {
    room.layer_folder("boot").ensure(&id(name), &over(&OsFiles, &room.base, frozen).unwrap()).unwrap()
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, u8),
    TryWrite(u64, u64, u8),
    Discard(u64, u64),
    Read(u64, u64),
    TryRead(u64, u64),
    Flush,
    Reopen,
    /// Turns the current content into a frozen layer below a new, empty one.
    Freeze,
}

/// An odd number of sectors: the last block is a partial one.
const SECTORS: u64 = 600 * 8 + 3;

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SECTORS, prop_oneof![8 => 0..40_u64, 1 => 0..SECTORS], any::<bool>()).prop_map(
        |(from, len, whole)| {
            let from = if whole { from & !7 } else { from };
            (from, len.min(SECTORS - from))
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((from, len), v)| Op::Write(from, len, v)),
        4 => (range(), any::<u8>()).prop_map(|((from, len), v)| Op::TryWrite(from, len, v)),
        4 => range().prop_map(|(from, len)| Op::Discard(from, len)),
        4 => range().prop_map(|(from, len)| Op::Read(from, len)),
        4 => range().prop_map(|(from, len)| Op::TryRead(from, len)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::Freeze),
    ]
}

fn bytes(v: u8, len: u64) -> Vec<u8> {
    (0..len).map(|i| [v.wrapping_add(i.to_le_bytes()[0]); 512]).collect::<Vec<_>>().concat()
}

fn span(from: u64, len: u64) -> std::ops::Range<usize> {
    usize::try_from(from * 512).unwrap()..usize::try_from((from + len) * 512).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_disk_is_an_array_of_bytes(ops in prop::collection::vec(op(), 1..50)) {
        let mut model = numbered(SECTORS, 9);
        let room = Room::new(&model);
        let mut frozen = Vec::new();
        let mut device = open(&room, "l0", &frozen);
        for op in ops {
            match op {
                Op::Write(from, len, v) => {
                    device.write_at(&bytes(v, len), from * 512).unwrap();
                    model[span(from, len)].copy_from_slice(&bytes(v, len));
                }
                Op::TryWrite(from, len, v) => {
                    if device.try_write_at(&bytes(v, len), from * 512).unwrap() {
                        model[span(from, len)].copy_from_slice(&bytes(v, len));
                    }
                }
                Op::Discard(from, len) => {
                    device.discard(from * 512, len * 512).unwrap();
                    model[span(from, len)].fill(0);
                }
                Op::Read(from, len) => {
                    prop_assert_eq!(&read(&*device, from * 512, span(from, len).len())[..], &model[span(from, len)]);
                }
                Op::TryRead(from, len) => {
                    let mut buf = vec![0xEE; span(from, len).len()];
                    if device.try_read_at(&mut buf, from * 512).unwrap() {
                        prop_assert_eq!(&buf[..], &model[span(from, len)]);
                    }
                }
                Op::Flush => device.flush().unwrap(),
                Op::Reopen => {
                    drop(device);
                    device = open(&room, &format!("l{}", frozen.len()), &frozen);
                }
                Op::Freeze => {
                    drop(device);
                    let still = room.layer_folder("boot").freeze(&id(&format!("l{}", frozen.len()))).unwrap();
                    frozen.insert(0, still.home);
                    device = open(&room, &format!("l{}", frozen.len()), &frozen);
                }
            }
        }
        prop_assert_eq!(read(&*device, 0, model.len()), model.clone());
        // Ranges that block_status reports as unmapped read as zeros, and the ranges cover the whole disk.
        let runs = device.block_status(0, SECTORS * 512, usize::MAX).unwrap();
        let mut at = 0;
        for run in runs {
            let end = at + usize::try_from(run.len).unwrap();
            prop_assert!(run.mapped || model[at..end].iter().all(|b| *b == 0));
            at = end;
        }
        prop_assert_eq!(at, model.len());
        prop_assert_eq!(std::fs::read(room.base_file()).unwrap(), numbered(SECTORS, 9));
    }
}

#[test]
fn what_is_in_memory_is_read_and_written_without_a_wait() {
    let room = Room::new(&numbered(64, 1));
    let device = open(&room, "a", &[]);
    let mut buf = [0; 8192];
    device.read_at(&mut buf, 0).unwrap();
    assert!(device.try_read_at(&mut buf, 0).unwrap(), "the base is in the page cache now");
    assert!(device.try_write_at(&[1; 512], 512).unwrap(), "a first write, its block's rest in the cache");
    assert!(device.try_write_at(&[2; 512], 1024).unwrap(), "a rewrite of part of a block");
    device.discard(0, 4096).unwrap();
    assert!(device.try_write_at(&[3; 512], 512).unwrap(), "over zeros");
    assert!(device.try_read_at(&mut buf, 0).unwrap());
    assert_eq!(buf[..1536], [vec![0; 512], vec![3; 512], vec![0; 512]].concat());
    assert_eq!(buf[4096..], numbered(64, 1)[4096..8192]);
}

#[test]
fn a_range_outside_the_disk_or_across_a_sector_is_refused_and_nothing_happens() {
    let room = Room::new(&numbered(64, 1));
    let device = open(&room, "a", &[]);
    for (offset, len) in
        [(0, 511), (1, 512), (64 * 512, 512), (63 * 512, 1024), (u64::MAX - 511, 512), (u64::MAX, 1)]
    {
        let mut buf = vec![7; usize::try_from(len).unwrap()];
        let refused = |r: io::Result<()>| assert_eq!(r.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        refused(device.read_at(&mut buf, offset));
        refused(device.write_at(&buf, offset));
        refused(device.try_write_at(&buf, offset).map(|_| ()));
        refused(device.discard(offset, len));
        refused(device.block_status(offset, len, 9).map(|_| ()));
    }
    assert_eq!(read(&*device, 0, 64 * 512), numbered(64, 1));
}

#[test]
fn a_chain_is_read_from_the_top() {
    let room = Room::new(&numbered(64, 1));
    let lower = open(&room, "lower", &[]);
    lower.write_at(&[1; 4096], 0).unwrap();
    lower.write_at(&[1; 4096], 4096).unwrap();
    lower.discard(8192, 4096).unwrap();
    lower.flush().unwrap();
    drop(lower);
    let middle = open(&room, "middle", &[room.home("lower")]);
    middle.discard(0, 4096).unwrap();
    middle.write_at(&[2; 4096], 8192).unwrap();
    middle.flush().unwrap();
    drop(middle);
    let top = open(&room, "top", &[room.home("middle"), room.home("lower")]);
    let expected = |top: [u8; 512]| {
        let mut all = numbered(64, 1);
        all[..4096].fill(0);
        all[4096..8192].fill(1);
        all[8192..12288].fill(2);
        all[4608..5120].copy_from_slice(&top);
        all
    };
    assert_eq!(read(&*top, 0, 64 * 512), expected([1; 512]));
    top.write_at(&[3; 512], 4608).unwrap();
    assert_eq!(read(&*top, 0, 64 * 512), expected([3; 512]));
    let runs = top.block_status(0, 16384, 9).unwrap();
    assert_eq!(runs[0], BlockRun { len: 4096, mapped: false });
    // A layer of another size does not belong to this chain.
    let other = Room::new(&numbered(32, 1));
    open(&other, "x", &[]).flush().unwrap();
    let refused = over(&OsFiles, &room.base, &[other.home("x")]);
    assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_frozen_layer_takes_no_writes_and_is_read_without_a_wait() {
    let room = Room::new(&numbered(64, 1));
    let lower = open(&room, "lower", &[]);
    lower.write_at(&[1; 4096], 4096).unwrap();
    lower.flush().unwrap();
    drop(lower);
    let version = blocks(over(&OsFiles, &room.base, &[room.home("lower")]).unwrap().disk);
    assert!(version.info().read_only && !version.info().discard);
    assert_eq!(version.write_at(&[0; 512], 0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(version.discard(0, 512).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    let mut expected = numbered(64, 1);
    expected[4096..8192].fill(1);
    assert_eq!(read(&*version, 0, 64 * 512), expected);
    let mut buf = vec![0xEE; 64 * 512];
    assert!(version.try_read_at(&mut buf, 0).unwrap(), "it is in the page cache now");
    assert_eq!(buf, expected);
    for (offset, len) in [(0, 511), (1, 512), (64 * 512, 512), (u64::MAX - 511, 512)] {
        let e = version.read_at(&mut vec![0; len], offset).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput, "{len} at {offset}");
    }
}

/// Many threads, each with its own sectors inside blocks that they all share, so that first writes, rewrites and discards of one block
/// collide: in any order, no thread loses what it wrote.
#[test]
fn neighbours_in_a_block_do_not_lose_each_others_writes() {
    const THREADS: u64 = 8;
    const BLOCKS: u64 = 1200;
    let room = Room::new(&numbered(BLOCKS * 8, 1));
    let device = open(&room, "a", &[]);
    let start = Barrier::new(usize::try_from(THREADS).unwrap() + 1);
    let left = AtomicU64::new(THREADS);
    std::thread::scope(|s| {
        for thread in 0..THREADS {
            let (device, start, left) = (&device, &start, &left);
            s.spawn(move || {
                start.wait();
                for pass in 0..3_u8 {
                    for block in 0..BLOCKS {
                        let offset = block * 4096 + thread * 512;
                        let mine = [u8::try_from(thread).unwrap() * 16 + pass + 1; 512];
                        if pass == 1 && (block + thread) % 3 == 0 {
                            device.discard(offset, 512).unwrap();
                            assert_eq!(read(&**device, offset, 512), [0; 512]);
                        }
                        if !device.try_write_at(&mine, offset).unwrap() {
                            device.write_at(&mine, offset).unwrap();
                        }
                        assert_eq!(read(&**device, offset, 512), mine, "thread {thread}, block {block}");
                    }
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        s.spawn(|| {
            start.wait();
            while left.load(Ordering::SeqCst) > 0 {
                device.flush().unwrap();
            }
        });
    });
    let check = |device: &Device| {
        for block in 0..BLOCKS {
            let bytes = read(device, block * 4096, 4096);
            for (thread, sector) in bytes.chunks(512).enumerate() {
                assert_eq!(sector, [u8::try_from(thread).unwrap() * 16 + 3; 512], "block {block}");
            }
        }
    };
    check(&device);
    device.flush().unwrap();
    drop(device);
    check(&open(&room, "a", &[]));
    check(&room.layer_folder("another boot").ensure(&id("a"), &room.base).unwrap());
}

/// Whole-block writes and discards of the same blocks from many threads: the final content of each block is one of them as a whole, in
/// memory, after a kill, and after a flush and a power cut.
#[test]
fn writes_and_discards_of_one_block_leave_one_of_them() {
    const BLOCKS: u64 = 64;
    let room = Room::new(&numbered(BLOCKS * 8, 1));
    let device = open(&room, "a", &[]);
    let start = Barrier::new(4);
    std::thread::scope(|s| {
        for thread in 0..4_u8 {
            let (device, start) = (&device, &start);
            s.spawn(move || {
                start.wait();
                for pass in 0..50_u64 {
                    for block in 0..BLOCKS {
                        if (pass + u64::from(thread)) % 4 == 0 {
                            device.discard(block * 4096, 4096).unwrap();
                        } else {
                            device.write_at(&[thread + 1; 4096], block * 4096).unwrap();
                        }
                    }
                }
            });
        }
    });
    device.flush().unwrap();
    let all = read(&*device, 0, usize::try_from(BLOCKS * 4096).unwrap());
    for block in all.chunks(4096) {
        assert!(block[0] <= 4 && block.iter().all(|b| *b == block[0]), "{block:?}");
    }
    drop(device);
    assert_eq!(read(&*open(&room, "a", &[]), 0, all.len()), all);
    let device = room.layer_folder("another boot").ensure(&id("a"), &room.base).unwrap();
    assert_eq!(read(&*device, 0, all.len()), all);
}

//! What a disk may do under its sessions beside serving them: ask for another try, and grow. On the wire.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;

use std::sync::atomic::Ordering::SeqCst;

use ggnet_iscsi::initiator::{Account, Connection, Pdu, cdb};
use ggnet_iscsi::{Chap, Exclusivity, Removal, RemoveError, TargetConfig};
use iscsi_support::{IQN, MemDisk, Policy, Rig, Say as _, lun, pattern};

const MIB: usize = 1 << 20;
const BUSY: u8 = 0x08;

async fn login(rig: &Rig) -> Connection {
    Connection::login(&rig.account()).await.unwrap()
}

/// A SCSI command; `wants` is how much it reads.
struct Command {
    name: &'static str,
    cdb: Vec<u8>,
    wants: usize,
    data: Vec<u8>,
}

impl Command {
    fn new(name: &'static str, cdb: &[u8], wants: usize, data: &[u8]) -> Self {
        Self { name, cdb: cdb.to_vec(), wants, data: data.to_vec() }
    }

    async fn send(&self, i: &mut Connection) -> (Vec<u8>, Pdu) {
        let flags = match (self.wants, self.data.len()) {
            (0, 0) => 0x81,
            (0, _) => 0xa1,
            _ => 0xc1,
        };
        let expected = u32::try_from(self.wants.max(self.data.len())).unwrap();
        i.command(flags, &self.cdb, expected, &self.data).await.unwrap();
        i.collect().await.unwrap()
    }
}

/// The ten bytes of a block command.
fn ten(op: u8, flags: u8, lba: u32, count: u16) -> Vec<u8> {
    cdb::ten(op, flags, lba, count).to_vec()
}

/// The sixteen.
fn sixteen(op: u8, flags: u8, lba: u64, count: u32) -> Vec<u8> {
    cdb::sixteen(op, flags, lba, count).to_vec()
}

/// EXTENDED COPY of blocks within LUN 0, in segments of (from, to, blocks).
fn copy(name: &'static str, segments: &[(u64, u64, u16)]) -> Command {
    let len = u8::try_from(28 * segments.len()).unwrap();
    let mut list = vec![0, 0x10, 0, 32, 0, 0, 0, 0, 0, 0, 0, len, 0, 0, 0, 0];
    // By the NAA designator of page 83; LUN 0 has the number 1.
    let naa = 0x3000_0000_0000_0001_u64.to_be_bytes();
    list.extend([&[0xe4, 0, 0, 0, 1, 3, 0, 8][..], &naa, &[0; 16]].concat());
    for (from, to, blocks) in segments {
        list.extend([2, 0, 0, 24, 0, 0, 0, 0, 0, 0]);
        list.extend(blocks.to_be_bytes());
        list.extend(from.to_be_bytes());
        list.extend(to.to_be_bytes());
    }
    let mut cdb = vec![0x83, 0];
    cdb.extend([0; 8]);
    cdb.extend(u32::try_from(list.len()).unwrap().to_be_bytes());
    cdb.extend([0; 2]);
    Command::new(name, &cdb, 0, &list)
}

/// Everything that touches the medium, over a disk of `image`.
fn commands(image: &[u8]) -> Vec<Command> {
    let new = pattern(8192, 77);
    let unmap = |at: u8, blocks: u8| [0, 0, 0, 0, 0, 0, 0, at, 0, 0, 0, blocks, 0, 0, 0, 0];
    let list = [&[0, 38, 0, 32, 0, 0, 0, 0][..], &unmap(8, 8), &unmap(64, 16)].concat();
    let mut compare = sixteen(0x89, 0x08, 3, 0);
    compare[13] = 2;
    let compared = [&image[3 * 512..5 * 512], &new[..1024]].concat();
    vec![
        Command::new("READ", &ten(0x28, 0, 5, 64), 64 * 512, &[]),
        Command::new("READ of many steps", &ten(0x28, 0, 0, 4096), 4096 * 512, &[]),
        Command::new("WRITE", &ten(0x2a, 0, 5, 16), 0, &new),
        Command::new("WRITE with FUA", &ten(0x2a, 0x08, 5, 16), 0, &new),
        Command::new("WRITE AND VERIFY", &ten(0x2e, 0, 5, 16), 0, &new),
        Command::new("SYNCHRONIZE CACHE", &ten(0x35, 0, 0, 0), 0, &[]),
        Command::new("VERIFY", &ten(0x2f, 0x02, 16, 16), 0, &image[16 * 512..32 * 512]),
        Command::new("UNMAP", &ten(0x42, 0, 0, 40), 0, &list),
        Command::new("WRITE SAME", &ten(0x41, 0, 8, 5000), 0, &new[..512]),
        Command::new("WRITE SAME that unmaps", &sixteen(0x93, 0x09, 8, 5000), 0, &[]),
        Command::new("COMPARE AND WRITE", &compare, 0, &compared),
        Command::new("ORWRITE", &sixteen(0x8b, 0x08, 9, 16), 0, &new),
        Command::new("GET LBA STATUS", &sixteen(0x9e, 0x12, 0, 64), 64, &[]),
        copy("EXTENDED COPY", &[(0, 8192, 4000), (100, 12_288, 8)]),
        copy("EXTENDED COPY twice to one place", &[(0, 8192, 16), (32, 8192, 16)]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_disk_is_busy_at_each_step_of_each_command_and_the_command_can_be_sent_again() {
    let image = pattern(8 * MIB, 1);
    for decline in [false, true] {
        let disk = MemDisk::new(8 * MIB, 512);
        disk.decline.store(decline, SeqCst);
        let rig = Rig::open(disk.clone());
        // As large as a device call may be.
        let keys = [("MaxRecvDataSegmentLength", "262144")];
        let mut i = Connection::login(&rig.account().say(&keys)).await.unwrap();
        let reset = || disk.data.write().unwrap().copy_from_slice(&image);
        for command in commands(&image) {
            let name = command.name;
            reset();
            let (wanted, end) = command.send(&mut i).await;
            assert_eq!(end.status(), 0, "{name}: {:02x?}", end.data);
            let wanted = (wanted, disk.data.read().unwrap().clone());
            let mut steps = 0;
            loop {
                reset();
                disk.be_busy(steps, 1);
                let (_, end) = command.send(&mut i).await;
                if disk.is_busy() {
                    assert_eq!(end.status(), 0, "{name} has {steps} steps");
                    disk.be_busy(0, 0);
                    break;
                }
                assert_eq!((end.status(), end.data.len()), (BUSY, 0), "{name}, step {steps}");
                let (data, end) = command.send(&mut i).await;
                assert_eq!(end.status(), 0, "{name} again after step {steps}: {:02x?}", end.data);
                assert!((data, disk.data.read().unwrap().clone()) == wanted, "{name} after step {steps}");
                steps += 1;
            }
            assert!(steps > 0, "{name} does not touch the medium");
        }
        // An error of the medium is none that passes.
        disk.broken.store(true, SeqCst);
        let (_, end) = i.read(0, 1, 512).await;
        assert_eq!((end.status(), end.sense()), (2, (3, 0x11, 0)));
        assert_eq!(rig.server.sessions().len(), 1, "and the session goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_sent_again_is_not_busy() {
    let disk = MemDisk::new(8 * MIB, 512);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    let image = pattern(8 * MIB, 1);
    let overlapping = [
        // Onto itself, two steps of a read and a write each.
        copy("forwards", &[(2048, 0, 4096)]),
        copy("backwards", &[(0, 2048, 4096)]),
        // The second segment overwrites what the first has read.
        copy("by another segment", &[(0, 8192, 2048), (4096, 0, 2048)]),
    ];
    for command in overlapping {
        let mut statuses = Vec::new();
        for step in 0..4 {
            disk.data.write().unwrap().copy_from_slice(&image);
            disk.be_busy(step, 1);
            let (_, end) = command.send(&mut i).await;
            if end.status() == 2 {
                assert_eq!(end.sense(), (0xa, 0, 0), "copy aborted");
            }
            statuses.push(end.status());
        }
        assert_eq!(statuses, [BUSY, 2, 2, 2], "{}: busy before the first write only", command.name);
    }
    // COMPARE AND WRITE puts back what it compared with, and says so when it cannot.
    disk.data.write().unwrap().copy_from_slice(&image);
    let command = commands(&image).into_iter().find(|c| c.name == "COMPARE AND WRITE").unwrap();
    disk.be_busy(2, 2);
    let (_, end) = command.send(&mut i).await;
    assert_eq!((end.status(), end.sense()), (2, (3, 0x0c, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_flush_of_a_target_is_tried_again_while_the_disk_is_busy() {
    let disk = MemDisk::new(MIB, 512);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    assert_eq!(i.write(0, false, &[7; 512]).await.status(), 0);
    disk.be_busy(0, 3);
    rig.server.remove_target(IQN, Removal::Force).await.unwrap();
    assert_eq!(disk.flushes.load(SeqCst), 1);

    rig.add(IQN, disk.clone());
    disk.be_busy(0, u32::MAX);
    let left = rig.server.remove_target(IQN, Removal::Force).await;
    assert!(matches!(left, Err(RemoveError::Flush { lun: 0, .. })), "but not for ever: {left:?}");
}

/// READ CAPACITY(16); the last block, or the sense.
async fn last_block(i: &mut Connection) -> Result<u64, (u8, u8, u8)> {
    i.command(0xc1, &sixteen(0x9e, 0x10, 0, 32), 32, &[]).await.unwrap();
    let (data, end) = i.collect().await.unwrap();
    if end.status() == 0 { Ok(u64::from_be_bytes(data[..8].try_into().unwrap())) } else { Err(end.sense()) }
}

/// TEST UNIT READY to this unit: its status.
async fn ready(i: &mut Connection, lun: u8) -> Pdu {
    let bhs = i.numbers.command(lun, 0x81, &cdb::TEST_UNIT_READY, 0);
    i.send(bhs, &[]).await.unwrap();
    i.receive().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_is_said_once_to_each_session_that_saw_the_old_size() {
    const CHANGED: (u8, u8, u8) = (6, 0x2a, 0x09);
    let rig = Rig::new(Policy::accept(Chap::None, Exclusivity::Shared));
    let (disk, other) = (MemDisk::new(MIB, 512), MemDisk::new(MIB, 512));
    let luns = vec![lun(0, disk.clone()), lun(1, other)];
    rig.server.add_target(TargetConfig { iqn: IQN.into(), luns }).unwrap();
    let mut i = login(&rig).await;
    let second = Account { isid: [0x80, 2, 2, 2, 2, 2], ..rig.account() };
    let mut j = Connection::login(&second).await.unwrap();
    assert_eq!(last_block(&mut i).await, Ok(2047));
    let (_, end) = i.read(2048, 1, 512).await;
    assert_eq!(end.sense(), (5, 0x21, 0), "beyond the end");

    disk.data.write().unwrap().resize(3 * MIB, 5);
    // INQUIRY is answered whatever is pending, and takes nothing away.
    i.command(0xc1, &[0x12, 0, 0, 0, 36, 0], 36, &[]).await.unwrap();
    assert_eq!(i.collect().await.unwrap().1.status(), 0);
    // Whoever logs in now has never seen another size.
    let third = Account { isid: [0x80, 3, 3, 3, 3, 3], ..rig.account() };
    let mut k = Connection::login(&third).await.unwrap();
    assert_eq!(ready(&mut k, 0).await.status(), 0);
    for who in [&mut i, &mut j] {
        assert_eq!(ready(who, 1).await.status(), 0, "the other unit has not grown");
        assert_eq!(ready(who, 0).await.sense(), CHANGED);
        assert_eq!(ready(who, 0).await.status(), 0);
    }
    for who in [&mut i, &mut j, &mut k] {
        assert_eq!(last_block(who).await, Ok(6143));
        let (data, end) = who.read(6143, 1, 512).await;
        assert_eq!((data, end.status()), (vec![5; 512], 0));
        let (_, end) = who.read(6144, 1, 512).await;
        assert_eq!(end.sense(), (5, 0x21, 0));
    }
    // READ CAPACITY(10) has it, too; here the command itself finds out.
    disk.data.write().unwrap().resize(4 * MIB, 0);
    assert_eq!(last_block(&mut i).await, Err(CHANGED));
    i.command(0xc1, &ten(0x25, 0, 0, 0), 8, &[]).await.unwrap();
    assert_eq!(i.collect().await.unwrap().0, [0, 0, 0x1f, 0xff, 0, 0, 2, 0]);
}

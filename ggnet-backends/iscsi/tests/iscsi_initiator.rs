//! The initiator against the target, in one process: proofs both ways, data in every form, many commands in flight, a session that is
//! had again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use ggnet_iscsi::initiator::{Account, Error, Initiator, Transfer, cdb};
use ggnet_iscsi::{Chap, ChapPair, Exclusivity, Removal, Secret};
use iscsi_support::{IQN, MemDisk, Policy, Rig, pattern, until};

const MIB: usize = 1 << 20;

fn pair(user: &str, secret: &str) -> ChapPair {
    ChapPair { user: user.into(), secret: Secret::new(secret) }
}

/// As everybody would log in.
fn account(rig: &Rig) -> Account {
    Account::new(rig.address, IQN, "iqn.2024-01.org.example:pc")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_prove_themselves_and_who_cannot_is_left() {
    let (ours, theirs) = (pair("pc", "abcdefgh12345678"), pair("disk", "87654321hgfedcba"));
    let need = Chap::Mutual { initiator: ours.clone(), target: theirs.clone() };
    let rig = Rig::new(Policy::accept(need, Exclusivity::Shared));
    rig.add(IQN, MemDisk::new(MIB, 512));
    for mutual in [None, Some(theirs)] {
        let account = Account { chap: Some(ours.clone()), mutual, ..account(&rig) };
        let mut disk = Initiator::login(account).await.unwrap();
        assert_eq!(disk.read(0, 1).await.unwrap(), [0; 512]);
        disk.logout().await.unwrap();
    }
    let wrong = Account { chap: Some(pair("pc", "12345678abcdefgh")), ..account(&rig) };
    assert_eq!(Initiator::login(wrong).await.unwrap_err().status(), Some((2, 1)));
    assert_eq!(Initiator::login(account(&rig)).await.unwrap_err().status(), Some((2, 1)));
    let another = Some(pair("disk", "a secret of another target"));
    let mutual = Account { chap: Some(ours), mutual: another, ..account(&rig) };
    assert!(matches!(Initiator::login(mutual).await, Err(Error::Unproved)));
    assert_eq!(rig.events.names().iter().filter(|name| *name == "login").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_however_the_data_goes() {
    // Immediate, unsolicited and by R2T, in every mixture, with digests and without, in segments that end inside of blocks.
    for (r2t, immediate) in [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")] {
        for digest in ["None", "CRC32C"] {
            let disk = MemDisk::new(8 * MIB, 512);
            let rig = Rig::open(disk.clone());
            let keys = [
                ("HeaderDigest", digest),
                ("DataDigest", digest),
                ("InitialR2T", r2t),
                ("ImmediateData", immediate),
                ("MaxRecvDataSegmentLength", "5000"),
                ("MaxBurstLength", "100000"),
                ("FirstBurstLength", "20000"),
            ];
            let mut initiator = Initiator::login(account(&rig).say(&keys)).await.unwrap();
            let terms = initiator.connection().terms().clone();
            assert_eq!((terms.initial_r2t, terms.immediate_data), (r2t == "Yes", immediate == "Yes"));
            assert_eq!((terms.digests.header, terms.digests.data), (digest == "CRC32C", digest == "CRC32C"));
            for (lba, len) in [(0, 512), (8, 16_384), (100, 20_480), (300, MIB), (4000, 4 * MIB)] {
                let data = pattern(len, lba + 1);
                initiator.write(lba, &data).await.unwrap();
                let at = usize::try_from(lba).unwrap() * 512;
                assert!(disk.data.read().unwrap()[at..at + len] == data);
                let blocks = u32::try_from(len / 512).unwrap();
                assert!(initiator.read(lba, blocks).await.unwrap() == data, "{len} bytes at {lba}");
            }
            initiator.flush().await.unwrap();
            assert_eq!(disk.flushes.load(SeqCst), 1);
            initiator.unmap(300, 2048).await.unwrap();
            assert!(initiator.read(300, 2048).await.unwrap().iter().all(|byte| *byte == 0));
            // A raw CDB, and what the unit does not do.
            let inquiry = initiator.execute(&[0x12, 0, 0, 0, 36, 0], Transfer::In(36)).await.unwrap();
            assert_eq!(&inquiry[8..13], b"GGnet");
            let refused = initiator.execute(&[0xff; 6], Transfer::None).await.unwrap_err();
            assert!(matches!(refused, Error::Scsi { status: 2, ref sense } if sense[2] == 5), "{refused}");
            initiator.logout().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_as_long_as_the_unit_says_and_addresses_as_high() {
    let disk = MemDisk::new(8 * MIB, 4096);
    let rig = Rig::open(disk.clone());
    let mut initiator = Initiator::login(account(&rig)).await.unwrap();
    assert_eq!(initiator.block().await.unwrap(), 4096);
    initiator.write(2, &[7; 8192]).await.unwrap();
    assert_eq!(disk.data.read().unwrap()[8192..16384], [7; 8192]);
    assert_eq!(initiator.read(3, 1).await.unwrap(), [7; 4096]);
    assert!(matches!(initiator.write(0, &[7; 512]).await, Err(Error::Invalid(_))));
    // Beyond what ten bytes can say: the unit refuses the address, and knew the command.
    let beyond = initiator.read(1 << 33, 1).await.unwrap_err();
    assert!(matches!(beyond, Error::Scsi { status: 2, ref sense } if sense[12] == 0x21), "{beyond}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_in_flight_end_in_any_order_within_the_window() {
    let rig = Rig::with(Policy::accept(Chap::None, Exclusivity::Shared), |c| c.limits.queue_depth = 8);
    let disk = MemDisk::new(8 * MIB, 512);
    disk.decline.store(true, SeqCst);
    rig.add(IQN, disk.clone());
    let mut initiator = Initiator::login(account(&rig)).await.unwrap().with_depth(64);
    // Half of them write, half of them read: more than the window holds, so that `submit` waits.
    let mut open = HashMap::new();
    let mut ended = 0;
    let image = pattern(MIB, 9);
    disk.data.write().unwrap()[..MIB].copy_from_slice(&image);
    for n in 0..64_u8 {
        let lba = u64::from(n) * 16;
        let tag = if n % 2 == 0 {
            initiator.submit(&cdb::read(lba, 16), Transfer::In(8192)).await
        } else {
            initiator.submit(&cdb::write(lba + 4096, 16), Transfer::Out(&[n; 8192])).await
        };
        assert!(initiator.in_flight() <= 8, "{} in flight", initiator.in_flight());
        open.insert(tag.unwrap(), n);
    }
    while ended < 64 {
        let outcome = initiator.next_outcome().await.unwrap();
        let n = open.remove(&outcome.tag).unwrap();
        assert_eq!((outcome.status, outcome.sense.len()), (0, 0));
        let at = usize::from(n) * 8192;
        if n % 2 == 0 {
            assert!(outcome.data == image[at..at + 8192], "read {n}");
        } else {
            let at = at + 2 * MIB;
            assert_eq!(disk.data.read().unwrap()[at..at + 8192], [n; 8192], "write {n}");
        }
        ended += 1;
    }
    assert!(matches!(initiator.next_outcome().await, Err(Error::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_had_again_when_the_target_is() {
    let disk = MemDisk::new(MIB, 512);
    let rig = Rig::open(disk.clone());
    let mut patient = Initiator::login_within(account(&rig), Duration::from_secs(60)).await.unwrap();
    let other = Account { isid: [0x80, 2, 2, 2, 2, 2], ..account(&rig) };
    let mut other = Initiator::login(other).await.unwrap();
    patient.write(0, &[7; 512]).await.unwrap();
    rig.server.remove_target(IQN, Removal::Force).await.unwrap();
    assert!(other.read(0, 1).await.unwrap_err().is_lost());
    // While the target is away a login is put off, as it is by a server that starts.
    rig.policy.say(ggnet_iscsi::LoginDecision::NotReady);
    let again = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig.add(IQN, disk.clone());
        let exclusivity = Exclusivity::Shared;
        rig.policy.say(ggnet_iscsi::LoginDecision::Accept { chap: Chap::None, exclusivity });
    };
    let (read, ()) = tokio::join!(patient.read(0, 1), again);
    assert_eq!((read.unwrap(), patient.logins()), (vec![7; 512], 2));
    // Asked for, there is a new session at once.
    other.reconnect().await.unwrap();
    assert_eq!((other.read(0, 1).await.unwrap(), other.logins()), (vec![7; 512], 2));
    // What is refused for good is not tried again.
    rig.policy.say(ggnet_iscsi::LoginDecision::NotFound);
    rig.server.remove_target(IQN, Removal::Force).await.unwrap();
    assert_eq!(patient.read(0, 1).await.unwrap_err().status(), Some((2, 3)));
    until("no session is left", || rig.server.sessions().is_empty()).await;
}

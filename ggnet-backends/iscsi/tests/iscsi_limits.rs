//! What one session, or somebody who has proved nothing, can take from the iSCSI target: places, memory, workers, time.

#![allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use ggnet_iscsi::initiator::{Account, Connection, IMMEDIATE, Pdu, opcode};
use ggnet_iscsi::{Chap, ChapPair, Exclusivity, LoginDecision, Secret, ServerConfig, TargetConfig};
use iscsi_support::{IQN, MemDisk, Policy, Rig, Say as _, lun, pattern, until, write_cdb};

const MIB: usize = 1 << 20;
const ISID: [u8; 6] = [0x80, 0, 0, 0, 0, 1];
const READ_ONE: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn rig(change: impl FnOnce(&mut ServerConfig)) -> Rig {
    Rig::with(Policy::accept(Chap::None, Exclusivity::Shared), change)
}

async fn login(rig: &Rig) -> Connection {
    Connection::login(&rig.account()).await.unwrap()
}

/// Sends a SCSI command outside of the window; returns its task tag.
async fn immediate(i: &mut Connection, flags: u8, cdb: &[u8], expected: u32) -> u32 {
    let mut bhs = i.request(opcode::SCSI_COMMAND | IMMEDIATE, flags);
    bhs.set_word(20, expected);
    bhs.set(32, cdb);
    i.send(bhs, &[]).await.unwrap();
    i.numbers.itt
}

/// ABORT TASK of this task; returns the response.
async fn abort(i: &mut Connection, itt: u32) {
    let mut bhs = i.request(0x42, 0x81);
    bhs.set_word(20, itt);
    i.send(bhs, &[]).await.unwrap();
}

/// Places that the last answer left in the window.
fn window(answer: &Pdu) -> u32 {
    answer.word(32).wrapping_sub(answer.word(28)).wrapping_add(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn immediate_commands_past_their_limit_are_rejected_and_the_session_goes_on() {
    let rig = rig(|c| c.limits.immediate_commands = 16);
    rig.add(IQN, MemDisk::new(MIB, 512));
    let mut i = login(&rig).await;
    let (mut asked, mut rejected) = (Vec::new(), 0);
    for _ in 0..1000 {
        let itt = immediate(&mut i, 0xa1, &write_cdb(0, 8, false), 4096).await;
        let answer = i.receive().await.unwrap();
        match answer.opcode() {
            // It asks for the data, which never comes.
            0x31 => asked.push(itt),
            0x3f => {
                // RFC 7143 section 11.17.1: too many immediate commands.
                assert_eq!(answer.bhs.0[2], 6);
                rejected += 1;
            }
            other => panic!("opcode {other:#x}"),
        }
    }
    assert_eq!((asked.len(), rejected), (16, 984));
    let (_, end) = i.read(0, 1, 512).await;
    assert_eq!((end.status(), window(&end)), (0, 128), "the window is not theirs");
    abort(&mut i, asked[0]).await;
    assert_eq!(i.receive().await.unwrap().opcode(), 0x22);
    immediate(&mut i, 0xa1, &write_cdb(0, 8, false), 4096).await;
    assert_eq!(i.receive().await.unwrap().opcode(), 0x31, "a place is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_never_grows_past_its_depth() {
    let rig = rig(|c| c.limits.queue_depth = 4);
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    rig.add(IQN, disk.clone());
    let mut i = login(&rig).await;
    disk.hold(true);
    i.command(0xc1, &READ_ONE, 512, &[]).await.unwrap();
    let itt = immediate(&mut i, 0xc1, &READ_ONE, 512).await;
    until("both reads are in flight", || disk.waiting.load(SeqCst) == 2).await;
    abort(&mut i, itt).await;
    // The answer to a ping says that the abort was heard.
    let ping = i.request(0x40, 0x80);
    i.send(ping, b"ping").await.unwrap();
    assert_eq!(i.receive().await.unwrap().opcode(), 0x20);
    disk.hold(false);
    let mut windows = Vec::new();
    while windows.len() < 2 {
        let answer = i.receive().await.unwrap();
        if answer.opcode() != 0x25 || answer.bhs.0[1] & 1 != 0 {
            windows.push((answer.opcode(), window(&answer)));
        }
    }
    windows.sort_unstable();
    // The response of the abort, with or without the read's place; the read's own answer, which frees it.
    assert!(matches!(windows[..], [(0x22, 3 | 4), (0x25, 4)]), "{windows:x?}");
    let (_, end) = i.read(0, 1, 512).await;
    assert_eq!(window(&end), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_in_odd_pieces_reaches_the_disk_block_by_block() {
    for decline in [false, true] {
        let disk = MemDisk::new(MIB, 512);
        disk.decline.store(decline, SeqCst);
        let rig = Rig::open(disk.clone());
        let mut i = login(&rig).await;
        let new = pattern(64 << 10, 5);
        let itt = i.command(0xa1, &write_cdb(0, 128, false), 64 << 10, &[]).await.unwrap();
        let r2t = i.receive().await.unwrap();
        assert_eq!((r2t.opcode(), r2t.word(44)), (0x31, 64 << 10));
        let (mut at, mut sn) = (0, 0);
        // The first piece is odd; the last is held back.
        for len in [511, 1, 1023, 40_000, 4097] {
            i.data_out(itt, r2t.word(20), sn, at, false, &new[at as usize..][..len]).await.unwrap();
            at += u32::try_from(len).unwrap();
            sn += 1;
        }
        let whole = at as usize / 512 * 512;
        until("whole blocks are on the disk before the last piece has come", || {
            disk.data.read().unwrap()[..whole] == new[..whole]
        })
        .await;
        assert!(disk.data.read().unwrap()[whole..].iter().all(|b| *b == 0), "and nothing else is");
        i.data_out(itt, r2t.word(20), sn, at, true, &new[at as usize..]).await.unwrap();
        let end = i.receive().await.unwrap();
        assert_eq!((end.opcode(), end.status()), (0x21, 0));
        assert!(disk.data.read().unwrap()[..64 << 10] == new);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_ends_inside_a_block_keeps_the_rest_of_it() {
    let disk = MemDisk::new(MIB, 512);
    disk.data.write().unwrap().fill(9);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    // The command names two blocks, the initiator has 700 bytes.
    let itt = i.command(0xa1, &write_cdb(3, 2, false), 700, &[]).await.unwrap();
    let r2t = i.receive().await.unwrap();
    assert_eq!((r2t.opcode(), r2t.word(44)), (0x31, 700));
    i.data_out(itt, r2t.word(20), 0, 0, false, &[7; 300]).await.unwrap();
    i.data_out(itt, r2t.word(20), 1, 300, true, &[7; 400]).await.unwrap();
    let end = i.receive().await.unwrap();
    // 324 bytes were not transferred.
    assert_eq!((end.status(), end.bhs.0[1] & 6, end.word(44)), (0, 4, 324));
    let data = disk.data.read().unwrap();
    assert!(data[..1536].iter().chain(&data[1536 + 700..]).all(|b| *b == 9));
    assert!(data[1536..1536 + 700].iter().all(|b| *b == 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_a_full_queue_leaves_workers_to_the_others() {
    let rig = rig(|c| c.limits.blocking_jobs = 8);
    let (greedy, other) = (MemDisk::new(MIB, 512), MemDisk::new(MIB, 512));
    let device = |n, disk: &Arc<MemDisk>| lun(n, Arc::clone(disk) as _);
    for disk in [&greedy, &other] {
        disk.decline.store(true, SeqCst);
    }
    let luns = vec![device(0, &greedy)];
    rig.server.add_target(TargetConfig { iqn: IQN.into(), luns }).unwrap();
    let second = "iqn.2024-01.org.example:other";
    rig.server.add_target(TargetConfig { iqn: second.into(), luns: vec![device(0, &other)] }).unwrap();
    let mut i = login(&rig).await;
    let mut j = Connection::login(&Account { target: Some(second.into()), ..rig.account() }).await.unwrap();
    greedy.hold(true);
    for _ in 0..100 {
        i.command(0xc1, &READ_ONE, 512, &[]).await.unwrap();
    }
    until("a quarter of the workers waits for its disk", || greedy.waiting.load(SeqCst) == 2).await;
    for _ in 0..20 {
        assert_eq!(j.read(0, 1, 512).await.1.status(), 0);
    }
    assert_eq!(greedy.waiting.load(SeqCst), 2);
    greedy.hold(false);
    for _ in 0..100 {
        assert_eq!(i.collect().await.unwrap().1.status(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_a_session_that_is_gone_ends_between_two_steps() {
    let disk = MemDisk::new(16 * MIB, 512);
    disk.decline.store(true, SeqCst);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    disk.hold(true);
    // VERIFY(16) of the whole disk against one block of zeros, twice: the second waits for its turn.
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x8f, 6);
    cdb[10..14].copy_from_slice(&32_768_u32.to_be_bytes());
    for _ in 0..2 {
        i.command(0xa1, &cdb, 512, &[0; 512]).await.unwrap();
    }
    until("the first step waits for the disk", || disk.waiting.load(SeqCst) == 1).await;
    drop(i);
    // The target knows that it is gone; the session ends when its work does.
    tokio::time::sleep(Duration::from_millis(300)).await;
    disk.hold(false);
    until("the session has ended", || rig.server.sessions().is_empty()).await;
    assert_eq!(disk.reads.load(SeqCst), 1, "steps that nobody waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_wait_for_their_turn_at_a_clean_close_are_answered_with_their_data() {
    let rig = rig(|c| c.limits.blocking_jobs = 8);
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    rig.add(IQN, disk.clone());
    let mut i = login(&rig).await;
    disk.hold(true);
    for _ in 0..5 {
        i.command(0xc1, &READ_ONE, 512, &[]).await.unwrap();
    }
    until("two are in flight, and three wait", || disk.waiting.load(SeqCst) == 2).await;
    let server = rig.server.clone();
    let stop = tokio::spawn(async move { server.shutdown(Duration::from_secs(10)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    disk.hold(false);
    for _ in 0..5 {
        let (data, end) = i.collect().await.unwrap();
        assert_eq!((data.len(), end.status()), (512, 0));
    }
    assert!(stop.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_onto_its_own_source_moves_every_block() {
    for (from, to) in [(0, 1000), (1000, 0), (0, 6144), (0, 0)] {
        let blocks: u16 = 6144; // Three steps of a mebibyte.
        let disk = MemDisk::new(8 * MIB, 512);
        let image = pattern(8 * MIB, 6);
        disk.data.write().unwrap().copy_from_slice(&image);
        let rig = Rig::open(disk.clone());
        let mut i = login(&rig).await;
        // SPC-4 sections 6.3, 6.3.6.3 and 6.3.7.5: one target by its NAA designator, one segment from block to block.
        let mut list = vec![0; 16 + 32 + 28];
        list[3] = 32;
        list[11] = 28;
        list[16..24].copy_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 8]);
        list[24..32].copy_from_slice(&0x3000_0000_0000_0001_u64.to_be_bytes());
        list[48..52].copy_from_slice(&[2, 0, 0, 24]);
        list[58..60].copy_from_slice(&blocks.to_be_bytes());
        list[60..68].copy_from_slice(&u64::to_be_bytes(from));
        list[68..76].copy_from_slice(&u64::to_be_bytes(to));
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (0x83, 76);
        i.command(0xa1, &cdb, 76, &list).await.unwrap();
        let end = i.receive().await.unwrap();
        assert_eq!(end.status(), 0, "{:x?}", end.data);
        let place = |lba: u64| usize::try_from(lba).unwrap() * 512;
        let mut wanted = image;
        wanted.copy_within(place(from)..place(from) + usize::from(blocks) * 512, place(to));
        assert!(*disk.data.read().unwrap() == wanted, "from {from} to {to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_make_room_and_end() {
    let rig = rig(|c| {
        c.limits.max_waiting = 8;
        c.limits.proof_timeout = Duration::from_millis(500);
    });
    rig.add(IQN, MemDisk::new(MIB, 512));
    let mut session = login(&rig).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(Connection::connect(rig.address).await.unwrap());
    }
    // Whoever comes now is let in, and who was in before is served.
    let other = Account { isid: [0x80, 2, 2, 2, 2, 2], ..rig.account() };
    let mut late = Connection::login(&other).await.unwrap();
    assert_eq!(late.read(0, 1, 512).await.1.status(), 0);
    assert_eq!(session.read(0, 1, 512).await.1.status(), 0);
    for s in &mut silent {
        assert!(s.has_ended().await, "it has ended");
    }
    until("no place is taken by them", || rig.server.occupancy().waiting == 0).await;
    assert!(rig.server.occupancy().turned_away >= 92, "{:?}", rig.server.occupancy());
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_sessions_are_few_and_short() {
    let rig = rig(|c| {
        c.limits.max_open = 2;
        c.limits.discovery_timeout = Duration::from_millis(500);
    });
    let discovery = async || Connection::login(&Account { target: None, ..rig.account() }).await;
    let mut two = [discovery().await.unwrap(), discovery().await.unwrap()];
    // One more is put off, not turned away for good.
    assert_eq!(discovery().await.err().and_then(|e| e.status()), Some((3, 1)));
    for one in &mut two {
        assert!(one.has_ended().await, "its time is over");
    }
    assert!(discovery().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_longer_than_page_b0_says_is_refused() {
    let most = 1_u32 << 16;
    let rig = Rig::open(MemDisk::new(33 * MIB, 512));
    let mut i = login(&rig).await;
    let inquiry = [0x12, 1, 0xb0, 0, 255, 0];
    i.command(0xc1, &inquiry, 255, &[]).await.unwrap();
    let (page, _) = i.collect().await.unwrap();
    assert_eq!(page[8..12], most.to_be_bytes());
    for (opcode, flags) in [(0x88, 0xc1), (0xa8, 0xc1), (0x8a, 0xa1), (0xaa, 0xa1)] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        let field = if opcode & 0x20 == 0 { 10 } else { 6 };
        cdb[field..field + 4].copy_from_slice(&(most + 1).to_be_bytes());
        i.command(flags, &cdb, (most + 1) * 512, &[]).await.unwrap();
        let (_, end) = i.collect().await.unwrap();
        // Invalid field in CDB, and which.
        assert_eq!((end.status(), end.sense()), (2, (5, 0x24, 0)), "{opcode:#x}");
        assert_eq!(end.data[17..20], [0xc0, 0, u8::try_from(field).unwrap()], "{opcode:#x}");
        cdb[field..field + 4].copy_from_slice(&most.to_be_bytes());
        let itt = i.command(flags, &cdb, most * 512, &[]).await.unwrap();
        if flags & 0x40 != 0 {
            let (data, end) = i.collect().await.unwrap();
            assert_eq!((data.len(), end.status()), (32 * MIB, 0), "{opcode:#x}");
        } else {
            assert_eq!(i.receive().await.unwrap().opcode(), 0x31, "{opcode:#x}: it is asked for its data");
            abort(&mut i, itt).await;
            assert_eq!(i.receive().await.unwrap().opcode(), 0x22);
        }
    }
}

/// A READ(10) of 256 KiB; its answer is left where it is. Returns its task tag.
async fn ask(i: &mut Connection, at: u32) -> u32 {
    let mut cdb = [0x28, 0, 0, 0, 0, 0, 0, 2, 0, 0];
    cdb[2..6].copy_from_slice(&(at * 512).to_be_bytes());
    i.command(0xc1, &cdb, 256 << 10, &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initiator_that_takes_long_pdus_gets_no_longer_ones_than_a_step() {
    let disk = MemDisk::new(4 * MIB, 512);
    let rig = Rig::open(disk);
    let keys = [("MaxRecvDataSegmentLength", "16777215"), ("MaxBurstLength", "16777215")];
    let mut i = Connection::login(&rig.account().say(&keys)).await.unwrap();
    let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0x20, 0, 0];
    i.command(0xc1, &cdb, 4 << 20, &[]).await.unwrap();
    let mut lengths = Vec::new();
    while lengths.iter().sum::<usize>() < 4 * MIB {
        lengths.push(i.receive().await.unwrap().data.len());
    }
    assert_eq!(lengths, vec![256 << 10; 16]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_read_no_answers_hold_no_more_than_the_pool_and_all_get_their_data() {
    for (memory, decline) in [(0, false), (0, true), (4 * MIB, false), (4 * MIB, true)] {
        let rig = rig(|c| c.limits.memory = memory);
        let disk = MemDisk::new(16 * MIB, 512);
        disk.decline.store(decline, SeqCst);
        let content = pattern(16 * MIB, 3);
        disk.data.write().unwrap().copy_from_slice(&content);
        rig.add(IQN, disk);
        let mut all = Vec::new();
        for n in 0..8 {
            let isid = [0x80, 0, 0, 0, 0, n];
            all.push(Connection::login(&Account { isid, ..rig.account() }).await.unwrap());
        }
        let mut tags = Vec::new();
        for i in &mut all {
            for at in 0..64 {
                let tag = ask(i, at).await;
                tags.push((tag, usize::try_from(at).unwrap() * (256 << 10)));
            }
        }
        for i in &mut all {
            // Commands that wait for the disk end in any order.
            let mut left: HashMap<_, _> = tags.iter().copied().take(64).collect();
            while !left.is_empty() {
                let (data, end) = i.collect().await.unwrap();
                let at = left.remove(&end.word(16)).unwrap();
                assert_eq!(end.status(), 0);
                assert!(data == content[at..][..256 << 10], "memory {memory}, {decline}: {at}");
                assert!(rig.server.occupancy().leased <= memory);
            }
        }
        drop(all);
        until("all is given back", || rig.server.occupancy().leased == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collected_data_that_finds_no_memory_is_put_off_and_a_short_list_never() {
    let rig = rig(|c| c.limits.memory = 0);
    rig.add(IQN, MemDisk::new(8 * MIB, 512));
    let mut i = login(&rig).await;
    // ORWRITE(16) of a mebibyte.
    let mut cdb = [0; 16];
    cdb[0] = 0x8b;
    cdb[10..14].copy_from_slice(&2048_u32.to_be_bytes());
    i.command(0xa1, &cdb, 1 << 20, &[]).await.unwrap();
    let end = i.receive().await.unwrap();
    assert_eq!((end.opcode(), end.status()), (0x21, 0x28), "TASK SET FULL");
    // UNMAP of one block.
    let mut list = [0; 24];
    (list[1], list[3], list[19]) = (22, 16, 1);
    let mut cdb = [0; 10];
    (cdb[0], cdb[8]) = (0x42, 24);
    i.command(0xa1, &cdb, 24, &list).await.unwrap();
    assert_eq!(i.receive().await.unwrap().status(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_reset_each_other_and_close_at_once_all_end() {
    for round in 0..200 {
        let rig = rig(|_| {});
        rig.add(IQN, MemDisk::new(MIB, 512));
        let mut both = Vec::new();
        for n in 0..2 {
            let isid = [0x80, 0, 0, 0, 0, n];
            both.push(Connection::login(&Account { isid, ..rig.account() }).await.unwrap());
        }
        // LUN RESET, and a cold reset, which closes everybody, right behind it.
        let resets = both.iter_mut().map(|i| async {
            let (first, second) = (i.request(0x42, 0x85), i.request(0x42, 0x87));
            i.queue(first, &[]).unwrap();
            i.queue(second, &[]).unwrap();
            // It may be closed already.
            let _ = i.flush().await;
        });
        futures_util::future::join_all(resets).await;
        until(&format!("both have ended, round {round}"), || rig.server.sessions().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_stalls_before_its_proof_is_an_event_with_the_target_it_named() {
    let pair = ChapPair { user: "lab".into(), secret: Secret::new("abcdefgh12345678") };
    let decision = |chap| LoginDecision::Accept { chap, exclusivity: Exclusivity::Shared };
    let rig = Rig::with(Policy::accept(Chap::OneWay(pair), Exclusivity::Shared), |c| {
        c.limits.proof_timeout = Duration::from_millis(300);
    });
    rig.add(IQN, MemDisk::new(MIB, 512));
    let closed = async |i: &mut Connection| assert!(i.has_ended().await, "closed");
    let names = format!(
        "InitiatorName=iqn.2024-01.org.example:pc\0TargetName={IQN}\0SessionType=Normal\0AuthMethod=CHAP,None\0"
    );

    // Not a word, and a part of a request.
    let mut silent = Connection::connect(rig.address).await.unwrap();
    closed(&mut silent).await;
    assert_eq!(rig.events.names(), ["stalled -"]);
    // After the challenge.
    let mut i = Connection::connect(rig.address).await.unwrap();
    i.login_request(ISID, 0x81, names.as_bytes()).await.unwrap();
    let (_, challenge) = i.login_request(ISID, 0x00, b"CHAP_A=5\0").await.unwrap();
    assert!(String::from_utf8(challenge).unwrap().contains("CHAP_C="));
    closed(&mut i).await;
    assert_eq!(rig.events.names(), ["stalled -".to_owned(), format!("stalled {IQN}")]);

    // No stall of this kind: a wrong answer, one who goes away by himself, and discovery.
    let mut wrong = Connection::connect(rig.address).await.unwrap();
    let without = names.replace("CHAP,None", "None");
    let refused = wrong.login_request(ISID, 0x87, without.as_bytes()).await.unwrap_err();
    assert_eq!(refused.status(), Some((2, 1)));
    closed(&mut wrong).await;
    drop(Connection::connect(rig.address).await.unwrap());
    rig.policy.say(decision(Chap::None));
    let mut discovery = Connection::connect(rig.address).await.unwrap();
    let names = b"InitiatorName=iqn.2024-01.org.example:pc\0SessionType=Discovery\0AuthMethod=None\0";
    discovery.login_request(ISID, 0x00, names).await.unwrap();
    closed(&mut discovery).await;
    assert_eq!(rig.events.names().len(), 2, "{:?}", rig.events.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_whose_every_request_is_late_is_let_in() {
    let (each, late) = (Duration::from_secs(6), Duration::from_millis(3500));
    let rig = rig(|c| c.limits.proof_timeout = each);
    rig.add(IQN, MemDisk::new(MIB, 512));
    let mut i = Connection::connect(rig.address).await.unwrap();
    let words = [
        (
            0x81,
            format!(
                "InitiatorName=iqn.2024-01.org.example:pc\0TargetName={IQN}\0SessionType=Normal\0AuthMethod=None\0"
            ),
        ),
        (0x87, "MaxRecvDataSegmentLength=8192\0".to_owned()),
    ];
    for (flags, text) in words {
        // A machine on a flooded network: what it sends comes through at the tenth try.
        tokio::time::sleep(late).await;
        i.login_request(ISID, flags, text.as_bytes()).await.unwrap();
    }
}

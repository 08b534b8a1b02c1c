//! The iSCSI target's sessions on the wire: logins that exclude each other, removal, shutdown, data movement in all its
//! forms, task management, failures of the device, limits.

#![allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use ggnet_iscsi::initiator::{Account, Connection, Digests};
use ggnet_iscsi::{Chap, Exclusivity, LoginAbort, LoginDecision, Removal, RemoveError, TargetConfig};
use iscsi_support::{IQN, MemDisk, Policy, Rig, Say as _, lun, pattern, until, write_cdb};

const MIB: usize = 1 << 20;

async fn login(rig: &Rig) -> Connection {
    Connection::login(&rig.account()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_of_every_shape_with_digests() {
    for decline in [false, true] {
        let disk = MemDisk::new(8 * MIB, 512);
        disk.decline.store(decline, SeqCst);
        let image = pattern(8 * MIB, 1);
        disk.data.write().unwrap().copy_from_slice(&image);
        let rig = Rig::open(disk.clone());
        let keys = [
            ("HeaderDigest", "CRC32C"),
            ("DataDigest", "CRC32C"),
            ("MaxRecvDataSegmentLength", "5000"),
            ("MaxBurstLength", "16384"),
            ("FirstBurstLength", "4096"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "No"),
        ];
        let mut i = Connection::login(&rig.account().say(&keys)).await.unwrap();
        assert_eq!(i.terms().digests, Digests { header: true, data: true });
        assert_eq!((i.key("MaxBurstLength"), i.key("TargetPortalGroupTag")), (Some("16384"), Some("1")));

        let (data, end) = i.read(8, 1000, 512).await;
        assert_eq!((end.status(), end.bhs.0[1] & 6), (0, 0));
        assert!(data == image[8 * 512..1008 * 512]);

        // 100 KiB in bursts of 16 KiB, in segments that do not end on a block.
        let new = pattern(200 * 512, 2);
        let itt = i.command(0xa1, &write_cdb(100, 200, false), 200 * 512, &[]).await.unwrap();
        let mut asked = 0;
        let end = loop {
            let pdu = i.receive().await.unwrap();
            if pdu.opcode() != 0x31 {
                break pdu;
            }
            let (r2t_sn, offset, len) = (pdu.word(36), pdu.word(40), pdu.word(44));
            assert_eq!((r2t_sn, offset as usize), (asked, asked as usize * 16384));
            assert_eq!(len, (200 * 512 - offset).min(16384));
            asked += 1;
            let burst = &new[offset as usize..(offset + len) as usize];
            let mut at = 0;
            for (sn, piece) in burst.chunks(3001).enumerate() {
                let last = at + piece.len() == burst.len();
                i.data_out(
                    itt,
                    pdu.word(20),
                    u32::try_from(sn).unwrap(),
                    offset + u32::try_from(at).unwrap(),
                    last,
                    piece,
                )
                .await
                .unwrap();
                at += piece.len();
            }
        };
        assert_eq!((end.opcode(), end.status(), asked), (0x21, 0, 7));
        assert!(disk.data.read().unwrap()[100 * 512..300 * 512] == new);
        let (data, _) = i.read(100, 200, 512).await;
        assert!(data == new);
        let events = rig.events.names();
        assert_eq!(events, ["login", "read", "write"]);
        assert!(rig.server.shutdown(Duration::from_secs(10)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsolicited_data_and_fua() {
    let disk = MemDisk::new(MIB, 512);
    let rig = Rig::open(disk.clone());
    let keys = [("InitialR2T", "No"), ("ImmediateData", "Yes"), ("FirstBurstLength", "8192")];
    let mut i = Connection::login(&rig.account().say(&keys)).await.unwrap();
    let new = pattern(8192, 3);
    // Immediate, then unsolicited, then by R2T.
    let whole = pattern(12288, 4);
    let itt = i.command(0x21, &write_cdb(0, 24, false), 12288, &whole[..2048]).await.unwrap();
    i.data_out(itt, u32::MAX, 0, 2048, false, &whole[2048..4096]).await.unwrap();
    i.data_out(itt, u32::MAX, 1, 4096, true, &whole[4096..8192]).await.unwrap();
    let r2t = i.receive().await.unwrap();
    assert_eq!((r2t.opcode(), r2t.word(40), r2t.word(44)), (0x31, 8192, 4096));
    i.data_out(itt, r2t.word(20), 0, 8192, true, &whole[8192..]).await.unwrap();
    let end = i.receive().await.unwrap();
    assert_eq!((end.opcode(), end.status()), (0x21, 0));
    assert!(disk.data.read().unwrap()[..12288] == whole);
    assert_eq!(disk.flushes.load(SeqCst), 0);
    assert_eq!(i.write(0, true, &new).await.status(), 0);
    assert_eq!(disk.flushes.load(SeqCst), 1);
    // SYNCHRONIZE CACHE means it.
    i.command(0x81, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]).await.unwrap();
    assert_eq!(i.receive().await.unwrap().status(), 0);
    assert_eq!(disk.flushes.load(SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_or_broken_disk_is_said_so_and_the_guest_goes_on() {
    for decline in [false, true] {
        let disk = MemDisk::new(MIB, 512);
        disk.decline.store(decline, SeqCst);
        let rig = Rig::open(disk.clone());
        let mut i = login(&rig).await;
        disk.full.store(true, SeqCst);
        let end = i.write(0, false, &[1; 512]).await;
        assert_eq!((end.status(), end.sense()), (2, (7, 0x27, 0x07)));
        disk.full.store(false, SeqCst);
        assert_eq!(i.write(0, false, &[1; 512]).await.status(), 0);
        disk.broken.store(true, SeqCst);
        let (_, end) = i.read(0, 1, 512).await;
        assert_eq!((end.status(), end.sense()), (2, (3, 0x11, 0)));
        i.command(0x81, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]).await.unwrap();
        let end = i.receive().await.unwrap();
        assert_eq!((end.status(), end.sense()), (2, (3, 0x0c, 0)));
        let sessions = rig.server.sessions();
        assert_eq!(sessions[0].counters.device_errors, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_login_of_a_name_wins_after_the_older_one_has_drained() {
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    let rig = Rig::new(Policy::accept(Chap::None, Exclusivity::ByInitiatorName));
    rig.add(IQN, disk.clone());
    let mut first = login(&rig).await;
    disk.hold(true);
    first.command(0xa1, &write_cdb(0, 1, false), 512, &[7; 512]).await.unwrap();
    until("the write is in flight", || disk.waiting.load(SeqCst) == 1).await;

    // Another ISID, the same name.
    let again = Account { isid: [0x80, 9, 9, 9, 9, 9], ..rig.account() };
    let second = tokio::spawn(async move { Connection::login(&again).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!second.is_finished(), "it waits for the write in flight");
    assert_eq!(disk.writes.load(SeqCst), 0);
    disk.hold(false);
    let mut second = second.await.unwrap().unwrap();
    assert_eq!(disk.writes.load(SeqCst), 1);
    // The old one got its answer, and then the end.
    assert_eq!(first.receive().await.unwrap().status(), 0);
    assert!(first.has_ended().await);
    let (data, _) = second.read(0, 1, 512).await;
    assert_eq!(data, [7; 512]);
    assert_eq!(rig.server.sessions_of(IQN).len(), 1);
    assert!(rig.events.names().contains(&"Replaced".into()));

    // Shared: two of the same name, unless the session id is the same too.
    rig.policy.say(LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared });
    let mut third = login(&rig).await;
    assert_eq!(rig.server.sessions_of(IQN).len(), 2);
    let mut fourth = login(&rig).await;
    assert!(third.has_ended().await, "reinstated");
    assert_eq!(rig.server.sessions_of(IQN).len(), 2);
    assert_eq!(fourth.read(0, 1, 512).await.1.status(), 0);
    assert_eq!(second.read(0, 1, 512).await.1.status(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_drains_and_flushes_or_is_refused() {
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    assert!(matches!(
        rig.server.remove_target(IQN, Removal::IfIdle).await,
        Err(RemoveError::Busy { sessions: 1 })
    ));
    disk.hold(true);
    i.command(0xa1, &write_cdb(0, 1, false), 512, &[7; 512]).await.unwrap();
    until("the write is in flight", || disk.waiting.load(SeqCst) == 1).await;
    let server = rig.server.clone();
    let removal = tokio::spawn(async move { server.remove_target(IQN, Removal::Force).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!removal.is_finished());
    assert!(!rig.server.has_target(IQN));
    disk.hold(false);
    removal.await.unwrap().unwrap();
    assert_eq!((disk.writes.load(SeqCst), disk.flushes.load(SeqCst)), (1, 1));
    assert_eq!(Arc::strong_count(&disk), 1, "nothing of us holds the device any more");
    assert_eq!(i.receive().await.unwrap().status(), 0);
    assert!(i.has_ended().await);
    // Removing nothing is success; a login finds nothing.
    rig.server.remove_target(IQN, Removal::IfIdle).await.unwrap();
    assert_eq!(Connection::login(&rig.account()).await.err().and_then(|e| e.status()), Some((2, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commit_of_a_login_may_remove_another_target() {
    let (old, new) = (MemDisk::new(MIB, 512), MemDisk::new(MIB, 512));
    let rig = Rig::new(Policy::accept(Chap::None, Exclusivity::ByInitiatorName));
    rig.add("iqn.2024-01.org.example:pc.1", old);
    rig.add("iqn.2024-01.org.example:pc.2", new);
    let before = Account { target: Some("iqn.2024-01.org.example:pc.1".into()), ..rig.account() };
    let mut first = Connection::login(&before).await.unwrap();
    *rig.policy.removes.lock().unwrap() = Some((rig.server.clone(), "iqn.2024-01.org.example:pc.1".into()));
    let after = Account { target: Some("iqn.2024-01.org.example:pc.2".into()), ..rig.account() };
    let mut second = Connection::login(&after).await.unwrap();
    assert!(first.has_ended().await);
    assert_eq!(second.read(0, 1, 512).await.1.status(), 0);
    assert_eq!(rig.server.targets(), ["iqn.2024-01.org.example:pc.2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_status() {
    let rig = Rig::open(MemDisk::new(MIB, 512));
    let ask = async || Connection::login(&rig.account()).await.err().and_then(|e| e.status());
    rig.policy.say(LoginDecision::NotReady);
    assert_eq!(ask().await, Some((3, 1)));
    rig.policy.say(LoginDecision::NotFound);
    assert_eq!(ask().await, Some((2, 3)));
    rig.policy.say(LoginDecision::Refused);
    assert_eq!(ask().await, Some((2, 2)));
    rig.policy.say(LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared });
    *rig.policy.abort.lock().unwrap() = Some(LoginAbort::Retry);
    assert_eq!(ask().await, Some((3, 1)));
    *rig.policy.abort.lock().unwrap() = Some(LoginAbort::Refuse);
    assert_eq!(ask().await, Some((2, 2)));
    *rig.policy.abort.lock().unwrap() = None;
    let unknown = Account { target: Some("iqn.2024-01.org.example:none".into()), ..rig.account() };
    assert_eq!(Connection::login(&unknown).await.err().and_then(|e| e.status()), Some((2, 3)));
    assert_eq!(ask().await, None);
    // Names are compared in lower case.
    let upper = Account {
        target: Some("IQN.2024-01.org.example:DISK".into()),
        initiator: "iqn.2024-01.org.example:PC".into(),
        ..rig.account()
    };
    assert!(Connection::login(&upper).await.is_ok());
    let infos = rig.policy.authenticated.lock().unwrap();
    assert_eq!(infos.last().unwrap().request.initiator, "iqn.2024-01.org.example:pc");
}

#[tokio::test(flavor = "multi_thread")]
async fn task_management_answers_when_the_task_can_do_no_more_harm() {
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    let other = Account { isid: [0x80, 2, 2, 2, 2, 2], ..rig.account() };
    let mut j = Connection::login(&other).await.unwrap();
    disk.hold(true);
    let itt = i.command(0xa1, &write_cdb(0, 1, false), 512, &[7; 512]).await.unwrap();
    j.command(0xa1, &write_cdb(1, 1, false), 512, &[7; 512]).await.unwrap();
    until("both writes are in flight", || disk.waiting.load(SeqCst) == 2).await;

    let mut abort = i.request(0x42, 0x81);
    abort.set_word(20, itt);
    i.send(abort, &[]).await.unwrap();
    let reset = i.request(0x42, 0x85);
    i.send(reset, &[]).await.unwrap();
    // Neither is answered while a write may still happen; a ping is.
    let ping = i.request(0x40, 0x80);
    i.send(ping, b"ping").await.unwrap();
    let pong = i.receive().await.unwrap();
    assert_eq!((pong.opcode(), pong.data.as_slice()), (0x20, &b"ping"[..]));
    disk.hold(false);
    for _ in 0..2 {
        let done = i.receive().await.unwrap();
        assert_eq!((done.opcode(), done.bhs.0[2]), (0x22, 0));
    }
    // Both nexuses learn of the reset, once.
    for who in [&mut i, &mut j] {
        let (_, end) = who.read(0, 1, 512).await;
        assert_eq!((end.status(), end.sense()), (2, (6, 0x29, 0x03)));
        assert_eq!(who.read(0, 1, 512).await.1.status(), 0);
    }
    // A task that is not there.
    let mut abort = i.request(0x42, 0x81);
    abort.set_word(20, 0x7777);
    i.send(abort, &[]).await.unwrap();
    assert_eq!(i.receive().await.unwrap().bhs.0[2], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_window_holds_and_unknown_requests_are_rejected() {
    let rig = Rig::with(Policy::accept(Chap::None, Exclusivity::Shared), |c| c.limits.queue_depth = 4);
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    rig.add(IQN, disk.clone());
    let mut i = login(&rig).await;
    disk.hold(true);
    for _ in 0..4 {
        i.command(0xc1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, &[]).await.unwrap();
    }
    until("four reads are in flight", || disk.waiting.load(SeqCst) == 4).await;
    // The fifth is outside the window: ignored.
    i.command(0xc1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, &[]).await.unwrap();
    i.numbers.cmd_sn -= 1;
    let bad = i.request(0x5c, 0x80);
    i.send(bad, &[]).await.unwrap();
    let reject = i.receive().await.unwrap();
    assert_eq!((reject.opcode(), reject.bhs.0[2]), (0x3f, 5));
    assert_eq!(reject.word(32).wrapping_add(1), reject.word(28), "the window is closed");
    disk.hold(false);
    for _ in 0..4 {
        assert_eq!(i.collect().await.unwrap().1.status(), 0);
    }
    let (_, end) = i.read(0, 1, 512).await;
    assert_eq!(end.word(32) - end.word(28), 3, "open again");
    // Logout ends the session with an answer.
    let out = i.request(0x46, 0x80);
    i.send(out, &[]).await.unwrap();
    assert_eq!(i.receive().await.unwrap().opcode(), 0x26);
    assert!(i.has_ended().await);
    until("it is gone", || rig.server.sessions().is_empty()).await;
    assert_eq!(rig.events.names().last().map(String::as_str), Some("Logout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_touches_nothing_and_limits_hold() {
    let rig = Rig::with(Policy::accept(Chap::None, Exclusivity::Shared), |c| {
        c.limits.login_timeout = Duration::from_millis(300);
    });
    let disk = MemDisk::new(MIB, 512);
    rig.add(IQN, disk.clone());
    let mut i = login(&rig).await;
    // A write whose data never comes, and then the connection is gone.
    i.command(0xa1, &write_cdb(0, 4, false), 2048, &[]).await.unwrap();
    assert_eq!(i.receive().await.unwrap().opcode(), 0x31);
    drop(i);
    until("it is gone", || rig.server.sessions().is_empty()).await;
    assert_eq!((disk.writes.load(SeqCst), disk.flushes.load(SeqCst)), (0, 0));
    assert_eq!(rig.events.names(), ["login", "write", "ConnectionLost"]);
    // Silent connections end when their time is over.
    let mut silent =
        [Connection::connect(rig.address).await.unwrap(), Connection::connect(rig.address).await.unwrap()];
    for s in &mut silent {
        assert!(s.has_ended().await);
    }
    assert!(Connection::login(&rig.account()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_tells_what_the_policy_allows_in_as_many_pieces_as_needed() {
    let rig = Rig::open(MemDisk::new(MIB, 512));
    let names: Vec<String> = (0..1000).map(|n| format!("iqn.2024-01.org.example:machine-{n:04}")).collect();
    *rig.policy.discoverable.lock().unwrap() = names.clone();
    let keys = [("MaxRecvDataSegmentLength", "8192")];
    let mut i = Connection::login(&Account { target: None, ..rig.account() }.say(&keys)).await.unwrap();
    let mut all = Vec::new();
    let mut ttt = u32::MAX;
    loop {
        let mut ask = i.request(0x04, 0x80);
        ask.set_word(20, ttt);
        i.send(ask, if ttt == u32::MAX { b"SendTargets=All\0" } else { b"" }).await.unwrap();
        let piece = i.receive().await.unwrap();
        all.extend(&piece.data);
        ttt = piece.word(20);
        if piece.bhs.0[1] & 0x80 != 0 {
            break;
        }
    }
    let text = String::from_utf8(all).unwrap();
    let told: Vec<&str> = text.split('\0').filter_map(|p| p.strip_prefix("TargetName=")).collect();
    assert_eq!(told, names);
    assert!(text.contains(&format!("TargetAddress={},1", rig.address)));
    // No SCSI in a discovery session.
    i.command(0x81, &[0; 6], 0, &[]).await.unwrap();
    assert_eq!(i.receive().await.unwrap().opcode(), 0x3f);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_units_and_a_resize() {
    let rig = Rig::new(Policy::accept(Chap::None, Exclusivity::Shared));
    let (a, b) = (MemDisk::new(MIB, 512), MemDisk::new(2 * MIB, 4096));
    let luns = vec![lun(0, a.clone()), lun(7, b)];
    rig.server.add_target(TargetConfig { iqn: IQN.into(), luns }).unwrap();
    let mut i = login(&rig).await;
    i.command(0xc1, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256, &[]).await.unwrap();
    let (luns, _) = i.collect().await.unwrap();
    assert_eq!(luns[..4], [0, 0, 0, 16]);
    assert_eq!((luns[9], luns[17]), (0, 7));
    let other = Account { isid: [0x80, 2, 2, 2, 2, 2], ..rig.account() };
    let mut j = Connection::login(&other).await.unwrap();
    a.data.write().unwrap().resize(3 * MIB, 0);
    // Every nexus is told, once.
    for who in [&mut i, &mut j] {
        let (_, end) = who.read(0, 1, 512).await;
        assert_eq!(end.sense(), (6, 0x2a, 0x09));
        let (data, end) = who.read(5000, 1, 512).await;
        assert_eq!((data.len(), end.status()), (512, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_answers_what_is_in_flight_and_flushes() {
    let disk = MemDisk::new(MIB, 512);
    disk.decline.store(true, SeqCst);
    let rig = Rig::open(disk.clone());
    let mut i = login(&rig).await;
    disk.hold(true);
    i.command(0xa1, &write_cdb(0, 1, false), 512, &[7; 512]).await.unwrap();
    until("the write is in flight", || disk.waiting.load(SeqCst) == 1).await;
    assert!(!rig.server.shutdown(Duration::from_millis(200)).await, "the grace is over first");
    disk.hold(false);
    assert!(rig.server.shutdown(Duration::from_secs(10)).await);
    assert_eq!((disk.writes.load(SeqCst), disk.flushes.load(SeqCst)), (1, 1));
    assert_eq!(i.receive().await.unwrap().status(), 0);
    assert!(i.has_ended().await, "no asynchronous message, just the end");
    assert!(Connection::connect(rig.address).await.is_err());
}

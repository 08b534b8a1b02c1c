//! The reconciler: what is an orphan and what is not, what is unknown, and who is idle.

use std::time::Duration;

use ggnet_core::{
    ErrorKind,
    block::DiskForm,
    nouns::{
        AuditAction, EventKind, Machine, MachineId, Principal, ResourceId, Session, SessionState, StopReason,
        SystemPart, WritebackPolicy,
    },
    orchestrator::{BootAnswer, NewTarget},
    ports::{
        Batch, BootBundle, BootFileStore as _, DhcpBackend as _, DhcpBackendExt as _, DhcpHost,
        ImageStore as _, LunDisks, Removal, Store as _, TargetBackend as _, Write, WritebackSpec,
        WritebackStore as _,
    },
    testkit::flaky::Fault,
};

use crate::house::{House, Process, SIZE, advertised, all, mac};

/// Objects of a machine that the store does not know, in every backend.
async fn plant_orphans(p: &Process, version: ggnet_core::nouns::ImageVersionId) -> MachineId {
    let machine = MachineId::generate();
    let base = p.images.open(version, DiskForm::Blocks).await.unwrap();
    for id in [ResourceId::generation(machine, 3), ResourceId::machine(machine)] {
        p.writebacks.ensure(&WritebackSpec { id, version, size_bytes: SIZE }, &base).await.unwrap();
    }
    let spec = ggnet_core::ports::TargetSpec {
        id: ResourceId::generation(machine, 3),
        iqn: "iqn.2026-11.org.example:orphan".parse().unwrap(),
        luns: vec![ggnet_core::ports::LunSpec {
            number: 0,
            disk_key: "x".to_owned(),
            serial: "1".to_owned(),
            read_only: true,
        }],
        access: ggnet_core::ports::Access::Shared,
    };
    let disks = LunDisks::from([(0, base.disk)]);
    p.targets.ensure(&spec, &disks).await.unwrap();
    let id = ResourceId::machine(machine);
    let host = DhcpHost {
        id: id.clone(),
        name: "orphan".parse().unwrap(),
        macs: vec![mac(999)],
        fixed_address: None,
        device_type: Default::default(),
    };
    p.dhcp.ensure(&host).await.unwrap();
    let files = [("machines/orphan.ipxe".parse().unwrap(), bytes::Bytes::from_static(b"x"))].into();
    p.files.ensure(&BootBundle { id, files }).await.unwrap();
    machine
}

#[tokio::test]
async fn orphans_go_and_what_is_not_a_machines_stays() {
    let house = House::new();
    let p = house.open().await;
    let (image, version) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let disk = p.power_on(&machine).await;
    let loaders = BootBundle {
        id: "loaders".parse().unwrap(),
        files: [("ipxe.efi".parse().unwrap(), bytes::Bytes::from_static(b"x"))].into(),
    };
    p.files.ensure(&loaders).await.unwrap();
    let foreign: ggnet_core::ports::BootPath = "pxelinux.0".parse().unwrap();
    house.files.plant(foreign.clone(), bytes::Bytes::from_static(b"theirs"));
    let before = p.left().await;
    plant_orphans(&p, version).await;
    let report = p.o.reconcile().await;
    assert_eq!((report.removed, report.made, report.ended), (5, 0, 0), "{report:?}");
    assert_eq!(p.left().await, before);
    assert!(disk.is_connected());
    assert_eq!(house.files.planted(&foreign).as_deref(), Some(b"theirs".as_slice()));
    let told = p.all_events().await;
    assert!(matches!(told.last(), Some(EventKind::Reconciled { .. })));
    assert_eq!(p.o.reconcile().await, Default::default(), "a second round has nothing to do");
    assert_eq!(p.all_events().await.len(), told.len(), "and nothing to tell");
}

#[tokio::test]
async fn an_unknown_list_is_not_an_empty_one() {
    for port in ["target", "writeback", "dhcp", "boot_file"] {
        let house = House::new();
        let p = house.open().await;
        let (image, version) = p.image("debian").await;
        let machine = p.machine(1, image, |_| ()).await;
        let disk = p.power_on(&machine).await;
        plant_orphans(&p, version).await;
        let before = p.left().await;
        p.plan.add(Fault::on(&format!("{port}.list")).fails(ErrorKind::Unavailable));
        let report = p.o.reconcile().await;
        assert_eq!(report.trouble.len(), 1, "{port}: {report:?}");
        assert_eq!(report.made, 0, "{port}: nothing is made again");
        assert_eq!(p.left().await[port], before[port], "{port}: nothing is removed");
        assert!(disk.is_connected());
        p.plan.clear();
        p.reconcile().await;
    }
    // The store, too.
    for call in ["live_sessions", "machines", "live_session", "machine"] {
        let house = House::new();
        let p = house.open().await;
        let (image, _) = p.image("debian").await;
        let machine = p.machine(1, image, |_| ()).await;
        let _disk = p.power_on(&machine).await;
        let before = p.left().await;
        p.plan.add(Fault::on(&format!("store.{call}")).fails(ErrorKind::Unavailable));
        let report = p.o.reconcile().await;
        assert!(!report.trouble.is_empty(), "{call}");
        assert_eq!(p.left().await, before, "{call}");
    }
}

/// A machine that has booted and written, and whose disk is gone, as after a start of the server at which the folder of the writebacks was not
/// mounted: it is not given an empty one.
async fn a_written_disk_that_is_gone(p: &Process, writeback: WritebackPolicy) -> Machine {
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = writeback).await;
    let disk = p.power_on(&machine).await;
    disk.write(0, 0, &[7; 512]).await.unwrap();
    disk.logout().await;
    let session = p.session(&machine).await;
    let target = session.target(&session.current);
    p.targets.remove(&target, Removal::Force).await.unwrap();
    p.writebacks.remove(session.writebacks().next().unwrap(), Removal::Force).await.unwrap();
    let report = format!("{:?}", p.o.reconcile().await);
    assert!(report.contains("The written disk") && report.contains("is gone"), "{report}");
    assert!(p.login(&target, &machine).await.is_err(), "nobody reads an empty disk for its own");
    assert!(p.writebacks.list().await.unwrap().is_empty());
    machine
}

#[tokio::test]
async fn kept_writes_that_are_gone_are_not_replaced_by_an_empty_disk() {
    let house = House::new();
    let p = house.open().await;
    let machine = a_written_disk_that_is_gone(&p, WritebackPolicy::Keep).await;
    let refused = p.boot(machine.macs[0]).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Corrupt && refused.hint().unwrap().contains("mounted"), "{refused}");
    assert!(p.writebacks.list().await.unwrap().is_empty());
    // The operator gives them up.
    p.stop(&p.session(&machine).await, true).await.unwrap();
    assert!(p.power_on(&machine).await.is_connected());
}

#[tokio::test]
async fn a_running_machines_disk_that_is_gone_is_not_replaced_by_an_empty_one() {
    let house = House::new();
    let p = house.open().await;
    let machine = a_written_disk_that_is_gone(&p, WritebackPolicy::Discard).await;
    // A reboot is promised an empty disk.
    assert!(p.power_on(&machine).await.is_connected());
}

#[tokio::test]
async fn what_a_live_session_lacks_is_made_again() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let session = p.start(&machine).await.unwrap().session;
    let (target, id) = (session.target(&session.current), ResourceId::machine(machine.id));
    p.targets.remove(&target, Removal::Force).await.unwrap();
    p.dhcp.remove(&id).await.unwrap();
    p.files.remove(&id).await.unwrap();
    let report = p.o.reconcile().await;
    assert_eq!((report.made, report.removed), (3, 0), "{report:?}");
    p.assert_whole("made again").await;
    // Cut short is not whole.
    let removal = ggnet_core::testkit::suite::cut_after(1, p.targets.remove(&target, Removal::Force)).await;
    assert!(removal.is_none());
    p.reconcile().await;
    p.assert_whole("completed").await;
    assert!(p.login(&target, &machine).await.is_ok());
}

#[tokio::test]
async fn manual_targets_are_kept() {
    let house = House::new();
    let p = house.open().await;
    let (_, version) = p.image("data").await;
    let new = |name: &str| NewTarget { name: name.parse().unwrap(), version, initiator: None };
    let (target, endpoint) = p.o.targets().create(new("games"), &Principal::embedder()).await.unwrap();
    let id = ResourceId::manual(target.id);
    assert_eq!(endpoint.lun, 0);
    let any = "iqn.2026-11.org.example:somebody".parse().unwrap();
    let reader = p.targets.login(&id, &any, crate::house::peer()).await.unwrap();
    assert!(reader.read(0, 0, 512).await.is_ok());
    assert_eq!(reader.write(0, 0, &[1; 512]).await.unwrap_err().kind(), ErrorKind::Permission);
    assert_eq!(
        p.o.targets().create(new("games"), &Principal::embedder()).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(p.o.reconcile().await, Default::default());
    assert!(reader.is_connected(), "the reconciler keeps it");

    let p = house.open().await;
    assert_eq!(p.left().await["target"].len(), 1, "made again after a restart");
    p.targets.remove(&id, Removal::Force).await.unwrap();
    p.reconcile().await;
    let _ = ggnet_core::testkit::suite::cut_after(1, p.targets.remove(&id, Removal::Force)).await;
    p.reconcile().await;
    p.assert_whole("completed").await;

    let reader = p.targets.login(&id, &any, crate::house::peer()).await.unwrap();
    assert_eq!(
        p.o.targets().delete(target.id, false, &Principal::embedder()).await.unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert!(reader.is_connected());
    p.o.targets().delete(target.id, true, &Principal::embedder()).await.unwrap();
    assert!(!reader.is_connected());
    p.assert_empty("deleted").await;

    p.plan.add(Fault::on("target.ensure").nth(1).loses_the_answer(ErrorKind::Timeout));
    assert!(p.o.targets().create(new("lost"), &Principal::embedder()).await.is_err());
    p.reconcile().await;
    p.assert_empty("what no record explains").await;
}

#[tokio::test]
async fn an_idle_discard_session_is_stopped_and_a_keep_one_never() {
    let mut house = House::new();
    house.config.idle_timeout = Duration::from_millis(100);
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let discard = p.machine(1, image, |_| ()).await;
    let keep = p.machine(2, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let busy = p.machine(3, image, |_| ()).await;
    drop(p.power_on(&discard).await);
    drop(p.power_on(&keep).await);
    let disk = p.power_on(&busy).await;
    p.reconcile().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    p.reconcile().await;
    let ended = p.last(&discard).await.unwrap();
    assert_eq!((ended.state, ended.stop_reason), (SessionState::Stopped, Some(StopReason::Timeout)));
    let row = p.store.audit(all()).await.unwrap().items.remove(0);
    let by = Principal::system(SystemPart::Reconciler);
    assert_eq!((row.action, row.by), (AuditAction::SessionStop, by));
    assert_eq!(p.last(&keep).await.unwrap().state, SessionState::Active);
    assert_eq!(p.last(&busy).await.unwrap().state, SessionState::Active);
    assert!(disk.is_connected() && p.o.presence().is_online(p.session(&busy).await.id));
    assert_eq!(p.o.presence().online_count(), 1);
    p.assert_whole("idle").await;
    // The time offline counts, not the time since the start.
    drop(disk);
    p.reconcile().await;
    assert!(!p.o.presence().is_online(p.session(&busy).await.id));
    assert_eq!(p.last(&busy).await.unwrap().state, SessionState::Active);
}

#[tokio::test]
async fn time_in_which_the_server_was_suspended_is_nobodys_idleness() {
    let mut house = House::new();
    house.config.reconcile_interval = Duration::from_secs(30);
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    drop(p.power_on(&machine).await);
    p.reconcile().await;
    house.pass(Duration::from_secs(3600)).await;
    p.reconcile().await;
    assert_eq!(p.last(&machine).await.unwrap().state, SessionState::Active, "it may come back");
    // From here on somebody looks.
    let rounds = p.o.config().idle_timeout.as_secs() / 30 + 1;
    for _ in 0..rounds {
        house.pass(Duration::from_secs(30)).await;
        p.reconcile().await;
    }
    let ended = p.last(&machine).await.unwrap();
    assert_eq!((ended.state, ended.stop_reason), (SessionState::Stopped, Some(StopReason::Timeout)));
}

#[tokio::test]
async fn unknown_connections_are_nobodys_idleness() {
    let mut house = House::new();
    house.config.idle_timeout = Duration::from_millis(100);
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _disk = p.power_on(&machine).await;
    p.plan.add(Fault::on("target.connections").fails(ErrorKind::Unavailable));
    p.script(&machine).await;
    house.pass(Duration::from_secs(3600)).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    p.o.reconcile().await;
    let session = p.session(&machine).await;
    assert!(session.state == SessionState::Active && session.next.is_some(), "nothing is taken on a guess");
}

#[tokio::test]
async fn the_reconciler_comes_round_by_itself() {
    let mut house = House::new();
    house.config.reconcile_interval = Duration::from_millis(100);
    let p = house.open().await;
    let (_, version) = p.image("debian").await;
    plant_orphans(&p, version).await;
    crate::house::until("the orphans go", async || p.left().await.values().all(|ids| ids.is_empty())).await;
    assert!(p.store.live_sessions().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reconcile_beside_a_start_harms_nothing() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    for n in 1..=20 {
        let machine = p.machine(n, image, |_| ()).await;
        let (script, report) = tokio::join!(p.script(&machine), p.o.reconcile());
        assert!(report.trouble.is_empty() && report.ended == 0, "{report:?}");
        let (login, report) = tokio::join!(p.login(&script.target, &machine), p.o.reconcile());
        assert!(login.unwrap().is_connected() && report.ended == 0);
        p.assert_whole("together").await;
    }
}

/// In one set: a daemon that must be restarted is restarted once.
#[tokio::test(start_paused = true)]
async fn the_dhcp_server_is_told_of_a_whole_room_at_once() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    for n in 1..=100 {
        p.machine(n, image, |_| ()).await;
    }
    for listed in p.dhcp.list().await.unwrap() {
        p.dhcp.remove(&listed.id).await.unwrap();
    }
    let restart = Duration::from_secs(4);
    p.plan.add(Fault::on("dhcp.apply").is_delayed(restart));
    let (begun, before) = (tokio::time::Instant::now(), p.plan.calls("dhcp.apply"));
    let report = p.o.reconcile().await;
    assert_eq!((report.made, report.trouble), (100, vec![]));
    assert_eq!(begun.elapsed().as_secs(), restart.as_secs());
    assert_eq!(p.plan.calls("dhcp.apply") - before, 1, "in one set");
}

/// A machine whose session another server serves: nothing is made, removed, stopped or answered in its name.
#[tokio::test]
async fn another_servers_session_is_left_alone() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _running = p.power_on(&machine).await;
    let ours = p.session(&machine).await;
    let theirs = Session { owner: Some("0badcafe".parse().unwrap()), epoch: ours.epoch + 1, ..ours.clone() };
    p.store.commit(Batch::new().write(Write::Session(Box::new(theirs)))).await.unwrap();
    let target = ours.target(&ours.current);
    p.targets.remove(&target, Removal::Force).await.unwrap();
    p.dhcp.remove(&ResourceId::machine(machine.id)).await.unwrap();
    let left = p.left().await;

    let report = p.o.reconcile().await;
    assert_eq!((report.made, report.removed, report.ended, report.trouble), (0, 0, 0, vec![]));
    assert_eq!(p.left().await, left, "the writeback and the boot files are that server's matter");
    assert!(matches!(p.boot(machine.macs[0]).await.unwrap(), BootAnswer::Retry(_)));
    let session = p.session(&machine).await;
    for e in [
        p.stop(&session, true).await.unwrap_err(),
        p.o.sessions().current_script(&session, &advertised(), &Principal::embedder()).await.unwrap_err(),
        p.start(&machine).await.unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    }
    assert_eq!(p.session(&machine).await, session);

    // Given back, all of it is made again.
    let again = Session { owner: None, epoch: session.epoch + 1, ..session };
    p.store.commit(Batch::new().write(Write::Session(Box::new(again)))).await.unwrap();
    assert!(p.o.reconcile().await.made >= 2);
    p.assert_whole("ours again").await;
}

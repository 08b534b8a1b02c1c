//! Sessions with data disks beside the system disk: at each boot again, kept or clean as the system disk is, and nothing left of them when
//! a step fails or our process dies in the middle.

use std::collections::BTreeSet;

use ggnet_core::{
    ErrorKind, Result,
    nouns::{
        AuditAction, DataAccess, DataDisk, ImageId, ImageVersionId, Machine, Principal, ResourceId,
        SessionState, WritebackPolicy,
    },
    orchestrator::{StartRequest, Started, StopRequest},
    ports::{Removal, Store as _, TargetBackend as _, WritebackStore as _},
    testkit::{
        flaky::{Fault, FaultPlan},
        memory::MemoryInitiator,
    },
};

use crate::{
    crash::{RebootingMachine, dies},
    house::{House, Process, all},
};

/// How far the last call gets before the kill: not at all, to one of its places, to its end.
const POLLS: [usize; 3] = [0, 2, 50];

fn data(lun: u8, image: ImageId, access: DataAccess) -> DataDisk {
    DataDisk { lun, image, version: None, access }
}

/// A machine, and an image of data of which no machine boots.
struct Room {
    machine: Machine,
    data: ImageId,
    version: ImageVersionId,
}

impl Room {
    async fn new(p: &Process, policy: WritebackPolicy) -> Self {
        let (image, _) = p.image("debian").await;
        let (data, version) = p.image("data").await;
        let machine = p.machine(1, image, |m| (m.auto_start, m.writeback) = (false, policy)).await;
        Self { machine, data, version }
    }

    /// LUN 2 takes writes and LUN 1 is shared, asked for in this order.
    fn disks(&self) -> Vec<DataDisk> {
        vec![data(2, self.data, DataAccess::CopyOnWrite), data(1, self.data, DataAccess::Shared)]
    }

    fn request(&self) -> StartRequest {
        StartRequest {
            machine: self.machine.id,
            image: None,
            data_disks: self.disks(),
            by: Principal::embedder(),
        }
    }

    async fn start(&self, p: &Process) -> Result<Started> {
        p.o.sessions().start(self.request()).await
    }

    async fn start_and_login(&self, p: &Process) -> MemoryInitiator {
        let session = self.start(p).await.unwrap().session;
        p.login(&session.target(&session.current), &self.machine).await.unwrap()
    }

    /// The names of the writebacks of generation `n`, or of those that the machine keeps.
    fn writebacks(&self, n: Option<u32>) -> BTreeSet<ResourceId> {
        let of = n.map_or_else(
            || ResourceId::machine(self.machine.id),
            |n| ResourceId::generation(self.machine.id, n),
        );
        BTreeSet::from([of.clone(), of.on_lun(2)])
    }
}

async fn holds(disk: &MemoryInitiator, lun: u8, byte: u8, why: &str) {
    assert_eq!(disk.read(lun, 0, 512).await.unwrap(), [byte; 512], "{why}: LUN {lun}");
}

#[tokio::test]
async fn every_boot_has_the_data_disks_and_writes_to_them_are_discarded() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Discard).await;
    let disk = room.start_and_login(&p).await;
    let session = p.session(&room.machine).await;
    let luns: Vec<_> = session.current.disks.iter().map(|d| (d.lun, d.writeback().is_some())).collect();
    assert_eq!(luns, [(0, true), (1, false), (2, true)]);
    assert_eq!(session.data_disks.iter().map(|d| d.lun).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(p.left().await["writeback"], room.writebacks(Some(1)));
    p.assert_whole("started").await;
    for lun in [0, 2] {
        disk.write(lun, 0, &[lun + 1; 512]).await.unwrap();
        holds(&disk, lun, lun + 1, "written").await;
    }
    assert_eq!(disk.write(1, 0, &[1; 512]).await.unwrap_err().kind(), ErrorKind::Permission);
    holds(&disk, 1, 0, "shared").await;
    assert_eq!(disk.read(3, 0, 512).await.unwrap_err().kind(), ErrorKind::NotFound);

    // A script prepares disks beside those of the running machine, and the login to it ends those.
    let next = p.script(&room.machine).await;
    assert_eq!(p.script(&room.machine).await, next, "asked again, the same");
    let both = &room.writebacks(Some(1)) | &room.writebacks(Some(2));
    assert_eq!(p.left().await["writeback"], both);
    holds(&disk, 2, 3, "the running machine did not notice").await;
    let rebooted = p.login(&next.target, &room.machine).await.unwrap();
    for lun in 0..3 {
        holds(&rebooted, lun, 0, "clean").await;
    }
    assert_eq!(p.left().await["writeback"], room.writebacks(Some(2)));
    p.assert_whole("rebooted").await;
    p.stop(&p.session(&room.machine).await, true).await.unwrap();
    p.assert_empty("stopped").await;
}

#[tokio::test]
async fn a_prepared_generation_that_nobody_uses_takes_its_data_disks_with_it() {
    let house = House::new();
    let p = house.open().await;
    let room = Room::new(&p, WritebackPolicy::Discard).await;
    let disk = room.start_and_login(&p).await;
    p.script(&room.machine).await;
    p.reconcile().await;
    house.pass(p.o.config().generation_ttl).await;
    p.reconcile().await;
    assert!(p.session(&room.machine).await.next.is_none());
    assert_eq!(p.left().await["writeback"], room.writebacks(Some(1)));
    assert!(disk.is_connected());
}

#[tokio::test]
async fn kept_data_disks_are_there_at_each_boot_and_in_the_next_session() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Keep).await;
    let disk = room.start_and_login(&p).await;
    disk.write(0, 0, &[1; 512]).await.unwrap();
    disk.write(2, 0, &[3; 512]).await.unwrap();
    let next = p.script(&room.machine).await;
    let disk = p.login(&next.target, &room.machine).await.unwrap();
    holds(&disk, 2, 3, "rebooted").await;
    assert_eq!(p.left().await["writeback"], room.writebacks(None));
    p.stop(&p.session(&room.machine).await, true).await.unwrap();
    p.reconcile().await;
    assert_eq!(p.left().await["writeback"], room.writebacks(None), "kept without a session");

    // The image moves on; what is kept decides.
    let newer = p.version(room.data, 2).await;
    p.set_current(room.data, newer).await;
    let disk = room.start_and_login(&p).await;
    let session = p.session(&room.machine).await;
    let versions: Vec<_> = session.current.disks.iter().skip(1).map(|d| d.version).collect();
    assert_eq!(versions, [newer, room.version], "only what is shared follows its image");
    for (lun, byte) in [(0, 1), (1, 0), (2, 3)] {
        holds(&disk, lun, byte, "the next session").await;
    }
    p.stop(&session, true).await.unwrap();

    // Of another image it is nothing.
    let (other, _) = p.image("other").await;
    let disks = vec![data(2, other, DataAccess::CopyOnWrite)];
    let e = p.o.sessions().start(StartRequest { data_disks: disks, ..room.request() }).await.unwrap_err();
    assert_eq!(e.code().name(), "kept_writes_of_other_image", "{}", e.report());
    // A session without it leaves it where it is.
    let session = p.start(&room.machine).await.unwrap().session;
    p.assert_whole("without data disks").await;
    p.stop(&session, true).await.unwrap();
    assert_eq!(p.left().await["writeback"], room.writebacks(None));
    p.o.machines().discard_kept(room.machine.id, &Principal::embedder()).await.unwrap();
    p.assert_empty("discarded").await;

    let disk = room.start_and_login(&p).await;
    holds(&disk, 2, 0, "after it was discarded").await;
    p.stop(&p.session(&room.machine).await, true).await.unwrap();
    p.o.machines().delete(room.machine.id, &Principal::embedder()).await.unwrap();
    p.assert_empty("deleted").await;
}

#[tokio::test]
async fn what_is_gone_is_in_the_audit_although_another_kept_disk_could_not_be_discarded() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Keep).await;
    drop(room.start_and_login(&p).await);
    p.stop(&p.session(&room.machine).await, true).await.unwrap();
    let by = Principal::embedder();
    // The system disk's comes last.
    p.plan.add(Fault::on("writeback.remove").nth(2).fails(ErrorKind::Unavailable));
    let e = p.o.machines().discard_kept(room.machine.id, &by).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    let (system, data) =
        (ResourceId::machine(room.machine.id), ResourceId::machine(room.machine.id).on_lun(2));
    for gone in [&data, &system] {
        let row = p.store.audit(all()).await.unwrap().items.remove(0);
        assert_eq!(row.action, AuditAction::MachineDiscardWriteback);
        assert_eq!(row.before.unwrap()["writebacks"], serde_json::json!([gone]));
        if *gone == data {
            assert_eq!(p.left().await["writeback"], BTreeSet::from([system.clone()]));
            p.o.machines().discard_kept(room.machine.id, &by).await.unwrap();
        }
    }
    p.assert_empty("discarded").await;
}

#[tokio::test]
async fn a_data_disk_follows_its_image_from_the_next_boot_on_unless_a_version_was_named() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Discard).await;
    let named = DataDisk { version: Some(room.version), ..data(3, room.data, DataAccess::Shared) };
    let disks = [room.disks(), vec![named]].concat();
    let session =
        p.o.sessions().start(StartRequest { data_disks: disks, ..room.request() }).await.unwrap().session;
    let _running = p.login(&session.target(&session.current), &room.machine).await.unwrap();
    let newer = p.version(room.data, 2).await;
    p.script(&room.machine).await;
    p.set_current(room.data, newer).await;
    p.script(&room.machine).await;
    let session = p.session(&room.machine).await;
    let next = session.next.as_ref().unwrap();
    let versions: Vec<_> = next.disks.iter().skip(1).map(|d| d.version).collect();
    assert_eq!(versions, [newer, newer, room.version], "prepared anew");
    assert_eq!(next.number, 3);
    p.assert_whole("prepared anew").await;
    let to_boot = p.o.read().versions_to_boot().await.unwrap();
    assert!(to_boot.contains(&room.version) && to_boot.contains(&newer), "{to_boot:?}");
}

#[tokio::test]
async fn the_version_of_a_data_disk_is_not_deleted_while_its_session_lives() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Discard).await;
    let session = room.start(&p).await.unwrap().session;
    // So that nothing else uses it.
    let newer = p.version(room.data, 2).await;
    p.set_current(room.data, newer).await;
    let e = p.o.images().delete_version(room.version, &Principal::embedder()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    p.stop(&session, true).await.unwrap();
    let shared = vec![DataDisk { version: Some(room.version), ..data(1, room.data, DataAccess::Shared) }];
    let session =
        p.o.sessions().start(StartRequest { data_disks: shared, ..room.request() }).await.unwrap().session;
    for e in [
        p.o.images().delete_version(room.version, &Principal::embedder()).await.unwrap_err(),
        p.o.images().delete(room.data, &Principal::embedder()).await.unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
        assert!(e.message().contains("session"), "no writeback stands on it, and it is in use: {e}");
    }
    p.stop(&session, true).await.unwrap();
    p.o.images().delete_version(room.version, &Principal::embedder()).await.unwrap();
    p.o.images().delete(room.data, &Principal::embedder()).await.unwrap();
}

#[tokio::test]
async fn data_disks_that_cannot_be_are_refused_before_anything_is_recorded() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Discard).await;
    let shared = |lun| data(lun, room.data, DataAccess::Shared);
    let debian = room.machine.image.unwrap();
    for (disks, kind, says) in [
        (vec![shared(0)], ErrorKind::Invalid, "LUN 0"),
        (vec![shared(4), shared(1), shared(4)], ErrorKind::Invalid, "LUN 4"),
        (
            vec![DataDisk { version: Some(room.version), ..data(1, debian, DataAccess::Shared) }],
            ErrorKind::Invalid,
            "LUN 1",
        ),
        (vec![data(1, ImageId::generate(), DataAccess::CopyOnWrite)], ErrorKind::NotFound, "image"),
        // The backend in memory has 16 LUNs.
        ((1..17).map(shared).collect(), ErrorKind::Unsupported, "at most 16 LUNs"),
    ] {
        let e = p.o.sessions().start(StartRequest { data_disks: disks, ..room.request() }).await.unwrap_err();
        assert_eq!(e.kind(), kind, "{says}: {}", e.report());
        assert!(e.message().contains(says), "{says}: {e}");
        assert_eq!(e.field(), (kind == ErrorKind::Invalid).then_some("data_disks"), "{e}");
        assert!(p.last(&room.machine).await.is_none(), "{says}: it was recorded");
    }
    p.assert_empty("refused").await;
    let all = StartRequest { data_disks: (1..16).map(shared).collect(), ..room.request() };
    let started = p.o.sessions().start(all).await.unwrap();
    assert_eq!(started.session.current.disks.len(), 16);
    assert_eq!(started.endpoint.lun, 0, "it boots from the system disk");
    p.assert_whole("as many as there can be").await;
}

#[tokio::test]
async fn what_a_session_with_data_disks_lacks_is_made_again_but_no_written_disk() {
    let p = House::new().open().await;
    let room = Room::new(&p, WritebackPolicy::Discard).await;
    let disk = room.start_and_login(&p).await;
    disk.write(2, 0, &[9; 512]).await.unwrap();
    disk.logout().await;
    let session = p.session(&room.machine).await;
    let target = session.target(&session.current);
    p.targets.remove(&target, Removal::Force).await.unwrap();
    p.reconcile().await;
    p.assert_whole("made again").await;
    let disk = p.login(&target, &room.machine).await.unwrap();
    holds(&disk, 2, 9, "made again").await;
    disk.logout().await;

    p.targets.remove(&target, Removal::Force).await.unwrap();
    let written = ResourceId::generation(room.machine.id, 1).on_lun(2);
    p.writebacks.remove(&written, Removal::Force).await.unwrap();
    let report = format!("{:?}", p.o.reconcile().await);
    assert!(report.contains("The written disk") && report.contains(written.as_str()), "{report}");
    assert!(p.login(&target, &room.machine).await.is_err(), "nobody reads an empty disk for its own");
}

/// Each call fails; with every removal failing besides, the reconciler finds what is left by its name.
#[tokio::test]
async fn every_step_of_a_start_with_data_disks_fails() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for removals_fail in [false, true] {
            for step in 1.. {
                let p = House::new().open().await;
                let room = Room::new(&p, policy).await;
                let kept = u8::from(policy == WritebackPolicy::Keep) * 3;
                if kept > 0 {
                    room.start_and_login(&p).await.write(2, 0, &[kept; 512]).await.unwrap();
                    p.stop(&p.session(&room.machine).await, true).await.unwrap();
                }
                let before = p.plan.log().len();
                p.plan.add(Fault::any().nth(step).loses_the_answer(ErrorKind::Timeout));
                if removals_fail {
                    p.plan.add(Fault::on("remove").fails(ErrorKind::Unavailable));
                }
                let result = room.start(&p).await;
                let calls = p.plan.log().len() - before;
                p.plan.clear();
                let why = format!("{policy:?}, step {step}: {:?}", p.plan.log().get(before..));
                p.reconcile().await;
                p.assert_whole(&why).await;
                if result.is_err() {
                    p.assert_empty_but_kept(&why, policy).await;
                    room.start(&p).await.unwrap();
                }
                let session = p.session(&room.machine).await;
                let disk = p.login(&session.target(&session.current), &room.machine).await.unwrap();
                holds(&disk, 2, kept, &why).await;
                p.assert_whole(&why).await;
                if u64::try_from(calls).unwrap() < step {
                    assert!(step > 8, "a start has more steps than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn killed_at_every_call_of_a_start_with_data_disks() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for polls in POLLS {
            for step in 1.. {
                let house = House::new();
                let p = house.open().await;
                let room = Room::new(&p, policy).await;
                let kept = u8::from(policy == WritebackPolicy::Keep) * 3;
                if kept > 0 {
                    room.start_and_login(&p).await.write(2, 0, &[kept; 512]).await.unwrap();
                    p.stop(&p.session(&room.machine).await, true).await.unwrap();
                }
                let (o, request) = (p.o.clone(), room.request());
                let died = dies(&p.plan, step, polls, async move { o.sessions().start(request).await }).await;
                let why = format!("{policy:?}: killed at call {step} after {polls} polls");
                let p = house.open().await;
                p.assert_whole(&why).await;
                if p.store.live_session(room.machine.id).await.unwrap().is_none() {
                    room.start(&p).await.unwrap();
                }
                let session = p.session(&room.machine).await;
                let disk = p.login(&session.target(&session.current), &room.machine).await.unwrap();
                holds(&disk, 2, kept, &why).await;
                p.assert_whole(&why).await;
                if !died {
                    assert!(step > 8, "a start has more calls than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn killed_at_every_call_of_a_reboot_with_data_disks() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for polls in POLLS {
            for step in 1.. {
                let house = House::new();
                let p = house.open().await;
                let room = Room::new(&p, policy).await;
                room.start_and_login(&p).await.write(2, 0, &[6; 512]).await.unwrap();
                let before = p.session(&room.machine).await;
                let rebooting = RebootingMachine::of(&p, &room.machine);
                let died = dies(&p.plan, step, polls, rebooting.reboot()).await;
                let why = format!("{policy:?}: killed at call {step} after {polls} polls");
                let p = house.open().await;
                p.assert_whole(&why).await;
                let after = p.session(&room.machine).await;
                assert_eq!(after.id, before.id, "{why}: a live session is lost");
                assert_eq!(after.current.disks.len(), 3, "{why}");
                let committed = after.current.number != before.current.number;
                let disk = p.login(&after.target(&after.current), &room.machine).await.unwrap();
                let clean = committed && policy == WritebackPolicy::Discard;
                holds(&disk, 2, if clean { 0 } else { 6 }, &why).await;
                if !died {
                    assert!(step > 6, "a reboot has more calls than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn killed_at_every_call_of_a_stop_with_data_disks() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for polls in POLLS {
            for step in 1.. {
                let house = House::new();
                let p = house.open().await;
                let room = Room::new(&p, policy).await;
                room.start_and_login(&p).await.write(2, 0, &[4; 512]).await.unwrap();
                let _next = p.script(&room.machine).await;
                let session = p.session(&room.machine).await;
                let (o, id) = (p.o.clone(), session.id);
                let request = StopRequest {
                    session: id,
                    force: true,
                    reason: ggnet_core::nouns::StopReason::Operator,
                    by: Principal::embedder(),
                };
                let died = dies(&p.plan, step, polls, async move { o.sessions().stop(request).await }).await;
                let why = format!("{policy:?}: killed at call {step} after {polls} polls");
                let p = house.open().await;
                p.assert_whole(&why).await;
                let last = p.last(&room.machine).await.unwrap();
                if last.state == SessionState::Active {
                    // Killed before the stop was recorded: its machine goes on where it was.
                    assert_eq!(last, session, "{why}");
                    let disk = p.login(&last.target(&last.current), &room.machine).await.unwrap();
                    holds(&disk, 2, 4, &why).await;
                    p.stop(&last, true).await.unwrap();
                }
                p.assert_empty_but_kept(&why, policy).await;
                let disk = room.start_and_login(&p).await;
                holds(&disk, 2, if policy == WritebackPolicy::Keep { 4 } else { 0 }, &why).await;
                if !died {
                    assert!(step > 6, "a stop has more calls than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn killed_while_a_reconcile_makes_data_disks_again() {
    for step in 1.. {
        let house = House::new();
        let p = house.open().await;
        let room = Room::new(&p, WritebackPolicy::Discard).await;
        room.start_and_login(&p).await.write(2, 0, &[8; 512]).await.unwrap();
        let _next = p.script(&room.machine).await;
        let session = p.session(&room.machine).await;
        drop(p);
        // The next process dies in its first round.
        let plan = FaultPlan::new();
        plan.add(Fault::any().nth(step).kills(1));
        let p = house.open_unready(&plan);
        let died = tokio::select! {
            biased;
            () = plan.killed() => true,
            () = p.until_serving() => false,
        };
        let p = house.open().await;
        let why = format!("killed at call {step} of the first reconcile");
        p.assert_whole(&why).await;
        assert_eq!(p.session(&room.machine).await, session, "{why}");
        let disk = p.login(&session.target(&session.current), &room.machine).await.unwrap();
        holds(&disk, 2, 8, &why).await;
        if !died {
            assert!(step > 8, "a first round has more calls than {step}");
            break;
        }
    }
}

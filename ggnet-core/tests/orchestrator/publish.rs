//! Publishing what a machine has kept: the next version of its image, or what it was.

use std::time::Duration;

use ggnet_core::{
    Error, ErrorKind,
    nouns::{
        AuditAction, AuditSubject, EventKind, ImageId, ImageVersionId, Machine, Principal, ResourceId,
        SessionId, VersionSource, VersionState, WritebackPolicy,
    },
    orchestrator::PublishRequest,
    ports::{Batch, Removal, Store as _, Write, WritebackStore as _},
    testkit::flaky::Fault,
};

use crate::house::{House, Process};

/// A machine that has written this byte to its first sector, was stopped and keeps it.
async fn kept(p: &Process, byte: u8) -> (Machine, ImageId, ImageVersionId) {
    let (image, version) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    write(p, &machine, byte).await;
    (machine, image, version)
}

/// Boots, writes, stops.
async fn write(p: &Process, machine: &Machine, byte: u8) {
    p.power_on(machine).await.write(0, 0, &[byte; 512]).await.unwrap();
    p.stop(&p.session(machine).await, true).await.unwrap();
}

fn request(machine: &Machine) -> PublishRequest {
    PublishRequest {
        machine: machine.id,
        comment: "with the new driver".to_owned(),
        make_current: true,
        by: Principal::embedder(),
    }
}

async fn keeps(p: &Process, machine: &Machine) -> bool {
    p.writebacks.get(&ResourceId::machine(machine.id)).await.unwrap().is_some()
}

/// It refuses, and what is kept is as it was: the machine boots it.
async fn is_as_it_was(p: &Process, machine: &Machine, byte: u8, why: &str) {
    assert!(keeps(p, machine).await, "{why}");
    p.assert_whole(why).await;
    let disk = p.power_on(machine).await;
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [byte; 512], "{why}");
    drop(disk);
    p.stop(&p.session(machine).await, true).await.unwrap();
}

#[tokio::test]
async fn what_a_machine_has_kept_becomes_the_next_version_of_its_image() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, base) = kept(&p, 4).await;
    let session = p.last(&machine).await.unwrap();
    let (record, version) = p.o.images().publish(request(&machine)).await.unwrap();
    assert_eq!((record.id, record.current), (image, Some(version.id)));
    assert_eq!((version.state, version.number), (VersionState::Ready, 2));
    assert_eq!(version.comment, "with the new driver");
    assert_eq!(version.source, VersionSource::Writeback { session: session.id, base });
    assert_eq!((version.size_bytes, version.sha256.as_ref()), (crate::house::SIZE, None));
    assert_eq!(p.image_bytes(version.id).await[..512], [4; 512]);
    assert!(!keeps(&p, &machine).await, "it is a version now");
    let of_versions =
        |kind: &EventKind| matches!(kind, EventKind::VersionImporting | EventKind::VersionReady);
    let told: Vec<_> = p.all_events().await.into_iter().filter(of_versions).collect();
    assert_eq!(told, [EventKind::VersionImporting, EventKind::VersionReady]);
    let audit = p.store.audit(crate::house::all()).await.unwrap().items;
    assert!(
        audit
            .iter()
            .any(|row| row.action == AuditAction::ImagePublish && row.subject == AuditSubject::Image(image))
    );
    let current = audit.iter().find(|row| row.action == AuditAction::ImageSetCurrent).unwrap();
    assert_eq!(current.before.as_ref().unwrap()["current"], base.to_string());
    assert_eq!(current.after.as_ref().unwrap()["current"], version.id.to_string());
    assert!(p.all_events().await.contains(&EventKind::ImageUpdated), "subscribers hear of it");
    p.assert_whole("published").await;

    // Everybody boots it, with a clean disk over it; and it can be gone on from.
    let other = p.machine(2, image, |_| ()).await;
    let disk = p.power_on(&other).await;
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [4; 512]);
    write(&p, &machine, 5).await;
    let mut ask = request(&machine);
    ask.make_current = false;
    let (record, third) = p.o.images().publish(ask).await.unwrap();
    assert_eq!((record.current, third.number), (Some(version.id), 3), "not asked to be current");
    assert_eq!(p.image_bytes(third.id).await[..512], [5; 512]);
    let p = house.open().await;
    p.assert_whole("after a restart").await;
    assert_eq!(p.image_bytes(third.id).await[..512], [5; 512]);
}

#[tokio::test]
async fn so_many_versions_stand_on_each_other_and_no_more() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, _) = kept(&p, 1).await;
    for byte in 2..=16 {
        p.o.images().publish(request(&machine)).await.unwrap();
        write(&p, &machine, byte).await;
    }
    let e = p.o.images().publish(request(&machine)).await.unwrap_err();
    assert_eq!((e.kind(), e.code().name()), (ErrorKind::Conflict, "versions_too_deep"), "{e}");
    assert_eq!(p.store.versions(image).await.unwrap().len(), 16);
    is_as_it_was(&p, &machine, 16, "refused").await;
}

#[tokio::test]
async fn a_version_below_another_cannot_be_deleted() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, base) = kept(&p, 4).await;
    let (_, second) = p.o.images().publish(request(&machine)).await.unwrap();
    let refused = |e: Error| {
        assert_eq!((e.kind(), e.code().name()), (ErrorKind::Conflict, "version_below_another"), "{e}");
        assert!(e.message().contains("Version 2") && e.hint().is_some(), "{e}");
    };
    refused(p.o.images().delete_version(base, &Principal::embedder()).await.unwrap_err());
    // Nor while the bytes above are out of reach: the record says what they stand on.
    let away = p.images.world();
    ggnet_core::ports::ImageStore::remove(&*p.images, second.id, Removal::Force).await.unwrap();
    refused(p.o.images().delete_version(base, &Principal::embedder()).await.unwrap_err());
    away.plant(second.id, crate::house::SIZE, &[]).unwrap();
    // One that needs nothing below it, whatever it was made of.
    p.o.images().delete_version(base, &Principal::embedder()).await.unwrap();
    p.update(&machine, |m| m.image = None).await;
    p.o.images().delete(image, &Principal::embedder()).await.unwrap();
    assert!(p.image_ids().await.is_empty());
}

#[tokio::test]
async fn what_is_left_of_a_deleted_version_is_no_version_to_delete_first() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, base) = kept(&p, 4).await;
    let (_, second) =
        p.o.images().publish(PublishRequest { make_current: false, ..request(&machine) }).await.unwrap();
    let third = p.version(image, 3).await;
    p.set_current(image, third).await;
    // Deleted, and its bytes could not be removed.
    p.store.commit(Batch::new().write(Write::DeleteVersion(second.id))).await.unwrap();
    let e = p.o.images().delete_version(base, &Principal::embedder()).await.unwrap_err();
    assert_eq!(e.code().name(), "version_below_another", "{e}");
    assert!(e.hint().unwrap().contains("next start"), "{e}");
    let p = house.open().await;
    p.o.images().delete_version(base, &Principal::embedder()).await.unwrap();
}

#[tokio::test]
async fn an_image_goes_with_all_that_stand_on_each_other() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, _) = kept(&p, 4).await;
    p.o.images().publish(request(&machine)).await.unwrap();
    p.update(&machine, |m| m.image = None).await;
    p.o.images().delete(image, &Principal::embedder()).await.unwrap();
    assert!(p.image_ids().await.is_empty(), "the newest first");
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_and_nothing_is_recorded() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let nothing = p.o.images().publish(request(&machine)).await.unwrap_err();
    assert_eq!((nothing.kind(), nothing.code().name()), (ErrorKind::NotFound, "nothing_kept"));
    let disk = p.power_on(&machine).await;
    disk.write(0, 0, &[6; 512]).await.unwrap();
    let runs = p.o.images().publish(request(&machine)).await.unwrap_err();
    assert_eq!((runs.kind(), runs.code().name()), (ErrorKind::Conflict, "machine_has_session"));
    assert!(runs.hint().is_some() && nothing.hint().is_some());
    drop(disk);
    p.stop(&p.session(&machine).await, true).await.unwrap();
    let gone = ggnet_core::nouns::MachineId::generate();
    let ask = PublishRequest { machine: gone, ..request(&machine) };
    assert_eq!(p.o.images().publish(ask).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(p.store.versions(image).await.unwrap().len(), 1);
    is_as_it_was(&p, &machine, 6, "refused").await;
}

#[tokio::test]
async fn a_publication_that_fails_leaves_what_was_kept() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, _) = kept(&p, 7).await;
    p.plan.add(Fault::on("writeback.freeze").nth(1).fails(ErrorKind::Full));
    p.o.images().publish(request(&machine)).await.unwrap_err();
    assert_eq!(p.store.versions(image).await.unwrap().len(), 1, "nothing was about to move");
    is_as_it_was(&p, &machine, 7, "not frozen").await;
    for (n, fault) in [
        Fault::on("image.adopt").nth(1).fails(ErrorKind::Full),
        Fault::on("image.adopt").nth(1).is_cut_after(1),
    ]
    .into_iter()
    .enumerate()
    {
        p.plan.clear().add(fault);
        p.o.images().publish(request(&machine)).await.unwrap_err();
        let versions = p.store.versions(image).await.unwrap();
        let failed = versions.last().unwrap();
        assert_eq!((failed.state, versions.len()), (VersionState::Failed, n + 2));
        assert!(failed.failure.is_some() && failed.finished_at.is_some());
        is_as_it_was(&p, &machine, 7, &format!("fault {n}")).await;
    }
    p.plan.clear();
    let (_, version) = p.o.images().publish(request(&machine)).await.unwrap();
    assert_eq!(p.image_bytes(version.id).await[..512], [7; 512]);
}

#[tokio::test]
async fn an_adoption_whose_answer_is_lost_is_found_out() {
    let house = House::new();
    let p = house.open().await;
    let (machine, ..) = kept(&p, 8).await;
    p.plan.add(Fault::on("image.adopt").nth(1).loses_the_answer(ErrorKind::Timeout));
    let (_, version) = p.o.images().publish(request(&machine)).await.unwrap();
    assert_eq!(version.state, VersionState::Ready);
    assert_eq!(p.image_bytes(version.id).await[..512], [8; 512]);
    assert!(!keeps(&p, &machine).await);
}

#[tokio::test]
async fn a_publication_whose_end_is_not_recorded_is_finished_by_the_reconciler() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, _) = kept(&p, 9).await;
    // The second commit says that it is ready.
    p.plan.add(Fault::on("store.commit").nth(2).fails(ErrorKind::Full));
    p.o.images().publish(request(&machine)).await.unwrap_err();
    let version = p.store.versions(image).await.unwrap().pop().unwrap();
    assert_eq!(version.state, VersionState::Importing);
    // Nothing of it is taken for left over meanwhile, also not by the next start.
    let report = p.o.reconcile().await;
    assert_eq!((report.ended, report.trouble), (1, vec![]));
    let ready = p.store.version(version.id).await.unwrap().unwrap();
    assert_eq!((ready.state, ready.size_bytes), (VersionState::Ready, crate::house::SIZE));
    assert_eq!(p.image_bytes(version.id).await[..512], [9; 512]);
}

/// It comes to its end when nobody waits for it any more: until then nobody says how it ended.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_outlives_its_limit_is_waited_for() {
    let house = House::new();
    let p = house.open().await;
    let (machine, ..) = kept(&p, 3).await;
    p.plan.add(Fault::on("image.adopt").nth(1).is_delayed(Duration::from_secs(500)));
    let e = p.o.images().publish(request(&machine)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
    let importing = p.store.importing_versions().await.unwrap();
    assert_eq!(importing.len(), 1, "it may be done yet");
    let report = p.o.reconcile().await;
    assert!(report.ended == 0 && report.trouble.iter().any(|t| t.contains("imports")), "{report:?}");
    assert!(p.start(&machine).await.is_err(), "nobody writes to what is about to become a version");
    tokio::time::sleep(Duration::from_secs(500)).await;
    p.o.reconcile().await;
    let ready = p.store.version(importing[0].id).await.unwrap().unwrap();
    assert_eq!(ready.state, VersionState::Ready);
    assert_eq!(p.image_bytes(ready.id).await[..512], [3; 512]);
    p.assert_whole("in the end").await;
}

/// Booted on a disk of its session's own meanwhile, its machine says nothing of what it keeps.
#[tokio::test(start_paused = true)]
async fn an_adoption_is_waited_for_while_its_machine_runs_on_another_disk() {
    let house = House::new();
    let p = house.open().await;
    let (machine, ..) = kept(&p, 3).await;
    p.plan.add(Fault::on("image.adopt").nth(1).is_delayed(Duration::from_secs(500)));
    p.o.images().publish(request(&machine)).await.unwrap_err();
    let version = p.store.importing_versions().await.unwrap()[0].id;
    p.update(&machine, |m| m.writeback = WritebackPolicy::Discard).await;
    p.start(&machine).await.unwrap();
    p.o.reconcile().await;
    assert_eq!(p.store.version(version).await.unwrap().unwrap().state, VersionState::Importing);
    tokio::time::sleep(Duration::from_secs(500)).await;
    p.o.reconcile().await;
    assert_eq!(p.store.version(version).await.unwrap().unwrap().state, VersionState::Ready);
    assert_eq!(p.image_bytes(version).await[..512], [3; 512]);
    p.assert_whole("in the end").await;
}

/// Whatever recorded it as failed: what the machine kept is nowhere else.
#[tokio::test]
async fn the_bytes_of_a_failed_publication_are_never_taken_for_leftovers() {
    let house = House::new();
    let p = house.open().await;
    let (machine, ..) = kept(&p, 6).await;
    let (_, version) = p.o.images().publish(request(&machine)).await.unwrap();
    let mut failed = p.store.version(version.id).await.unwrap().unwrap();
    (failed.state, failed.error) = (VersionState::Failed, Some("lost".to_owned()));
    p.store.commit(Batch::new().write(Write::Version(failed))).await.unwrap();
    let p = house.open().await;
    let ready = p.store.version(version.id).await.unwrap().unwrap();
    assert_eq!((ready.state, ready.error), (VersionState::Ready, None));
    assert_eq!(p.image_bytes(version.id).await[..512], [6; 512]);
}

/// What was written may have to go to the disk first, which takes as long as there is to write.
#[tokio::test(start_paused = true)]
async fn no_other_machine_waits_for_a_freeze() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, _) = kept(&p, 3).await;
    let other = p.machine(2, image, |_| ()).await;
    p.plan.add(Fault::on("writeback.freeze").nth(1).is_delayed(Duration::from_secs(20)));
    let (o, ask) = (p.o.clone(), request(&machine));
    let publishing = tokio::spawn(async move { o.images().publish(ask).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    p.start(&other).await.unwrap();
    assert!(!publishing.is_finished(), "it waited for the image lock");
    let (_, version) = publishing.await.unwrap().unwrap();
    assert_eq!(p.image_bytes(version.id).await[..512], [3; 512]);
}

/// As after a start at which the folder of the images was not mounted: what is neither here nor there is not given up.
#[tokio::test]
async fn bytes_that_are_in_no_place_are_waited_for() {
    let house = House::new();
    let p = house.open().await;
    let (machine, image, _) = kept(&p, 2).await;
    p.plan.add(Fault::on("store.commit").nth(2).fails(ErrorKind::Full));
    p.o.images().publish(request(&machine)).await.unwrap_err();
    let version = p.store.versions(image).await.unwrap().pop().unwrap();
    let away = p.image_bytes(version.id).await;
    ggnet_core::ports::ImageStore::remove(&*p.images, version.id, Removal::Force).await.unwrap();
    let p = house.open().await;
    let report = p.o.reconcile().await;
    assert!(report.trouble.iter().any(|t| t.contains("neither in the image store")), "{report:?}");
    assert_eq!(p.store.version(version.id).await.unwrap().unwrap().state, VersionState::Importing);
    house.images.plant(version.id, crate::house::SIZE, &away).unwrap();
    p.reconcile().await;
    assert_eq!(p.store.version(version.id).await.unwrap().unwrap().state, VersionState::Ready);
}

/// A version as a process leaves it that died before it could freeze what the machine keeps.
async fn begun(p: &Process, machine: &Machine, base: ImageVersionId) -> ImageVersionId {
    begun_after(p, p.last(machine).await.unwrap().id, base).await
}

async fn begun_after(p: &Process, session: SessionId, base: ImageVersionId) -> ImageVersionId {
    let mut version = p.store.version(base).await.unwrap().unwrap();
    (version.id, version.number) = (ImageVersionId::generate(), 2);
    version.state = VersionState::Importing;
    version.source = VersionSource::Writeback { session, base };
    p.store.commit(Batch::new().write(Write::Version(version.clone()))).await.unwrap();
    version.id
}

#[tokio::test]
async fn a_publication_that_did_not_come_to_its_bytes_is_failed_and_may_begin_again() {
    let house = House::new();
    let p = house.open().await;
    let (machine, _, base) = kept(&p, 1).await;
    let version = begun(&p, &machine, base).await;
    assert_eq!(
        p.o.images().publish(request(&machine)).await.unwrap_err().kind(),
        ErrorKind::Busy,
        "one at a time"
    );
    let by = Principal::embedder();
    assert_eq!(p.o.machines().discard_kept(machine.id, &by).await.unwrap_err().kind(), ErrorKind::Busy);
    p.reconcile().await;
    let failed = p.store.version(version).await.unwrap().unwrap();
    assert_eq!(failed.state, VersionState::Failed);
    assert_eq!(failed.failure.unwrap().code, "publish_interrupted");
    is_as_it_was(&p, &machine, 1, "it is the writeback's still").await;
    let (_, again) = p.o.images().publish(request(&machine)).await.unwrap();
    assert_eq!(p.image_bytes(again.id).await[..512], [1; 512]);
}

#[tokio::test]
async fn a_publication_whose_session_is_forgotten_is_ended_and_keeps_nobody_from_publishing() {
    let house = House::new();
    let p = house.open().await;
    let (machine, _, base) = kept(&p, 1).await;
    let version = begun_after(&p, SessionId::generate(), base).await;
    assert_eq!(
        p.o.images().publish(request(&machine)).await.unwrap_err().kind(),
        ErrorKind::Busy,
        "it may be this one"
    );
    p.reconcile().await;
    assert_eq!(p.store.version(version).await.unwrap().unwrap().state, VersionState::Failed);
    let (_, again) = p.o.images().publish(request(&machine)).await.unwrap();
    assert_eq!(p.image_bytes(again.id).await[..512], [1; 512]);
}

#[tokio::test]
async fn the_reconciler_removes_no_writeback_that_a_version_is_to_be_made_of() {
    let house = House::new();
    let p = house.open().await;
    let (machine, _, base) = kept(&p, 1).await;
    let version = begun(&p, &machine, base).await;
    // Its machine is gone, and it cannot be said where the version's bytes are.
    p.o.machines().delete(machine.id, &Principal::embedder()).await.unwrap();
    p.plan.add(Fault::on("image.get").fails(ErrorKind::Unavailable));
    p.o.reconcile().await;
    assert!(keeps(&p, &machine).await, "it may be wanted");
    p.plan.clear();
    p.o.reconcile().await;
    assert_eq!(p.store.version(version).await.unwrap().unwrap().state, VersionState::Failed);
    p.o.reconcile().await;
    assert!(!keeps(&p, &machine).await, "nobody wants it any more");
}

//! Machines as operators change them.

use ggnet_core::{
    ErrorKind,
    nouns::{AuditAction, AuditSubject, EventKind, MachineId, Principal, ResourceId, WritebackPolicy},
    ports::Store as _,
    testkit::flaky::Fault,
};

use crate::house::{House, all, mac, pc};

#[tokio::test]
async fn of_two_operators_the_second_is_told() {
    let house = House::new();
    let p = house.open().await;
    let machine = p.o.machines().create(pc(1, None), &Principal::embedder()).await.unwrap();
    assert_eq!(machine.revision, 1);
    let describe = |text: &'static str| {
        Box::new(move |mut m: ggnet_core::nouns::Machine| {
            m.description = text.to_owned();
            Ok(m)
        })
    };
    let first =
        p.o.machines().update(machine.id, Some(1), describe("first"), &Principal::embedder()).await.unwrap();
    assert_eq!(first.revision, 2);
    let e =
        p.o.machines()
            .update(machine.id, Some(1), describe("second"), &Principal::embedder())
            .await
            .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(e.hint().is_some(), "{e}");
    assert_eq!(p.store.machine(machine.id).await.unwrap().unwrap(), first);
    let lost =
        p.o.machines().update(MachineId::generate(), None, describe("x"), &Principal::embedder()).await;
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_field() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let (other, foreign) = p.image("other").await;
    p.machine(1, image, |_| ()).await;
    let create = async |change: &dyn Fn(&mut ggnet_core::nouns::Machine)| {
        let mut machine = pc(2, Some(image));
        change(&mut machine);
        p.o.machines().create(machine, &Principal::embedder()).await.unwrap_err()
    };
    assert_eq!(create(&|m| m.macs.clear()).await.field(), Some("macs"));
    assert_eq!(
        create(&|m| m.image = Some(ggnet_core::nouns::ImageId::generate())).await.field(),
        Some("image")
    );
    assert_eq!(create(&|m| m.pinned_version = Some(foreign)).await.field(), Some("pinned_version"));
    assert_eq!(create(&|m| m.macs = vec![mac(1)]).await.kind(), ErrorKind::Conflict);
    assert_eq!(create(&|m| m.name = "pc-1".parse().unwrap()).await.kind(), ErrorKind::Conflict);
    let address = "10.0.0.7".parse().ok();
    let third = p.machine(3, image, |m| m.fixed_address = address).await;
    let taken = create(&|m| m.fixed_address = address).await;
    assert!(taken.kind() == ErrorKind::Conflict && taken.message().contains("pc-3"), "{taken}");
    let move_there = move |mut m: ggnet_core::nouns::Machine| {
        m.fixed_address = address;
        Ok(m)
    };
    let first = p.store.machine_by_mac(mac(1)).await.unwrap().unwrap();
    let taken =
        p.o.machines()
            .update(first.id, None, Box::new(move_there), &Principal::embedder())
            .await
            .unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    p.o.machines()
        .update(third.id, None, Box::new(move_there), &Principal::embedder())
        .await
        .expect("its own");
    let _ = other;
    p.assert_whole("nothing of the refused ones").await;
}

#[tokio::test]
async fn dhcp_and_boot_files_follow_a_machine() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    p.assert_whole("created").await;
    assert_eq!(p.left().await["dhcp"].len(), 1);
    p.update(&machine, |m| m.macs = vec![mac(77)]).await;
    assert!(p.dhcp.request(mac(77), ggnet_core::nouns::Firmware::Bios, false).is_some());
    assert!(p.dhcp.request(mac(1), ggnet_core::nouns::Firmware::Bios, false).is_none());
    p.update(&machine, |m| m.image = None).await;
    p.assert_empty("it has nothing to boot").await;
    p.update(&machine, move |m| m.image = Some(image)).await;
    // A backend that is down does not undo the record; the reconciler brings it in line.
    p.plan.add(Fault::on("dhcp.apply").fails(ErrorKind::Unavailable));
    p.update(&machine, |m| m.macs = vec![mac(78)]).await;
    p.plan.clear();
    p.reconcile().await;
    p.assert_whole("reconciled").await;
    assert!(p.dhcp.request(mac(78), ggnet_core::nouns::Firmware::Bios, false).is_some());
}

#[tokio::test]
async fn a_machine_with_a_live_session_stays_and_one_without_goes_with_its_writeback() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let disk = p.power_on(&machine).await;
    disk.write(0, 0, &[1; 512]).await.unwrap();
    for refused in [
        p.o.machines().delete(machine.id, &Principal::embedder()).await,
        p.o.machines().discard_kept(machine.id, &Principal::embedder()).await,
    ] {
        let e = refused.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict);
        assert!(e.hint().unwrap().contains("Stop"), "{e}");
    }
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [1; 512]);
    p.stop(&p.session(&machine).await, true).await.unwrap();
    assert!(p.left().await["writeback"].contains(&ResourceId::machine(machine.id)));
    p.o.machines().delete(machine.id, &Principal::embedder()).await.unwrap();
    p.assert_empty("deleted").await;
    assert_eq!(
        p.o.machines().delete(machine.id, &Principal::embedder()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_deletion_that_a_backend_missed_is_caught_up() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    drop(p.power_on(&machine).await);
    p.stop(&p.session(&machine).await, true).await.unwrap();
    p.plan.add(Fault::on("remove").fails(ErrorKind::Unavailable));
    p.o.machines().delete(machine.id, &Principal::embedder()).await.unwrap();
    p.plan.clear();
    p.reconcile().await;
    p.assert_empty("caught up").await;
}

#[tokio::test]
async fn a_discarded_writeback_gives_a_clean_disk() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    p.power_on(&machine).await.write(0, 0, &[1; 512]).await.unwrap();
    p.stop(&p.session(&machine).await, true).await.unwrap();
    p.o.machines().discard_kept(machine.id, &Principal::embedder()).await.unwrap();
    assert_eq!(p.power_on(&machine).await.read(0, 0, 512).await.unwrap(), [0; 512]);
}

/// Who made an unknown machine be forgotten is in the audit, as all else is.
#[tokio::test]
async fn an_unknown_machine_is_forgotten_by_somebody() {
    let p = House::new().open().await;
    p.boot(mac(9)).await.unwrap();
    assert!(p.store.seen_machine(mac(9)).await.unwrap().is_some());
    p.o.machines().forget_seen(mac(9), &Principal::embedder()).await.unwrap();
    assert_eq!(p.store.seen_machine(mac(9)).await.unwrap(), None);
    let row = p.store.audit(all()).await.unwrap().items.remove(0);
    assert_eq!(
        (row.action, row.subject, row.by),
        (AuditAction::SeenForget, AuditSubject::Seen(mac(9)), Principal::embedder())
    );
    assert_eq!(row.before.unwrap()["count"], 1, "with what was known of it");
    assert_eq!(p.all_events().await.last(), Some(&EventKind::MachineForgotten { mac: mac(9) }));
    let e = p.o.machines().forget_seen(mac(9), &Principal::embedder()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

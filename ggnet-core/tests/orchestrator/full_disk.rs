//! A store that has only its reserve left: what frees space is recorded, and nothing else.

use std::time::Duration;

use ggnet_core::{
    ErrorKind,
    nouns::{Principal, SessionState, WritebackPolicy},
    orchestrator::NewTarget,
};

use crate::house::House;

#[tokio::test]
async fn on_a_full_disk_what_frees_space_is_recorded_and_nothing_else() {
    let house = House::new();
    let p = house.open().await;
    let (image, version) = p.image("debian").await;
    let (spare, _) = p.image("spare").await;
    let old = p.version(image, 2).await;
    let running = p.machine(1, image, |_| ()).await;
    let disk = p.power_on(&running).await;
    p.script(&running).await;
    assert!(p.session(&running).await.next.is_some());
    let idle = p.machine(2, image, |_| ()).await;
    let started = p.start(&idle).await.unwrap().session;
    let keep = p.machine(3, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let kept = p.start(&keep).await.unwrap().session;
    p.stop(&kept, false).await.unwrap();
    let new = NewTarget { name: "shared".parse().unwrap(), version, initiator: None };
    let (target, _) = p.o.targets().create(new.clone(), &Principal::embedder()).await.unwrap();

    house.store.set_full(true);
    assert_eq!(p.start(&keep).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(p.o.targets().create(new, &Principal::embedder()).await.unwrap_err().kind(), ErrorKind::Full);

    house.pass(Duration::from_secs(601)).await;
    p.o.reconcile().await;
    assert!(p.session(&running).await.next.is_none(), "a generation that nobody used expires");
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [0; 512], "the running machine is untouched");
    assert_eq!(p.stop(&started, false).await.unwrap().state, SessionState::Stopped);
    let session = p.session(&running).await;
    assert_eq!(p.stop(&session, true).await.unwrap().state, SessionState::Stopped);
    p.o.machines().discard_kept(keep.id, &Principal::embedder()).await.unwrap();
    p.o.targets().delete(target.id, false, &Principal::embedder()).await.unwrap();
    p.o.images().delete_version(old, &Principal::embedder()).await.unwrap();
    p.o.images().delete(spare, &Principal::embedder()).await.unwrap();
    p.o.machines().delete(idle.id, &Principal::embedder()).await.unwrap();
    assert!(p.left().await.values().all(|left| left.iter().all(|id| id.owner() != Some((idle.id, None)))));

    house.store.set_full(false);
    p.start(&keep).await.unwrap();
}

//! The end of a process that is not killed.

use std::time::Duration;

use ggnet_core::{
    ErrorKind,
    nouns::{Principal, SessionState},
    orchestrator::StartRequest,
    testkit::flaky::Fault,
};

use crate::site::Site;

#[tokio::test]
async fn shutdown_waits_for_work_under_way_and_leaves_sessions_as_they_are() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let disk = p.power_on(&machine).await;
    disk.write(0, 0, &[1; 512]).await.unwrap();
    let slow = p.machine(2, image, |_| ()).await;
    p.plan.add(Fault::on("writeback.ensure").nth(1).is_delayed(Duration::from_millis(100)));
    let (o, id) = (p.o.clone(), slow.id);
    let starting = tokio::spawn(async move {
        o.sessions()
            .start(StartRequest { machine: id, image: None, data_disks: vec![], by: Principal::embedder() })
            .await
    });
    crate::site::until("the start is under way", async || p.plan.calls("writeback.ensure") >= 2).await;
    p.o.shutdown().await;
    assert_eq!(starting.await.unwrap().unwrap().session.state, SessionState::Active, "it was waited for");
    assert!(!disk.is_connected());
    let e =
        p.o.sessions()
            .start(StartRequest { machine: id, image: None, data_disks: vec![], by: Principal::embedder() })
            .await
            .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);

    let p = site.open().await;
    p.assert_whole("after the restart").await;
    assert_eq!(p.session(&slow).await.state, SessionState::Active);
    let session = p.session(&machine).await;
    let disk = p.login(&session.target(&session.current), &machine).await.unwrap();
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [1; 512]);
}

#[tokio::test]
async fn after_shutdown_nothing_keeps_it_alive() {
    let site = Site::new();
    let p = site.open().await;
    let targets = std::sync::Arc::downgrade(&p.targets);
    p.o.shutdown().await;
    // A backend that is still held must not keep the orchestrator alive, which holds every other backend.
    let held = p.dhcp.clone();
    drop(p);
    crate::site::until("the backends are let go", async || targets.strong_count() == 0).await;
    drop(held);
}

#[tokio::test]
async fn a_service_that_outlives_the_last_orchestrator_takes_no_new_work() {
    let p = Site::new().open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.auto_start = false).await.id;
    let sessions = std::sync::Arc::clone(p.o.sessions());
    let by = Principal::embedder();
    drop(p);
    let request = StartRequest { machine, image: None, data_disks: vec![], by };
    let e = sessions.start(request).await.unwrap_err();
    assert_eq!(e.code().name(), "shutting_down", "{e}");
}

#[tokio::test]
async fn an_import_under_way_is_cancelled() {
    let site = Site::new();
    let p = site.open().await;
    p.plan.add(Fault::on("image_converter.probe").is_delayed(Duration::from_millis(50)));
    let path = site.dir.path().join("source.raw");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let request = ggnet_core::orchestrator::ImportRequest {
        image: "debian".parse().unwrap(),
        path,
        format: None,
        expected_sha256: None,
        comment: String::new(),
        make_current: true,
        by: Principal::embedder(),
    };
    let (_, version) = p.o.images().import(request).await.unwrap();
    p.o.shutdown().await;
    let p = site.open().await;
    let version = ggnet_core::ports::Store::version(&p.store, version.id).await.unwrap().unwrap();
    assert_eq!(version.state, ggnet_core::nouns::VersionState::Failed);
    assert!(p.image_ids().await.is_empty());
}

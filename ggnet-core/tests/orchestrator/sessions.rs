//! Start and stop as their callers see them: what is made and told, and every refusal.

use ggnet_core::{
    ErrorKind,
    error::code,
    nouns::{
        EventKind, MachineId, MachineState, Principal, SessionId, SessionState, StopReason, WritebackPolicy,
    },
    orchestrator::{StartRequest, StopRequest},
    ports::{Batch, Health, SessionCounts, Store as _, Write},
    testkit::flaky::Fault,
};

use crate::house::{House, all, pc};

#[tokio::test]
async fn a_session_starts_and_stops_and_all_of_it_is_told() {
    let house = House::new();
    let p = house.open().await;
    let (image, version) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.auto_start = false).await;
    p.assert_empty("a machine that does not start by itself is unknown to every backend").await;
    let mut heard = p.o.subscribe();

    let started = p.start(&machine).await.unwrap();
    assert_eq!(started.session.state, SessionState::Active);
    assert_eq!(started.session.current.system().version, version);
    assert!(started.session.current.chap.is_some());
    assert_eq!(started.endpoint.lun, 0);
    let stored = p.session(&machine).await;
    assert_eq!(stored, started.session, "what is returned is what is stored");
    p.assert_whole("started").await;
    assert_eq!(p.left().await["dhcp"].len(), 1, "DHCP knows it now");
    let counts = p.store.session_counts().await.unwrap();
    assert_eq!(counts, SessionCounts { active: 1, ..SessionCounts::default() });

    let stopped = p.stop(&started.session, false).await.unwrap();
    assert_eq!((stopped.state, stopped.stop_reason), (SessionState::Stopped, Some(StopReason::Operator)));
    assert!(stopped.ended_at.is_some() && stopped.error.is_none());
    assert_eq!(p.last(&machine).await.unwrap(), stopped);
    p.assert_empty("stopped").await;
    let counts = p.store.session_counts().await.unwrap();
    assert_eq!(counts, SessionCounts { stopped: 1, ..SessionCounts::default() });

    let expected = [
        EventKind::MachineCreated,
        EventKind::SessionStarting,
        EventKind::SessionActive,
        EventKind::SessionStopping,
        EventKind::SessionStopped,
    ];
    assert_eq!(p.events(machine.id).await, expected);
    for kind in &expected[1..] {
        let event = heard.try_recv().unwrap();
        assert_eq!((&event.event.kind, event.event.session), (kind, Some(stopped.id)));
    }
    let audit = p.store.audit(all()).await.unwrap().items;
    let actions: Vec<_> = audit.iter().rev().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["machine.create", "session.start", "session.stop"]);
    assert!(audit.iter().all(|row| row.by == Principal::embedder()));
    let secret = started.session.current.chap.unwrap();
    let text = format!("{audit:?}{:?}", p.store.events(None, 100, None).await.unwrap());
    assert!(!text.contains(secret.secret.expose()), "a secret in the records");
}

#[tokio::test]
async fn a_start_that_cannot_be_is_refused_with_what_to_do() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let start = async |machine, image| {
        p.o.sessions()
            .start(StartRequest { machine, image, data_disks: vec![], by: Principal::embedder() })
            .await
            .unwrap_err()
    };

    let e = start(MachineId::generate(), None).await;
    assert_eq!(e.kind(), ErrorKind::NotFound);

    let machine = p.machine(1, image, |_| ()).await;
    for state in [MachineState::Inactive, MachineState::Maintenance, MachineState::Retired] {
        p.update(&machine, move |m| m.state = state).await;
        let e = start(machine.id, None).await;
        assert_eq!(e.code(), &code::machine_not_active(&machine.name, state.as_str()));
        assert!(e.message().contains(state.as_str()) && e.hint().is_some(), "{e}");
    }
    p.update(&machine, |m| m.state = MachineState::Active).await;

    let bare = p.o.machines().create(pc(2, None), &Principal::embedder()).await.unwrap();
    let e = start(bare.id, None).await;
    assert_eq!(e.code(), &code::machine_without_image("pc-2"));
    assert!(e.message().contains("no image") && e.hint().is_some(), "{e}");

    let mut empty = p.store.image(image).await.unwrap().unwrap();
    (empty.id, empty.name) = (ggnet_core::nouns::ImageId::generate(), "empty".parse().unwrap());
    (empty.current, empty.revision) = (None, 0);
    p.store.commit(Batch::new().write(Write::Image(empty.clone()))).await.unwrap();
    let e = start(machine.id, Some(empty.id)).await;
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(e.message().contains("ready") && e.hint().unwrap().contains("import"), "{e}");
    assert_eq!(
        start(machine.id, Some(ggnet_core::nouns::ImageId::generate())).await.kind(),
        ErrorKind::NotFound
    );

    let before = p.left().await;
    let started = p.start(&machine).await.unwrap();
    let during = p.left().await;
    let e = start(machine.id, None).await;
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(e.message().contains(&started.session.id.to_string()) && e.hint().is_some(), "{e}");
    assert_eq!(p.left().await, during, "a refused start changes nothing");
    assert_eq!(p.session(&machine).await, started.session);
    p.stop(&started.session, false).await.unwrap();
    assert_eq!(p.left().await, before);
}

#[tokio::test]
async fn a_stop_that_cannot_be_is_refused_with_what_to_do() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;

    let request = StopRequest {
        session: SessionId::generate(),
        force: true,
        reason: StopReason::Operator,
        by: Principal::embedder(),
    };
    assert_eq!(p.o.sessions().stop(request).await.unwrap_err().kind(), ErrorKind::NotFound);

    let session = p.start(&machine).await.unwrap().session;
    p.stop(&session, false).await.unwrap();
    let e = p.stop(&session, true).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(e.message().contains("stopped") && e.hint().is_some(), "{e}");

    let disk = p.power_on(&machine).await;
    disk.write(0, 0, &[7; 512]).await.unwrap();
    let session = p.session(&machine).await;
    let (before, told) = (p.left().await, p.events(machine.id).await.len());
    let e = p.stop(&session, false).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.hint().unwrap().contains("force") && !e.is_retryable(), "{e}");
    assert_eq!(p.session(&machine).await, session, "nothing has changed");
    assert_eq!(p.left().await, before);
    let login_told = p.events(machine.id).await.len() - told;
    assert!(login_told <= 2, "only observations of the login may have come in meanwhile");
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [7; 512], "the machine did not notice");

    let stopped = p.stop(&session, true).await.unwrap();
    assert_eq!(stopped.state, SessionState::Stopped);
    assert!(!disk.is_connected());
    p.assert_whole("forced").await;
    assert!(!p.o.presence().is_online(session.id));
    assert_eq!(p.o.presence().online_count(), 0);
}

#[tokio::test]
async fn a_forced_stop_under_keep_leaves_every_write() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let disk = p.power_on(&machine).await;
    disk.write(0, 4096, &[9; 4096]).await.unwrap();
    p.stop(&p.session(&machine).await, true).await.unwrap();
    p.reconcile().await;
    let disk = p.power_on(&machine).await;
    assert_eq!(disk.read(0, 4096, 4096).await.unwrap(), [9; 4096]);
}

#[tokio::test]
async fn generation_numbers_only_grow_over_sessions() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _disk = p.power_on(&machine).await;
    let unused = p.script(&machine).await;
    let session = p.session(&machine).await;
    assert_eq!(session.next.as_ref().map(|g| g.number), Some(session.current.number + 1));
    p.stop(&session, true).await.unwrap();
    let again = p.start(&machine).await.unwrap().session;
    assert!(again.current.number > session.next.unwrap().number);
    assert!(p.login(&unused.target, &machine).await.is_err());
}

#[tokio::test]
async fn an_image_named_at_the_start_lasts_for_the_session() {
    let house = House::new();
    let p = house.open().await;
    let (own, own_version) = p.image("own").await;
    let (other, other_version) = p.image("other").await;
    let machine = p.machine(1, own, |_| ()).await;
    let request = StartRequest {
        machine: machine.id,
        image: Some(other),
        data_disks: vec![],
        by: Principal::embedder(),
    };
    let session = p.o.sessions().start(request).await.unwrap().session;
    assert_eq!(session.current.system().version, other_version);
    let disk = p.power_on(&machine).await;
    assert_eq!(p.session(&machine).await.current.number, session.current.number, "its first boot is of it");
    drop(disk);
    let _disk = p.power_on(&machine).await;
    let session = p.session(&machine).await;
    assert_eq!(
        (session.current.system().image, session.current.system().version),
        (other, other_version),
        "and the next one"
    );
    p.stop(&session, true).await.unwrap();
    assert_eq!(p.start(&machine).await.unwrap().session.current.system().version, own_version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_machines_at_once() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let mut machines = Vec::new();
    for n in 1..=100 {
        machines.push(p.machine(n, image, |_| ()).await);
    }
    let scripts = futures_util::future::join_all(machines.iter().map(|m| p.script(m))).await;
    assert_eq!(p.store.session_counts().await.unwrap().active, 100);
    p.assert_whole("started").await;
    let logins = machines.iter().zip(&scripts).map(|(m, s)| p.login(&s.target, m));
    let disks = futures_util::future::join_all(logins).await;
    assert!(disks.iter().all(Result::is_ok));
    assert_eq!(p.o.presence().online_count(), 100);
    let sessions = p.store.live_sessions().await.unwrap();
    let stops = futures_util::future::join_all(sessions.iter().map(|s| p.stop(s, true))).await;
    assert!(stops.iter().all(Result::is_ok));
    p.assert_whole("stopped").await;
    assert_eq!(p.store.session_counts().await.unwrap().stopped, 100);
    let store = p.o.read().health().await.into_iter().find(|of| of.port == "store");
    assert_eq!(store.map(|of| of.health), Some(Health::Up));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_too_long_is_undone() {
    use ggnet_core::testkit::flaky::Fault;
    let mut house = House::new();
    house.config.start_deadline = std::time::Duration::from_millis(100);
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.auto_start = false).await;
    p.plan.add(Fault::on("target.ensure").first(1).is_delayed(std::time::Duration::from_secs(2)));
    let e = p.start(&machine).await.unwrap_err();
    assert_eq!(e.code(), &code::start_too_long("100ms"));
    let failed = p.last(&machine).await.unwrap();
    assert_eq!((failed.state, failed.failure), (SessionState::Failed, Some((&e).into())));
    // What takes too long goes on, and is removed once it has ended.
    crate::house::until("it is undone", async || {
        p.reconcile().await;
        p.left().await.values().all(|ids| ids.is_empty()) && p.plan.calls("target.remove") > 0
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    p.assert_empty("undone for good").await;
    p.start(&machine).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing_half_way() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    for polls in 0..12 {
        let machine = p.machine(polls + 1, image, |_| ()).await;
        // Polled so often and dropped: as when a client closes its connection.
        let cut = ggnet_core::testkit::suite::cut_after(polls as usize, p.start(&machine)).await;
        if polls == 0 {
            assert!(cut.is_none() && p.last(&machine).await.is_none(), "never begun");
            continue;
        }
        crate::house::until("the start ends without its caller", async || {
            p.last(&machine).await.is_some_and(|s| s.state == SessionState::Active)
        })
        .await;
        let session = p.session(&machine).await;
        let _ = ggnet_core::testkit::suite::cut_after(1, p.stop(&session, false)).await;
        crate::house::until("the stop ends without its caller", async || {
            p.last(&machine).await.is_some_and(|s| s.state == SessionState::Stopped)
        })
        .await;
    }
    p.assert_whole("after all").await;
}

/// Over a backend whose logins are not ours to refuse.
#[tokio::test]
async fn a_stop_that_failed_half_way_is_finished_as_it_was_asked_for() {
    let mut house = House::new();
    house.polled = true;
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let session = p.start(&machine).await.unwrap().session;
    let fails = || Fault::on("target.remove").nth(1).fails(ErrorKind::Unavailable);
    p.plan.add(fails());
    assert_eq!(p.stop(&session, false).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(p.session(&machine).await.state, SessionState::Stopping);
    let disk = p.login(&session.target(&session.current), &machine).await.unwrap();
    p.reconcile().await;
    assert!(disk.is_connected(), "the stop spares a machine that runs");
    assert_eq!(p.session(&machine).await.state, SessionState::Active);
    p.assert_whole("as if the stop had not been asked for").await;

    p.plan.add(fails());
    assert_eq!(p.stop(&session, true).await.unwrap_err().kind(), ErrorKind::Unavailable);
    p.reconcile().await;
    assert!(!disk.is_connected());
    assert_eq!(p.last(&machine).await.unwrap().state, SessionState::Stopped);
    p.reconcile().await;
    assert!(p.left().await["target"].is_empty() && p.left().await["writeback"].is_empty());
}

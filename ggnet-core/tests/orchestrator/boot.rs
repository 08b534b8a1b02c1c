//! Requests for boot scripts: who gets which script, and that fifty at once are one.

use ggnet_core::{
    ErrorKind,
    boot_text::ipxe::inspect,
    nouns::{BootStage, EventKind, MachineState, Principal, WritebackPolicy},
    orchestrator::{BootAnswer, MachineChange},
    ports::Store as _,
    testkit::flaky::{Fault, FaultPlan},
};

use crate::house::{House, Process, all, mac, pc, until};

/// The reason that a declined machine is shown, from the script and from the event.
async fn declined(p: &Process, mac: ggnet_core::nouns::MacAddr) -> String {
    let before = p.all_events().await.len();
    let BootAnswer::Script(text) = p.boot(mac).await.unwrap() else { panic!("told to come again") };
    assert_eq!(inspect(&text).unwrap().san, [], "it falls through to its next boot device");
    let events = p.all_events().await.split_off(before);
    let [EventKind::BootDeclined { reason, diagnosis: Some(_) }] = events.as_slice() else {
        panic!("{events:?}")
    };
    reason.clone()
}

#[tokio::test]
async fn an_unknown_machine_is_remembered_once_and_counted() {
    let house = House::new();
    let p = house.open().await;
    let asks = (0..20).map(|_| p.boot(mac(7)));
    for answer in futures_util::future::join_all(asks).await {
        let BootAnswer::Script(text) = answer.unwrap() else { panic!("told to come again") };
        assert!(text.contains("52:54:00:00:00:07"), "its address is on the screen");
        assert_eq!(inspect(&text).unwrap().san, []);
    }
    // Asked at once it was one sight; asked one after the other it is counted.
    for _ in 0..19 {
        p.boot(mac(7)).await.unwrap();
    }
    assert!(matches!(p.boot_with(mac(8), false).await.unwrap(), BootAnswer::Script(_)));
    let seen = p.store.seen(all()).await.unwrap().items;
    assert_eq!(seen.len(), 1, "HEAD remembers nothing");
    assert_eq!((seen[0].count, seen[0].address.as_deref()), (20, Some("192.0.2.77")));
    assert_eq!(
        p.all_events().await,
        [EventKind::MachineSeen { mac: mac(7) }],
        "the first sight is told, once"
    );
    // Taken over, it is no longer unknown.
    p.o.machines().create(pc(7, None), &Principal::embedder()).await.unwrap();
    assert!(p.store.seen(all()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_machine_that_may_not_boot_is_told_why() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let (other, _) = p.image("other").await;

    let off = p.machine(1, image, |m| m.state = MachineState::Maintenance).await;
    assert!(declined(&p, off.macs[0]).await.contains("maintenance"));
    let bare = p.o.machines().create(pc(2, None), &Principal::embedder()).await.unwrap();
    assert!(declined(&p, bare.macs[0]).await.contains("no image"));
    let manual = p.machine(3, image, |m| m.auto_start = false).await;
    assert!(declined(&p, manual.macs[0]).await.contains("auto start is off"));
    assert!(p.last(&off).await.is_none() && p.last(&manual).await.is_none());

    let kept = p.machine(4, image, |m| m.writeback = WritebackPolicy::Keep).await;
    p.power_on(&kept).await.write(0, 0, &[1; 512]).await.unwrap();
    p.stop(&p.session(&kept).await, true).await.unwrap();
    // What could not boot is not taken.
    let change = |image, policy| -> MachineChange {
        Box::new(move |mut m| {
            (m.image, m.writeback) = (Some(image), policy);
            Ok(m)
        })
    };
    let by = Principal::embedder();
    let update = |change| p.o.machines().update(kept.id, None, change, &by);
    let refused = update(change(other, WritebackPolicy::Keep)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("keeps writes over version 1 of another image"), "{refused}");
    // Another image without what was kept is possible; back to it is not.
    update(change(other, WritebackPolicy::Discard)).await.unwrap();
    let refused = update(change(other, WritebackPolicy::Keep)).await.unwrap_err();
    assert!(refused.to_string().contains("keeps writes over version 1 of another image"), "{refused}");
    update(change(image, WritebackPolicy::Keep)).await.unwrap();
    assert_eq!(p.power_on(&kept).await.read(0, 0, 512).await.unwrap(), [1; 512], "nothing was lost by it");

    // A machine that is switched off while it runs goes on running; it may not boot again.
    let running = p.machine(5, image, |_| ()).await;
    let disk = p.power_on(&running).await;
    p.update(&running, |m| m.state = MachineState::Inactive).await;
    assert!(declined(&p, running.macs[0]).await.contains("inactive"));
    assert!(disk.is_connected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_requests_of_one_machine_are_one_start() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    // Long enough for all to have asked.
    p.plan.add(Fault::on("target.ensure").first(1).is_delayed(std::time::Duration::from_millis(500)));
    let scripts = futures_util::future::join_all((0..50).map(|_| p.script(&machine))).await;
    assert!(scripts.iter().all(|s| *s == scripts[0]), "all were told the same");
    let starts = p.events(machine.id).await.iter().filter(|k| **k == EventKind::SessionStarting).count();
    assert_eq!(starts, 1);
    assert_eq!(p.plan.calls("target.ensure"), 1, "one makes it, and its answer is everybody's");
    p.assert_whole("started").await;
}

#[tokio::test]
async fn a_slow_start_sends_the_machine_away_and_goes_on() {
    let mut house = House::new();
    house.config.boot_wait = std::time::Duration::from_millis(50);
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    p.plan.add(Fault::on("writeback.ensure").first(1).is_delayed(std::time::Duration::from_millis(300)));
    assert!(matches!(p.boot(machine.macs[0]).await.unwrap(), BootAnswer::Retry(_)));
    until("the machine that comes again gets its script", async || {
        matches!(p.boot(machine.macs[0]).await.unwrap(), BootAnswer::Script(_))
    })
    .await;
    let starts = p.events(machine.id).await.iter().filter(|k| **k == EventKind::SessionStarting).count();
    assert_eq!(starts, 1);
}

#[tokio::test]
async fn before_the_first_reconcile_nobody_is_served() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let plan = FaultPlan::new();
    // The list of targets is unknown twice: whoever logged in now would be refused for good.
    plan.add(Fault::on("target.list").first(2).fails(ErrorKind::Unavailable));
    let p = house.open_unready(&plan);
    until("the first round fails", async || plan.calls("target.list") > 0).await;
    assert!(!p.o.is_serving());
    assert!(matches!(p.boot(machine.macs[0]).await.unwrap(), BootAnswer::Retry(_)));
    assert!(p.last(&machine).await.is_none());
    p.until_serving().await;
    assert_eq!(plan.calls("target.list"), 3);
    p.script(&machine).await;
}

#[tokio::test]
async fn a_failure_that_a_machine_reports_is_an_event() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    p.o.diagnoses().boot_failed(machine.macs[0], "attach".to_owned(), "0x3f122003".to_owned()).await.unwrap();
    let failed = EventKind::BootFailed { stage: "attach".to_owned(), errno: "0x3f122003".to_owned() };
    assert!(p.events(machine.id).await.contains(&failed));
    let e = p.o.diagnoses().boot_failed(mac(9), "attach".to_owned(), String::new()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_script_that_was_read_is_a_stage_of_its_generation() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    p.script(&machine).await;
    let stage = EventKind::BootStage { stage: BootStage::ScriptRead, generation: Some(1) };
    assert_eq!(p.events(machine.id).await.last(), Some(&stage));
}

//! `kill -9` at every call of start, stop, a generation's commit, an import and a publication, before the call, within it and after it. After the next process's
//! first reconcile there is no orphan, every live session is whole, and nothing that was written and kept is lost.

use std::collections::BTreeSet;

use ggnet_core::{
    nouns::{Machine, Principal, ResourceId, SessionState, VersionState, WritebackPolicy},
    orchestrator::{ImportRequest, PublishRequest},
    ports::Store as _,
    testkit::{
        flaky::{Fault, FaultPlan},
        memory::MemoryInitiator,
    },
};

use crate::house::{House, Process};

/// How far the last call gets: not at all, to each of its places, to its end.
pub const POLLS: [usize; 5] = [0, 1, 2, 3, 50];

/// Runs `work` until it ends or the process dies at its `step`-th call; true when it died.
pub async fn dies(plan: &FaultPlan, step: u64, polls: usize, work: impl Future + Send + 'static) -> bool {
    plan.add(Fault::any().nth(step).kills(polls));
    let task = tokio::spawn(async move {
        work.await;
    });
    let died = tokio::select! {
        biased;
        () = plan.killed() => true,
        _ = async { while !task.is_finished() { tokio::time::sleep(std::time::Duration::from_millis(1)).await } } => false,
    };
    task.abort();
    died
}

async fn furnish(house: &House, policy: WritebackPolicy) -> (Process, Machine) {
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = policy).await;
    (p, machine)
}

/// The machine can boot, and has the block that it kept.
async fn boots(p: &Process, machine: &Machine, kept: Option<u8>, why: &str) -> MemoryInitiator {
    let disk = p.power_on(machine).await;
    if let Some(byte) = kept {
        assert_eq!(disk.read(0, 0, 512).await.unwrap(), [byte; 512], "{why}: a kept write is lost");
    }
    p.assert_whole(why).await;
    disk
}

#[tokio::test]
async fn killed_at_every_call_of_a_start() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for polls in POLLS {
            for step in 1.. {
                let house = House::new();
                let (p, machine) = furnish(&house, policy).await;
                // A kept writeback from an earlier session must survive.
                let kept = (policy == WritebackPolicy::Keep).then_some(3);
                if let Some(byte) = kept {
                    p.power_on(&machine).await.write(0, 0, &[byte; 512]).await.unwrap();
                    p.stop(&p.session(&machine).await, true).await.unwrap();
                }
                let (o, id) = (p.o.clone(), machine.id);
                let request = ggnet_core::orchestrator::StartRequest {
                    machine: id,
                    image: None,
                    data_disks: vec![],
                    by: ggnet_core::nouns::Principal::embedder(),
                };
                let died = dies(&p.plan, step, polls, async move { o.sessions().start(request).await }).await;
                let why = format!(
                    "{policy:?}: killed at call {step} after {polls} polls: {:?}",
                    p.plan.log().last()
                );
                let p = house.open().await;
                p.assert_whole(&why).await;
                if let Some(last) = p.last(&machine).await {
                    assert!(
                        matches!(
                            last.state,
                            SessionState::Active | SessionState::Failed | SessionState::Stopped
                        ),
                        "{why}"
                    );
                }
                boots(&p, &machine, kept, &why).await;
                if !died {
                    assert!(step > 8, "a start has more calls than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn killed_at_every_call_of_a_stop() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for polls in POLLS {
            for step in 1.. {
                let house = House::new();
                let (p, machine) = furnish(&house, policy).await;
                let disk = p.power_on(&machine).await;
                disk.write(0, 0, &[4; 512]).await.unwrap();
                let _next = p.script(&machine).await;
                let session = p.session(&machine).await;
                let o = p.o.clone();
                let request = ggnet_core::orchestrator::StopRequest {
                    session: session.id,
                    force: true,
                    reason: ggnet_core::nouns::StopReason::Operator,
                    by: ggnet_core::nouns::Principal::embedder(),
                };
                let died = dies(&p.plan, step, polls, async move { o.sessions().stop(request).await }).await;
                let why = format!(
                    "{policy:?}: killed at call {step} after {polls} polls: {:?}",
                    p.plan.log().last()
                );
                let p = house.open().await;
                p.assert_whole(&why).await;
                let last = p.last(&machine).await.unwrap();
                assert!(
                    matches!(last.state, SessionState::Active | SessionState::Stopped),
                    "{why}: {last:?}"
                );
                if last.state == SessionState::Active {
                    // Killed before the stop was recorded: its machine goes on where it was.
                    assert_eq!(last, session, "{why}");
                    let disk = p.login(&last.target(&last.current), &machine).await.unwrap();
                    assert_eq!(
                        disk.read(0, 0, 512).await.unwrap(),
                        [4; 512],
                        "{why}: an acknowledged write is lost"
                    );
                    p.stop(&last, true).await.unwrap();
                }
                boots(&p, &machine, (policy == WritebackPolicy::Keep).then_some(4), &why).await;
                if !died {
                    assert!(step > 6, "a stop has more calls than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn killed_at_every_call_of_preparing_and_committing_a_generation() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for polls in POLLS {
            for step in 1.. {
                let house = House::new();
                let (p, machine) = furnish(&house, policy).await;
                let disk = p.power_on(&machine).await;
                disk.write(0, 0, &[6; 512]).await.unwrap();
                let before = p.session(&machine).await;
                let (old, number) = (before.target(&before.current), before.current.number);
                let rebooting = RebootingMachine::of(&p, &machine);
                let died = dies(&p.plan, step, polls, rebooting.reboot()).await;
                let why = format!(
                    "{policy:?}: killed at call {step} after {polls} polls: {:?}",
                    p.plan.log().last()
                );
                let p = house.open().await;
                p.assert_whole(&why).await;
                let after = p.session(&machine).await;
                assert_eq!(after.id, before.id, "{why}: a live session is lost");
                if after.current.number == number {
                    // Not committed: the machine that still runs has its disk.
                    let disk = p.login(&old, &machine).await.unwrap();
                    assert_eq!(
                        disk.read(0, 0, 512).await.unwrap(),
                        [6; 512],
                        "{why}: an acknowledged write is lost"
                    );
                } else {
                    assert!(p.login(&old, &machine).await.is_err(), "{why}: the old generation is over");
                    let disk = p.login(&after.target(&after.current), &machine).await.unwrap();
                    let expected = if policy == WritebackPolicy::Keep { 6 } else { 0 };
                    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [expected; 512], "{why}");
                }
                if !died {
                    assert!(step > 6, "a reboot has more calls than {step}");
                    break;
                }
            }
        }
    }
}

/// What a machine does when it reboots, apart from the [`Process`], which cannot be shared.
pub struct RebootingMachine {
    o: ggnet_core::orchestrator::Orchestrator,
    targets: std::sync::Arc<ggnet_core::testkit::memory::MemoryTargets>,
    machine: Machine,
}

impl RebootingMachine {
    pub fn of(p: &Process, machine: &Machine) -> Self {
        Self { o: p.o.clone(), targets: p.targets.clone(), machine: machine.clone() }
    }

    pub async fn reboot(self) {
        let request = ggnet_core::orchestrator::BootRequest {
            mac: self.machine.macs[0],
            firmware: ggnet_core::nouns::Firmware::Bios,
            peer: None,
            request_id: None,
            advertised: crate::house::advertised(),
            prepare: true,
        };
        // Killed: it gets no answer, or is told to come again.
        let Ok(ggnet_core::orchestrator::BootAnswer::Script(_)) = self.o.sessions().boot(request).await
        else {
            return;
        };
        let Ok(session) = self.o.read().live_session(&self.machine).await else { return };
        let Some(next) = &session.next else { return };
        let _ = self.targets.login(&session.target(next), &session.initiator, crate::house::peer()).await;
    }
}

#[tokio::test]
async fn killed_at_every_call_of_an_import() {
    for polls in POLLS {
        for step in 1.. {
            let house = House::new();
            let p = house.open().await;
            let path = house.dir.path().join("source.raw");
            std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), &[9; 4096]).unwrap();
            let request = ImportRequest {
                image: "debian".parse().unwrap(),
                path,
                format: None,
                expected_sha256: None,
                comment: String::new(),
                make_current: true,
                by: Principal::embedder(),
            };
            let (o, store) = (p.o.clone(), p.store.clone());
            let died = dies(&p.plan, step, polls, async move {
                let Ok((_, version)) = o.images().import(request).await else { return };
                while o.images().import_progress(version.id).is_some() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                assert!(store.version(version.id).await.unwrap().is_some());
            })
            .await;
            let why = format!("killed at call {step} after {polls} polls: {:?}", p.plan.log().last());
            let p = house.open().await;
            p.assert_whole(&why).await;
            let mut ready = Vec::new();
            for image in p.store.images(crate::house::all()).await.unwrap().items {
                for version in p.store.versions(image.id).await.unwrap() {
                    assert_ne!(version.state, VersionState::Importing, "{why}: {version:?}");
                    if version.state == VersionState::Ready {
                        assert_eq!(image.current, Some(version.id), "{why}");
                        assert!(p.image_bytes(version.id).await == [9; 4096], "{why}");
                        ready.push(version.id);
                    }
                }
            }
            assert_eq!(p.image_ids().await, ready, "{why}: only what is ready has bytes");
            if !died {
                assert!(step > 8, "an import has more calls than {step}");
                assert_eq!(ready.len(), 1, "{why}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn killed_at_every_call_of_a_publication() {
    for polls in POLLS {
        for step in 1.. {
            let house = House::new();
            let (p, machine) = furnish(&house, WritebackPolicy::Keep).await;
            p.power_on(&machine).await.write(0, 0, &[5; 512]).await.unwrap();
            p.stop(&p.session(&machine).await, true).await.unwrap();
            let request = PublishRequest {
                machine: machine.id,
                comment: String::new(),
                make_current: true,
                by: Principal::embedder(),
            };
            let o = p.o.clone();
            let died = dies(&p.plan, step, polls, async move { o.images().publish(request).await }).await;
            let why = format!("killed at call {step} after {polls} polls: {:?}", p.plan.log().last());
            let p = house.open().await;
            p.assert_whole(&why).await;
            let kept = p.left().await["writeback"].contains(&ResourceId::machine(machine.id));
            let versions = p.store.versions(machine.image.unwrap()).await.unwrap();
            // In one place, whole: as a version, or kept as before.
            match versions.get(1).map(|version| (version.state, version.id)) {
                Some((VersionState::Ready, id)) => {
                    assert!(!kept, "{why}: it is in two places");
                    assert_eq!(p.image_bytes(id).await[..512], [5; 512], "{why}: what was kept is lost");
                    boots(&p, &machine, None, &why).await;
                }
                None | Some((VersionState::Failed, _)) => {
                    assert!(kept, "{why}: it is in no place");
                    boots(&p, &machine, Some(5), &why).await;
                }
                Some((VersionState::Importing, _)) => panic!("{why}: nobody ended it"),
            }
            if !died {
                assert!(step > 10, "a publication has more calls than {step}");
                assert!(!kept, "{why}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn killed_while_a_reconcile_mends_what_the_last_kill_left() {
    for step in 1.. {
        let house = House::new();
        let (p, machine) = furnish(&house, WritebackPolicy::Keep).await;
        p.power_on(&machine).await.write(0, 0, &[8; 512]).await.unwrap();
        let other = p.machine(2, machine.image.unwrap(), |m| m.auto_start = false).await;
        p.start(&other).await.unwrap();
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
        let ids: BTreeSet<_> = p.store.live_sessions().await.unwrap().iter().map(|s| s.machine).collect();
        assert_eq!(ids, BTreeSet::from([machine.id, other.id]), "{why}: a live session is lost");
        let session = p.session(&machine).await;
        let disk = p.login(&session.target(&session.current), &machine).await.unwrap();
        assert_eq!(disk.read(0, 0, 512).await.unwrap(), [8; 512], "{why}");
        if !died {
            assert!(step > 10, "a first round has more calls than {step}");
            break;
        }
    }
}

#[tokio::test]
async fn a_running_machine_logs_in_again_after_a_kill_and_goes_on() {
    let house = House::new();
    let (p, machine) = furnish(&house, WritebackPolicy::Discard).await;
    let disk = p.power_on(&machine).await;
    disk.write(0, 8192, &[1; 4096]).await.unwrap();
    let session = p.session(&machine).await;
    let target = session.target(&session.current);

    // Its first list hangs, so the first reconcile has not ended.
    let plan = FaultPlan::new();
    plan.add(Fault::on("target.list").first(1).is_delayed(std::time::Duration::from_millis(200)));
    let p = house.open_unready(&plan);
    assert!(!disk.is_connected());
    let refused = p.login(&target, &machine).await.unwrap_err();
    assert_eq!(refused, ggnet_core::testkit::memory::LoginError::ServiceUnavailable, "retried, never fatal");
    p.until_serving().await;
    let disk = p.login(&target, &machine).await.unwrap();
    assert_eq!(disk.read(0, 8192, 4096).await.unwrap(), [1; 4096]);
    assert_eq!(p.session(&machine).await, session);
}

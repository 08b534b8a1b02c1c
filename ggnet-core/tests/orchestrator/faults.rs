//! Every step of start and of stop fails: before it was done, after it was done, half-done. Nothing is left behind.

use ggnet_core::{
    ErrorKind,
    nouns::{Machine, SessionState, WritebackPolicy},
    testkit::flaky::{Fault, Matching},
};

use crate::site::{Process, Site};

type Effect = fn(Matching) -> Fault;

/// Fails; does it and loses the response; is interrupted at its first and second place.
const EFFECTS: [(&str, Effect); 4] = [
    ("fails", |m| m.fails(ErrorKind::Unavailable)),
    ("loses its answer", |m| m.loses_the_answer(ErrorKind::Timeout)),
    ("is cut at once", |m| m.is_cut_after(1)),
    ("is cut later", |m| m.is_cut_after(2)),
];

async fn machine(p: &Process, policy: WritebackPolicy) -> Machine {
    let (image, _) = p.image("debian").await;
    p.machine(1, image, |m| (m.auto_start, m.writeback) = (false, policy)).await
}

/// The calls since `before`.
fn calls_since(p: &Process, before: usize) -> String {
    p.plan
        .log()
        .get(before..)
        .unwrap_or_default()
        .iter()
        .map(|op| format!("{}.{} ", op.port, op.name))
        .collect()
}

#[tokio::test]
async fn every_step_of_a_start() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for (how, effect) in EFFECTS {
            for step in 1.. {
                let site = Site::new();
                let p = site.open().await;
                let machine = machine(&p, policy).await;
                let before = p.plan.log().len();
                p.plan.add(effect(Fault::any().nth(step)));
                let result = p.start(&machine).await;
                let calls = p.plan.log().len() - before;
                p.plan.clear();
                let why = format!("{policy:?}: step {step} {how}: {}", calls_since(&p, before));
                match (&result, p.last(&machine).await) {
                    (Err(_), Some(s)) if s.state == SessionState::Failed => {
                        assert!(s.error.is_some() && s.ended_at.is_some(), "{why}");
                        p.assert_empty(&why).await;
                    }
                    // It could not be recorded, or the response to the record was lost: the reconciler handles it.
                    (Err(_), Some(s)) => assert_eq!(s.state, SessionState::Starting, "{why}"),
                    (Err(_), None) => p.assert_empty(&why).await,
                    (Ok(started), Some(s)) => {
                        assert_eq!(started.session, s, "{why}");
                        p.assert_whole(&why).await;
                    }
                    (Ok(_), None) => panic!("{why}: started and not recorded"),
                }
                p.reconcile().await;
                p.assert_whole(&why).await;
                if result.is_err() {
                    p.assert_empty_but_kept(&why, policy).await;
                    p.start(&machine).await.unwrap();
                    p.assert_whole(&why).await;
                }
                if u64::try_from(calls).unwrap() < step {
                    assert!(step > 8, "a start has more steps than {step}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn every_step_of_a_start_and_its_undoing_too() {
    for (how, effect) in EFFECTS {
        for step in 1.. {
            let site = Site::new();
            let p = site.open().await;
            let machine = machine(&p, WritebackPolicy::Discard).await;
            let before = p.plan.log().len();
            p.plan.add(effect(Fault::any().nth(step)));
            p.plan.add(effect(Fault::on("remove")));
            let result = p.start(&machine).await;
            let calls = p.plan.log().len() - before;
            let why = format!("step {step} and every removal {how}: {}", calls_since(&p, before));
            // The reconciler meets the same fault, and keeps trying.
            p.o.reconcile().await;
            p.plan.clear();
            if result.is_err() {
                p.reconcile().await;
                p.assert_empty(&why).await;
                p.start(&machine).await.unwrap();
            }
            p.assert_whole(&why).await;
            if u64::try_from(calls).unwrap() < step {
                assert!(step > 8, "a start has more steps than {step}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn every_step_of_a_stop() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        for (how, effect) in EFFECTS {
            for force in [false, true] {
                for step in 1.. {
                    let site = Site::new();
                    let p = site.open().await;
                    let machine = machine(&p, policy).await;
                    let disk = p.start_and_login(&machine).await;
                    disk.write(0, 0, &[5; 512]).await.unwrap();
                    let _next = p.script(&machine).await;
                    let session = p.session(&machine).await;
                    if !force {
                        disk.logout().await;
                    }
                    let before = p.plan.log().len();
                    p.plan.add(effect(Fault::any().nth(step)));
                    let result = p.stop(&session, force).await;
                    let calls = p.plan.log().len() - before;
                    p.plan.clear();
                    let why =
                        format!("{policy:?} force {force}: step {step} {how}: {}", calls_since(&p, before));
                    let after = p.last(&machine).await.unwrap();
                    match after.state {
                        SessionState::Stopped => p.assert_whole(&why).await,
                        // Before it started, and nothing has changed.
                        SessionState::Active => {
                            assert!(result.is_err(), "{why}");
                            assert_eq!(after, session, "{why}");
                            p.assert_whole(&why).await;
                        }
                        SessionState::Stopping => assert!(result.is_err(), "{why}"),
                        state => panic!("{why}: {state:?}"),
                    }
                    p.reconcile().await;
                    p.assert_whole(&why).await;
                    let after = p.last(&machine).await.unwrap();
                    if after.state == SessionState::Active {
                        p.stop(&after, true).await.unwrap();
                    } else {
                        assert_eq!(after.state, SessionState::Stopped, "{why}");
                    }
                    p.assert_empty_but_kept(&why, policy).await;
                    if policy == WritebackPolicy::Keep {
                        let disk = p.start_and_login(&machine).await;
                        assert_eq!(
                            disk.read(0, 0, 512).await.unwrap(),
                            [5; 512],
                            "{why}: a kept write is lost"
                        );
                    }
                    if u64::try_from(calls).unwrap() < step {
                        assert!(step > 6, "a stop has more steps than {step}");
                        break;
                    }
                }
            }
        }
    }
}

/// According to `get` a failed start would remove it, but `list` shows it: nothing is started, and no kept writes are lost.
#[tokio::test]
async fn a_store_whose_get_and_list_disagree_loses_nothing_that_was_kept() {
    let mut site = Site::new();
    let p = site.open().await;
    let machine = machine(&p, WritebackPolicy::Keep).await;
    let disk = p.start_and_login(&machine).await;
    disk.write(0, 0, &[5; 512]).await.unwrap();
    drop(disk);
    p.stop(&p.session(&machine).await, true).await.unwrap();

    site.forgetful = true;
    let p = site.open().await;
    p.plan.add(Fault::on("target.ensure").fails(ErrorKind::Unavailable));
    let e = p.start(&machine).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{}", e.report());
    assert!(e.hint().unwrap().contains("disagree"), "{e:?}");
    p.reconcile().await;

    site.forgetful = false;
    let p = site.open().await;
    let disk = p.start_and_login(&machine).await;
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [5; 512]);
}

impl Process {
    pub async fn start_and_login(&self, machine: &Machine) -> ggnet_core::testkit::memory::MemoryInitiator {
        let session = self.start(machine).await.unwrap().session;
        self.login(&session.target(&session.current), machine).await.unwrap()
    }

    /// Nothing is left; under `keep` the machine's writeback may be.
    pub async fn assert_empty_but_kept(&self, why: &str, policy: WritebackPolicy) {
        for (port, ids) in self.left().await {
            let ids: Vec<_> = ids
                .into_iter()
                .filter(|id| {
                    let kept =
                        port == "writeback" && id.owner().is_some_and(|(_, generation)| generation.is_none());
                    !(kept && policy == WritebackPolicy::Keep)
                })
                .collect();
            assert!(ids.is_empty(), "{why}: {port} still has {ids:?}");
        }
    }
}

//! Killed at every call of the first reconcile after a kill: the next first reconcile completes it.

use ggnet_core::{
    nouns::{Principal, SessionState, VersionState, WritebackPolicy},
    ports::Store as _,
    testkit::flaky::{Fault, FaultPlan},
};

use crate::host::{Host, imported, start_request, until, written};

const SALT: u8 = 17;

#[test]
fn killed_at_every_call_of_the_first_reconcile() {
    let host = Host::new();
    let mut p = host.open();
    let (image, _) = p.image("debian", SALT);
    let runs = p.machine(1, image, WritebackPolicy::Keep, true);
    let starts = p.machine(2, image, WritebackPolicy::Discard, false);
    let disk = p.power_on(&runs);
    p.write(&disk, 100);
    let (live, expected) = (p.session(&runs), written(&imported(SALT), 100));
    p = host.reopen(p, disk);
    for step in 1_u64.. {
        // Left by the kill: an import in its conversion, a start at its target, and a machine that runs.
        p.plan.add(Fault::on("image_converter.convert").hangs());
        let (request, plan) = (p.import_request("debian", 200), &p.plan);
        p.run(async {
            p.o.images().import(request).await.unwrap();
            until("it is converted", async || plan.calls("image_converter.convert") > 0).await;
        });
        plan.add(Fault::on("target.ensure").nth(1).kills(1));
        p.run(async {
            tokio::select! {
                biased;
                () = plan.killed() => {}
                started = p.o.sessions().start(start_request(&starts)) => panic!("it was not killed: {started:?}"),
            }
        });
        host.end(p, ());

        let plan = FaultPlan::new();
        plan.add(Fault::any().nth(step).kills(1));
        p = host.open_unready(&plan);
        let died = p.run(async {
            tokio::select! {
                biased;
                () = plan.killed() => true,
                () = until("the first reconcile ends", async || p.o.is_serving()) => false,
            }
        });
        let why = p.last_call(step, 1);
        p = host.reopen(p, ());
        p.assert_whole(&why);
        assert_eq!(p.session(&runs), live, "{why}: a live session is lost");
        let disk = p.login(&live.target(&live.current), &runs).unwrap();
        assert!(p.read(&disk) == expected, "{why}: an acknowledged write is lost");
        drop(disk);
        assert_eq!(p.last_session(&starts).unwrap().state, SessionState::Failed, "{why}");
        let versions = p.run(p.store.versions(image)).unwrap();
        assert_eq!(versions.last().unwrap().state, VersionState::Failed, "{why}");
        for version in &versions[1..] {
            p.run(p.o.images().delete_version(version.id, &Principal::embedder())).unwrap();
        }
        if !died {
            assert!(step > 10, "a first round has more calls than {step}");
            break;
        }
    }
    host.end(p, ());
}

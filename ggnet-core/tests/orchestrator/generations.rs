//! A script request prepares and destroys nothing; the first login to what it prepared commits it.

use std::time::Duration;

use ggnet_core::{
    boot_text::ipxe::inspect,
    nouns::{EventKind, Iqn, Principal, WritebackPolicy},
    orchestrator::{BootAnswer, ChapPolicy},
    ports::TargetBackend as _,
    testkit::{flaky::Fault, memory::LoginError},
};

use crate::house::{House, Process, Script, peer};

#[tokio::test]
async fn asking_twice_gives_the_same_and_head_prepares_nothing() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    assert!(matches!(p.boot_with(machine.macs[0], false).await.unwrap(), BootAnswer::Retry(_)));
    assert!(p.last(&machine).await.is_none(), "HEAD starts nothing");

    let first = p.script(&machine).await;
    assert_eq!(p.script(&machine).await, first, "nobody has used it yet");
    assert!(p.session(&machine).await.next.is_none());

    let disk = p.login(&first.target, &machine).await.unwrap();
    let (before, told) = (p.session(&machine).await, p.all_events().await.len());
    let BootAnswer::Script(text) = p.boot_with(machine.macs[0], false).await.unwrap() else { panic!() };
    assert_eq!(p.read(text).target, first.target);
    assert_eq!(p.session(&machine).await, before, "HEAD prepares nothing");
    let told_stages = p.all_events().await.split_off(told);
    assert!(!told_stages.iter().any(|k| matches!(k, EventKind::GenerationPrepared { .. })));

    let next = p.script(&machine).await;
    assert_ne!(next, first);
    assert_eq!(p.script(&machine).await, next, "asked again, the same");
    disk.write(0, 0, &[1; 512]).await.unwrap();
    assert!(disk.is_connected(), "the running machine did not notice");
    let (session, by) = (p.session(&machine).await, Principal::embedder());
    let (script, _) =
        p.o.sessions().current_script(&session, &crate::house::advertised(), &by).await.unwrap();
    assert_eq!(p.read(script), next);
    let session = p.session(&machine).await;
    let chap = |g: &ggnet_core::nouns::Generation| g.chap.clone().unwrap();
    assert_ne!(chap(&session.current), chap(session.next.as_ref().unwrap()));
    p.assert_whole("prepared").await;
}

#[tokio::test]
async fn a_login_to_the_next_generation_commits_it() {
    for policy in [WritebackPolicy::Discard, WritebackPolicy::Keep] {
        let house = House::new();
        let p = house.open().await;
        let (image, _) = p.image("debian").await;
        let machine = p.machine(1, image, |m| m.writeback = policy).await;
        let old = p.power_on(&machine).await;
        old.write(0, 0, &[1; 512]).await.unwrap();
        let before = p.session(&machine).await;
        let next = p.script(&machine).await;
        let new = p.login(&next.target, &machine).await.unwrap();
        assert!(!old.is_connected(), "the old connection is closed");
        assert!(old.write(0, 0, &[2; 512]).await.is_err());
        let after = p.session(&machine).await;
        assert_eq!(after.current.number, before.current.number + 1);
        assert!(after.current.committed_at.is_some() && after.next.is_none());
        assert_eq!((after.id, after.state), (before.id, before.state), "still the same session");
        let expected = if policy == WritebackPolicy::Keep { 1 } else { 0 };
        assert_eq!(new.read(0, 0, 512).await.unwrap(), [expected; 512], "{policy:?}");
        p.assert_whole("committed").await;
        assert_eq!(p.left().await["writeback"].len(), 1, "{policy:?}");

        let wrong = p.login(&before.target(&before.current), &machine).await.unwrap_err();
        assert_eq!(wrong, LoginError::NoSuchTarget, "the old generation is over");
        assert!(new.is_connected());
        let committed = EventKind::GenerationCommitted { number: after.current.number };
        assert_eq!(p.events(machine.id).await.iter().filter(|k| **k == committed).count(), 1);

        // The kernel's login from the iBFT follows iPXE's: the same generation, and no other.
        let kernel = p.login(&next.target, &machine).await.unwrap();
        assert!(kernel.is_connected() && !new.is_connected());
        assert_eq!(p.session(&machine).await, after);
    }
}

#[tokio::test]
async fn an_old_target_that_still_stands_refuses() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _old = p.power_on(&machine).await;
    let session = p.session(&machine).await;
    let next = p.script(&machine).await;
    let _new = p.login(&next.target, &machine).await.unwrap();
    // An orphan that a backend could not remove.
    let spec = ggnet_core::ports::TargetSpec {
        id: session.target(&session.current),
        iqn: p.o.sessions().target_iqn(&session, &session.current).unwrap(),
        luns: vec![ggnet_core::ports::LunSpec {
            number: 0,
            disk_key: "gone".to_owned(),
            serial: "1".to_owned(),
            read_only: false,
        }],
        access: ggnet_core::ports::Access::Initiator {
            name: session.initiator.clone(),
            chap: None,
            mutual: None,
        },
    };
    let disk = std::sync::Arc::new(ggnet_core::testkit::memory::RamDisk::zeros(4096));
    let disks = ggnet_core::ports::LunDisks::from([(0, ggnet_core::block::Disk::Blocks(disk))]);
    p.targets.ensure(&spec, &disks).await.unwrap();
    assert_eq!(p.login(&spec.id, &machine).await.unwrap_err(), LoginError::AuthorizationFailure);
    p.reconcile().await;
    p.assert_whole("the orphan is removed").await;
}

#[tokio::test]
async fn an_unused_generation_expires_and_the_machine_does_not_notice() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let disk = p.power_on(&machine).await;
    disk.write(0, 0, &[1; 512]).await.unwrap();
    let next = p.script(&machine).await;
    house.pass(Duration::from_secs(599)).await;
    p.reconcile().await;
    assert!(p.session(&machine).await.next.is_some(), "not yet");
    house.pass(Duration::from_secs(2)).await;
    p.reconcile().await;
    let session = p.session(&machine).await;
    assert!(session.next.is_none());
    p.assert_whole("expired").await;
    assert_eq!(p.login(&next.target, &machine).await.unwrap_err(), LoginError::NoSuchTarget);
    assert!(p.events(machine.id).await.contains(&EventKind::GenerationExpired { number: 2 }));
    assert_eq!(disk.read(0, 0, 512).await.unwrap(), [1; 512], "the running machine is untouched");
    assert_ne!(p.script(&machine).await.target, next.target, "a number is never given twice");
}

#[tokio::test]
async fn the_next_generation_boots_the_version_that_is_current_by_then() {
    let house = House::new();
    let p = house.open().await;
    let (image, one) = p.image("debian").await;
    let two = p.version(image, 2).await;
    let machine = p.machine(1, image, |_| ()).await;
    let pinned = p.machine(2, image, |m| m.pinned_version = Some(one)).await;
    let kept = p.machine(3, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let unused = p.machine(4, image, |_| ()).await;
    let disks = [p.power_on(&machine).await, p.power_on(&pinned).await, p.power_on(&kept).await];
    let script = p.script(&unused).await;
    // One is prepared for the old version already.
    let stale = p.script(&machine).await;
    p.set_current(image, two).await;
    assert!(disks.iter().all(|d| d.is_connected()));
    assert_ne!(p.script(&machine).await, stale, "prepared for a version that is no longer wanted");
    assert_ne!(p.script(&unused).await, script);
    for (machine, version) in [(&machine, two), (&pinned, one), (&kept, one), (&unused, two)] {
        let _disk = p.power_on(machine).await;
        assert_eq!(p.session(machine).await.current.system().version, version, "{}", machine.name);
    }
    p.assert_whole("rebooted").await;
    let _first = p.update(&machine, move |m| m.pinned_version = Some(one)).await;
    let _disk = p.power_on(&machine).await;
    assert_eq!(p.session(&machine).await.current.system().version, one, "pinned since");
}

#[tokio::test]
async fn a_reassigned_machine_boots_its_new_image_at_its_next_boot() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let (other, other_version) = p.image("other").await;
    let machine = p.machine(1, image, |_| ()).await;
    let _disk = p.power_on(&machine).await;
    p.update(&machine, move |m| m.image = Some(other)).await;
    let _disk = p.power_on(&machine).await;
    assert_eq!(p.session(&machine).await.current.system().version, other_version);
    p.update(&machine, move |m| m.image = None).await;
    let _disk = p.power_on(&machine).await;
    assert_eq!(p.session(&machine).await.current.system().version, other_version, "what it ran so far");
}

#[tokio::test]
async fn a_commit_that_fails_puts_the_login_off_and_the_next_try_has_it() {
    for step in 1.. {
        let house = House::new();
        let p = house.open().await;
        let (image, _) = p.image("debian").await;
        let machine = p.machine(1, image, |_| ()).await;
        let _old = p.power_on(&machine).await;
        let next = p.script(&machine).await;
        let before = p.plan.log().len();
        p.plan.add(Fault::any().nth(step).loses_the_answer(ggnet_core::ErrorKind::Timeout));
        let login = p.login(&next.target, &machine).await;
        let calls = p.plan.log().len() - before;
        p.plan.clear();
        match login {
            Ok(disk) => assert!(disk.is_connected()),
            Err(e) => {
                assert_eq!(e, LoginError::ServiceUnavailable, "step {step}");
                p.login(&next.target, &machine).await.unwrap();
            }
        }
        assert_eq!(p.session(&machine).await.current.number, 2, "step {step}");
        p.reconcile().await;
        p.assert_whole(&format!("step {step}")).await;
        if u64::try_from(calls).unwrap() < step {
            assert!(step > 4);
            break;
        }
    }
}

#[tokio::test]
async fn a_backend_that_cannot_see_logins_commits_when_it_lists_a_connection() {
    let mut house = House::new();
    house.polled = true;
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let first = p.power_on(&machine).await;
    first.write(0, 0, &[1; 512]).await.unwrap();
    // The reconciler has not come round since, and the machine reboots.
    let next = p.script(&machine).await;
    assert!(p.session(&machine).await.current.committed_at.is_some());
    let second = p.login(&next.target, &machine).await.unwrap();
    assert_eq!(second.read(0, 0, 512).await.unwrap(), [0; 512], "a clean disk");
    p.reconcile().await;
    assert_eq!(p.session(&machine).await.current.number, 2);
    assert!(!first.is_connected() && second.is_connected());
    p.assert_whole("committed").await;
    // Its targets outlive us, and so do its connections.
    let p = house.open().await;
    p.assert_whole("adopted").await;
    assert!(second.is_connected());
}

#[tokio::test]
async fn without_chap_a_generation_has_no_pair_and_one_that_lives_keeps_the_access_it_has() {
    for (before, after) in [(ChapPolicy::Required, ChapPolicy::Off), (ChapPolicy::Off, ChapPolicy::Required)]
    {
        let mut house = House::new();
        house.config.chap = before;
        let p = house.open().await;
        let (image, _) = p.image("debian").await;
        let machine = p.machine(1, image, |_| ()).await;
        let name = Iqn::initiator(&p.o.config().iqn_prefix, machine.macs[0]).unwrap();
        let is_as = async |p: &Process, script: &Script, policy: ChapPolicy| {
            let summary = inspect(&script.text).unwrap();
            let pair = (summary.username.is_some(), summary.has_password);
            let bare = p.targets.login_with(&script.target, &name, None, peer()).await;
            match policy {
                ChapPolicy::Required => {
                    assert_eq!((pair, bare.unwrap_err()), ((true, true), LoginError::AuthenticationFailure));
                }
                ChapPolicy::Off => assert!(pair == (false, false) && bare.is_ok()),
            }
        };
        let first = p.script(&machine).await;
        is_as(&p, &first, before).await;
        let _running = p.login(&first.target, &machine).await.unwrap();
        let session = p.session(&machine).await;

        house.config.chap = after;
        let p = house.open().await;
        assert_eq!(
            p.session(&machine).await.current,
            session.current,
            "a restart changes no live generation"
        );
        is_as(&p, &first, before).await;
        let next = p.script(&machine).await;
        assert_ne!(next.target, first.target);
        is_as(&p, &next, after).await;
        p.assert_whole("both").await;
    }
}

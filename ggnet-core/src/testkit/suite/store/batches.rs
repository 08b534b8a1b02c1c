//! Cases of a store as a whole: empty, after a crash, whole batches, dropped calls, shut down.

use std::{sync::Arc, time::Duration};

use super::{
    Fresh,
    records::{at, audit, event, generation, image, mac, machine, seen, session, target, version},
    support::{ALL, Room, put, refused, room, write},
};
use crate::{
    error::ErrorKind,
    nouns::{ImageId, ImageVersionId, MachineId, SessionId, SessionState, TargetId},
    ports::{Batch, Health, MachineFilter, SessionCounts, SessionFilter, Store, Write},
};

/// Nothing is in a fresh store, and asking for it is no error.
pub async fn an_empty_store_has_nothing(f: Fresh<'_>) {
    let s = f.fresh().await;
    let m = machine(1);
    let i = ImageId::generate();
    assert_eq!(s.machine(m.id).await.unwrap(), None);
    assert_eq!(s.machine_by_mac(mac(1)).await.unwrap(), None);
    assert_eq!(s.machine_by_name(&m.name).await.unwrap(), None);
    assert_eq!(s.machines(&MachineFilter::default(), ALL).await.unwrap().total, 0);
    assert_eq!(s.image(i).await.unwrap(), None);
    assert_eq!(s.image_by_name(&m.name).await.unwrap(), None);
    assert_eq!(s.images(ALL).await.unwrap().items, vec![]);
    assert_eq!(s.version(ImageVersionId::generate()).await.unwrap(), None);
    assert_eq!(s.versions(i).await.unwrap(), vec![]);
    assert_eq!(s.importing_versions().await.unwrap(), vec![]);
    assert_eq!(s.session(SessionId::generate()).await.unwrap(), None);
    assert_eq!(s.live_session(m.id).await.unwrap(), None);
    assert_eq!(s.last_session(m.id).await.unwrap(), None);
    assert_eq!(s.live_sessions().await.unwrap(), vec![]);
    assert_eq!(s.sessions(&SessionFilter::default(), ALL).await.unwrap().total, 0);
    assert_eq!(s.session_counts().await.unwrap(), SessionCounts::default());
    assert_eq!(s.target(TargetId::generate()).await.unwrap(), None);
    assert_eq!(s.targets().await.unwrap(), vec![]);
    assert_eq!(s.seen_machine(mac(1)).await.unwrap(), None);
    assert_eq!(s.seen(ALL).await.unwrap().total, 0);
    assert_eq!(s.events(None, 10, None).await.unwrap(), vec![]);
    assert_eq!(s.audit(ALL).await.unwrap().items, vec![]);
    assert_eq!(s.setting("instance").await.unwrap(), None);
    assert_eq!(s.prune(at(0)).await.unwrap(), 0);
    assert_eq!(s.health().await, Health::Up);
    assert_eq!(s.commit(Batch::new()).await.unwrap(), vec![]);
}

/// Every record reads back as it was written, at revision 1, also in a store opened anew after a crash.
pub async fn everything_is_there_after_a_crash(f: Fresh<'_>) {
    let s = f.fresh().await;
    let mut r = room(&*s).await;
    let (mut pinned, t, unknown, row) = (machine(2), target("data", r.version.id), seen(7), audit("pc-1", 5));
    (pinned.image, pinned.pinned_version) = (Some(r.image.id), Some(r.version.id));
    pinned.macs.push(mac(3));
    let mut live = session(r.machine.id, &r.version, SessionState::Active);
    live.next = Some(generation(r.machine.id, &r.version, 2));
    live.active_at = Some(at(11));
    let events = s
        .commit(
            Batch::new()
                .write(Write::Machine(pinned.clone()))
                .write(put(&live))
                .write(Write::Target(t.clone()))
                .write(Write::Seen(unknown.clone()))
                .write(Write::Setting { key: "instance".to_owned(), value: "0badcafe".to_owned() })
                .event(event(4).machine(r.machine.id).session(live.id).image(r.image.id))
                .audit(row.clone()),
        )
        .await
        .unwrap();
    drop(s);
    (pinned.revision, live.revision) = (1, 1);
    r.machine.revision = 1;

    let s = f.reopen().await;
    for m in [&r.machine, &pinned] {
        assert_eq!(s.machine(m.id).await.unwrap().as_ref(), Some(m));
        assert_eq!(s.machine_by_name(&m.name).await.unwrap().as_ref(), Some(m));
        for mac in &m.macs {
            assert_eq!(s.machine_by_mac(*mac).await.unwrap().as_ref(), Some(m));
        }
    }
    assert_eq!(s.image(r.image.id).await.unwrap().as_ref(), Some(&r.image));
    assert_eq!(s.image_by_name(&r.image.name).await.unwrap(), Some(r.image));
    assert_eq!(s.version(r.version.id).await.unwrap(), Some(r.version));
    for found in [
        s.session(live.id).await.unwrap(),
        s.live_session(r.machine.id).await.unwrap(),
        s.last_session(r.machine.id).await.unwrap(),
        s.live_sessions().await.unwrap().pop(),
    ] {
        let found = found.unwrap();
        assert_eq!(found, live);
        assert!(found.current.chap.is_some() && found.next.unwrap().chap.is_some());
    }
    // A list that is shown has no use for credentials.
    let mut bare = live.clone();
    bare.current.chap = None;
    bare.next.iter_mut().for_each(|next| next.chap = None);
    assert_eq!(s.sessions(&SessionFilter::default(), ALL).await.unwrap().items, [bare]);
    assert_eq!(s.session_counts().await.unwrap(), SessionCounts { active: 1, ..SessionCounts::default() });
    assert_eq!(s.target(t.id).await.unwrap().as_ref(), Some(&t));
    assert_eq!(s.targets().await.unwrap(), vec![t]);
    assert_eq!(s.seen_machine(unknown.mac).await.unwrap(), Some(unknown));
    assert_eq!(s.setting("instance").await.unwrap().as_deref(), Some("0badcafe"));
    assert_eq!(s.events(None, 10, None).await.unwrap(), events);
    assert_eq!(s.audit(ALL).await.unwrap().items, vec![row]);
    // Places go on where they were.
    let later = s.commit(Batch::new().event(event(6))).await.unwrap();
    assert_eq!(s.events(Some(events[0].cursor.clone()), 10, None).await.unwrap(), later);
    assert!(!events.iter().any(|e| e.cursor == later[0].cursor));
}

/// A batch whose last change is refused leaves nothing of the others, nor of its events and audit rows.
pub async fn a_batch_is_applied_whole_or_not_at_all(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let (new, v2) = (machine(2), version(r.image.id, 2));
    let mut changed = r.machine.clone();
    changed.description = "changed".to_owned();
    let mut clash = machine(3);
    clash.name = r.machine.name.clone();
    let batch = Batch::new()
        .write(Write::Machine(new.clone()))
        .write(Write::Machine(changed))
        .write(put(&session(r.machine.id, &r.version, SessionState::Starting)))
        .write(Write::Version(v2))
        .write(Write::Seen(seen(9)))
        .write(Write::Setting { key: "k".to_owned(), value: "v".to_owned() })
        .write(Write::Machine(clash))
        .event(event(1))
        .audit(audit("x", 1));
    assert_eq!(s.commit(batch).await.unwrap_err().kind(), ErrorKind::Conflict);
    nothing_of_it(&*s, &r, new.id).await;
    drop(s);
    nothing_of_it(&*f.reopen().await, &r, new.id).await;
}

async fn nothing_of_it(s: &dyn Store, r: &Room, new: MachineId) {
    assert_eq!(s.machine(new).await.unwrap(), None);
    assert_eq!(s.machine(r.machine.id).await.unwrap().as_ref(), Some(&r.machine));
    assert_eq!(s.live_sessions().await.unwrap(), vec![]);
    assert_eq!(s.session_counts().await.unwrap(), SessionCounts::default());
    assert_eq!(s.versions(r.image.id).await.unwrap().len(), 1);
    assert_eq!(s.seen(ALL).await.unwrap().total, 0);
    assert_eq!(s.setting("k").await.unwrap(), None);
    assert_eq!(s.events(None, 10, None).await.unwrap(), vec![]);
    assert_eq!(s.audit(ALL).await.unwrap().total, 0);
}

/// Later changes of a batch see the earlier ones.
pub async fn a_batch_is_applied_in_order(f: Fresh<'_>) {
    let s = f.fresh().await;
    let (mut i, a, mut b) = (image("win11"), machine(1), machine(2));
    let v = version(i.id, 1);
    let mut batch = Batch::new().write(Write::Image(i.clone())).write(Write::Version(v.clone()));
    (i.revision, i.current) = (1, Some(v.id));
    batch = batch.write(Write::Image(i.clone())).write(Write::Machine(a.clone()));
    // The card of one machine is put into another.
    batch = batch.write(Write::DeleteMachine(a.id));
    b.macs = a.macs.clone();
    let live = session(b.id, &v, SessionState::Starting);
    batch = batch.write(Write::Machine(b.clone())).write(put(&live));
    s.commit(batch).await.unwrap();
    assert_eq!(s.machine_by_mac(a.macs[0]).await.unwrap().unwrap().id, b.id);
    assert_eq!(s.image(i.id).await.unwrap().unwrap().revision, 2);
    assert_eq!(s.live_sessions().await.unwrap().len(), 1);
}

/// Many commits at once: each is applied whole or refused alone, and the events of one commit stay together.
pub async fn of_many_commits_at_once_each_is_whole_or_refused_alone(f: Fresh<'_>) {
    let s = f.fresh().await;
    let taken = room(&*s).await.machine.name;
    let key = |n: u32| format!("k{n}");
    let mut tasks = Vec::new();
    for n in 0..200u32 {
        let mut new = machine(100 + n);
        if n % 4 == 3 {
            new.name = taken.clone();
        }
        let batch = Batch::new()
            .write(Write::Setting { key: key(n), value: "v".to_owned() })
            .write(Write::Machine(new))
            .event(event(i64::from(n)))
            .event(event(i64::from(1000 + n)))
            .audit(audit(&n.to_string(), 1));
        let s = Arc::clone(&s);
        tasks.push(tokio::spawn(async move { s.commit(batch).await }));
    }
    let mut told = Vec::new();
    for (n, task) in (0..200u32).zip(tasks) {
        let refused = match task.await.unwrap() {
            Ok(events) => {
                told.push(events);
                false
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
                true
            }
        };
        assert_eq!(refused, n % 4 == 3, "batch {n}");
        assert_eq!(s.setting(&key(n)).await.unwrap().is_some(), !refused, "batch {n}");
        assert_eq!(s.machine_by_mac(mac(100 + n)).await.unwrap().is_some(), !refused, "batch {n}");
    }
    let all = s.events(None, 1000, None).await.unwrap();
    assert_eq!(all.len(), 300);
    for events in told {
        let first = all.iter().position(|event| *event == events[0]).unwrap();
        assert_eq!(all[first..first + 2], events);
    }
    assert_eq!(s.audit(ALL).await.unwrap().total, 150);
}

/// A commit whose caller went away is there whole or not at all, and the store goes on.
pub async fn a_dropped_commit_is_whole_or_absent(f: Fresh<'_>) {
    let s = f.fresh().await;
    for n in 0..60u32 {
        let batch = Batch::new()
            .write(Write::Machine(machine(n)))
            .write(Write::Setting { key: format!("k{n}"), value: "v".to_owned() })
            .write(Write::Seen(seen(1000 + n)))
            .event(event(i64::from(n)))
            .audit(audit(&n.to_string(), 1));
        // A little longer each time, so that it is dropped at different places.
        let patience = Duration::from_micros(u64::from(n) * 40);
        _ = tokio::time::timeout(patience, s.commit(batch)).await;
    }
    // Behind them in the queue of writers.
    s.commit(Batch::new()).await.unwrap();
    let mut whole = 0;
    for n in 0..60u32 {
        let machine = s.machine_by_mac(mac(n)).await.unwrap().is_some();
        let setting = s.setting(&format!("k{n}")).await.unwrap().is_some();
        let seen = s.seen_machine(mac(1000 + n)).await.unwrap().is_some();
        assert!(machine == setting && setting == seen, "batch {n}: {machine} {setting} {seen}");
        whole += u64::from(machine);
    }
    assert_eq!(s.events(None, 1000, None).await.unwrap().len() as u64, whole);
    assert_eq!(s.audit(ALL).await.unwrap().total, whole);
    s.commit(Batch::new().write(Write::Machine(machine(500)))).await.unwrap();
}

/// After `shutdown` calls fail, a second `shutdown` is harmless, and a store opened anew has everything.
pub async fn a_store_that_was_shut_down_says_so(f: Fresh<'_>) {
    let s = f.fresh().await;
    let m = machine(1);
    write(&*s, [Write::Machine(m.clone())]).await;
    s.shutdown().await;
    s.shutdown().await;
    refused(&*s, ErrorKind::Unavailable, Write::Machine(machine(2))).await;
    assert_eq!(s.machine(m.id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(matches!(s.health().await, Health::Down(_)));
    let s = f.reopen().await;
    assert!(s.machine(m.id).await.unwrap().is_some());
    assert_eq!(s.health().await, Health::Up);
}

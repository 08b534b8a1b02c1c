//! Cases of what a store refuses: names, addresses and numbers that are taken, stale revisions, references to nothing, and deletions of
//! what is in use.

use std::sync::Arc;

use super::{
    Fresh,
    records::{at, event, generation, image, mac, machine, session, target, version, with_data},
    support::{put, refused, room, says, write},
};
use crate::{
    error::{Error, ErrorKind},
    nouns::{ImageId, ImageVersionId, MachineId, Session, SessionState, TargetId, VersionState},
    ports::{Batch, Write},
};

/// No two machines, images or targets share a name; the refusal names it.
pub async fn names_are_unique(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    write(&*s, [Write::Target(target("data", r.version.id)), Write::Machine(machine(2))]).await;
    let mut other = machine(3);
    other.name = r.machine.name.clone();
    says(&refused(&*s, ErrorKind::Conflict, Write::Machine(other)).await, &["pc-1", "name"]);
    let mut renamed = s.machine_by_mac(mac(2)).await.unwrap().unwrap();
    renamed.name = r.machine.name.clone();
    says(&refused(&*s, ErrorKind::Conflict, Write::Machine(renamed)).await, &["pc-1", "name"]);
    says(&refused(&*s, ErrorKind::Conflict, Write::Image(image("win11"))).await, &["win11", "name"]);
    let again = Write::Target(target("data", r.version.id));
    says(&refused(&*s, ErrorKind::Conflict, again).await, &["data", "name"]);
    // The three kinds are apart.
    write(&*s, [Write::Image(image("pc-1")), Write::Target(target("win11", r.version.id))]).await;
}

/// No two machines share a MAC address; the refusal names it and the machine that has it. A card that was taken out is free.
pub async fn mac_addresses_are_unique(f: Fresh<'_>) {
    let s = f.fresh().await;
    let (mut a, mut b) = (machine(1), machine(2));
    a.macs.push(mac(10));
    write(&*s, [Write::Machine(a.clone())]).await;
    b.macs.push(mac(10));
    let e = refused(&*s, ErrorKind::Conflict, Write::Machine(b.clone())).await;
    says(&e, &[&mac(10).to_string(), "pc-1"]);
    assert_eq!(s.machine(b.id).await.unwrap(), None);
    a.revision = 1;
    a.macs.pop();
    write(&*s, [Write::Machine(a.clone()), Write::Machine(b.clone())]).await;
    assert_eq!(s.machine_by_mac(mac(10)).await.unwrap().unwrap().id, b.id);
    // A machine may put its own cards in another order.
    let mut turned = s.machine(b.id).await.unwrap().unwrap();
    turned.macs.reverse();
    write(&*s, [Write::Machine(turned.clone())]).await;
    assert_eq!(s.machine(b.id).await.unwrap().unwrap().macs, turned.macs);
    write(&*s, [Write::DeleteMachine(b.id)]).await;
    assert_eq!(s.machine_by_mac(mac(10)).await.unwrap(), None);
}

/// A machine that its own type's rules forbid is refused with the field.
pub async fn a_machine_without_cards_is_refused(f: Fresh<'_>) {
    let s = f.fresh().await;
    let mut m = machine(1);
    m.macs.clear();
    assert_eq!(refused(&*s, ErrorKind::Invalid, Write::Machine(m)).await.field(), Some("macs"));
}

/// Revision 0 inserts; another updates over itself only; the stored record gets the next one.
pub async fn a_record_changes_only_over_the_revision_it_was_read_with(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let live = session(r.machine.id, &r.version, SessionState::Starting);
    write(&*s, [put(&live)]).await;
    let (m, i, live) = (r.machine, r.image, s.session(live.id).await.unwrap().unwrap());
    assert_eq!((m.revision, i.revision, live.revision), (1, 2, 1));

    let at_revision = |n: u64| {
        let (mut m, mut i, mut live) = (m.clone(), i.clone(), live.clone());
        (m.revision, i.revision, live.revision) = (n, n, n);
        [Write::Machine(m), Write::Image(i), put(&live)]
    };
    for wrong in [0, 7, u64::MAX] {
        for w in at_revision(wrong) {
            refused(&*s, ErrorKind::Conflict, w).await;
        }
    }
    let e = refused(&*s, ErrorKind::Conflict, at_revision(7)[0].clone()).await;
    says(&e, &[&m.id.to_string(), "machine"]);
    // Over the right one, twice.
    write(&*s, [Write::Machine(m.clone()), Write::Image(i.clone()), put(&live)]).await;
    for w in [Write::Machine(m.clone()), Write::Image(i.clone()), put(&live)] {
        refused(&*s, ErrorKind::Conflict, w).await;
    }
    assert_eq!(s.machine(m.id).await.unwrap().unwrap().revision, 2);
    assert_eq!(s.image(i.id).await.unwrap().unwrap().revision, 3);
    assert_eq!(s.session(live.id).await.unwrap().unwrap().revision, 2);

    // What is gone is not found.
    let (mut m2, mut i2, mut s2) = (machine(2), image("x"), session(m.id, &r.version, SessionState::Stopped));
    (m2.revision, i2.revision, s2.revision) = (1, 1, 1);
    for w in [Write::Machine(m2), Write::Image(i2), put(&s2)] {
        refused(&*s, ErrorKind::NotFound, w).await;
    }
}

/// Many update one machine over one revision at once: one wins, the others get a conflict.
pub async fn of_two_operators_exactly_one_wins(f: Fresh<'_>) {
    let s = f.fresh().await;
    write(&*s, [Write::Machine(machine(1))]).await;
    let mut m = s.machine_by_mac(mac(1)).await.unwrap().unwrap();
    for round in 1..=10 {
        let mut tasks = Vec::new();
        for n in 0..8 {
            let (s, mut mine) = (Arc::clone(&s), m.clone());
            mine.description = format!("round {round}, operator {n}");
            tasks.push(tokio::spawn(async move {
                let description = mine.description.clone();
                (description, s.commit(Batch::new().write(Write::Machine(mine)).event(event(round))).await)
            }));
        }
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (description, Ok(_)) => winners.push(description),
                (_, Err(e)) => assert_eq!(e.kind(), ErrorKind::Conflict, "{e}"),
            }
        }
        m = s.machine(m.id).await.unwrap().unwrap();
        assert_eq!(winners, [m.description.clone()]);
    }
    assert_eq!(m.revision, 11);
    assert_eq!(s.events(None, 100, None).await.unwrap().len(), 10);
}

/// A change that was decided before another server took the session over is not applied, nor anything beside it.
pub async fn a_stale_fence_changes_nothing(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let live = session(r.machine.id, &r.version, SessionState::Active);
    write(&*s, [put(&live)]).await;
    let read = s.session(live.id).await.unwrap().unwrap();
    s.commit(Batch::new().event(event(1)).fenced(&read)).await.expect("nobody took it over");

    let taken = Session { owner: Some("0badcafe".parse().unwrap()), epoch: read.epoch + 1, ..read.clone() };
    write(&*s, [put(&taken)]).await;
    let stale = Batch::new().write(Write::Machine(machine(2))).event(event(2)).fenced(&read);
    let e = s.commit(stale).await.expect_err("it was taken over");
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    says(&e, &[&live.id.to_string(), "epoch"]);
    assert_eq!(s.machine_by_mac(mac(2)).await.unwrap(), None);
    assert_eq!(s.events(None, 100, None).await.unwrap().len(), 1);
    let now = s.session(live.id).await.unwrap().unwrap();
    assert_eq!((&now.owner, now.epoch), (&taken.owner, taken.epoch));
    s.commit(Batch::new().event(event(3)).fenced(&now)).await.expect("in its own epoch");

    let unknown = session(r.machine.id, &r.version, SessionState::Stopped);
    let e = s.commit(Batch::new().event(event(4)).fenced(&unknown)).await.expect_err("no such session");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
}

/// A second live session of a machine is refused, also when many start at once.
pub async fn a_machine_has_at_most_one_live_session(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (s, new) = (Arc::clone(&s), session(r.machine.id, &r.version, SessionState::Starting));
        tasks.push(tokio::spawn(async move { s.commit(Batch::new().write(put(&new))).await }));
    }
    let mut started = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => started += 1,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
                says(&e, &["pc-1"]);
            }
        }
    }
    assert_eq!(started, 1);
    let mut live = s.live_session(r.machine.id).await.unwrap().unwrap();
    for state in [SessionState::Active, SessionState::Stopping] {
        live.state = state;
        write(&*s, [put(&live)]).await;
        live.revision += 1;
        for other in [SessionState::Starting, SessionState::Active, SessionState::Stopping] {
            refused(&*s, ErrorKind::Conflict, put(&session(r.machine.id, &r.version, other))).await;
        }
    }
    (live.state, live.ended_at) = (SessionState::Stopped, Some(at(60)));
    let next = session(r.machine.id, &r.version, SessionState::Starting);
    write(&*s, [put(&live), put(&next)]).await;
    assert_eq!(s.live_session(r.machine.id).await.unwrap().unwrap().id, next.id);
    assert_eq!(s.last_session(r.machine.id).await.unwrap().unwrap().id, next.id);
    // The ended one does not come back beside it.
    (live.state, live.revision) = (SessionState::Active, live.revision + 1);
    refused(&*s, ErrorKind::Conflict, put(&live)).await;
}

/// A machine with a live session is not deleted; after its session it is, and what it did stays on record.
pub async fn a_machine_with_a_live_session_is_not_deleted(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let mut live = session(r.machine.id, &r.version, SessionState::Starting);
    write(&*s, [put(&live)]).await;
    let e = refused(&*s, ErrorKind::Conflict, Write::DeleteMachine(r.machine.id)).await;
    says(&e, &["pc-1", "live session"]);
    (live.state, live.revision, live.ended_at) = (SessionState::Failed, 1, Some(at(60)));
    write(&*s, [put(&live), Write::DeleteMachine(r.machine.id)]).await;
    assert_eq!(s.machine(r.machine.id).await.unwrap(), None);
    assert_eq!(s.machine_by_mac(r.machine.macs[0]).await.unwrap(), None);
    assert_eq!(s.session(live.id).await.unwrap().unwrap().state, SessionState::Failed);
}

/// A version that a live session (its next generation too), a pin, a manual target or its image uses is not deleted, and the
/// refusal says who uses it.
pub async fn a_version_in_use_is_not_deleted(f: Fresh<'_>) {
    let s = f.fresh().await;
    let mut r = room(&*s).await;
    let versions: Vec<_> = (2..=5).map(|n| version(r.image.id, n)).collect();
    let [current, next, pin, served] = versions.as_slice() else { unreachable!() };
    write(&*s, versions.iter().cloned().map(Write::Version)).await;
    let mut live = session(r.machine.id, current, SessionState::Active);
    live.next = Some(generation(r.machine.id, next, 2));
    let mut pinned = machine(2);
    (pinned.image, pinned.pinned_version) = (Some(r.image.id), Some(pin.id));
    let t = target("data", served.id);
    write(&*s, [put(&live), Write::Machine(pinned.clone()), Write::Target(t.clone())]).await;

    for (v, who) in
        [(current, "pc-1"), (next, "pc-1"), (pin, "pc-2"), (served, "data"), (&r.version, "win11")]
    {
        let e = refused(&*s, ErrorKind::Conflict, Write::DeleteVersion(v.id)).await;
        says(&e, &[who, &v.id.to_string()]);
        assert_eq!(s.version(v.id).await.unwrap().as_ref(), Some(v));
    }
    (live.state, live.revision, live.ended_at) = (SessionState::Stopped, 1, Some(at(60)));
    (pinned.pinned_version, pinned.revision) = (None, 1);
    r.image.current = None;
    let mut writes =
        vec![put(&live), Write::Machine(pinned), Write::DeleteTarget(t.id), Write::Image(r.image.clone())];
    writes.extend(versions.iter().map(|v| Write::DeleteVersion(v.id)));
    writes.push(Write::DeleteVersion(r.version.id));
    write(&*s, writes).await;
    assert_eq!(s.versions(r.image.id).await.unwrap(), vec![]);
    // An ended session remembers what it used.
    assert_eq!(s.session(live.id).await.unwrap().unwrap().current.system().version, current.id);
}

/// A version that is only a data disk of a live session, or of its next generation, is not deleted, nor its image; when the session has
/// ended, or its next generation has gone, it is. A session with a data disk of nothing is refused.
pub async fn a_version_of_a_data_disk_is_in_use(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let other = image("data");
    let [now, then] = [1, 2].map(|n| version(other.id, n));
    write(&*s, [Write::Image(other.clone()), Write::Version(now.clone()), Write::Version(then.clone())])
        .await;
    let mut live = session(r.machine.id, &r.version, SessionState::Active);
    let nothing = version(other.id, 9);
    live.current.disks = with_data(&live.current.disks, &[&now, &nothing]);
    says(&refused(&*s, ErrorKind::Conflict, put(&live)).await, &[&nothing.id.to_string()]);
    assert_eq!(s.session(live.id).await.unwrap(), None);

    live.current = generation(r.machine.id, &r.version, 1);
    live.current.disks = with_data(&live.current.disks, &[&now, &now]);
    let mut next = generation(r.machine.id, &r.version, 2);
    next.disks = with_data(&next.disks, &[&then, &now]);
    live.next = Some(next);
    write(&*s, [put(&live)]).await;
    let read = s.session(live.id).await.unwrap().unwrap();
    assert_eq!((&read.current, &read.next), (&live.current, &live.next));
    for v in [&now, &then] {
        let e = refused(&*s, ErrorKind::Conflict, Write::DeleteVersion(v.id)).await;
        says(&e, &["session", "pc-1", &v.id.to_string()]);
    }
    let e = refused(&*s, ErrorKind::Conflict, Write::DeleteImage(other.id)).await;
    says(&e, &["session", "pc-1"]);
    (live.next, live.revision) = (None, 1);
    write(&*s, [put(&live), Write::DeleteVersion(then.id)]).await;
    refused(&*s, ErrorKind::Conflict, Write::DeleteVersion(now.id)).await;
    refused(&*s, ErrorKind::Conflict, Write::DeleteImage(other.id)).await;
    (live.state, live.revision, live.ended_at) = (SessionState::Stopped, 2, Some(at(60)));
    write(&*s, [put(&live), Write::DeleteVersion(now.id), Write::DeleteImage(other.id)]).await;
    // It remembers what it used.
    assert_eq!(s.session(live.id).await.unwrap().unwrap().current.disks, live.current.disks);
}

/// An image that a machine is assigned to, or whose version is in use, is not deleted, and the refusal says who uses it;
/// otherwise its versions go with it.
pub async fn an_image_in_use_is_not_deleted(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let delete = || Write::DeleteImage(r.image.id);
    says(&refused(&*s, ErrorKind::Conflict, delete()).await, &["pc-1", &r.image.id.to_string()]);
    let mut free = r.machine.clone();
    free.image = None;
    let mut live = session(r.machine.id, &r.version, SessionState::Active);
    write(&*s, [Write::Machine(free), put(&live)]).await;
    says(&refused(&*s, ErrorKind::Conflict, delete()).await, &["session", "pc-1"]);
    // Only its next generation is of this image.
    let other = image("other");
    let other_version = version(other.id, 1);
    live.revision = 1;
    live.next = Some(live.current.clone());
    live.current = generation(r.machine.id, &other_version, 5);
    write(&*s, [Write::Image(other), Write::Version(other_version), put(&live)]).await;
    says(&refused(&*s, ErrorKind::Conflict, delete()).await, &["session", "pc-1"]);
    (live.state, live.revision, live.ended_at) = (SessionState::Stopped, 2, Some(at(60)));
    let t = target("data", r.version.id);
    write(&*s, [put(&live), Write::Target(t.clone())]).await;
    says(&refused(&*s, ErrorKind::Conflict, delete()).await, &["data"]);
    write(&*s, [Write::DeleteTarget(t.id), delete()]).await;
    assert_eq!(s.image(r.image.id).await.unwrap(), None);
    assert_eq!(s.version(r.version.id).await.unwrap(), None);
    assert_eq!(s.image_by_name(&r.image.name).await.unwrap(), None);
}

/// Nothing refers to what is not there: not an assignment, a pin, a current version, a version's image, a target or a live session.
pub async fn references_must_exist(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let other = image("other");
    let foreign = version(other.id, 1);
    write(&*s, [Write::Image(other.clone()), Write::Version(foreign.clone())]).await;
    let nowhere = image("nowhere");
    let nothing = version(r.image.id, 9);

    let assigned = |image, pinned| {
        let mut m = machine(2);
        (m.image, m.pinned_version) = (Some(image), pinned);
        Write::Machine(m)
    };
    let current = |v| {
        let mut i = r.image.clone();
        i.current = Some(v);
        Write::Image(i)
    };
    let with_next = |v| {
        let mut live = session(r.machine.id, &r.version, SessionState::Active);
        live.next = Some(generation(r.machine.id, v, 2));
        put(&live)
    };
    for (write, named) in [
        (assigned(nowhere.id, None), nowhere.id.to_string()),
        (assigned(r.image.id, Some(nothing.id)), nothing.id.to_string()),
        (assigned(r.image.id, Some(foreign.id)), foreign.id.to_string()),
        (current(nothing.id), nothing.id.to_string()),
        (current(foreign.id), foreign.id.to_string()),
        (Write::Version(version(nowhere.id, 1)), nowhere.id.to_string()),
        (Write::Target(target("t", nothing.id)), nothing.id.to_string()),
        (put(&session(r.machine.id, &nothing, SessionState::Starting)), nothing.id.to_string()),
        (with_next(&nothing), nothing.id.to_string()),
    ] {
        says(&refused(&*s, ErrorKind::Conflict, write).await, &[&named]);
    }
    let lost = machine(3);
    let e =
        refused(&*s, ErrorKind::Conflict, put(&session(lost.id, &r.version, SessionState::Starting))).await;
    says(&e, &[&lost.id.to_string()]);
}

/// Version numbers are unique within an image; writing a version again replaces it; it stays with its image.
pub async fn versions_are_replaced_and_numbered(f: Fresh<'_>) {
    let s = f.fresh().await;
    let (a, b) = (image("a"), image("b"));
    let (mut one, two, mut importing) = (version(a.id, 1), version(a.id, 2), version(b.id, 1));
    importing.state = VersionState::Importing;
    (importing.size_bytes, importing.sha256, importing.finished_at) = (0, None, None);
    let versions = [two.clone(), one.clone(), importing.clone()];
    write(&*s, [Write::Image(a.clone()), Write::Image(b.clone())]).await;
    write(&*s, versions.into_iter().map(Write::Version)).await;
    let e = refused(&*s, ErrorKind::Conflict, Write::Version(version(a.id, 2))).await;
    says(&e, &["2", &a.id.to_string()]);
    assert_eq!(s.versions(a.id).await.unwrap(), [one.clone(), two.clone()]);
    assert_eq!(s.importing_versions().await.unwrap(), [importing.clone()]);

    one.comment = "second thoughts".to_owned();
    (importing.state, importing.error) = (VersionState::Failed, Some("no space".to_owned()));
    importing.failure = Some((&Error::not_found("image", 7).with_hint("Import it")).into());
    write(&*s, [Write::Version(one.clone()), Write::Version(importing.clone())]).await;
    assert_eq!(s.version(one.id).await.unwrap(), Some(one.clone()));
    assert_eq!(s.importing_versions().await.unwrap(), vec![]);
    (one.image, one.number) = (b.id, 5);
    refused(&*s, ErrorKind::Conflict, Write::Version(one)).await;
}

/// What is not there cannot be deleted, except an unknown machine, which is merely forgotten.
pub async fn deleting_nothing_is_not_found(f: Fresh<'_>) {
    let s = f.fresh().await;
    for w in [
        Write::DeleteMachine(MachineId::generate()),
        Write::DeleteImage(ImageId::generate()),
        Write::DeleteVersion(ImageVersionId::generate()),
        Write::DeleteTarget(TargetId::generate()),
    ] {
        refused(&*s, ErrorKind::NotFound, w).await;
    }
    write(&*s, [Write::DeleteSeen(mac(1))]).await;
}

//! The behaviour of every [`Store`]: what the port's documentation promises, one case a promise.
//!
//! ```text
//! ggnet_core::store_behaviour!(behaviour, MyFixture::new());
//! ```
//! makes one test of every case; the expression makes a [`Fixture`] for each. A case fails by panicking. Cases never look at a clock
//! and never sleep; they run on a runtime with two threads.
//!
//! The functions `machine`, `image`, `version`, `session` … make whole records, for tests of a backend's own.
#![expect(clippy::unwrap_used, reason = "a case fails by panicking, as a test does")]

use std::{sync::Arc, time::Duration};

use super::Fixture;
use crate::{
    error::{Error, ErrorKind},
    nouns::*,
    ports::{
        Batch, Health, MAX_SEEN, MachineFilter, PageRequest, SessionCounts, SessionFilter, Store, Write,
    },
};

type Fresh<'a> = &'a dyn Fixture<dyn Store>;

/// The moment `seconds` after a fixed one.
#[must_use]
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// The `n`th MAC address of the tests.
#[must_use]
pub fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr::new([0x52, 0x54, a, b, c, d]).unwrap()
}

/// A new machine `pc-<n>` with one card.
#[must_use]
pub fn machine(n: u32) -> Machine {
    Machine {
        id: MachineId::generate(),
        name: format!("pc-{n}").parse().unwrap(),
        description: format!("Row {n}"),
        macs: vec![mac(n)],
        device_type: DeviceType::X64,
        firmware: Firmware::Uefi,
        fixed_address: Some("10.1.2.3".parse().unwrap()),
        groups: vec!["room-1".parse().unwrap()],
        state: MachineState::Active,
        image: None,
        pinned_version: None,
        auto_start: true,
        writeback: WritebackPolicy::Discard,
        created_at: at(0),
        updated_at: at(1),
        revision: 0,
    }
}

/// A new image of this name.
#[must_use]
pub fn image(name: &str) -> Image {
    Image {
        id: ImageId::generate(),
        name: name.parse().unwrap(),
        description: "An image".to_owned(),
        current: None,
        created_at: at(0),
        updated_at: at(1),
        revision: 0,
    }
}

/// A ready version of an image.
#[must_use]
pub fn version(image: ImageId, number: u32) -> ImageVersion {
    ImageVersion {
        id: ImageVersionId::generate(),
        image,
        number,
        state: VersionState::Ready,
        comment: "first".to_owned(),
        source: VersionSource::Import {
            path: "/srv/images/a.qcow2".into(),
            format: Some(ImageFormat::Qcow2),
            expected_sha256: Some("ab".repeat(32)),
        },
        size_bytes: 1 << 33,
        sha256: Some("cd".repeat(32)),
        error: None,
        failure: None,
        created_at: at(0),
        finished_at: Some(at(9)),
    }
}

/// A generation of a machine's session, with credentials.
#[must_use]
pub fn generation(machine: MachineId, version: &ImageVersion, number: u32) -> Generation {
    Generation {
        number,
        chap: Some(ChapPair::random(format!("user-{number}")).unwrap()),
        writeback: ResourceId::generation(machine, number),
        image: version.image,
        version: version.id,
        prepared_at: at(10),
        committed_at: None,
    }
}

/// A new session in `state`; ended at second 50 when it is not live.
#[must_use]
pub fn session(machine: MachineId, version: &ImageVersion, state: SessionState) -> Session {
    Session {
        id: SessionId::generate(),
        machine,
        state,
        policy: WritebackPolicy::Discard,
        chosen_image: None,
        initiator: "iqn.2026-11.local.ggnet:525400000001".parse().unwrap(),
        current: generation(machine, version, 1),
        next: None,
        last_generation: 1,
        started_at: at(10),
        active_at: None,
        ended_at: (!state.is_live()).then(|| at(50)),
        stop_reason: None,
        stop_forced: false,
        error: None,
        failure: None,
        revision: 0,
    }
}

/// A manual target of this name.
#[must_use]
pub fn target(name: &str, version: ImageVersionId) -> ManualTarget {
    ManualTarget {
        id: TargetId::generate(),
        name: name.parse().unwrap(),
        version,
        initiator: Some("iqn.2026-11.org.example:pc-1".parse().unwrap()),
        created_at: at(3),
    }
}

/// An unknown machine, seen once at second `n`.
#[must_use]
pub fn seen(n: u32) -> SeenMachine {
    let when = at(i64::from(n));
    SeenMachine {
        mac: mac(n),
        firmware: Firmware::Bios,
        address: Some("10.0.0.9".to_owned()),
        first_seen: when,
        last_seen: when,
        count: 1,
    }
}

/// An audit row about `subject`, `seconds` after the fixed moment.
#[must_use]
pub fn audit(subject: &str, seconds: i64) -> AuditRow {
    AuditRow {
        at: at(seconds),
        actor: Actor::Admin { address: Some("192.0.2.7".to_owned()) },
        action: "machine.update".to_owned(),
        subject_kind: "machine".to_owned(),
        subject_id: subject.to_owned(),
        details: serde_json::json!({ "name": ["old", "new"], "n": 7, "nothing": null }),
    }
}

/// An event, `seconds` after the fixed moment.
#[must_use]
pub fn event(seconds: i64) -> NewEvent {
    NewEvent::new(at(seconds), EventKind::MachineCreated)
}

fn put(s: &Session) -> Write {
    Write::Session(Box::new(s.clone()))
}

async fn write(store: &dyn Store, writes: impl IntoIterator<Item = Write>) {
    let batch = Batch { writes: writes.into_iter().collect(), ..Batch::default() };
    store.commit(batch).await.unwrap();
}

async fn refused(store: &dyn Store, kind: ErrorKind, write: Write) -> Error {
    let what = format!("{write:?}");
    let error = store.commit(Batch::new().write(write)).await.expect_err(&what);
    assert_eq!(error.kind(), kind, "{what}: {error}");
    error
}

fn says(error: &Error, words: &[&str]) {
    for word in words {
        assert!(error.message().contains(word), "{:?} does not name {word:?}", error.message());
    }
}

const ALL: PageRequest = PageRequest { page: 1, per_page: 1000 };

/// An image with one ready version, which is current, and a machine assigned to it.
struct Room {
    image: Image,
    version: ImageVersion,
    machine: Machine,
}

async fn room(store: &dyn Store) -> Room {
    let (mut i, mut m) = (image("win11"), machine(1));
    let v = version(i.id, 1);
    write(store, [Write::Image(i.clone()), Write::Version(v.clone())]).await;
    (i.revision, i.current) = (1, Some(v.id));
    m.image = Some(i.id);
    write(store, [Write::Image(i.clone()), Write::Machine(m.clone())]).await;
    i.revision = 2;
    m.revision = 1;
    Room { image: i, version: v, machine: m }
}

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
    assert_eq!(s.events(0, 10, None).await.unwrap(), vec![]);
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
        s.sessions(&SessionFilter::default(), ALL).await.unwrap().items.pop(),
    ] {
        let found = found.unwrap();
        assert_eq!(found, live);
        assert!(found.current.chap.is_some() && found.next.unwrap().chap.is_some());
    }
    assert_eq!(s.session_counts().await.unwrap(), SessionCounts { active: 1, ..SessionCounts::default() });
    assert_eq!(s.target(t.id).await.unwrap().as_ref(), Some(&t));
    assert_eq!(s.targets().await.unwrap(), vec![t]);
    assert_eq!(s.seen_machine(unknown.mac).await.unwrap(), Some(unknown));
    assert_eq!(s.setting("instance").await.unwrap().as_deref(), Some("0badcafe"));
    assert_eq!(s.events(0, 10, None).await.unwrap(), events);
    assert_eq!(s.audit(ALL).await.unwrap().items, vec![row]);
    // Places go on where they were.
    let later = s.commit(Batch::new().event(event(6))).await.unwrap();
    assert!(later[0].seq > events[0].seq);
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
    assert_eq!(s.events(0, 10, None).await.unwrap(), vec![]);
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

/// Many update one machine over one revision at once: one wins, the others are told.
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
    assert_eq!(s.events(0, 100, None).await.unwrap().len(), 10);
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
    assert_eq!(s.session(live.id).await.unwrap().unwrap().current.version, current.id);
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

/// Lists are ordered by name and paged, with the total of all pages; a page that cannot be is refused with the field.
pub async fn lists_are_ordered_and_paged(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let numbers = [17, 5, 9, 12, 3];
    write(&*s, numbers.into_iter().map(|n| Write::Machine(machine(n)))).await;
    write(&*s, ["zeta", "alpha"].map(|n| Write::Image(image(n)))).await;
    write(&*s, ["zz", "aa"].map(|n| Write::Target(target(n, r.version.id)))).await;
    let all = s.machines(&MachineFilter::default(), ALL).await.unwrap();
    let names: Vec<_> = all.items.iter().map(|m| m.name.to_string()).collect();
    assert_eq!(names, ["pc-1", "pc-12", "pc-17", "pc-3", "pc-5", "pc-9"]);
    for (page, want) in [(1, &all.items[..4]), (2, &all.items[4..]), (3, &[][..])] {
        let got = s.machines(&MachineFilter::default(), PageRequest { page, per_page: 4 }).await.unwrap();
        assert_eq!((got.items.as_slice(), got.total, got.page, got.per_page), (want, 6, page, 4));
    }
    let images = s.images(PageRequest { page: 1, per_page: 2 }).await.unwrap();
    let names: Vec<_> = images.items.iter().map(|i| i.name.as_str()).collect();
    assert_eq!((names, images.total), (vec!["alpha", "win11"], 3));
    let names: Vec<_> = s.targets().await.unwrap().iter().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["aa", "zz"]);

    let far = PageRequest { page: u32::MAX, per_page: 1000 };
    assert_eq!(s.images(far).await.unwrap().items, vec![]);
    for (page, per_page, field) in [(0, 10, "page"), (1, 0, "per_page"), (1, 1001, "per_page")] {
        let bad = PageRequest { page, per_page };
        for e in [
            s.machines(&MachineFilter::default(), bad).await.unwrap_err(),
            s.images(bad).await.unwrap_err(),
            s.sessions(&SessionFilter::default(), bad).await.unwrap_err(),
            s.seen(bad).await.unwrap_err(),
            s.audit(bad).await.unwrap_err(),
        ] {
            assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some(field)));
        }
    }
}

/// Machines are found by state, group, image and text; every given condition holds at once.
pub async fn machines_are_filtered(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let (mut b, mut c, mut d) = (machine(2), machine(3), machine(4));
    b.state = MachineState::Maintenance;
    b.groups = vec!["room-2".parse().unwrap(), "loud".parse().unwrap()];
    b.description = "ÄRGER with 100% of_the fans".to_owned();
    c.description = r"a back\slash and nothing else".to_owned();
    c.macs.push("52:54:99:ab:cd:ef".parse().unwrap());
    d.description.clear();
    write(&*s, [b, c, d].map(Write::Machine)).await;
    let find = async |filter: MachineFilter| -> Vec<String> {
        let page = s.machines(&filter, ALL).await.unwrap();
        assert_eq!(page.total, page.items.len() as u64);
        page.items.iter().map(|m| m.name.to_string()).collect()
    };
    let text = |search: &str| MachineFilter { search: Some(search.to_owned()), ..MachineFilter::default() };
    let group = |g: &str| MachineFilter { group: Some(g.parse().unwrap()), ..MachineFilter::default() };
    assert_eq!(find(group("room-1")).await, ["pc-1", "pc-3", "pc-4"]);
    assert_eq!(find(group("loud")).await, ["pc-2"]);
    assert_eq!(find(group("nobody")).await, Vec::<String>::new());
    let state = MachineFilter { state: Some(MachineState::Maintenance), ..MachineFilter::default() };
    assert_eq!(find(state.clone()).await, ["pc-2"]);
    assert_eq!(
        find(MachineFilter { group: Some("room-1".parse().unwrap()), ..state }).await,
        Vec::<String>::new()
    );
    assert_eq!(find(MachineFilter { image: Some(r.image.id), ..MachineFilter::default() }).await, ["pc-1"]);
    for (search, found) in [
        ("", &["pc-1", "pc-2", "pc-3", "pc-4"][..]),
        ("PC-3", &["pc-3"]),
        ("ROW", &["pc-1"]),
        ("ärger", &["pc-2"]),
        ("Ärger WITH", &["pc-2"]),
        ("100%", &["pc-2"]),
        ("0% of_", &["pc-2"]),
        ("%", &["pc-2"]),
        ("_", &["pc-2"]),
        ("o%f", &[]),
        (r"back\s", &["pc-3"]),
        (r"\", &["pc-3"]),
        ("99:AB:cd", &["pc-3"]),
        ("99-ab-cd", &["pc-3"]),
        ("525499abcdef", &["pc-3"]),
        ("' OR 1=1 --", &[]),
    ] {
        assert_eq!(find(text(search)).await, found, "searching {search:?}");
    }
    let too_long = s.machines(&text(&"x".repeat(2001)), ALL).await.unwrap_err();
    assert_eq!((too_long.kind(), too_long.field()), (ErrorKind::Invalid, Some("search")));
    // A changed machine is found by what it is now.
    let mut m = s.machine_by_mac(mac(4)).await.unwrap().unwrap();
    (m.description, m.groups, m.state) = ("Reborn".to_owned(), vec![], MachineState::Retired);
    write(&*s, [Write::Machine(m)]).await;
    assert_eq!(find(text("reborn")).await, ["pc-4"]);
    assert_eq!(find(group("room-1")).await, ["pc-1", "pc-3"]);
}

/// Sessions come newest first, by the order of their recording, and are filtered by state, machine, image and being live.
pub async fn sessions_are_filtered_newest_first(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let (other, m2) = (image("other"), machine(2));
    let other_version = version(other.id, 1);
    write(&*s, [Write::Image(other.clone()), Write::Version(other_version.clone())]).await;
    write(&*s, [Write::Machine(m2.clone())]).await;
    let a = session(r.machine.id, &r.version, SessionState::Stopped);
    let mut b = session(r.machine.id, &other_version, SessionState::Failed);
    // The clock was set back: the order of recording counts.
    b.started_at = at(-1000);
    let c = session(r.machine.id, &r.version, SessionState::Active);
    let d = session(m2.id, &r.version, SessionState::Starting);
    for x in [&a, &b, &c, &d] {
        write(&*s, [put(x)]).await;
    }
    let find = async |filter: SessionFilter| -> Vec<SessionId> {
        let page = s.sessions(&filter, ALL).await.unwrap();
        assert_eq!(page.total, page.items.len() as u64);
        page.items.iter().map(|s| s.id).collect()
    };
    let any = SessionFilter::default;
    assert_eq!(find(any()).await, [d.id, c.id, b.id, a.id]);
    assert_eq!(find(SessionFilter { live: Some(true), ..any() }).await, [d.id, c.id]);
    assert_eq!(find(SessionFilter { live: Some(false), ..any() }).await, [b.id, a.id]);
    assert_eq!(find(SessionFilter { state: Some(SessionState::Failed), ..any() }).await, [b.id]);
    assert_eq!(find(SessionFilter { machine: Some(m2.id), ..any() }).await, [d.id]);
    assert_eq!(find(SessionFilter { image: Some(other.id), ..any() }).await, [b.id]);
    let both = SessionFilter { image: Some(r.image.id), machine: Some(r.machine.id), ..any() };
    assert_eq!(find(both).await, [c.id, a.id]);
    let live: Vec<_> = s.live_sessions().await.unwrap().iter().map(|s| s.id).collect();
    assert_eq!(live, [d.id, c.id]);
    assert_eq!(s.last_session(r.machine.id).await.unwrap().unwrap().id, c.id);
    let second = s.sessions(&any(), PageRequest { page: 2, per_page: 3 }).await.unwrap();
    assert_eq!((second.items[0].id, second.items.len(), second.total), (a.id, 1, 4));
}

/// The counters equal a count of the sessions after every change, refused ones too.
pub async fn session_counters_never_drift(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    // A small generator of our own (xorshift): the same walk each time.
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut dice = move |sides: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % sides
    };
    let machines: Vec<_> = (10..14).map(machine).collect();
    write(&*s, machines.iter().cloned().map(Write::Machine)).await;
    for step in 0..150 {
        let all = s.sessions(&SessionFilter::default(), ALL).await.unwrap().items;
        let state = SessionState::ALL[usize::try_from(dice(5)).unwrap()];
        let write = if all.is_empty() || dice(2) == 0 {
            let m = &machines[usize::try_from(dice(4)).unwrap()];
            put(&session(m.id, &r.version, state))
        } else {
            let mut old = all[usize::try_from(dice(all.len() as u64)).unwrap()].clone();
            old.state = state;
            old.ended_at = (!state.is_live()).then(|| at(step));
            put(&old)
        };
        // Many of these are refused: a second live session.
        _ = s.commit(Batch::new().write(write)).await;
        if step % 40 == 39 {
            s.prune(at(step - 5)).await.unwrap();
        }
        let mut counted = SessionCounts::default();
        for found in s.sessions(&SessionFilter::default(), ALL).await.unwrap().items {
            *match found.state {
                SessionState::Starting => &mut counted.starting,
                SessionState::Active => &mut counted.active,
                SessionState::Stopping => &mut counted.stopping,
                SessionState::Stopped => &mut counted.stopped,
                SessionState::Failed => &mut counted.failed,
            } += 1;
        }
        assert_eq!(s.session_counts().await.unwrap(), counted, "after step {step}");
    }
}

/// Events keep the order of their commits and read back whole, whatever happened; a cursor gives what came since.
pub async fn events_are_read_by_cursor(f: Fresh<'_>) {
    let s = f.fresh().await;
    let m = machine(1);
    let text = || "because".to_owned();
    let failed = Error::not_found("image", "win11").with_hint("Import it");
    let kinds = [
        EventKind::MachineSeen { mac: mac(1) },
        EventKind::BootDeclined { reason: text(), diagnosis: None },
        EventKind::BootFailed { stage: "sanboot".to_owned(), errno: "2c0b8".to_owned() },
        EventKind::BootStage { stage: BootStage::IscsiLogin, generation: Some(3) },
        EventKind::BootStage { stage: BootStage::AddressOffered, generation: None },
        EventKind::BootDiagnosis { message: text(), diagnosis: Some(Diagnosis::not_answered("x")) },
        EventKind::VersionFailed { reason: text(), failure: None },
        EventKind::GenerationCommitted { number: u32::MAX },
        EventKind::SessionFailed { reason: text(), failure: Some(Failure::from(&failed)) },
        EventKind::Reconciled { action: text() },
        EventKind::DiskTrouble { message: text() },
        EventKind::TargetDeleted,
    ];
    let mut batch = Batch::new();
    for (n, kind) in kinds.into_iter().enumerate() {
        let event = NewEvent::new(at(100 - n as i64), kind);
        batch =
            batch.event(if n % 2 == 0 { event.machine(m.id).session(SessionId::generate()) } else { event });
    }
    let given = batch.events.clone();
    let first = s.commit(batch).await.unwrap();
    let second = s.commit(Batch::new().event(event(1)).event(event(2).machine(m.id))).await.unwrap();
    assert_eq!(first.iter().map(|e| &e.event).collect::<Vec<_>>(), given.iter().collect::<Vec<_>>());
    let all: Vec<Event> = first.into_iter().chain(second).collect();
    assert!(all[0].seq > 0 && all.is_sorted_by(|a, b| a.seq < b.seq));
    assert_eq!(s.events(0, 1000, None).await.unwrap(), all);
    assert_eq!(s.events(-5, 1000, None).await.unwrap(), all);
    assert_eq!(s.events(all[4].seq, 3, None).await.unwrap(), all[5..8]);
    assert_eq!(s.events(all[13].seq, 3, None).await.unwrap(), vec![]);
    assert_eq!(s.events(i64::MAX, 3, None).await.unwrap(), vec![]);
    assert_eq!(s.events(0, 0, None).await.unwrap(), vec![]);
    let of_machine: Vec<_> = all.iter().filter(|e| e.event.machine == Some(m.id)).cloned().collect();
    assert_eq!(s.events(0, 1000, Some(m.id)).await.unwrap(), of_machine);
    assert_eq!(s.events(all[2].seq, 2, Some(m.id)).await.unwrap(), of_machine[2..4]);
}

/// Audit rows come newest first and read back whole.
pub async fn audit_rows_come_newest_first(f: Fresh<'_>) {
    let s = f.fresh().await;
    let mut rows: Vec<_> = (0..5).map(|n| audit(&format!("m{n}"), 100 - n)).collect();
    rows[1].actor = Actor::Machine { mac: mac(1), address: None };
    rows[2].actor = Actor::System;
    rows[3].actor = Actor::Embedder;
    for row in &rows {
        s.commit(Batch::new().audit(row.clone())).await.unwrap();
    }
    rows.reverse();
    assert_eq!(s.audit(ALL).await.unwrap().items, rows);
    let page = s.audit(PageRequest { page: 2, per_page: 2 }).await.unwrap();
    assert_eq!((page.items.as_slice(), page.total), (&rows[2..4], 5));
}

/// Unknown machines are as many as packets claim: those that were seen last are kept.
pub async fn only_the_latest_unknown_machines_are_kept(f: Fresh<'_>) {
    let s = f.fresh().await;
    let most = u32::try_from(MAX_SEEN).unwrap();
    write(&*s, (1..=most).map(|n| Write::Seen(seen(n)))).await;
    // The first one is seen again, so the second is the one that goes.
    let again = SeenMachine { last_seen: at(5000), ..seen(1) };
    write(&*s, [again, seen(most + 1)].map(Write::Seen)).await;
    assert_eq!(s.seen(ALL).await.unwrap().total, u64::from(most));
    assert!(s.seen_machine(mac(1)).await.unwrap().is_some());
    assert!(s.seen_machine(mac(most + 1)).await.unwrap().is_some());
    assert_eq!(s.seen_machine(mac(2)).await.unwrap(), None);
}

/// An unknown machine seen again is counted; what is better known of it stays; the last seen comes first.
pub async fn seen_machines_are_counted(f: Fresh<'_>) {
    let s = f.fresh().await;
    write(&*s, [1, 2, 3].map(|n| Write::Seen(seen(n)))).await;
    let mut again = seen(1);
    (again.first_seen, again.last_seen) = (at(9), at(9));
    (again.firmware, again.address) = (Firmware::Unknown, None);
    write(&*s, [Write::Seen(again.clone()), Write::Seen(again.clone())]).await;
    let got = s.seen_machine(mac(1)).await.unwrap().unwrap();
    assert_eq!(got, SeenMachine { last_seen: at(9), count: 3, ..seen(1) });
    // An older sight that comes late moves nothing back.
    let mut late = seen(1);
    (late.last_seen, late.firmware, late.address) = (at(4), Firmware::Uefi, Some("10.0.0.77".to_owned()));
    write(&*s, [Write::Seen(late.clone())]).await;
    let got = s.seen_machine(mac(1)).await.unwrap().unwrap();
    assert_eq!((got.last_seen, got.count, got.firmware), (at(9), 4, Firmware::Uefi));
    assert_eq!(got.address, late.address);
    let order: Vec<_> = s.seen(ALL).await.unwrap().items.iter().map(|m| m.mac).collect();
    assert_eq!(order, [mac(1), mac(3), mac(2)]);
    write(&*s, [Write::DeleteSeen(mac(3))]).await;
    assert_eq!(s.seen(ALL).await.unwrap().total, 2);
    assert_eq!(s.seen_machine(mac(3)).await.unwrap(), None);
}

/// A setting is set and replaced, any text.
pub async fn settings_are_replaced(f: Fresh<'_>) {
    let s = f.fresh().await;
    for value in ["one", "", "drei\u{1F5A5} 'quoted' \"twice\"\nnew line"] {
        write(&*s, [Write::Setting { key: "token".to_owned(), value: value.to_owned() }]).await;
        assert_eq!(s.setting("token").await.unwrap().as_deref(), Some(value));
    }
    assert_eq!(s.setting("Token").await.unwrap(), None);
}

/// Pruning deletes what is older and nothing else: live sessions and a machine's newest session stay.
pub async fn pruning_keeps_what_is_needed(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let (gone, m2) = (machine(8), machine(9));
    write(&*s, [Write::Machine(gone.clone()), Write::Machine(m2.clone())]).await;
    let ended = |m: MachineId, when| {
        let mut x = session(m, &r.version, SessionState::Stopped);
        x.ended_at = Some(at(when));
        x
    };
    let old: Vec<_> = [10, 20, 99].iter().map(|t| ended(r.machine.id, *t)).collect();
    let (newest, of_gone) = (ended(m2.id, 5), ended(gone.id, 5));
    let mut live = session(r.machine.id, &r.version, SessionState::Active);
    live.started_at = at(1);
    let sessions: Vec<_> = old.iter().chain([&newest, &of_gone, &live]).collect();
    write(&*s, sessions.iter().map(|x| put(x))).await;
    write(&*s, [Write::DeleteMachine(gone.id)]).await;
    let mut batch = Batch::new();
    for t in [10, 99, 100, 101] {
        batch = batch.event(event(t)).audit(audit("x", t));
    }
    let events = s.commit(batch).await.unwrap();
    assert_eq!(s.prune(at(1)).await.unwrap(), 0);
    // Two events, two audit rows, two sessions of pc-1 that have a newer one, one of a machine that is gone.
    assert_eq!(s.prune(at(99)).await.unwrap(), 5);
    assert_eq!(s.prune(at(100)).await.unwrap(), 3);
    assert_eq!(s.prune(at(100)).await.unwrap(), 0);
    assert_eq!(s.events(0, 100, None).await.unwrap(), events[2..]);
    assert_eq!(s.audit(ALL).await.unwrap().total, 2);
    let left: Vec<_> =
        s.sessions(&SessionFilter::default(), ALL).await.unwrap().items.iter().map(|x| x.id).collect();
    assert_eq!(left, [live.id, newest.id]);
    assert_eq!(
        s.session_counts().await.unwrap(),
        SessionCounts { active: 1, stopped: 1, ..SessionCounts::default() }
    );
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
    assert_eq!(s.events(0, 1000, None).await.unwrap().len() as u64, whole);
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

/// One `#[tokio::test]` for every case of the behaviour of a [`Store`], in a module of the given name. The expression makes a
/// [`Fixture<dyn Store>`](Fixture) and is evaluated once per case; the caller's crate needs tokio with `macros` and
/// `rt-multi-thread`.
#[macro_export]
macro_rules! store_behaviour {
    ($module:ident, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::store_behaviour!(@cases $fixture;
                an_empty_store_has_nothing
                everything_is_there_after_a_crash
                a_batch_is_applied_whole_or_not_at_all
                a_batch_is_applied_in_order
                names_are_unique
                mac_addresses_are_unique
                a_machine_without_cards_is_refused
                a_record_changes_only_over_the_revision_it_was_read_with
                of_two_operators_exactly_one_wins
                a_machine_has_at_most_one_live_session
                a_machine_with_a_live_session_is_not_deleted
                a_version_in_use_is_not_deleted
                an_image_in_use_is_not_deleted
                references_must_exist
                versions_are_replaced_and_numbered
                deleting_nothing_is_not_found
                lists_are_ordered_and_paged
                machines_are_filtered
                sessions_are_filtered_newest_first
                session_counters_never_drift
                events_are_read_by_cursor
                audit_rows_come_newest_first
                seen_machines_are_counted
                only_the_latest_unknown_machines_are_kept
                settings_are_replaced
                pruning_keeps_what_is_needed
                a_dropped_commit_is_whole_or_absent
                a_store_that_was_shut_down_says_so
            );
        }
    };
    (@cases $fixture:expr; $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = $fixture;
                $crate::testkit::suite::store::$case(&fixture).await;
            }
        )+
    };
}

//! Cases of lists and counters: order, pages, filters.

use super::{
    Fresh,
    records::{at, image, mac, machine, session, target, version},
    support::{ALL, put, room, write},
};
use crate::{
    error::ErrorKind,
    nouns::{ImageId, MachineState, SessionId, SessionState},
    ports::{Batch, MachineFilter, Names, PageRequest, SessionCounts, SessionFilter, Write},
};

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
            // What a list gives has no credentials and is not to be written back.
            let id = all[usize::try_from(dice(all.len() as u64)).unwrap()].id;
            let mut old = s.session(id).await.unwrap().unwrap();
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

/// The versions of a page of images come at once: all of theirs, by number, and nothing of others.
pub async fn versions_are_read_for_a_page(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let (other, empty, left_out) = (image("other"), image("empty"), image("left-out"));
    write(&*s, [&other, &empty, &left_out].map(|i| Write::Image(i.clone()))).await;
    let of_other = [version(other.id, 2), version(other.id, 1)];
    write(&*s, of_other.iter().cloned().map(Write::Version)).await;
    write(&*s, [Write::Version(version(left_out.id, 1))]).await;
    let asked = [other.id, empty.id, r.image.id, ImageId::generate()];
    let found = s.versions_of(&asked).await.unwrap();
    let of = |image: ImageId| -> Vec<_> { found.iter().filter(|v| v.image == image).cloned().collect() };
    assert_eq!(of(other.id), [of_other[1].clone(), of_other[0].clone()]);
    assert_eq!(of(r.image.id), [r.version]);
    assert_eq!(found.len(), 3);
    assert_eq!(s.versions_of(&[]).await.unwrap(), vec![]);
}

/// The names of what is there, and nothing of what is not.
pub async fn names_are_read_for_a_page(f: Fresh<'_>) {
    let s = f.fresh().await;
    let r = room(&*s).await;
    let (other, unknown) = (machine(2), machine(3));
    write(&*s, [Write::Machine(other.clone())]).await;
    let names =
        s.names(&[r.machine.id, other.id, unknown.id], &[r.image.id, ImageId::generate()]).await.unwrap();
    let machines = [(r.machine.id, r.machine.name.clone()), (other.id, other.name)].into();
    assert_eq!((names.machines, names.images), (machines, [(r.image.id, r.image.name.clone())].into()));
    assert_eq!(s.names(&[], &[]).await.unwrap(), Names::default());
}

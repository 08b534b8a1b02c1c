//! Cases of what grows: events, audit rows, unknown machines; of settings; and of pruning.

use std::collections::HashSet;

use super::{
    Fresh,
    records::{at, audit, event, mac, machine, seen, session},
    support::{ALL, put, room, write},
};
use crate::{
    error::{Error, ErrorKind},
    nouns::{
        AuditAction, AuditRow, AuditSubject, BootStage, Cursor, Diagnosis, Event, EventKind, Failure,
        Firmware, MachineId, NewEvent, Principal, Role, SeenMachine, SessionId, SessionState, SystemPart,
    },
    ports::{Batch, MAX_SEEN, PageRequest, SessionCounts, SessionFilter, Write},
};

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
    let cursors: HashSet<_> = all.iter().map(|e| e.cursor.clone()).collect();
    assert_eq!(cursors.len(), all.len(), "a cursor was given twice");
    let after = |n: usize| Some(all[n].cursor.clone());
    assert_eq!(s.events(None, 1000, None).await.unwrap(), all);
    assert_eq!(s.events(after(4), 3, None).await.unwrap(), all[5..8]);
    assert_eq!(s.events(after(13), 3, None).await.unwrap(), vec![]);
    assert_eq!(s.events(None, 0, None).await.unwrap(), vec![]);
    let of_machine: Vec<_> = all.iter().filter(|e| e.event.machine == Some(m.id)).cloned().collect();
    assert_eq!(s.events(None, 1000, Some(m.id)).await.unwrap(), of_machine);
    assert_eq!(s.events(after(2), 2, Some(m.id)).await.unwrap(), of_machine[2..4]);
    // A cursor goes through a client as a text.
    let text = all[4].cursor.to_string();
    assert_eq!(s.events(Some(text.parse().unwrap()), 1, None).await.unwrap(), all[5..6]);

    assert_eq!(s.newest_events(1000, None).await.unwrap(), all);
    assert_eq!(s.newest_events(3, None).await.unwrap(), all[11..]);
    assert_eq!(s.newest_events(2, Some(m.id)).await.unwrap(), of_machine[of_machine.len() - 2..]);
    assert_eq!(s.newest_events(0, None).await.unwrap(), vec![]);
    assert_eq!(s.newest_events(3, Some(MachineId::generate())).await.unwrap(), vec![]);
}

/// A cursor of events that the store never had, or after which some were pruned, is refused with a word on what to do; nothing is left out
/// silently.
pub async fn a_cursor_outside_of_what_is_kept_is_refused(f: Fresh<'_>) {
    let s = f.fresh().await;
    assert_eq!(s.newest_events(1, None).await.unwrap(), vec![]);
    let mut batch = Batch::new();
    for t in [1, 2, 3, 100] {
        batch = batch.event(event(t));
    }
    let all = s.commit(batch).await.unwrap();
    let after = async |n: usize| s.events(Some(all[n].cursor.clone()), 10, None).await;
    s.prune(at(50)).await.unwrap();
    for n in [0, 1] {
        let e = after(n).await.unwrap_err();
        assert_eq!((e.kind(), e.code().name()), (ErrorKind::NotFound, "cursor_expired"));
        assert!(e.hint().is_some());
    }
    assert_eq!(after(2).await.unwrap(), all[3..], "all that came after it is there");
    assert_eq!(after(3).await.unwrap(), vec![]);
    s.prune(at(200)).await.unwrap();
    // Also when nothing is left.
    assert_eq!(after(2).await.unwrap_err().code().name(), "cursor_expired");
    assert_eq!(after(3).await.unwrap(), vec![]);
    assert_eq!(s.events(None, 10, None).await.unwrap(), vec![]);

    let foreign: Cursor = "another-stores-form".parse().unwrap();
    assert_eq!(s.events(Some(foreign), 10, None).await.unwrap_err().kind(), ErrorKind::Invalid);
    // As of a newer database than this one, which was put back; for a store that numbers no events another form, too.
    let e = s.events(Some(Cursor::numbered(1 << 60)), 10, None).await.unwrap_err();
    assert!(matches!(e.code().name(), "cursor_unknown" | "cursor_invalid"), "{e}");
}

/// Audit rows come newest first and read back whole.
pub async fn audit_rows_come_newest_first(f: Fresh<'_>) {
    let s = f.fresh().await;
    let mut rows: Vec<_> = (0..5).map(|n| audit(&format!("m{n}"), 100 - n)).collect();
    rows[1].by = Principal::machine(mac(1));
    rows[2].by = Principal::system(SystemPart::Reconciler);
    rows[3].by = Principal::user("ann".to_owned(), Role::Viewer);
    rows[4] = AuditRow::new(
        at(96),
        &Principal::embedder(),
        AuditAction::SessionStop,
        AuditSubject::Session(SessionId::generate()),
    );
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
    assert_eq!(s.events(None, 100, None).await.unwrap(), events[2..]);
    assert_eq!(s.audit(ALL).await.unwrap().total, 2);
    let left: Vec<_> =
        s.sessions(&SessionFilter::default(), ALL).await.unwrap().items.iter().map(|x| x.id).collect();
    assert_eq!(left, [live.id, newest.id]);
    assert_eq!(
        s.session_counts().await.unwrap(),
        SessionCounts { active: 1, stopped: 1, ..SessionCounts::default() }
    );
}

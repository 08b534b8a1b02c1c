//! Who may do what, asked of every command; and what every command leaves in the record.

use std::{collections::BTreeSet, time::Duration};

use ggnet_core::{
    ErrorKind, Result,
    authorization::{Command, authorize},
    nouns::{
        AuditAction, AuditRow, ImageId, ImageVersionId, JobId, MachineId, Principal, Role, Session,
        SessionId, StopReason, SystemPart, TargetId, VersionState, WritebackPolicy,
    },
    orchestrator::{ImportRequest, NewTarget, PublishRequest, StartRequest, StopRequest},
    ports::Store as _,
    testkit::flaky::Fault,
};

use crate::{
    house::{House, Process, advertised, all, mac, pc},
    images::{ended, request, source},
};

/// Asks for a command, mostly of what is not there: whether it may be asked for is all that counts.
async fn ask(
    p: &Process,
    live: &Session,
    import: &ImportRequest,
    command: Command,
    by: &Principal,
) -> Result<()> {
    let (o, by_value) = (&p.o, by.clone());
    let (machine, image, version) = (MachineId::generate(), ImageId::generate(), ImageVersionId::generate());
    match command {
        // Asked at a frontend's door, and where a machine asks for its script.
        Command::Read | Command::Boot => authorize(by, command),
        Command::SessionScript => o.sessions().current_script(live, &advertised(), by).await.map(drop),
        Command::SessionStart => o
            .sessions()
            .start(StartRequest { machine, image: None, data_disks: vec![], by: by_value })
            .await
            .map(drop),
        Command::SessionStop => {
            let (session, reason) = (SessionId::generate(), StopReason::Operator);
            o.sessions().stop(StopRequest { session, force: false, reason, by: by_value }).await.map(drop)
        }
        Command::MachineCreate => o.machines().create(pc(77, None), by).await.map(drop),
        Command::MachineUpdate => o.machines().update(machine, None, Box::new(Ok), by).await.map(drop),
        Command::MachineDelete => o.machines().delete(machine, by).await,
        Command::MachineDiscardWriteback => o.machines().discard_kept(machine, by).await,
        Command::SeenForget => o.machines().forget_seen(mac(88), by).await,
        Command::ImageImport => {
            o.images().import(ImportRequest { by: by_value, ..import.clone() }).await.map(drop)
        }
        Command::ImagePublish => {
            let (comment, make_current) = (String::new(), false);
            o.images()
                .publish(PublishRequest { machine, comment, make_current, by: by_value })
                .await
                .map(drop)
        }
        Command::JobCancel => o.jobs().cancel(JobId::generate(), by).await.map(drop),
        Command::JobRetry => o.jobs().retry(JobId::generate(), by).await.map(drop),
        Command::ImageSetCurrent => o.images().set_current(image, version, by).await.map(drop),
        Command::ImageDelete => o.images().delete(image, by).await,
        Command::VersionDelete => o.images().delete_version(version, by).await.map(drop),
        Command::TargetCreate => {
            let new = NewTarget { name: "games".parse().unwrap(), version, initiator: None };
            o.targets().create(new, by).await.map(drop)
        }
        Command::TargetDelete => o.targets().delete(TargetId::generate(), false, by).await,
        other => panic!("{other:?} is asked for nowhere here"),
    }
}

#[tokio::test]
async fn every_command_asks_the_table() {
    let house = House::new();
    let p = house.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    let live = p.start(&machine).await.unwrap().session;
    let import = request(source(&house, &[1; 4096]));
    let everybody = Role::ALL
        .map(|role| Principal::user("ann".to_owned(), role))
        .into_iter()
        .chain([Principal::administrator(), Principal::host(), Principal::embedder()])
        .chain([Principal::machine(mac(1))])
        .chain([SystemPart::Reconciler, SystemPart::Upkeep].map(Principal::system));
    for by in everybody {
        for command in Command::ALL {
            let before = (p.store.audit(all()).await.unwrap().total, p.all_events().await.len());
            let refused = match ask(&p, &live, &import, *command, &by).await {
                Err(e) if e.kind() == ErrorKind::Permission => Some(e),
                _ => None,
            };
            let may = authorize(&by, *command);
            assert_eq!(refused.is_none(), may.is_ok(), "{by}: {command:?}");
            if let Some(e) = refused {
                assert_eq!(Some(&e), may.as_ref().err(), "{by}: {command:?}");
                assert_eq!(e.code().name(), "command_not_permitted");
                // An import that somebody else was allowed may end meanwhile.
                if by.kind == Principal::user("ann".to_owned(), Role::Viewer).kind {
                    let after = (p.store.audit(all()).await.unwrap().total, p.all_events().await.len());
                    assert_eq!(after, before, "a refused {command:?} leaves nothing");
                }
            }
        }
    }
    assert_eq!(p.session(&machine).await, live, "nobody touched it");
}

/// The record as far as it was looked at.
struct Record<'a> {
    p: &'a Process,
    rows: usize,
    events: usize,
    actions: BTreeSet<AuditAction>,
}

impl Record<'_> {
    /// That since the last look somebody did this, with or without a before and an after, in this order; and that it was told.
    async fn has(&mut self, by: &Principal, wanted: &[(AuditAction, bool, bool)]) {
        let mut rows = self.p.store.audit(all()).await.unwrap().items;
        rows.reverse();
        let new: Vec<&AuditRow> = rows[self.rows..].iter().collect();
        let found: Vec<_> =
            new.iter().map(|row| (row.action, row.before.is_some(), row.after.is_some())).collect();
        assert_eq!(found, wanted);
        for row in new {
            assert_eq!(&row.by, by, "{row:?}");
            self.actions.insert(row.action);
        }
        let events = self.p.all_events().await.len();
        assert!(events > self.events, "{wanted:?} is no event");
        (self.rows, self.events) = (rows.len(), events);
    }
}

#[tokio::test]
async fn every_command_leaves_its_audit_row_and_its_event() {
    let house = House::new();
    let p = house.open().await;
    let by = &Principal::user("ann".to_owned(), Role::Admin)
        .at(Some("192.0.2.7".to_owned()))
        .asking("a-request".parse().ok());
    let start = |machine| StartRequest { machine, image: None, data_disks: vec![], by: by.clone() };
    let stop = |session| StopRequest { session, force: false, reason: StopReason::Operator, by: by.clone() };
    let mut record = Record { p: &p, rows: 0, events: 0, actions: BTreeSet::new() };

    let machine = p.o.machines().create(pc(1, None), by).await.unwrap();
    record.has(by, &[(AuditAction::MachineCreate, false, true)]).await;

    let import = ImportRequest { by: by.clone(), ..request(source(&house, &[1; 4096])) };
    let (image, first) = p.o.images().import(import.clone()).await.unwrap();
    assert_eq!(ended(&p, first.id).await.state, VersionState::Ready);
    let imported = (AuditAction::ImageImport, false, true);
    record.has(by, &[imported, (AuditAction::ImageSetCurrent, true, true)]).await;

    let later = ImportRequest { make_current: false, ..import };
    let (_, second) = p.o.images().import(later.clone()).await.unwrap();
    assert_eq!(ended(&p, second.id).await.state, VersionState::Ready);
    record.has(by, &[imported]).await;
    p.plan.add(Fault::on("convert").nth(1).is_delayed(Duration::from_millis(200)));
    let (_, third) = p.o.images().import(later).await.unwrap();
    p.o.jobs().cancel_import(third.id, by).await.unwrap();
    assert_eq!(ended(&p, third.id).await.state, VersionState::Failed);
    record.has(by, &[imported, (AuditAction::JobCancel, true, false)]).await;
    let job = p.o.jobs().of_version(third.id).await.unwrap().unwrap();
    p.o.jobs().retry(job.id, by).await.unwrap();
    assert_eq!(ended(&p, third.id).await.state, VersionState::Ready);
    record.has(by, &[(AuditAction::JobRetry, true, true)]).await;

    p.o.images().set_current(image.id, second.id, by).await.unwrap();
    record.has(by, &[(AuditAction::ImageSetCurrent, true, true)]).await;
    p.o.images().delete_version(first.id, by).await.unwrap();
    record.has(by, &[(AuditAction::VersionDelete, true, false)]).await;

    let change = move |mut m: ggnet_core::nouns::Machine| {
        (m.image, m.writeback) = (Some(image.id), WritebackPolicy::Keep);
        Ok(m)
    };
    p.o.machines().update(machine.id, None, Box::new(change), by).await.unwrap();
    record.has(by, &[(AuditAction::MachineUpdate, true, true)]).await;
    let session = p.o.sessions().start(start(machine.id)).await.unwrap().session;
    record.has(by, &[(AuditAction::SessionStart, false, true)]).await;
    p.o.sessions().stop(stop(session.id)).await.unwrap();
    record.has(by, &[(AuditAction::SessionStop, true, true)]).await;
    let publish =
        PublishRequest { machine: machine.id, comment: String::new(), make_current: false, by: by.clone() };
    let (_, published) = p.o.images().publish(publish).await.unwrap();
    assert_eq!(published.state, VersionState::Ready);
    record.has(by, &[(AuditAction::ImagePublish, false, true)]).await;
    let session = p.o.sessions().start(start(machine.id)).await.unwrap().session;
    record.has(by, &[(AuditAction::SessionStart, false, true)]).await;
    p.o.sessions().stop(stop(session.id)).await.unwrap();
    record.has(by, &[(AuditAction::SessionStop, true, true)]).await;
    p.o.machines().discard_kept(machine.id, by).await.unwrap();
    record.has(by, &[(AuditAction::MachineDiscardWriteback, true, false)]).await;

    let new = |name: &str| NewTarget { name: name.parse().unwrap(), version: second.id, initiator: None };
    let (target, _) = p.o.targets().create(new("games"), by).await.unwrap();
    record.has(by, &[(AuditAction::TargetCreate, false, true)]).await;
    p.o.targets().delete(target.id, false, by).await.unwrap();
    record.has(by, &[(AuditAction::TargetDelete, true, false)]).await;
    p.plan.add(Fault::on("target.ensure").nth(1).fails(ErrorKind::Unavailable));
    p.o.targets().create(new("lost"), by).await.unwrap_err();
    let taken_back = [(AuditAction::TargetCreate, false, true), (AuditAction::TargetDelete, true, false)];
    record.has(by, &taken_back).await;

    p.boot(mac(9)).await.unwrap();
    p.o.machines().forget_seen(mac(9), by).await.unwrap();
    record.has(by, &[(AuditAction::SeenForget, true, false)]).await;

    p.o.machines().delete(machine.id, by).await.unwrap();
    record.has(by, &[(AuditAction::MachineDelete, true, false)]).await;
    p.o.images().delete(image.id, by).await.unwrap();
    let version = (AuditAction::VersionDelete, true, false);
    record.has(by, &[(AuditAction::ImageDelete, true, false), version, version, version]).await;

    // What is done beside the orchestrator, by `ggnet-server` and its store.
    let elsewhere = [AuditAction::TokenReset, AuditAction::KeyReset, AuditAction::InstanceRemember];
    record.actions.extend(elsewhere);
    assert_eq!(record.actions, AuditAction::ALL.iter().copied().collect::<BTreeSet<_>>());
    let chap = session.current.chap.unwrap();
    let text = format!("{:?}", p.store.audit(all()).await.unwrap().items);
    assert!(!text.contains(chap.secret.expose()), "a secret in the audit");
}

#[tokio::test]
async fn a_machine_that_starts_its_session_does_so_by_itself() {
    let p = House::new().open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    p.script(&machine).await;
    let row = p.store.audit(all()).await.unwrap().items.remove(0);
    let by = Principal::machine(mac(1)).at(Some("192.0.2.77".to_owned())).asking("a-boot".parse().ok());
    assert_eq!((row.action, row.by), (AuditAction::SessionStart, by));
}

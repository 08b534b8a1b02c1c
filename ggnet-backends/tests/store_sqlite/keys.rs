//! Credentials at rest: not readable in the file; a lost or foreign key is a refused start, and a damaged record costs its session alone.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use ggnet_backends::store::sqlite::{KeyReset, SqliteStore};
use ggnet_core::{
    ErrorKind,
    nouns::{EventKind, Session, SessionState, StopReason},
    ports::{Batch, PageRequest, Store, Write},
    registry::{Registry, Wiring},
    testkit::suite::store::{at, generation, image, machine, session, version},
};
use sqlx::Connection as _;
use tempfile::TempDir;

use super::{config, open};

struct World {
    folder: TempDir,
    live: Session,
    ended: Session,
    without: Session,
}

/// A live session with two generations' credentials, an ended one, and a live one without credentials.
async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (i, a, b, c) = (image("win11"), machine(1), machine(2), machine(3));
    let v = version(i.id, 1);
    let mut live = session(a.id, &v, SessionState::Active);
    live.next = Some(generation(a.id, &v, 2));
    let ended = session(b.id, &v, SessionState::Stopped);
    let mut without = session(c.id, &v, SessionState::Active);
    without.current.chap = None;
    let batch = [a, b, c]
        .into_iter()
        .fold(Batch::new().write(Write::Image(i)).write(Write::Version(v)), |batch, m| {
            batch.write(Write::Machine(m))
        });
    let batch = [&live, &ended, &without]
        .into_iter()
        .fold(batch, |b, s| b.write(Write::Session(Box::new(s.clone()))));
    store.commit(batch).await.unwrap();
    store.shutdown().await;
    let written = |s: Session| Session { revision: 1, ..s };
    World { folder, live: written(live), ended: written(ended), without: written(without) }
}

fn raw_bytes(folder: &TempDir) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path != config(folder.path()).key_file {
            bytes.extend(fs::read(path).unwrap());
        }
    }
    bytes
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[tokio::test]
async fn no_secret_stands_in_the_files() {
    let w = world().await;
    let store = open(w.folder.path()).await;
    // One more change, so that the write-ahead log is not empty either.
    let mut live = w.live.clone();
    live.active_at = Some(at(12));
    store.commit(Batch::new().write(Write::Session(Box::new(live)))).await.unwrap();
    for moment in ["in use", "closed"] {
        let bytes = raw_bytes(&w.folder);
        assert!(holds(&bytes, &w.live.id.to_string()), "the search itself finds nothing");
        for generation in w.live.generations().chain(w.ended.generations()) {
            let chap = generation.chap.as_ref().unwrap();
            assert!(!holds(&bytes, chap.secret.expose()), "{moment}: a secret stands in the file");
        }
        store.shutdown().await;
    }
}

/// What the key file may be when it is not the right one: missing, another's, too short, too long.
fn wrong_keys() -> [Option<Vec<u8>>; 4] {
    [None, Some(vec![7; 32]), Some(vec![7; 31]), Some(vec![7; 33])]
}

fn put(key_file: &Path, bytes: Option<&Vec<u8>>) {
    if key_file.exists() {
        fs::remove_file(key_file).unwrap();
    }
    if let Some(bytes) = bytes {
        fs::write(key_file, bytes).unwrap();
    }
}

/// The names beside the database that begin as the key file's does.
fn key_files(folder: &TempDir) -> Vec<String> {
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("ggnet.key")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_lost_or_foreign_key_refuses_the_start_and_the_right_one_heals_everything() {
    for wrong in wrong_keys() {
        let w = world().await;
        let key_file = config(w.folder.path()).key_file;
        let key = fs::read(&key_file).unwrap();
        assert_eq!(key.len(), 32);
        put(&key_file, wrong.as_ref());
        // However often it is tried.
        for _ in 0..2 {
            let e = SqliteStore::open(config(w.folder.path())).await.err().expect("it opened");
            assert_eq!((e.kind(), e.is_retryable()), (ErrorKind::Invalid, false));
            assert!(e.message().contains(key_file.to_str().unwrap()), "{e}");
            assert!(e.message().contains("the credentials of 1 live session cannot"), "{e}");
            let hint = e.hint().unwrap();
            assert!(hint.contains("backup") && hint.contains("`ggnet-server key reset`"), "{hint}");
            assert_eq!(fs::read(&key_file).ok(), wrong, "the key file was changed");
            assert_eq!(key_files(&w.folder).len(), usize::from(wrong.is_some()));
        }
        put(&key_file, Some(&key));
        let store = open(w.folder.path()).await;
        assert_eq!(store.session(w.live.id).await.unwrap(), Some(w.live.clone()));
        assert_eq!(store.session(w.ended.id).await.unwrap(), Some(w.ended.clone()));
        assert_eq!(store.session(w.without.id).await.unwrap(), Some(w.without.clone()));
    }
}

#[tokio::test]
async fn ended_sessions_need_no_key() {
    let w = world().await;
    let store = open(w.folder.path()).await;
    let mut live = w.live.clone();
    (live.state, live.ended_at) = (SessionState::Stopped, Some(at(60)));
    store.commit(Batch::new().write(Write::Session(Box::new(live)))).await.unwrap();
    store.shutdown().await;
    fs::remove_file(config(w.folder.path()).key_file).unwrap();
    let store = open(w.folder.path()).await;
    // What an ended session knew opens nothing any more; its machine can start the next one.
    let mut bare = w.ended.clone();
    bare.current.chap = None;
    assert_eq!(store.last_session(w.ended.machine).await.unwrap(), Some(bare));
    assert_eq!(key_files(&w.folder), ["ggnet.key"]);
}

/// A start of the server over this folder, as far as the store goes.
async fn started(folder: &Path) -> Arc<dyn Store> {
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    let (instance, prefix) = ("0badcafe".parse().unwrap(), "iqn.2025-01.net.example".parse().unwrap());
    let wiring = Wiring::new(instance, prefix, folder.to_owned());
    registry.stores.make("sqlite", wiring, serde_json::Value::Null).await.unwrap()
}

#[tokio::test]
async fn a_damaged_record_costs_its_session_alone() {
    for column in ["current_sealed", "next_sealed"] {
        let w = world().await;
        // The ended one's machine has a live session too, so that the key is seen to be right.
        let store = open(w.folder.path()).await;
        let of = version(image("win11").id, 1);
        let current = w.ended.current.clone();
        let sound = Session { current, ..session(w.ended.machine, &of, SessionState::Active) };
        store.commit(Batch::new().write(Write::Session(Box::new(sound.clone())))).await.unwrap();
        store.shutdown().await;
        let mut raw = super::files::raw(&config(w.folder.path()).path).await;
        let damage = format!("UPDATE sessions SET {column} = x'01020304' WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(damage)).bind(w.live.id.to_string()).execute(&mut raw).await.unwrap();
        raw.close().await.unwrap();

        let store = started(w.folder.path()).await;
        let mut live: Vec<_> =
            store.live_sessions().await.unwrap().into_iter().map(|s| (s.id, s.current.chap)).collect();
        let mut expected = vec![(sound.id, sound.current.chap.clone()), (w.without.id, None)];
        live.sort_by_key(|(id, _)| *id);
        expected.sort_by_key(|(id, _)| *id);
        assert_eq!(live, expected);
        let ended = store.session(w.live.id).await.unwrap().unwrap();
        assert_eq!((ended.state, ended.revision, ended.stop_reason), (SessionState::Failed, 2, None));
        let events = store.events(None, 10, Some(w.live.machine)).await.unwrap();
        assert_eq!((events.len(), events[0].event.session), (1, Some(w.live.id)));
        let why = ended.error.unwrap();
        assert!(
            matches!(&events[0].event.kind, EventKind::SessionFailed { reason, failure }
                if *reason == why && *failure == ended.failure && failure.is_some()),
            "{events:?}"
        );
        store.shutdown().await;
        // Once.
        let store = started(w.folder.path()).await;
        assert_eq!(store.events(None, 10, None).await.unwrap().len(), 1);
        assert_eq!(store.live_sessions().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_reset_ends_the_sessions_that_need_the_old_key_and_keeps_its_file() {
    for wrong in wrong_keys() {
        let w = world().await;
        let config = config(w.folder.path());
        put(&config.key_file, wrong.as_ref());
        let kept = config.key_file.with_file_name("ggnet.key.old-2");
        fs::write(config.key_file.with_file_name("ggnet.key.old-1"), "an earlier one").unwrap();
        let done = SqliteStore::reset_key(config.clone(), at(70)).await.unwrap();
        let expected = KeyReset {
            key_file: config.key_file.clone(),
            kept: wrong.is_some().then(|| kept.clone()),
            ended: vec![w.live.id],
        };
        assert_eq!(done, expected);
        assert_eq!(fs::read(&kept).ok(), wrong);
        assert_eq!(fs::read(config.key_file.with_file_name("ggnet.key.old-1")).unwrap(), b"an earlier one");
        let key = fs::read(&config.key_file).unwrap();
        assert!(key.len() == 32 && Some(&key) != wrong.as_ref());
        assert_eq!(fs::metadata(&config.key_file).unwrap().permissions().mode() & 0o7777, 0o600);

        let store = open(w.folder.path()).await;
        assert_eq!(store.live_sessions().await.unwrap(), vec![w.without.clone()]);
        let ended = store.session(w.live.id).await.unwrap().unwrap();
        assert_eq!((ended.state, ended.ended_at, ended.revision), (SessionState::Failed, Some(at(70)), 2));
        assert_eq!(ended.stop_reason, Some(StopReason::Operator));
        let events = store.events(None, 10, Some(w.live.machine)).await.unwrap();
        assert_eq!((events.len(), events[0].event.session), (1, Some(w.live.id)));
        let counts = store.session_counts().await.unwrap();
        assert_eq!((counts.active, counts.failed, counts.stopped), (1, 1, 1));
        let audit = store.audit(PageRequest::default()).await.unwrap().items;
        assert_eq!((audit.len(), audit[0].action.as_str()), (1, "key.reset"));
        assert_eq!(fs::read(&config.key_file).unwrap(), key, "the start takes the new key");
    }
}

#[tokio::test]
async fn a_reset_is_refused_while_the_key_opens_a_session_and_where_no_database_is() {
    let w = world().await;
    let config = config(w.folder.path());
    let key = fs::read(&config.key_file).unwrap();
    let e = SqliteStore::reset_key(config.clone(), at(70)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    assert_eq!(
        (fs::read(&config.key_file).unwrap(), key_files(&w.folder)),
        (key, vec!["ggnet.key".to_owned()])
    );
    assert_eq!(open(w.folder.path()).await.session(w.live.id).await.unwrap(), Some(w.live));

    let empty = tempfile::tempdir().unwrap();
    let e = SqliteStore::reset_key(super::config(empty.path()), at(70)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn credentials_moved_to_another_session_do_not_open() {
    let w = world().await;
    let mut raw = super::files::raw(&config(w.folder.path()).path).await;
    sqlx::query("UPDATE sessions SET current_sealed = (SELECT current_sealed FROM sessions WHERE id = $1) WHERE id = $2")
        .bind(w.live.id.to_string())
        .bind(w.without.id.to_string())
        .execute(&mut raw)
        .await
        .unwrap();
    let store = open(w.folder.path()).await;
    assert_eq!(store.session(w.without.id).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.session(w.live.id).await.unwrap(), Some(w.live));
}

#[tokio::test]
async fn a_key_file_that_is_no_key_is_named_also_where_no_session_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.shutdown().await;
    for length in [0, 31, 33] {
        let config = config(folder.path());
        put(&config.key_file, Some(&vec![7; length]));
        let e = SqliteStore::open(config.clone()).await.err().unwrap();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.message().contains(config.key_file.to_str().unwrap()), "{e}");
        assert!(e.hint().unwrap().contains("key reset"), "{e}");
    }
}

//! Credentials at rest: not readable in the file, and a lost or foreign key is a clear error where it matters.

use std::fs;

use ggnet_core::{
    ErrorKind,
    nouns::{Session, SessionState},
    ports::{Batch, PageRequest, SessionFilter, Store, Write},
    testkit::suite::store::{at, generation, image, machine, session, version},
};
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

#[tokio::test]
async fn another_key_is_an_error_of_live_sessions_with_credentials_only() {
    let w = world().await;
    let key_file = config(w.folder.path()).key_file;
    let key = fs::read(&key_file).unwrap();
    assert_eq!(key.len(), 32);
    fs::remove_file(&key_file).unwrap();

    let store = open(w.folder.path()).await;
    let all = PageRequest::default();
    for e in [
        store.session(w.live.id).await.unwrap_err(),
        store.live_session(w.live.machine).await.unwrap_err(),
        store.last_session(w.live.machine).await.unwrap_err(),
        store.live_sessions().await.unwrap_err(),
        store.sessions(&SessionFilter::default(), all).await.unwrap_err(),
    ] {
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        assert!(e.message().contains(key_file.to_str().unwrap()), "{e}");
        assert!(e.message().contains(&w.live.id.to_string()), "{e}");
        assert!(e.hint().unwrap().contains("original key file"), "{:?}", e.hint());
        assert!(!e.is_retryable());
    }
    assert_eq!(store.session(w.without.id).await.unwrap(), Some(w.without.clone()));
    // What an ended session knew opens nothing any more; its machine can start the next one.
    let mut bare = w.ended.clone();
    bare.current.chap = None;
    assert_eq!(store.last_session(w.ended.machine).await.unwrap(), Some(bare));
    store.shutdown().await;

    // The key from the backup heals everything.
    fs::copy(tempfile_with(&w.folder, &key), &key_file).unwrap();
    let store = open(w.folder.path()).await;
    assert_eq!(store.session(w.live.id).await.unwrap(), Some(w.live.clone()));
    assert_eq!(store.session(w.ended.id).await.unwrap(), Some(w.ended.clone()));
}

fn tempfile_with(folder: &TempDir, bytes: &[u8]) -> std::path::PathBuf {
    use std::io::Write as _;
    let path = folder.path().join("backup");
    fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

#[tokio::test]
async fn sessions_of_a_lost_key_can_be_ended() {
    let w = world().await;
    fs::remove_file(config(w.folder.path()).key_file).unwrap();
    let store = open(w.folder.path()).await;
    assert_eq!(store.end_unreadable_sessions(at(70)).await.unwrap(), [w.live.id]);
    assert_eq!(store.end_unreadable_sessions(at(70)).await.unwrap(), []);
    assert_eq!(store.live_sessions().await.unwrap(), vec![w.without.clone()]);
    let ended = store.session(w.live.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.ended_at, ended.revision), (SessionState::Failed, Some(at(70)), 2));
    let events = store.events(0, 10, Some(w.live.machine)).await.unwrap();
    assert_eq!((events.len(), events[0].event.session), (1, Some(w.live.id)));
    let counts = store.session_counts().await.unwrap();
    assert_eq!((counts.active, counts.failed, counts.stopped), (1, 1, 1));
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
async fn a_key_file_that_is_no_key_is_named() {
    for length in [0, 31, 33] {
        let w = world().await;
        let config = config(w.folder.path());
        fs::copy(tempfile_with(&w.folder, &vec![7; length]), &config.key_file).unwrap();
        let e = ggnet_backends::store::sqlite::SqliteStore::open(config.clone()).await.err().unwrap();
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        assert!(e.message().contains(config.key_file.to_str().unwrap()), "{e}");
    }
}

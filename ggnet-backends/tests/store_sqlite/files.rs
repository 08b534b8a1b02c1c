//! The files: modes, damage, other versions of the schema, other processes, and the constraints without our code before them.

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use ggnet_backends::store::sqlite::SqliteStore;
use ggnet_core::{
    Error, ErrorKind,
    nouns::SessionState,
    ports::{Batch, Health, Store, Write},
    testkit::suite::store::{image, machine, session, version},
};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{config, crash, open};

/// A connection of somebody else.
pub async fn raw(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).foreign_keys(true);
    SqliteConnection::connect_with(&options).await.unwrap()
}

async fn refusal(folder: &Path) -> Error {
    SqliteStore::open(config(folder)).await.err().expect("it opened")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_are_for_their_owner_alone_whatever_the_umask() {
    const ROLE: &str = "umask";
    if let Some(folder) = crash::role(ROLE) {
        crash::block_on(async {
            let store = open(&folder).await;
            store.commit(Batch::new().write(Write::Machine(machine(1)))).await.unwrap();
            // The log exists while the store is open.
            for name in ["ggnet.db", "ggnet.db-wal", "ggnet.db-shm", "ggnet.key"] {
                assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
            }
            store.shutdown().await;
        });
        return;
    }
    for umask in ["0000", "0022", "0777"] {
        let folder = tempfile::tempdir().unwrap();
        let me = std::env::current_exe().unwrap();
        let script = format!("umask {umask} && exec \"$0\" \"$@\"");
        let mut child = crash::command("sh");
        child.args(["-c", &script]).arg(me);
        crash::as_role(
            &mut child,
            ROLE,
            "files::files_are_for_their_owner_alone_whatever_the_umask",
            folder.path(),
        );
        let output = child.output().unwrap();
        assert!(output.status.success(), "umask {umask}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn files_that_others_could_read_are_closed_to_them() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.shutdown().await;
    let config = config(folder.path());
    for path in [&config.path, &config.key_file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let _store = open(folder.path()).await;
    assert_eq!((mode(&config.path), mode(&config.key_file)), (0o600, 0o600));
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::File::create(config(folder.path()).path).unwrap();
    let store = open(folder.path()).await;
    store.commit(Batch::new().write(Write::Machine(machine(1)))).await.unwrap();
    assert_eq!(store.name(), "sqlite");
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let e = refusal(&folder.path().join("nowhere")).await;
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.message().contains("nowhere/ggnet.db"), "{e}");
    assert!(e.hint().unwrap().contains("folder must exist"));
}

#[tokio::test]
async fn a_database_of_a_newer_ggnet_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.shutdown().await;
    let mut conn = raw(&config(folder.path()).path).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', TRUE, x'00', 1)",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
    let e = refusal(folder.path()).await;
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.message().contains("newer GGnet") && e.message().contains("9999"), "{e}");
    assert!(e.hint().unwrap().contains("newer GGnet"));
}

#[tokio::test]
async fn a_schema_that_nobody_released_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.shutdown().await;
    let mut conn = raw(&config(folder.path()).path).await;
    sqlx::query("UPDATE _sqlx_migrations SET checksum = x'00'").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    assert_eq!(refusal(folder.path()).await.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path()).path;
    fs::File::create(&path).unwrap().write_all(&[b'x'; 8192]).unwrap();
    let e = refusal(folder.path()).await;
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{}", e.report());
    assert!(e.message().contains(path.to_str().unwrap()) && e.hint().unwrap().contains("backup"), "{e}");
}

#[tokio::test]
async fn a_damaged_database_is_corrupt_at_open() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for n in 0..200 {
        store.commit(Batch::new().write(Write::Machine(machine(n)))).await.unwrap();
    }
    store.shutdown().await;
    let path = config(folder.path()).path;
    let pages = fs::metadata(&path).unwrap().len() / 4096;
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for page in pages / 2..pages {
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0xa5; 512]).unwrap();
    }
    let e = refusal(folder.path()).await;
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{}", e.report());
    assert!(e.hint().unwrap().contains("restore a backup"));
}

#[tokio::test]
async fn another_programs_lock_is_busy_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut other = raw(&config(folder.path()).path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let m = machine(1);
    let e = store.commit(Batch::new().write(Write::Machine(m.clone()))).await.unwrap_err();
    assert_eq!((e.kind(), e.is_retryable()), (ErrorKind::Busy, true), "{}", e.report());
    assert!(e.hint().is_some());
    // Reading goes on meanwhile, and health tells.
    assert_eq!(store.machine(m.id).await.unwrap(), None);
    // No machine can start without a change.
    assert!(
        matches!(store.health().await, Health::Blocked(why) if why.contains("locked by another process"))
    );
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(store.health().await, Health::Up, "found out by itself");
    store.commit(Batch::new().write(Write::Machine(m))).await.unwrap();
    assert_eq!(store.health().await, Health::Up);
}

#[tokio::test]
async fn a_database_that_is_replaced_under_the_server_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let path = config(folder.path()).path;
    let aside = folder.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    assert!(matches!(store.health().await, Health::Down(why) if why.contains("removed or replaced")));
    // As a restore by copying does it.
    fs::copy(&aside, &path).unwrap();
    assert!(matches!(store.health().await, Health::Down(_)));
    fs::rename(&aside, &path).unwrap();
    assert_eq!(store.health().await, Health::Up);
}

#[tokio::test]
async fn a_record_that_does_not_read_is_corrupt_and_the_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (a, b) = (machine(1), machine(2));
    store
        .commit(Batch::new().write(Write::Machine(a.clone())).write(Write::Machine(b.clone())))
        .await
        .unwrap();
    let mut other = raw(&config(folder.path()).path).await;
    sqlx::query("UPDATE machines SET doc = '{\"id\":' WHERE id = $1")
        .bind(a.id.to_string())
        .execute(&mut other)
        .await
        .unwrap();
    assert_eq!(store.machine(a.id).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(store.machine(b.id).await.unwrap().is_some());
}

#[tokio::test]
async fn shutdown_waits_for_commits_and_folds_the_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let commits: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.commit(Batch::new().write(Write::Machine(machine(n)))).await })
        })
        .collect();
    tokio::task::yield_now().await;
    store.shutdown().await;
    let mut done = 0;
    for commit in commits {
        match commit.await.unwrap() {
            Ok(_) => done += 1,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unavailable),
        }
    }
    assert!(!config(folder.path()).path.with_extension("db-wal").exists(), "the log is still there");
    let total =
        open(folder.path()).await.machines(&Default::default(), Default::default()).await.unwrap().total;
    assert_eq!(total, done);
}

/// The schema itself holds the invariants: the same refusals without our code in front of it.
#[tokio::test]
async fn the_schema_holds_the_invariants_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (i, m) = (image("win11"), machine(1));
    let v = version(i.id, 1);
    let live = session(m.id, &v, SessionState::Active);
    let (image_id, machine_id, version_id) = (i.id.to_string(), m.id.to_string(), v.id.to_string());
    store
        .commit(
            Batch::new()
                .write(Write::Image(i))
                .write(Write::Version(v))
                .write(Write::Machine(m))
                .write(Write::Session(Box::new(live))),
        )
        .await
        .unwrap();
    let mut conn = raw(&config(folder.path()).path).await;
    let live = "INSERT INTO sessions (id, machine_id, image_id, state, live_machine_id, live_version_id, revision, doc)";
    for forbidden in [
        format!("{live} VALUES ('b', '{machine_id}', '{image_id}', 'starting', '{machine_id}', '{version_id}', 1, '')"),
        format!("{live} VALUES ('b', 'nobody', '{image_id}', 'active', 'nobody', '{version_id}', 1, '')"),
        format!("{live} VALUES ('b', 'other', '{image_id}', 'active', NULL, NULL, 1, '')"),
        format!("{live} VALUES ('b', 'other', '{image_id}', 'stopped', '{machine_id}', '{version_id}', 1, '')"),
        format!("DELETE FROM machines WHERE id = '{machine_id}'"),
        format!("DELETE FROM image_versions WHERE id = '{version_id}'"),
        format!("INSERT INTO session_data_versions SELECT id, 'no', '{image_id}' FROM sessions"),
        format!("INSERT INTO session_data_versions VALUES ('b', '{version_id}', '{image_id}')"),
        format!("DELETE FROM images WHERE id = '{image_id}'"),
        "INSERT INTO machines (id, name, state, search, revision, doc) VALUES ('b', 'pc-1', 'active', '', 1, '')".into(),
        format!("INSERT INTO machine_macs SELECT mac, '{machine_id}' FROM machine_macs"),
        format!("UPDATE machines SET pinned_version_id = 'no', image_id = '{image_id}'"),
        "UPDATE images SET current_version_id = 'no'".into(),
        "UPDATE session_counts SET count = -1".into(),
        "UPDATE machines SET revision = 0".into(),
    ] {
        let e = sqlx::query(sqlx::AssertSqlSafe(forbidden.clone())).execute(&mut conn).await.expect_err(&forbidden);
        let code: i32 = e.as_database_error().unwrap().code().unwrap().parse().unwrap();
        assert_eq!(code & 0xff, 19, "{forbidden}: {e}");
    }
}

/// Before a session had a list of disks, its record named one.
#[tokio::test]
async fn a_session_that_was_recorded_with_one_disk_is_read_with_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (i, m) = (image("win11"), machine(1));
    let v = version(i.id, 1);
    let live = session(m.id, &v, SessionState::Active);
    let batch = Batch::new().write(Write::Image(i)).write(Write::Version(v)).write(Write::Machine(m));
    store.commit(batch.write(Write::Session(Box::new(live.clone())))).await.unwrap();
    let written = store.session(live.id).await.unwrap().unwrap();
    store.shutdown().await;
    let mut conn = raw(&config(folder.path()).path).await;
    sqlx::query(
        "UPDATE sessions SET doc = json_remove(json_set(doc, '$.current.image', image_id, '$.current.version', \
         live_version_id, '$.current.writeback', json_extract(doc, '$.current.disks[0].writeback')), \
         '$.current.disks', '$.data_disks')",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    let doc: String = sqlx::query_scalar("SELECT doc FROM sessions").fetch_one(&mut conn).await.unwrap();
    assert!(!doc.contains("disks"), "{doc}");
    conn.close().await.unwrap();
    assert_eq!(open(folder.path()).await.session(live.id).await.unwrap(), Some(written));
}

//! Opening: files of mode 0600, connections, the check of the database, migrations.
//!
//! Invariants: the database file exists with mode 0600 and its name is durable before SQLite writes to it; nothing is migrated
//! before the file was found sound and not newer than this program, and is copied beside itself.

use std::{
    fs::{self, OpenOptions},
    io::ErrorKind as Io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use ggnet_core::{Error, ErrorKind, Result, error::code};
use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    backup,
    errors::{Failure, corrupt_hint},
    files::{sync_folder, tighten},
};

/// The schema, embedded. A released file never changes; a change is a new file.
static MIGRATOR: Migrator = sqlx::migrate!("src/store/sqlite/migrations");

/// How long a statement waits for another process's lock before it is `Busy`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a read waits for a free reader. Longer than any caller: the port has a limit of its own, and on a slow machine fifty requests
/// at once take their turns.
const READER_WAIT: Duration = Duration::from_secs(60);

/// Readers beside the writer; a read takes tens of microseconds.
const READERS: u32 = 4;

/// A database that was found sound: its writer and its readers.
pub(super) struct Opened {
    pub(super) options: SqliteConnectOptions,
    pub(super) writer: SqliteConnection,
    pub(super) readers: SqlitePool,
}

pub(super) async fn open(path: &Path) -> Result<Opened, Failure> {
    open_with(path, &MIGRATOR).await
}

/// As [`open`], with the schema that these migrations make.
async fn open_with(path: &Path, migrator: &Migrator) -> Result<Opened, Failure> {
    let file = path.to_owned();
    tokio::task::spawn_blocking(move || make_file(&file))
        .await
        .map_err(|e| Error::internal("Opening the database was cut short").with_source(e))??;

    let vfs = if writes_elsewhere(path) { "unix-excl" } else { "unix" };
    let options = SqliteConnectOptions::new()
        .vfs(vfs)
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // A whole page of a list at once; by itself the reading thread stops after every 50 rows until they are fetched.
        .row_buffer_size(1024)
        // A log that grew under a long read is cut back at the next checkpoint.
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging();
    let mut writer = SqliteConnection::connect_with(&options).await?;
    check(path, &mut writer).await?;
    migrate(path, &options, &mut writer, migrator).await?;

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(READER_WAIT)
        .connect_with(options.clone().read_only(true))
        .await?;
    Ok(Opened { options, writer, readers })
}

/// Whether the database is on a file system that needs a new place for every write (btrfs, ZFS, bcachefs). There the write-ahead log's
/// index must not be a file that is mapped into memory: when the disk is full, a write to it ends the process (SIGBUS), whatever was
/// allocated before. With the VFS `unix-excl` it is memory of ours, and other processes cannot open the database while we run.
pub(super) fn writes_elsewhere(path: &Path) -> bool {
    // statfs(2); the numbers have 32 bits, and the kernel's type is signed on some machines.
    let kind = rustix::fs::statfs(path).ok().and_then(|stat| u32::try_from(stat.f_type & 0xffff_ffff).ok());
    matches!(kind, Some(0x9123_683e | 0x2fc1_2fc1 | 0xca45_1a4e))
}

/// SQLite's own check of the file's structure.
async fn check(path: &Path, conn: &mut SqliteConnection) -> Result<(), Failure> {
    let found: Vec<String> = sqlx::query_scalar("PRAGMA quick_check(3)").fetch_all(conn).await?;
    if found.as_slice() == ["ok"] {
        return Ok(());
    }
    Err(Error::new(
        code::database_damaged(path.display()),
        format!("The database {} is damaged: {}", path.display(), found.join("; ")),
    )
    .with_hint(corrupt_hint(path))
    .into())
}

async fn migrate(
    path: &Path,
    options: &SqliteConnectOptions,
    conn: &mut SqliteConnection,
    migrator: &Migrator,
) -> Result<(), Failure> {
    let known = migrator.iter().map(|m| m.version).max().unwrap_or_default();
    let migrated: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
    )
    .fetch_one(&mut *conn)
    .await?;
    let newest: Option<i64> = match migrated {
        0 => None,
        _ => sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut *conn).await?,
    };
    match newest {
        Some(newest) if newest > known => {
            return Err(Error::new(
                code::database_too_new(path.display(), newest, known),
                format!(
                    "The database {} was written by a newer GGnet: its schema is {newest}, this program knows up to \
                     {known}",
                    path.display()
                ),
            )
            .with_hint(format!(
                "Run that newer GGnet. To go back to this one, use the copy that the upgrade made, {}: \
                 docs/operators.md, \"Upgrade\"",
                backup::path_of(path, known).display()
            ))
            .into());
        }
        Some(older) if older < known => {
            let copy = backup::keep(path, older, conn).await?;
            tracing::info!(copy = %copy.display(), "copied the database before the upgrade of its schema from {older} to {known}");
        }
        _ => {}
    }
    // A pool of one, because sqlx's migrator does not give a `Send` future over a borrowed connection.
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
    let migrated = migrator.run(&pool).await;
    pool.close().await;
    match migrated {
        Ok(()) => Ok(()),
        Err(MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _)) => Err(e.into()),
        Err(e @ (MigrateError::VersionMismatch(_) | MigrateError::VersionMissing(_))) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("The schema of the database {} is not one that a released GGnet made", path.display()),
        )
        .with_hint("Restore a backup, or run the build of GGnet that wrote it")
        .with_source(e)
        .into()),
        Err(e) => Err(Error::internal("The database's schema could not be brought up to date")
            .with_source(e)
            .into()),
    }
}

/// Makes the database file when it is not there, and takes others' access from it and from the files beside it.
fn make_file(path: &Path) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            // The umask may have taken bits away.
            file.set_permissions(fs::Permissions::from_mode(0o600))
                .and_then(|()| file.sync_all())
                .map_err(|e| Error::io(format!("Creating the database {}", path.display()), e))?;
            sync_folder(path)
        }
        Err(e) if e.kind() == Io::AlreadyExists => {
            for suffix in ["", "-wal", "-shm"] {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                tighten(Path::new(&name))?;
            }
            Ok(())
        }
        Err(e) => Err(Error::io(format!("Creating the database {}", path.display()), e)
            .with_hint("The folder must exist and the server's user must be able to write in it")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt as _};

    use sqlx::{
        SqlSafeStr as _,
        migrate::{Migration, MigrationType},
    };

    use super::*;

    /// The schema of today, and one change after it.
    fn next() -> (i64, Migrator) {
        let today = MIGRATOR.iter().map(|m| m.version).max().unwrap();
        let sql = "ALTER TABLE images RENAME TO pictures; INSERT INTO settings VALUES ('made', 'later')";
        let change =
            Migration::new(today + 1, "later".into(), MigrationType::Simple, sql.into_sql_str(), false);
        (today, Migrator::with_migrations(MIGRATOR.iter().cloned().chain([change]).collect()))
    }

    async fn close(opened: Opened) {
        opened.readers.close().await;
        opened.writer.close().await.unwrap();
    }

    async fn set(opened: &mut Opened, value: &str) {
        let sql =
            "INSERT INTO settings VALUES ('is', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        sqlx::query(sql).bind(value).execute(&mut opened.writer).await.unwrap();
    }

    async fn is(path: &Path) -> String {
        let mut opened = open(path).await.unwrap();
        let sql = "SELECT value FROM settings WHERE key = 'is'";
        let value = sqlx::query_scalar(sql).fetch_one(&mut opened.writer).await.unwrap();
        close(opened).await;
        value
    }

    #[tokio::test]
    async fn an_older_database_is_copied_before_its_schema_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ggnet.db");
        let (today, later) = next();
        let copy = backup::path_of(&path, today);
        let mut old = open(&path).await.unwrap();
        set(&mut old, "in the log").await;
        // As a kill leaves it: what was committed is in the write-ahead log only.
        assert!(fs::metadata(dir.path().join("ggnet.db-wal")).unwrap().len() > 0);
        let killed = dir.path().join("killed");
        fs::create_dir(&killed).unwrap();
        for name in ["ggnet.db", "ggnet.db-wal"] {
            fs::copy(dir.path().join(name), killed.join(name)).unwrap();
        }
        close(old).await;
        assert!(!copy.exists(), "nothing changed, and there is a copy");

        // What an earlier attempt left does not matter.
        let path = killed.join("ggnet.db");
        let copy = backup::path_of(&path, today);
        File::create(killed.join(format!("ggnet.db.{today}.bak.part"))).unwrap();
        close(open_with(&path, &later).await.unwrap()).await;
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o600);
        let names = fs::read_dir(&killed).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|n| n.contains(".bak")).count(), 1, "one copy, and nothing beside it");
        // The program of today refuses what is newer, and opens the copy.
        let Err(Failure::Said(e)) = open(&path).await else { panic!("it opened") };
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.hint().unwrap().contains(copy.to_str().unwrap()), "{e:?}");
        let back = dir.path().join("back.db");
        fs::copy(&copy, &back).unwrap();
        assert_eq!(is(&back).await, "in the log");
    }

    #[tokio::test]
    async fn a_database_that_has_its_schema_is_not_copied_and_a_later_copy_replaces_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ggnet.db");
        let (today, later) = next();
        let copy = backup::path_of(&path, today);
        close(open_with(&path, &later).await.unwrap()).await;
        close(open_with(&path, &later).await.unwrap()).await;
        assert!(!copy.exists(), "a new database is nothing to copy");

        for value in ["first", "second"] {
            // Gone back to the earlier version of the program, and forward again.
            for name in ["ggnet.db", "ggnet.db-wal", "ggnet.db-shm"] {
                let _ = fs::remove_file(dir.path().join(name));
            }
            let mut opened = open(&path).await.unwrap();
            set(&mut opened, value).await;
            close(opened).await;
            close(open_with(&path, &later).await.unwrap()).await;
            let back = dir.path().join(value);
            fs::copy(&copy, &back).unwrap();
            assert_eq!(is(&back).await, value);
        }
    }

    #[tokio::test]
    async fn a_database_that_cannot_be_copied_stays_as_it_is_and_the_start_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ggnet.db");
        let (today, later) = next();
        let copy = backup::path_of(&path, today);
        close(open(&path).await.unwrap()).await;
        fs::create_dir_all(copy.join("in the way")).unwrap();
        let Err(Failure::Said(e)) = open_with(&path, &later).await else { panic!("it opened") };
        assert!(e.message().contains(copy.to_str().unwrap()), "{e:?}");
        assert!(e.hint().unwrap().contains("move away"), "{e:?}");
        let rest = format!("ggnet.db.{today}.bak.part");
        assert!(!dir.path().join(rest).exists(), "half a copy is left");
        // The earlier program still opens it, and the later one once the copy can be made.
        close(open(&path).await.unwrap()).await;
        fs::remove_dir_all(&copy).unwrap();
        close(open_with(&path, &later).await.unwrap()).await;
        assert!(copy.is_file());
    }
}

//! Opening: files of mode 0600, connections, the check of the database, migrations.
//!
//! Invariants: the database file exists with mode 0600 and its name is durable before SQLite writes to it; nothing is migrated
//! before the file was found sound and not newer than this program.

use std::{
    fs::{self, File, OpenOptions},
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

use super::errors::{Failure, corrupt_hint};

/// The schema, embedded. A released file never changes; a change is a new file.
static MIGRATOR: Migrator = sqlx::migrate!("src/store/sqlite/migrations");

/// How long a statement waits for another process's lock before it is `Busy`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Readers beside the writer; a read takes tens of microseconds.
const READERS: u32 = 4;

/// A database that was found sound: its writer and its readers.
pub(super) struct Opened {
    pub(super) options: SqliteConnectOptions,
    pub(super) writer: SqliteConnection,
    pub(super) readers: SqlitePool,
}

pub(super) async fn open(path: &Path) -> Result<Opened, Failure> {
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
        // A log that grew under a long read is cut back at the next checkpoint.
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging();
    let mut writer = SqliteConnection::connect_with(&options).await?;
    check(path, &mut writer).await?;
    migrate(path, &options, &mut writer).await?;

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(BUSY_TIMEOUT)
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
) -> Result<(), Failure> {
    let known = MIGRATOR.iter().map(|m| m.version).max().unwrap_or_default();
    let migrated: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
    )
    .fetch_one(&mut *conn)
    .await?;
    if migrated > 0 {
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut *conn).await?;
        if let Some(newest) = newest.filter(|n| *n > known) {
            return Err(Error::new(
                code::database_too_new(path.display(), newest, known),
                format!(
                    "The database {} was written by a newer GGnet: its schema is {newest}, this program knows up to \
                     {known}",
                    path.display()
                ),
            )
            .with_hint("Run that newer GGnet, or restore the backup made before the upgrade")
            .into());
        }
    }
    // A pool of one, because sqlx's migrator does not give a `Send` future over a borrowed connection.
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
    let migrated = MIGRATOR.run(&pool).await;
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

/// Takes the access of group and others from a file, if they have any; a file that is not there is fine.
pub(super) fn tighten(path: &Path) -> Result<()> {
    let doing = || format!("Setting the mode of {}", path.display());
    let mode = match fs::metadata(path) {
        Ok(meta) => meta.permissions().mode(),
        Err(e) if e.kind() == Io::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(doing(), e)),
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o7777), "others could read this file; its mode is now 0600");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| Error::io(doing(), e))
}

/// Makes the name of a new file durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io(format!("Making the folder {} durable", folder.display()), e))
}

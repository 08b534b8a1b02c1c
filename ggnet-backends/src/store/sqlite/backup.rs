//! The copy of the database that is kept before its schema changes: `<database>.<schema>.bak`, beside it.
//!
//! ```text
//!   database ── VACUUM INTO ──▶ <database>.<schema>.bak.part ── sync, rename, sync of the folder ──▶ <database>.<schema>.bak
//! ```
//! Invariants: a name without `.part` is a whole copy that is on the disk, with mode 0600; no migration begins before its copy is there.
//! One copy for each schema: a newer one replaces it, because it is of the database that is about to change.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind as Io},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ggnet_core::{Error, ErrorKind, Result};
use sqlx::SqliteConnection;

use super::{
    errors::{BACKEND, Failure},
    files::sync_folder,
};

/// What must stay free beside the copy: the migration writes, too.
const MARGIN: u64 = 16 << 20;

/// Where the copy of a database of this schema is kept.
pub(super) fn path_of(database: &Path, schema: i64) -> PathBuf {
    with_suffix(database, &format!(".{schema}.bak"))
}

/// Copies the database that `conn` has open. SQLite makes the copy, so that it has what is still in the write-ahead log.
///
/// # Errors
/// `Full`: there is no room for it; else as the file system or SQLite says. Nothing is left of a copy that failed.
pub(super) async fn keep(database: &Path, schema: i64, conn: &mut SqliteConnection) -> Result<PathBuf> {
    let copy = path_of(database, schema);
    let part = with_suffix(&copy, ".part");
    let done = write(database, &copy, &part, conn).await;
    if let Err(failure) = done {
        // Where this fails, the next attempt removes it.
        let _ = tokio::fs::remove_file(&part).await;
        let cause = failure.into_error(database, "open");
        let message = format!(
            "Could not copy the database {} to {} before the upgrade of its schema",
            database.display(),
            copy.display()
        );
        let cure = match cause.kind() {
            ErrorKind::Full => "Free space on its file system",
            _ => {
                "Give the server's user write access to the folder, or move away what has the name of the copy"
            }
        };
        let hint = format!(
            "{cure}, then start again. The database is unchanged, and the earlier version of GGnet still opens it"
        );
        return Err(Error::new(cause.kind(), message)
            .with_backend(BACKEND)
            .with_hint(hint)
            .with_source(cause));
    }
    Ok(copy)
}

async fn write(
    database: &Path,
    copy: &Path,
    part: &Path,
    conn: &mut SqliteConnection,
) -> Result<(), Failure> {
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *conn).await?;
    let page: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut *conn).await?;
    let size = u64::try_from(pages.saturating_mul(page)).unwrap_or_default();
    let (beside, new) = (database.to_owned(), part.to_owned());
    blocking(move || {
        has_room(size, available(&beside)?)?;
        make_empty(&new).map_err(|e| Error::io(format!("Making {}", new.display()), e))
    })
    .await?;
    // It is: SQLite has opened the database by its name.
    let name = part.to_str().ok_or_else(|| Error::internal("The database's path is not UTF-8"))?;
    sqlx::query("VACUUM INTO $1").bind(name).execute(conn).await?;
    let (part, copy) = (part.to_owned(), copy.to_owned());
    blocking(move || {
        File::open(&part)
            .and_then(|f| f.sync_all())
            .and_then(|()| fs::rename(&part, &copy))
            .map_err(|e| Error::io(format!("Writing {}", copy.display()), e))?;
        sync_folder(&copy)
    })
    .await?;
    Ok(())
}

/// An empty file of mode 0600, in place of what an earlier attempt left. SQLite copies into an empty file, and leaves its mode.
fn make_empty(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != Io::NotFound => return Err(e),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

/// Bytes that we may still write on the database's file system.
fn available(database: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(database).map_err(|e| {
        Error::io(format!("Asking for the free space around {}", database.display()), e.into())
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn has_room(size: u64, available: u64) -> Result<()> {
    let wanted = size.saturating_add(MARGIN);
    if available >= wanted {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Error::new(
        ErrorKind::Full,
        format!("{} MiB must be free for a copy of the database, {} are", mib(wanted), available >> 20),
    ))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("Copying the database was cut short").with_source(e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_needs_the_databases_size_and_room_for_the_change() {
        assert!(has_room(10 << 20, 26 << 20).is_ok());
        let e = has_room(10 << 20, (26 << 20) - 1).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Full);
        assert!(e.message().contains("26 MiB") && e.message().contains("25 are"), "{e}");
        assert!(has_room(u64::MAX, u64::MAX - 1).is_err());
    }
}

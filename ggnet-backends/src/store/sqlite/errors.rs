//! SQLite's failures as the port's: the kind a caller can act on, and what an operator should do.
//!
//! A statement that can break a constraint maps its own failure where the field and the value are known; what is left comes
//! through [`Failure::into_error`]. SQLite's extended result codes are the only thing matched on, never its message, except to
//! tell which unique index refused.

use std::path::Path;

use ggnet_core::{
    Error, ErrorKind,
    error::{Code, code},
};

/// The backend's name, as in the configuration and in every error.
pub(super) const BACKEND: &str = "sqlite";

/// A failed step: SQLite's word, or ours.
#[derive(Debug)]
pub(super) enum Failure {
    Sql(sqlx::Error),
    Said(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(e: sqlx::Error) -> Self {
        Self::Sql(e)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Said(e)
    }
}

/// Which constraint refused a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    Unique,
    ForeignKey,
    Other,
}

fn extended_code(e: &sqlx::Error) -> Option<i32> {
    e.as_database_error()?.code()?.parse().ok()
}

/// The constraint behind a failure, when there is one.
pub(super) fn violation(e: &sqlx::Error) -> Option<Violation> {
    match extended_code(e)? {
        // SQLITE_CONSTRAINT_UNIQUE, _PRIMARYKEY, _ROWID
        2067 | 1555 | 2579 => Some(Violation::Unique),
        787 => Some(Violation::ForeignKey),
        code if code & 0xff == 19 => Some(Violation::Other),
        _ => None,
    }
}

/// Whether a unique index over this column ("machines.name") refused.
pub(super) fn unique_on(e: &sqlx::Error, column: &str) -> bool {
    violation(e) == Some(Violation::Unique)
        && e.as_database_error().is_some_and(|d| d.message().split([' ', ',']).any(|word| word == column))
}

/// A batch that contradicts what exists.
pub(super) fn conflict(code: impl Into<Code>, message: impl Into<String>, hint: &str) -> Error {
    Error::new(code, message).with_hint(hint)
}

impl Failure {
    /// Whether it may have failed because the disk is full. SQLite says so of ENOSPC at a write; of a quota, and of what a file system
    /// finds out later, it only says which call failed.
    pub(super) fn may_lack_room(&self) -> bool {
        match self {
            Self::Said(e) => e.kind() == ErrorKind::Full,
            // SQLITE_FULL; SQLITE_IOERR_SHMSIZE, _WRITE, _FSYNC, _TRUNCATE, _SHMOPEN; SQLITE_CANTOPEN
            Self::Sql(e) => {
                matches!(extended_code(e), Some(13 | 4874 | 778 | 1034 | 1546 | 4618 | 14))
            }
        }
    }

    /// The failure as the port's error; `path` is the database's.
    pub(super) fn into_error(self, path: &Path, operation: &'static str) -> Error {
        match self {
            Self::Said(e) => e,
            Self::Sql(e) => sql_error(path, e),
        }
        .with_backend(BACKEND)
        .with_operation(operation)
    }
}

/// What to do about a damaged database.
pub(super) fn corrupt_hint(path: &Path) -> String {
    format!(
        "Stop GGnet, keep a copy of {0} with its -wal and -shm files, then restore a backup; without one, \
         `sqlite3 {0} .recover | sqlite3 recovered.db` may save what is readable",
        path.display()
    )
}

fn sql_error(path: &Path, e: sqlx::Error) -> Error {
    let db = path.display();
    let error = match &e {
        sqlx::Error::Database(_) => {
            let code = extended_code(&e).unwrap_or(1);
            return from_code(path, code).with_source(e);
        }
        sqlx::Error::PoolTimedOut => {
            Error::new(ErrorKind::Busy, format!("Every reader of the database {db} is busy"))
        }
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            Error::new(ErrorKind::Unavailable, format!("The database {db} is closed")).retryable(false)
        }
        sqlx::Error::Io(io) => {
            let kind = Error::io("", std::io::Error::from(io.kind())).kind();
            Error::new(kind, format!("Could not read or write the database {db}"))
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            Error::new(
                code::database_damaged(&db),
                format!("The database {db} holds a value of an unexpected type"),
            )
            .with_hint(corrupt_hint(path))
        }
        _ => Error::internal(format!("A statement on the database {db} failed")),
    };
    error.with_source(e)
}

fn from_code(path: &Path, sqlite: i32) -> Error {
    let db = path.display();
    match (sqlite & 0xff, sqlite) {
        (19, _) => conflict(
            ErrorKind::Conflict,
            "The change contradicts what is stored",
            "Read the records again and repeat the change",
        ),
        (5 | 6, _) => Error::new(code::database_locked(&db), format!("The database {db} is locked by another process"))
            .with_hint("End the other program that has the database open (a shell, a backup tool, a second GGnet)"),
        // SQLITE_FULL, and SQLITE_IOERR_SHMSIZE: the -shm file could not grow.
        (13, _) | (_, 4874) => Error::new(code::database_full(&db), format!("No space is left for the database {db}"))
            .with_hint("Free space on its file system; nothing was changed, and the next change will work again"),
        (11 | 26, _) => Error::new(code::database_damaged(&db), format!("{db} is not a sound SQLite database"))
            .with_hint(corrupt_hint(path)),
        (8 | 3 | 23, _) => Error::new(code::database_not_writable(&db), format!("The database {db} cannot be written"))
            .with_hint("Give the server's user write access to the file and its folder, on a file system mounted read-write"),
        (14, _) => Error::new(code::database_not_writable(&db), format!("The database {db} cannot be opened"))
            .with_hint("The folder must exist and the server's user must be able to write in it"),
        (10, _) => Error::new(code::database_disk_error(&db), format!("The disk under the database {db} reported an I/O error"))
            .retryable(false)
            .with_hint("See the kernel's log; check the disk before the next start"),
        (7, _) => Error::new(ErrorKind::Unavailable, "Out of memory in the database"),
        _ => Error::internal(format!("A statement on the database {db} failed with SQLite's code {sqlite}")),
    }
}

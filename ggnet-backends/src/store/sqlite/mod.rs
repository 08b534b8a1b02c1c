//! [`SqliteStore`]: the `Store` backend "sqlite".
//!
//! One writer connection beside a pool of readers, in WAL mode, so that a list never waits for a commit. The writer syncs fully at
//! every commit (`synchronous = FULL`): in WAL mode anything less can lose the last commits in a power cut.
//!
//! **Schema** (`migrations/`): what is queried or constrained is a column, and the record itself is one JSON document beside
//! them, the noun's own serde form. Uniqueness, references and "one live session per machine" are thus constraints of the
//! database, and a new field of a noun (with a serde default) needs no migration. Session counters are kept by triggers. CHAP
//! credentials are in no document: they stand sealed in columns of their own (see `seal.rs`). Most statements would run on PostgreSQL
//! too ($1, RETURNING, ON CONFLICT); SQLite's are the migrations, the error codes, what reads JSON and what asks for the newest event.
//!
//! ```text
//!   commit ──▶ spawned task ──▶ writer's lock ──▶ BEGIN IMMEDIATE ─▶ changes ─▶ COMMIT ─▶ connection put back
//!                                                      └─ a failure: ROLLBACK ─────────▶ connection put back
//!                                                      └─ that fails too, or a panic: connection closed, opened anew next time
//! ```
//! Invariants:
//! * A batch is applied whole or not at all, also when the caller's future is dropped: the transaction runs in a task of its own,
//!   which `shutdown` waits for.
//! * A connection whose transaction did not end cleanly is never used again.
//! * "Newest" session means last recorded; it does not depend on the clock.
//! * The database, its reserve and the key file have mode 0600, whatever the umask.
//! * A change that frees space is recorded also on a full disk, as long as the reserve lasts; any other only while that is whole.

mod backup;
mod config;
mod delete;
mod descriptor;
mod errors;
mod files;
mod key;
mod open;
mod read;
mod reserve;
mod rows;
mod seal;
mod write;

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use ggnet_core::{
    Error, ErrorKind, Result,
    error::code,
    nouns::{
        AuditRow, Cursor, Event, Image, ImageId, ImageVersion, ImageVersionId, Job, JobId, MacAddr, Machine,
        MachineId, ManualTarget, Name, SeenMachine, Session, SessionId, TargetId, Timestamp,
    },
    ports::{
        Batch, Health, JobFilter, MachineFilter, Names, Page, PageRequest, SessionCounts, SessionFilter,
        Store,
    },
};
use sqlx::{Connection as _, SqliteConnection, SqlitePool, sqlite::SqliteConnectOptions};
use tokio_util::task::TaskTracker;

use errors::{BACKEND, Failure};
use reserve::Reserve;
use seal::Sealer;

use files::tighten;
use open::Opened;

pub use config::SqliteConfig;
pub use descriptor::descriptor;
pub use key::KeyReset;

/// The writer's connection; none after it failed (the next use opens it anew) and after `shutdown`.
struct Writer {
    connection: Option<SqliteConnection>,
    closed: bool,
}

struct Shared {
    path: PathBuf,
    /// Device and inode of the file that is open; none where that could not be asked.
    file: Option<(u64, u64)>,
    options: SqliteConnectOptions,
    sealer: Sealer,
    // Fair, first come first served: it is the queue of the writers.
    writer: tokio::sync::Mutex<Writer>,
    readers: SqlitePool,
    /// Transactions under way; `shutdown` waits for them.
    tasks: TaskTracker,
    /// Why the last transaction failed, when that was the database's fault.
    trouble: Mutex<Option<Trouble>>,
    /// Disk space for changes that free some; none where no file can be made beside the database.
    reserve: Option<Arc<Reserve>>,
}

/// The `Store` in one SQLite file. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

struct Trouble {
    kind: ErrorKind,
    why: String,
}

/// What a transaction does.
#[derive(Clone)]
enum Work {
    Batch(Batch),
    Prune(&'static str, i64),
}

/// What a transaction gives.
enum Done {
    Events(Vec<Event>),
    Pruned(u64),
}

impl Shared {
    fn fail(&self, operation: &'static str) -> impl Fn(Failure) -> Error + '_ {
        move |f| f.into_error(&self.path, operation)
    }

    async fn transaction(&self, work: Work) -> Result<Done, Failure> {
        // Held over the whole transaction on purpose: there is one writer.
        let mut writer = self.writer.lock().await;
        if writer.closed {
            return Err(closed().into());
        }
        if !matches!(&work, Work::Batch(batch) if batch.from_reserve) {
            if !self.reserve(Reserve::is_whole, Reserve::take).await {
                return Err(self.only_the_reserve().into());
            }
            return self.attempt(&mut writer, work).await;
        }
        loop {
            match self.attempt(&mut writer, work.clone()).await {
                Err(failure) if failure.may_lack_room() && self.gives().await => {}
                done => {
                    // Before anybody else takes what became free.
                    self.reserve(Reserve::is_whole, Reserve::take).await;
                    return done;
                }
            }
        }
    }

    /// What the reserve says: by a look, or by a call that blocks. True where there is none, and where it fails for another reason than
    /// lack of room: the change itself then says why.
    async fn reserve(&self, known: fn(&Reserve) -> bool, find_out: fn(&Reserve) -> io::Result<bool>) -> bool {
        let Some(reserve) = self.reserve.clone() else { return true };
        if known(&reserve) {
            return true;
        }
        match tokio::task::spawn_blocking(move || find_out(&reserve)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the database's reserve");
                true
            }
            Err(_died) => true,
        }
    }

    /// Whether the file system of the database is mounted read-only; it becomes so by itself when its disk fails.
    async fn is_read_only(&self) -> bool {
        let Some(reserve) = self.reserve.clone() else { return false };
        // What cannot be asked is told by the next change.
        tokio::task::spawn_blocking(move || reserve.is_read_only()).await.unwrap_or(false)
    }

    /// A slice of the reserve becomes free; false: there is none left.
    async fn gives(&self) -> bool {
        let Some(reserve) = self.reserve.clone() else { return false };
        let given = tokio::task::spawn_blocking(move || reserve.give()).await;
        matches!(given, Ok(Ok(true)))
    }

    fn only_the_reserve(&self) -> Error {
        Error::new(
            code::database_full(self.path.display()),
            format!("No space is left for the database {} but its reserve", self.path.display()),
        )
        .with_hint("Free space on its file system: stopping sessions and deleting images still works")
    }

    async fn attempt(&self, writer: &mut Writer, work: Work) -> Result<Done, Failure> {
        // Taken out, so that a panic or an aborted task drops the connection, and with it the transaction.
        let mut conn = match writer.connection.take() {
            Some(conn) => conn,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        let outcome = self.run(&mut conn, work).await;
        match outcome {
            Ok(done) => {
                writer.connection = Some(conn);
                Ok(done)
            }
            Err((failure, clean)) => {
                if clean {
                    writer.connection = Some(conn);
                } else {
                    // Its transaction may still be open; closing rolls it back.
                    if let Err(e) = conn.close_hard().await {
                        tracing::warn!(error = %e, "closing the database's writer after a failure");
                    }
                }
                Err(failure)
            }
        }
    }

    /// The transaction itself; with a failure comes whether the connection may be used again.
    async fn run(&self, conn: &mut SqliteConnection, work: Work) -> Result<Done, (Failure, bool)> {
        if let Err(e) = sqlx::query("BEGIN IMMEDIATE").execute(&mut *conn).await {
            // SQLite's own refusal (busy, full) began nothing.
            let clean = e.as_database_error().is_some();
            return Err((e.into(), clean));
        }
        let applied = match work {
            Work::Batch(batch) => write::apply(conn, &self.sealer, batch).await.map(Done::Events),
            Work::Prune(sql, before) => delete::prune_step(conn, sql, before).await.map(Done::Pruned),
        };
        match applied {
            Ok(done) => match sqlx::query("COMMIT").execute(&mut *conn).await {
                Ok(_) => Ok(done),
                Err(e) => Err((e.into(), false)),
            },
            Err(failure) => {
                let rolled_back = sqlx::query("ROLLBACK").execute(&mut *conn).await.is_ok();
                Err((failure, rolled_back))
            }
        }
    }

    fn note(&self, outcome: &Result<Done>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(_) => {
                if trouble.take().is_some() {
                    tracing::info!("changes of the database succeed again");
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Invalid) => {}
            Err(e) => {
                // Said once, not for each machine that asks again.
                if trouble.as_ref().is_none_or(|t| t.kind != e.kind()) {
                    tracing::error!(error = %e.report(), "a change of the database failed");
                }
                *trouble = Some(Trouble { kind: e.kind(), why: e.explain() });
            }
        }
    }

    /// Whether the last change found the database locked by another process.
    fn is_locked(&self) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().is_some_and(|t| t.kind == ErrorKind::Busy)
    }

    /// Whether a change can begin now. Not while one is made: that one will tell.
    async fn may_begin(&self) -> bool {
        let Ok(mut writer) = self.writer.try_lock() else { return false };
        let Some(mut conn) = writer.connection.take() else { return false };
        let begun = sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.is_ok();
        if !begun || sqlx::query("ROLLBACK").execute(&mut conn).await.is_ok() {
            writer.connection = Some(conn);
        }
        begun
    }
}

/// Device and inode of what stands at a path.
async fn identity(path: PathBuf) -> io::Result<(u64, u64)> {
    let looked = tokio::task::spawn_blocking(move || std::fs::metadata(path));
    let meta = looked.await.unwrap_or_else(|died| Err(io::Error::other(died)))?;
    Ok((meta.dev(), meta.ino()))
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "The store is shut down").retryable(false)
}

impl SqliteStore {
    /// Opens the database and the key file, makes them when they are not there, checks the database and brings its schema up to
    /// date, after a copy of it was made beside it as `<path>.<schema>.bak`. Files are made in a blocking thread. Sessions that the key file does not open while it opens others stay as they are:
    /// call [`end_unreadable_sessions`](Self::end_unreadable_sessions) before reading them.
    ///
    /// # Errors
    /// `Corrupt`: the file is not a sound SQLite database; `Unsupported`: a newer GGnet wrote it; `Invalid`: the key file is not a
    /// key, or live sessions have credentials and it is missing or opens none of them (no key is made then);
    /// `Permission`, `NotFound`, `Full`, `Busy`: as the file system or SQLite says, also of that copy.
    ///
    /// # Cancellation
    /// Dropped half-way, it leaves an empty or a migrated database, or a part of the copy; opening again goes on.
    pub async fn open(config: SqliteConfig) -> Result<Self> {
        let SqliteConfig { path, key_file } = config;
        let fail = |f: Failure| f.into_error(&path, "open");
        let opened = open::open(&path).await.map_err(fail)?;
        let sealer = key::fitting(&opened.readers, key_file).await.map_err(fail)?;
        Ok(Self::over(path, sealer, opened).await)
    }

    /// The store over an open database.
    async fn over(path: PathBuf, sealer: Sealer, opened: Opened) -> Self {
        let Opened { options, writer, readers } = opened;
        let beside = path.clone();
        let reserve =
            tokio::task::spawn_blocking(move || Reserve::open(&beside, open::writes_elsewhere(&beside)))
                .await;
        let reserve = match reserve.unwrap_or_else(|died| Err(io::Error::other(died))) {
            Ok(reserve) => Some(Arc::new(reserve)),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no space can be kept for the database: a full disk can then not be freed");
                None
            }
        };
        let file = identity(path.clone()).await.ok();
        let shared = Shared {
            path,
            file,
            options,
            sealer,
            writer: tokio::sync::Mutex::new(Writer { connection: Some(writer), closed: false }),
            readers,
            tasks: TaskTracker::new(),
            trouble: Mutex::new(None),
            reserve,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The database's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Runs a transaction in a task of its own, so that a dropped caller never leaves the writer half-way.
    async fn transact(&self, operation: &'static str, work: Work) -> Result<Done> {
        if self.shared.tasks.is_closed() {
            return Err(closed().with_backend(BACKEND).with_operation(operation));
        }
        let shared = Arc::clone(&self.shared);
        #[expect(clippy::disallowed_methods, reason = "one transaction, tracked")]
        let task = self.shared.tasks.spawn(async move {
            let outcome = shared.transaction(work).await.map_err(shared.fail(operation));
            shared.note(&outcome);
            outcome
        });
        task.await.unwrap_or_else(|e| {
            Err(Error::internal("The transaction's task ended before its time")
                .with_backend(BACKEND)
                .with_operation(operation)
                .with_source(e))
        })
    }
}

/// A read method: its operation's name, and the call.
macro_rules! read {
    ($self:ident, $operation:literal, $call:expr) => {
        $call.await.map_err($self.shared.fail($operation))
    };
}

#[async_trait]
impl Store for SqliteStore {
    fn name(&self) -> &'static str {
        BACKEND
    }

    async fn commit(&self, batch: Batch) -> Result<Vec<Event>> {
        match self.transact("commit", Work::Batch(batch)).await? {
            Done::Events(events) => Ok(events),
            Done::Pruned(_) => Err(Error::internal("A batch gave no events")),
        }
    }

    async fn machine(&self, id: MachineId) -> Result<Option<Machine>> {
        let pool = &self.shared.readers;
        read!(self, "machine", read::by_text(pool, "machine", read::MACHINE, &id.to_string()))
    }

    async fn machine_by_mac(&self, mac: MacAddr) -> Result<Option<Machine>> {
        let pool = &self.shared.readers;
        read!(self, "machine_by_mac", read::by_text(pool, "machine", read::MACHINE_BY_MAC, &mac.to_string()))
    }

    async fn machine_by_name(&self, name: &Name) -> Result<Option<Machine>> {
        let pool = &self.shared.readers;
        read!(self, "machine_by_name", read::by_text(pool, "machine", read::MACHINE_BY_NAME, name.as_str()))
    }

    async fn machines(&self, filter: &MachineFilter, page: PageRequest) -> Result<Page<Machine>> {
        read!(self, "machines", read::machines(&self.shared.readers, filter, page))
    }

    async fn image(&self, id: ImageId) -> Result<Option<Image>> {
        let pool = &self.shared.readers;
        read!(self, "image", read::by_text(pool, "image", read::IMAGE, &id.to_string()))
    }

    async fn image_by_name(&self, name: &Name) -> Result<Option<Image>> {
        let pool = &self.shared.readers;
        read!(self, "image_by_name", read::by_text(pool, "image", read::IMAGE_BY_NAME, name.as_str()))
    }

    async fn images(&self, page: PageRequest) -> Result<Page<Image>> {
        read!(self, "images", read::images(&self.shared.readers, page))
    }

    async fn version(&self, id: ImageVersionId) -> Result<Option<ImageVersion>> {
        let pool = &self.shared.readers;
        read!(self, "version", read::by_text(pool, "version", read::VERSION, &id.to_string()))
    }

    async fn versions(&self, image: ImageId) -> Result<Vec<ImageVersion>> {
        read!(self, "versions", read::versions(&self.shared.readers, &image.to_string()))
    }

    async fn versions_of(&self, images: &[ImageId]) -> Result<Vec<ImageVersion>> {
        read!(self, "versions_of", read::versions_of(&self.shared.readers, images))
    }

    async fn importing_versions(&self) -> Result<Vec<ImageVersion>> {
        read!(self, "importing_versions", read::importing(&self.shared.readers))
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        let (pool, sealer) = (&self.shared.readers, &self.shared.sealer);
        read!(self, "session", read::session(pool, sealer, read::SESSION, &id.to_string()))
    }

    async fn live_session(&self, machine: MachineId) -> Result<Option<Session>> {
        let (pool, sealer) = (&self.shared.readers, &self.shared.sealer);
        read!(self, "live_session", read::session(pool, sealer, read::LIVE_SESSION, &machine.to_string()))
    }

    async fn last_session(&self, machine: MachineId) -> Result<Option<Session>> {
        let (pool, sealer) = (&self.shared.readers, &self.shared.sealer);
        read!(self, "last_session", read::session(pool, sealer, read::LAST_SESSION, &machine.to_string()))
    }

    async fn live_sessions(&self) -> Result<Vec<Session>> {
        read!(self, "live_sessions", read::live_sessions(&self.shared.readers, &self.shared.sealer))
    }

    async fn sessions(&self, filter: &SessionFilter, page: PageRequest) -> Result<Page<Session>> {
        read!(self, "sessions", read::session_page(&self.shared.readers, filter, page))
    }

    async fn session_counts(&self) -> Result<SessionCounts> {
        read!(self, "session_counts", read::counts(&self.shared.readers))
    }

    async fn names(&self, machines: &[MachineId], images: &[ImageId]) -> Result<Names> {
        read!(self, "names", read::names(&self.shared.readers, machines, images))
    }

    async fn job(&self, id: JobId) -> Result<Option<Job>> {
        let pool = &self.shared.readers;
        read!(self, "job", read::by_text(pool, "job", read::JOB, &id.to_string()))
    }

    async fn live_jobs(&self) -> Result<Vec<Job>> {
        read!(self, "live_jobs", read::live_jobs(&self.shared.readers))
    }

    async fn jobs(&self, filter: &JobFilter, page: PageRequest) -> Result<Page<Job>> {
        read!(self, "jobs", read::jobs(&self.shared.readers, filter, page))
    }

    async fn target(&self, id: TargetId) -> Result<Option<ManualTarget>> {
        let pool = &self.shared.readers;
        read!(self, "target", read::by_text(pool, "target", read::TARGET, &id.to_string()))
    }

    async fn targets(&self) -> Result<Vec<ManualTarget>> {
        read!(self, "targets", read::targets(&self.shared.readers))
    }

    async fn seen_machine(&self, mac: MacAddr) -> Result<Option<SeenMachine>> {
        let pool = &self.shared.readers;
        read!(self, "seen_machine", read::by_text(pool, "seen machine", read::SEEN, &mac.to_string()))
    }

    async fn seen(&self, page: PageRequest) -> Result<Page<SeenMachine>> {
        read!(self, "seen", read::seen(&self.shared.readers, page))
    }

    async fn events(
        &self,
        after: Option<Cursor>,
        limit: u32,
        machine: Option<MachineId>,
    ) -> Result<Vec<Event>> {
        read!(self, "events", read::events(&self.shared.readers, after.as_ref(), limit, machine))
    }

    async fn newest_events(&self, limit: u32, machine: Option<MachineId>) -> Result<Vec<Event>> {
        read!(self, "newest_events", read::newest_events(&self.shared.readers, limit, machine))
    }

    async fn audit(&self, page: PageRequest) -> Result<Page<AuditRow>> {
        read!(self, "audit", read::audit(&self.shared.readers, page))
    }

    async fn setting(&self, key: &str) -> Result<Option<String>> {
        read!(self, "setting", read::setting(&self.shared.readers, key))
    }

    /// Deletes in steps of a few thousand rows, each a transaction: commits go in between, and a pruning that is dropped
    /// half-way has pruned less.
    async fn prune(&self, before: Timestamp) -> Result<u64> {
        let mut total = 0;
        for sql in delete::PRUNE {
            loop {
                let Done::Pruned(gone) =
                    self.transact("prune", Work::Prune(sql, rows::micros(before))).await?
                else {
                    return Err(Error::internal("A pruning gave events"));
                };
                total += gone;
                if gone < delete::PRUNE_STEP.unsigned_abs() {
                    break;
                }
            }
        }
        Ok(total)
    }

    async fn health(&self) -> Health {
        if let Err(e) = read!(self, "health", read::counts(&self.shared.readers)) {
            return Health::Down(e.report());
        }
        if self.shared.file.is_some() && identity(self.shared.path.clone()).await.ok() != self.shared.file {
            let db = self.shared.path.display();
            return Health::Down(format!(
                "The file of the database {db} was removed or replaced while it is open, so what changes now is lost: put it back, or stop \
                 the server, restore the right one and start again"
            ));
        }
        if self.shared.is_read_only().await {
            let db = self.shared.path.display();
            return Health::Blocked(format!(
                "The file system of the database {db} is read-only, so no machine can start: the kernel's log (`dmesg`) says why"
            ));
        }
        // While a change is made the reserve is its own; the last look then stands.
        let room = match self.shared.writer.try_lock() {
            Ok(_writer) => self.shared.reserve(|_| false, Reserve::room).await,
            Err(_) => self.shared.reserve.as_ref().is_none_or(|reserve| reserve.is_whole()),
        };
        if !room {
            let db = self.shared.path.display();
            return Health::Blocked(format!(
                "No space, or no inode, is left for the database {db}, so no machine can start: free some (stop sessions, delete images)"
            ));
        }
        // Nobody may have tried a change since.
        let free_again = self.shared.is_locked() && self.shared.may_begin().await;
        let mut trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = trouble.take().filter(|t| t.kind != ErrorKind::Busy || !free_again);
        // There is room again, though nothing was written since.
        *trouble = trouble.take().filter(|t| t.kind != ErrorKind::Full || self.shared.reserve.is_none());
        match &*trouble {
            None => Health::Up,
            Some(t) if t.kind == ErrorKind::Full => Health::Blocked(t.why.clone()),
            Some(t) if t.kind == ErrorKind::Busy => {
                Health::Blocked(format!("{}, so no machine can start: end that program", t.why))
            }
            Some(t) => Health::Degraded(format!("The last change failed: {}", t.why)),
        }
    }

    async fn shutdown(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let mut writer = self.shared.writer.lock().await;
        writer.closed = true;
        self.shared.readers.close().await;
        if let Some(mut conn) = writer.connection.take() {
            // Only tidies up: what was committed is already on disk.
            if let Err(e) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await {
                tracing::warn!(error = %e, "the write-ahead log was not folded into the database; the next start reads it");
            }
            if let Err(e) = conn.close().await {
                tracing::warn!(error = %e, "closing the database");
            }
        }
    }
}

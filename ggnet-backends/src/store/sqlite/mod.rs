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
//! Every change goes through `writer.rs`: batches that wait together are made durable by one sync.
//!
//! Invariants:
//! * "Newest" session means last recorded; it does not depend on the clock.
//! * The database, its reserve and the key file have mode 0600, whatever the umask.
//! * Reads never wait for the writer. Lists use at most `LISTS` of the readers, so that look-ups for a booting machine never wait for a list.

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
mod writer;

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{
        AuditRow, Cursor, Event, Image, ImageId, ImageVersion, ImageVersionId, Job, JobId, MacAddr, Machine,
        MachineId, ManualTarget, Name, SeenMachine, Session, SessionId, TargetId, Timestamp,
    },
    ports::{
        Batch, Health, JobFilter, MachineFilter, Names, Page, PageRequest, SessionCounts, SessionFilter,
        Store,
    },
};
use sqlx::{Connection as _, SqlitePool};
use tokio::sync::Semaphore;

use errors::{BACKEND, Failure};
use reserve::Reserve;
use seal::Sealer;
use writer::Writer;

use files::tighten;
use open::Opened;

pub use config::SqliteConfig;
pub use descriptor::descriptor;
pub use key::KeyReset;

/// How many of the four readers lists may use at once.
const LISTS: usize = 2;

struct Shared {
    path: PathBuf,
    /// Device and inode of the file that is open; none where that could not be asked.
    file: Option<(u64, u64)>,
    sealer: Arc<Sealer>,
    writer: Arc<Writer>,
    readers: SqlitePool,
    /// A permit for each reader that lists may use.
    lists: Semaphore,
}

/// The `Store` in one SQLite file. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

impl Shared {
    fn fail(&self, operation: &'static str) -> impl Fn(Failure) -> Error + '_ {
        move |f| f.into_error(&self.path, operation)
    }
}

/// Device and inode of what stands at a path.
async fn identity(path: PathBuf) -> io::Result<(u64, u64)> {
    let looked = tokio::task::spawn_blocking(move || std::fs::metadata(path));
    let meta = looked.await.unwrap_or_else(|died| Err(io::Error::other(died)))?;
    Ok((meta.dev(), meta.ino()))
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
        let sealer = Arc::new(sealer);
        let writer = Writer::new(path.clone(), options, Arc::clone(&sealer), writer, reserve);
        let lists = Semaphore::new(LISTS);
        Self { shared: Arc::new(Shared { path, file, sealer, writer, readers, lists }) }
    }

    /// The database's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

/// A read method: its operation's name, and the call.
macro_rules! read {
    ($self:ident, $operation:literal, $call:expr) => {
        $call.await.map_err($self.shared.fail($operation))
    };
}

/// The same for a method that may read many rows.
macro_rules! list {
    ($self:ident, $operation:literal, $call:expr) => {{
        // The semaphore is never closed.
        let _reader = $self.shared.lists.acquire().await;
        read!($self, $operation, $call)
    }};
}

#[async_trait]
impl Store for SqliteStore {
    fn name(&self) -> &'static str {
        BACKEND
    }

    async fn commit(&self, batch: Batch) -> Result<Vec<Event>> {
        self.shared.writer.commit(batch).await
    }

    fn synced_commits(&self) -> Option<u64> {
        Some(self.shared.writer.synced())
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
        list!(self, "machines", read::machines(&self.shared.readers, filter, page))
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
        list!(self, "images", read::images(&self.shared.readers, page))
    }

    async fn version(&self, id: ImageVersionId) -> Result<Option<ImageVersion>> {
        let pool = &self.shared.readers;
        read!(self, "version", read::by_text(pool, "version", read::VERSION, &id.to_string()))
    }

    async fn versions(&self, image: ImageId) -> Result<Vec<ImageVersion>> {
        read!(self, "versions", read::versions(&self.shared.readers, &image.to_string()))
    }

    async fn versions_of(&self, images: &[ImageId]) -> Result<Vec<ImageVersion>> {
        list!(self, "versions_of", read::versions_of(&self.shared.readers, images))
    }

    async fn importing_versions(&self) -> Result<Vec<ImageVersion>> {
        list!(self, "importing_versions", read::importing(&self.shared.readers))
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
        list!(self, "live_sessions", read::live_sessions(&self.shared.readers, &self.shared.sealer))
    }

    async fn sessions(&self, filter: &SessionFilter, page: PageRequest) -> Result<Page<Session>> {
        list!(self, "sessions", read::session_page(&self.shared.readers, filter, page))
    }

    async fn session_counts(&self) -> Result<SessionCounts> {
        read!(self, "session_counts", read::counts(&self.shared.readers))
    }

    async fn names(&self, machines: &[MachineId], images: &[ImageId]) -> Result<Names> {
        // By their keys, so no list: a page that waits for its turn behind lists would wait once more for the names.
        read!(self, "names", read::names(&self.shared.readers, machines, images))
    }

    async fn job(&self, id: JobId) -> Result<Option<Job>> {
        let pool = &self.shared.readers;
        read!(self, "job", read::by_text(pool, "job", read::JOB, &id.to_string()))
    }

    async fn live_jobs(&self) -> Result<Vec<Job>> {
        list!(self, "live_jobs", read::live_jobs(&self.shared.readers))
    }

    async fn jobs(&self, filter: &JobFilter, page: PageRequest) -> Result<Page<Job>> {
        list!(self, "jobs", read::jobs(&self.shared.readers, filter, page))
    }

    async fn target(&self, id: TargetId) -> Result<Option<ManualTarget>> {
        let pool = &self.shared.readers;
        read!(self, "target", read::by_text(pool, "target", read::TARGET, &id.to_string()))
    }

    async fn targets(&self) -> Result<Vec<ManualTarget>> {
        list!(self, "targets", read::targets(&self.shared.readers))
    }

    async fn seen_machine(&self, mac: MacAddr) -> Result<Option<SeenMachine>> {
        let pool = &self.shared.readers;
        read!(self, "seen_machine", read::by_text(pool, "seen machine", read::SEEN, &mac.to_string()))
    }

    async fn seen(&self, page: PageRequest) -> Result<Page<SeenMachine>> {
        list!(self, "seen", read::seen(&self.shared.readers, page))
    }

    async fn events(
        &self,
        after: Option<Cursor>,
        limit: u32,
        machine: Option<MachineId>,
    ) -> Result<Vec<Event>> {
        list!(self, "events", read::events(&self.shared.readers, after.as_ref(), limit, machine))
    }

    async fn newest_events(&self, limit: u32, machine: Option<MachineId>) -> Result<Vec<Event>> {
        list!(self, "newest_events", read::newest_events(&self.shared.readers, limit, machine))
    }

    async fn audit(&self, page: PageRequest) -> Result<Page<AuditRow>> {
        list!(self, "audit", read::audit(&self.shared.readers, page))
    }

    async fn setting(&self, key: &str) -> Result<Option<String>> {
        read!(self, "setting", read::setting(&self.shared.readers, key))
    }

    /// Deletes a few hundred rows per transaction: commits go in between, and a pruning that is dropped half-way has
    /// pruned less.
    async fn prune(&self, before: Timestamp) -> Result<u64> {
        let mut total = 0;
        for sql in delete::PRUNE {
            loop {
                let gone = self.shared.writer.prune(sql, rows::micros(before)).await?;
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
        if self.shared.writer.is_read_only().await {
            let db = self.shared.path.display();
            return Health::Blocked(format!(
                "The file system of the database {db} is read-only, so no machine can start: the kernel's log (`dmesg`) says why"
            ));
        }
        if !self.shared.writer.has_room().await {
            let db = self.shared.path.display();
            return Health::Blocked(format!(
                "No space, or no inode, is left for the database {db}, so no machine can start: free some (stop sessions, delete images)"
            ));
        }
        match self.shared.writer.trouble().await {
            None => Health::Up,
            Some(t) if t.kind == ErrorKind::Full => Health::Blocked(t.why),
            Some(t) if t.kind == ErrorKind::Busy => {
                Health::Blocked(format!("{}, so no machine can start: end that program", t.why))
            }
            Some(t) => Health::Degraded(format!("The last change failed: {}", t.why)),
        }
    }

    async fn shutdown(&self) {
        let connection = self.shared.writer.close().await;
        self.shared.readers.close().await;
        if let Some(mut conn) = connection {
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

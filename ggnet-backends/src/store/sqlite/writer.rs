//! [`Writer`]: the one connection that changes the database, its queue, and group commit: batches that queued while the last group was synced
//! share one transaction, so a thousand machines that boot at once cost a few syncs instead of one per record.
//!
//! ```text
//!   commit, prune ─▶ room ─▶ queue ─▶ turn, until the queue is empty:
//!
//!     pruning step   BEGIN IMMEDIATE ─▶ rows ───────▶ COMMIT ─▶ answer
//!     group          BEGIN IMMEDIATE ─▶ each batch ─▶ COMMIT ─▶ answer of each batch
//!                      └ fails ─▶ all get that error    └ fails, or SQLite rolls back ─▶ ROLLBACK, then each batch alone
//!
//!     batch in a group of several   SAVEPOINT ─▶ changes ─▶ RELEASE, together with the next SAVEPOINT or by the COMMIT
//!                                                  └ refused ─▶ ROLLBACK TO: the other batches go on
//! ```
//! Invariants:
//! * No timer: a batch that finds the queue empty is committed at once, alone and without a savepoint.
//! * No answer before COMMIT has returned, which syncs. This includes refusals, because a refusal may depend on what an earlier batch of the
//!   group changed. If the COMMIT fails, refused batches are tried again like the others.
//! * A batch is applied whole or not at all. If its caller goes away before the batch is queued, it is not applied; later, it is applied all
//!   the same.
//! * Batches are applied in queue order, and events are numbered in that order.
//! * Each entry spawns a task that takes a turn after the entry was queued, so no entry is left behind. If a task dies, its group's answers are
//!   dropped, which the callers notice, and so is its connection, which rolls back.
//! * A connection whose transaction did not end cleanly is never used again.
//! * Bounds: a group has at most [`GROUP_BATCHES`] batches and [`GROUP_ROWS`] rows (a larger batch is committed alone), the queue has at most
//!   [`QUEUE_ROWS`] rows (further callers wait), and a pruning takes [`PRUNE_STEP`](delete::PRUNE_STEP) rows per turn.
//! * On a full disk, a change that frees space may use the reserve. All other changes are refused until the reserve is whole again.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ggnet_core::{Error, ErrorKind, Result, error::code, nouns::Event, ports::Batch};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    delete,
    errors::{BACKEND, Failure},
    reserve::Reserve,
    seal::Sealer,
    write,
};

/// Most batches in a group. Applying that many takes much longer than a sync, so larger groups would gain little.
const GROUP_BATCHES: usize = 128;
/// Most rows in a group: changes, events and audit rows together.
const GROUP_ROWS: u32 = 2048;
/// Most rows in the queue: more than a thousand machines that start at once record.
const QUEUE_ROWS: u32 = 8192;

/// See the module.
pub(super) struct Writer {
    path: PathBuf,
    options: SqliteConnectOptions,
    sealer: Arc<Sealer>,
    queue: Mutex<VecDeque<Entry>>,
    /// A permit for each row that may be queued.
    room: Arc<Semaphore>,
    /// Locked for the length of a turn. The lock is fair.
    state: tokio::sync::Mutex<State>,
    /// Turns under way; `close` waits for them.
    tasks: TaskTracker,
    /// Transactions made durable so far.
    synced: AtomicU64,
    /// Why the last transaction failed, when that was the database's fault.
    trouble: Mutex<Option<Trouble>>,
    /// Disk space for changes that free some; none where no file can be made beside the database.
    reserve: Option<Arc<Reserve>>,
}

/// The connection; none after it failed (the next use opens it anew) and after `close`.
struct State {
    connection: Option<SqliteConnection>,
    closed: bool,
}

/// Why the last change failed.
#[derive(Clone)]
pub(super) struct Trouble {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
}

type Answer<T> = oneshot::Sender<Result<T>>;

/// What waits in the queue.
enum Entry {
    Commit(Commit),
    Prune(PruneStep),
}

struct Commit {
    batch: Batch,
    rows: u32,
    answer: Answer<Vec<Event>>,
    _room: OwnedSemaphorePermit,
}

struct PruneStep {
    sql: &'static str,
    before: i64,
    answer: Answer<u64>,
    _room: OwnedSemaphorePermit,
}

/// What one transaction is about.
enum Next {
    Group(Vec<Commit>),
    Prune(PruneStep),
}

type Tried<T> = std::result::Result<T, Failure>;

/// The result of one batch.
type Outcome = Tried<Vec<Event>>;

/// Why nothing of a transaction was applied.
struct Undone {
    failure: Failure,
    begun: bool,
}

impl Undone {
    /// Whether any other transaction would fail in the same way, possibly after the same long wait.
    fn is_of_all(&self) -> bool {
        !self.begun && !self.failure.may_lack_room()
    }
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self { failure, begun: true }
    }
}

fn rows(batch: &Batch) -> u32 {
    u32::try_from(batch.writes.len() + batch.events.len() + batch.audit.len()).unwrap_or(u32::MAX)
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "The store is shut down").retryable(false)
}

impl Writer {
    pub(super) fn new(
        path: PathBuf,
        options: SqliteConnectOptions,
        sealer: Arc<Sealer>,
        connection: SqliteConnection,
        reserve: Option<Arc<Reserve>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            path,
            options,
            sealer,
            queue: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_ROWS as usize)),
            state: tokio::sync::Mutex::new(State { connection: Some(connection), closed: false }),
            tasks: TaskTracker::new(),
            synced: AtomicU64::new(0),
            trouble: Mutex::new(None),
            reserve,
        })
    }

    /// Applies a batch. If the future is dropped: not applied while it waits for room in the queue, applied all the same after that.
    pub(super) async fn commit(self: &Arc<Self>, batch: Batch) -> Result<Vec<Event>> {
        let rows = rows(&batch);
        self.submit("commit", rows, |answer, room| Entry::Commit(Commit { batch, rows, answer, _room: room }))
            .await
    }

    /// One step of a pruning; returns how many rows it deleted. If the future is dropped: as [`commit`](Self::commit).
    pub(super) async fn prune(self: &Arc<Self>, sql: &'static str, before: i64) -> Result<u64> {
        self.submit("prune", 1, |answer, room| Entry::Prune(PruneStep { sql, before, answer, _room: room }))
            .await
    }

    /// How many transactions have been made durable.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Relaxed)
    }

    async fn submit<T>(
        self: &Arc<Self>,
        operation: &'static str,
        rows: u32,
        entry: impl FnOnce(Answer<T>, OwnedSemaphorePermit) -> Entry,
    ) -> Result<T> {
        let of = |error: Error| error.with_backend(BACKEND).with_operation(operation);
        if self.tasks.is_closed() {
            return Err(of(closed()));
        }
        let room = Arc::clone(&self.room).acquire_many_owned(rows.clamp(1, QUEUE_ROWS)).await;
        // The semaphore is never closed.
        let room = room.map_err(|_| of(closed()))?;
        let (answer, answered) = oneshot::channel();
        // No await between the two, so that every entry has its task.
        self.queue().push_back(entry(answer, room));
        let this = Arc::clone(self);
        #[expect(clippy::disallowed_methods, reason = "one turn, tracked")]
        self.tasks.spawn(async move { this.turn().await });
        answered
            .await
            .unwrap_or_else(|_| Err(of(Error::internal("The transaction's task ended before its time"))))
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        // Every change of it is one call.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self) {
        // Held over whole transactions on purpose: there is one writer.
        let mut state = self.state.lock().await;
        while let Some(next) = self.next() {
            match next {
                Next::Group(group) => self.group(&mut state, group).await,
                Next::Prune(step) => {
                    let outcome = self.prune_step(&mut state, step.sql, step.before).await;
                    self.tell(step.answer, outcome.map_err(|failure| self.error(failure, "prune")));
                }
            }
        }
    }

    /// Takes the front of the queue: one pruning step, or as many batches as fit into a group.
    fn next(&self) -> Option<Next> {
        let mut queue = self.queue();
        let first = match queue.pop_front()? {
            Entry::Commit(first) => first,
            Entry::Prune(step) => return Some(Next::Prune(step)),
        };
        let (mut rows, mut group) = (first.rows, vec![first]);
        while group.len() < GROUP_BATCHES {
            match queue.pop_front() {
                Some(Entry::Commit(next)) if rows.saturating_add(next.rows) <= GROUP_ROWS => {
                    rows += next.rows;
                    group.push(next);
                }
                Some(other) => {
                    queue.push_front(other);
                    break;
                }
                None => break,
            }
        }
        Some(Next::Group(group))
    }

    async fn group(&self, state: &mut State, group: Vec<Commit>) {
        let frees_space = group.iter().all(|commit| commit.batch.from_reserve);
        if group.len() > 1 && (frees_space || self.reserve_is_whole().await) {
            match self.transaction(state, &group).await {
                Ok(outcomes) => {
                    for (commit, outcome) in group.into_iter().zip(outcomes) {
                        match outcome {
                            Err(failure) if commit.batch.from_reserve && failure.may_lack_room() => {
                                let outcome = self.alone(state, &commit).await;
                                self.answer(commit, outcome.map_err(|undone| undone.failure));
                            }
                            outcome => self.answer(commit, outcome),
                        }
                    }
                    return;
                }
                Err(undone) if undone.is_of_all() => return self.refuse(group, undone.failure),
                // Nothing was applied. Each batch alone shows which one failed.
                Err(_) => {}
            }
        }
        let mut group = group.into_iter();
        while let Some(commit) = group.next() {
            match self.alone(state, &commit).await {
                Ok(events) => self.answer(commit, Ok(events)),
                Err(undone) if undone.is_of_all() => {
                    return self.refuse(std::iter::once(commit).chain(group), undone.failure);
                }
                Err(undone) => self.answer(commit, Err(undone.failure)),
            }
        }
    }

    /// Commits one batch in a transaction of its own.
    async fn alone(&self, state: &mut State, commit: &Commit) -> std::result::Result<Vec<Event>, Undone> {
        if !commit.batch.from_reserve {
            if !self.reserve_is_whole().await {
                return Err(Failure::from(self.only_the_reserve()).into());
            }
            return self.single(state, commit).await;
        }
        loop {
            match self.single(state, commit).await {
                Err(undone) if undone.failure.may_lack_room() && self.gives().await => {}
                done => {
                    // Before anybody else takes what became free.
                    self.reserve_is_whole().await;
                    return done;
                }
            }
        }
    }

    async fn single(&self, state: &mut State, commit: &Commit) -> std::result::Result<Vec<Event>, Undone> {
        let outcome = self.transaction(state, slice::from_ref(commit)).await?.pop();
        let nothing = || Failure::from(Error::internal("A transaction had no outcome"));
        Ok(outcome.unwrap_or_else(|| Err(nothing()))?)
    }

    /// Commits these batches in one transaction. Returns the result of each once the transaction is durable.
    async fn transaction(
        &self,
        state: &mut State,
        group: &[Commit],
    ) -> std::result::Result<Vec<Outcome>, Undone> {
        let begun = self.begin(state).await;
        let mut conn = begun.map_err(|failure| Undone { failure, begun: false })?;
        let applied = self.apply(&mut conn, group).await.map(|outcomes| {
            let changed = outcomes.iter().zip(group).any(|(o, commit)| o.is_ok() && commit.rows > 0);
            (outcomes, changed)
        });
        Ok(self.end(state, conn, applied).await?)
    }

    /// Applies each batch; fails if the transaction itself is lost.
    async fn apply(&self, conn: &mut SqliteConnection, group: &[Commit]) -> Tried<Vec<Outcome>> {
        if let [only] = group {
            return Ok(vec![write::apply(conn, &self.sealer, only.batch.clone()).await]);
        }
        let mut outcomes = Vec::with_capacity(group.len());
        for commit in group {
            // One call for two statements, because a call costs more than these statements. COMMIT releases the last savepoint.
            let savepoint =
                if outcomes.is_empty() { "SAVEPOINT batch" } else { "RELEASE batch; SAVEPOINT batch" };
            sqlx::query(savepoint).execute(&mut *conn).await?;
            let outcome = match write::apply(conn, &self.sealer, commit.batch.clone()).await {
                Ok(events) => Ok(events),
                Err(failure) => match sqlx::query("ROLLBACK TO batch").execute(&mut *conn).await {
                    Ok(_) => Err(failure),
                    // The savepoint is gone: SQLite has rolled back the whole transaction.
                    Err(_) => return Err(failure),
                },
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    async fn prune_step(&self, state: &mut State, sql: &'static str, before: i64) -> Tried<u64> {
        if !self.reserve_is_whole().await {
            return Err(self.only_the_reserve().into());
        }
        let mut conn = self.begin(state).await?;
        let applied = delete::prune_step(&mut conn, sql, before).await.map(|gone| (gone, gone > 0));
        self.end(state, conn, applied).await
    }

    async fn begin(&self, state: &mut State) -> Tried<SqliteConnection> {
        if state.closed {
            return Err(closed().into());
        }
        // Taken out, so that a panic or an aborted task drops the connection, and with it the transaction.
        let mut conn = match state.connection.take() {
            Some(conn) => conn,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        match sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await {
            Ok(_) => Ok(conn),
            Err(e) => {
                // SQLite's own refusal (busy, full) began nothing.
                let clean = e.as_database_error().is_some();
                put_back(state, conn, clean).await;
                Err(e.into())
            }
        }
    }

    /// Ends a transaction: COMMIT if anything changed, else ROLLBACK.
    async fn end<T>(
        &self,
        state: &mut State,
        mut conn: SqliteConnection,
        applied: Tried<(T, bool)>,
    ) -> Tried<T> {
        let (ended, clean) = match applied {
            Ok((done, true)) => match sqlx::query("COMMIT").execute(&mut conn).await {
                Ok(_) => {
                    self.synced.fetch_add(1, Ordering::Relaxed);
                    (Ok(done), true)
                }
                Err(e) => (Err(e.into()), false),
            },
            other => {
                let rolled_back = sqlx::query("ROLLBACK").execute(&mut conn).await.is_ok();
                (other.map(|(done, _)| done), rolled_back)
            }
        };
        put_back(state, conn, clean).await;
        ended
    }

    fn error(&self, failure: Failure, operation: &'static str) -> Error {
        failure.into_error(&self.path, operation)
    }

    fn answer(&self, commit: Commit, outcome: Outcome) {
        self.tell(commit.answer, outcome.map_err(|failure| self.error(failure, "commit")));
    }

    fn refuse(&self, commits: impl IntoIterator<Item = Commit>, failure: Failure) {
        let error = self.error(failure, "commit");
        for commit in commits {
            self.tell(commit.answer, Err(error.clone()));
        }
    }

    fn tell<T>(&self, answer: Answer<T>, outcome: Result<T>) {
        self.note(outcome.as_ref().err());
        // Nobody may wait any more.
        let _ = answer.send(outcome);
    }

    fn note(&self, failed: Option<&Error>) {
        let mut trouble = self.last_trouble();
        match failed {
            None => {
                if trouble.take().is_some() {
                    tracing::info!("changes of the database succeed again");
                }
            }
            Some(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Invalid) => {
            }
            Some(e) => {
                // Said once, not for each machine that asks again.
                if trouble.as_ref().is_none_or(|t| t.kind != e.kind()) {
                    tracing::error!(error = %e.report(), "a change of the database failed");
                }
                *trouble = Some(Trouble { kind: e.kind(), why: e.explain() });
            }
        }
    }

    /// Why the last change failed, unless the cause is gone. Call [`has_room`](Self::has_room) first.
    pub(super) async fn trouble(&self) -> Option<Trouble> {
        let over = if self.is_locked() {
            // Nobody may have tried a change since.
            self.may_begin().await.then_some(ErrorKind::Busy)
        } else {
            // There is room again, though nothing was written since: the caller has looked.
            self.reserve.is_some().then_some(ErrorKind::Full)
        };
        let mut trouble = self.last_trouble();
        *trouble = trouble.take().filter(|trouble| Some(trouble.kind) != over);
        trouble.clone()
    }

    fn last_trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the last change found the database locked by another process.
    fn is_locked(&self) -> bool {
        self.last_trouble().as_ref().is_some_and(|trouble| trouble.kind == ErrorKind::Busy)
    }

    /// Whether a change can begin now. Not while one is made: that one will tell.
    async fn may_begin(&self) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        let Some(mut conn) = state.connection.take() else { return false };
        let begun = sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.is_ok();
        if !begun || sqlx::query("ROLLBACK").execute(&mut conn).await.is_ok() {
            state.connection = Some(conn);
        }
        begun
    }

    /// Whether there is room for changes.
    pub(super) async fn has_room(&self) -> bool {
        // While a change is made the reserve is its own; the last look then stands, and what the last change met.
        match self.state.try_lock() {
            Ok(_state) => self.reserve(|_| false, Reserve::room).await,
            Err(_) => {
                let was_full =
                    self.last_trouble().as_ref().is_some_and(|trouble| trouble.kind == ErrorKind::Full);
                !was_full && self.reserve.as_ref().is_none_or(|reserve| reserve.is_whole())
            }
        }
    }

    /// Whether the file system of the database is mounted read-only; it becomes so by itself when its disk fails.
    pub(super) async fn is_read_only(&self) -> bool {
        let Some(reserve) = self.reserve.clone() else { return false };
        // What cannot be asked is told by the next change.
        tokio::task::spawn_blocking(move || reserve.is_read_only()).await.unwrap_or(false)
    }

    /// Whether the reserve is whole, by now if it was not.
    async fn reserve_is_whole(&self) -> bool {
        self.reserve(Reserve::is_whole, Reserve::take).await
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

    /// Waits for the turns under way, refuses further ones, and gives the connection away.
    pub(super) async fn close(&self) -> Option<SqliteConnection> {
        self.tasks.close();
        self.tasks.wait().await;
        let mut state = self.state.lock().await;
        state.closed = true;
        state.connection.take()
    }
}

async fn put_back(state: &mut State, conn: SqliteConnection, clean: bool) {
    if clean {
        state.connection = Some(conn);
        return;
    }
    // Its transaction may still be open; closing rolls it back.
    if let Err(e) = conn.close_hard().await {
        tracing::warn!(error = %e, "closing the database's writer after a failure");
    }
}

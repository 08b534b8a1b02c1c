//! The key file and the live sessions: whether it opens their credentials, and the way out when it does not.
//!
//! ```text
//!   key file                        live sessions with credentials    start
//!   missing                         none                              a key is made
//!   missing, or not 32 bytes long   some                              refused
//!   another: opens none of them     some                              refused
//!   opens some of them              some                              serves; `end_unreadable_sessions` ends the others
//! ```
//! Invariants: a refused start changes nothing, so that the right key can still be put back; credentials that do not open are never
//! read as "no CHAP"; only `reset_key` replaces a key file, keeps the old one, and never replaces one that opens a live session.

use std::path::PathBuf;

use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{
        AuditAction, AuditRow, AuditSubject, EventKind, NewEvent, Principal, SessionId, SessionState,
        StopReason, Timestamp,
    },
    ports::{Batch, Store as _, Write},
};
use sqlx::SqlitePool;

use super::{
    SqliteConfig, SqliteStore,
    errors::{BACKEND, Failure},
    open, read,
    rows::SessionRow,
    seal::{self, Sealer},
};

/// How many ended sessions have a line of their own in the log.
const LOGGED: usize = 20;

/// What [`SqliteStore::reset_key`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReset {
    /// Where the new key is.
    pub key_file: PathBuf,
    /// Where the old file is kept; none if there was none.
    pub kept: Option<PathBuf>,
    /// The sessions that were ended.
    pub ended: Vec<SessionId>,
}

/// The sealer by the key file, which is made if it is missing and no live session needs it.
pub(super) async fn fitting(readers: &SqlitePool, key_file: PathBuf) -> Result<Sealer, Failure> {
    let live = read::live_sealed(readers).await?;
    Ok(blocking(move || {
        let trouble = match seal::read_key(&key_file) {
            Ok(Some(key)) => {
                let sealer = Sealer::new(&key, &key_file);
                if live.is_empty() || fits(&live, &sealer) {
                    return Ok(sealer);
                }
                "is not the key that sealed this database's credentials"
            }
            Ok(None) if live.is_empty() => return Sealer::open(&key_file),
            Ok(None) => "is missing",
            Err(e) if e.kind() == ErrorKind::Invalid && !live.is_empty() => "is not 32 bytes long",
            Err(e) => return Err(e),
        };
        let (path, sessions) = (key_file.display(), count(live.len()));
        Err(Error::invalid(
            "store.key_file",
            format!("The key file {path} {trouble}: the credentials of {sessions} cannot be opened"),
        )
        .with_hint(
            "Put the right key file back from a backup and start again; nothing was changed. If it is lost, \
             `ggnet-server key reset` (with the server's options, as its user) makes a new key and ends these sessions: \
             their machines must boot anew",
        ))
    })
    .await?)
}

fn fits(live: &[SessionRow], sealer: &Sealer) -> bool {
    live.iter().any(|row| row.fits(sealer))
}

fn count(sessions: usize) -> String {
    if sessions == 1 { "1 live session".to_owned() } else { format!("{sessions} live sessions") }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("Work on the key file was cut short").with_source(e))?
}

impl SqliteStore {
    /// Ends every live session whose credentials do not open with the key file, as `failed` at `at` and for `reason`, with an event
    /// and a line in the log each; what they left in backends is the reconciler's to remove. Returns the sessions it ended.
    ///
    /// # Errors
    /// As `commit`; sessions ended before the failure stay ended.
    pub async fn end_unreadable_sessions(
        &self,
        at: Timestamp,
        reason: Option<StopReason>,
    ) -> Result<Vec<SessionId>> {
        let fail = self.shared.fail("end_unreadable_sessions");
        let mut ended = Vec::new();
        for row in read::live_sealed(&self.shared.readers).await.map_err(&fail)? {
            let Err(why) = row.open(&self.shared.sealer) else { continue };
            let mut session = row.bare()?;
            session.state = SessionState::Failed;
            session.ended_at = Some(at);
            session.stop_reason = reason;
            let (reason, failure) = (why.explain(), Some((&why).into()));
            session.error = Some(reason.clone());
            session.failure.clone_from(&failure);
            if ended.len() < LOGGED {
                let (id, machine) = (session.id, session.machine);
                tracing::error!(session = %id, %machine, "session ended: {reason}");
            }
            ended.push(session.id);
            let kind = EventKind::SessionFailed { reason, failure };
            let event = NewEvent::new(at, kind).machine(session.machine).session(session.id);
            // It ends something: a full disk must not keep the server from its start.
            let batch = Batch::new().write(Write::Session(Box::new(session))).event(event).from_reserve();
            self.commit(batch).await?;
        }
        if ended.len() > LOGGED {
            tracing::error!(
                sessions = ended.len(),
                "these sessions were ended; the log names {LOGGED} of them"
            );
        }
        Ok(ended)
    }

    /// Makes a new key in place of one that is lost or does not fit, keeps the old file beside it as `<key file>.old-<n>`, and ends the
    /// sessions whose credentials the old one sealed. For an operator; no server may use the files. Run again after a failure, it goes
    /// on where that one stopped.
    ///
    /// # Errors
    /// `NotFound`: there is no database; `Conflict`: the key file opens credentials of live sessions, so nothing is lost; else as
    /// [`open`](Self::open) and `commit`.
    pub async fn reset_key(config: SqliteConfig, at: Timestamp) -> Result<KeyReset> {
        let SqliteConfig { path, key_file } = config;
        if !tokio::fs::try_exists(&path).await.is_ok_and(|there| there) {
            let missing = Error::new(ErrorKind::NotFound, format!("There is no database {}", path.display()));
            return Err(missing
                .with_backend(BACKEND)
                .with_hint("Use the same --config or --data-dir as the server, and be the same user"));
        }
        let opened = open::open(&path).await.map_err(|f| f.into_error(&path, "reset_key"))?;
        let key = seal::new_key()?;
        let store = Self::over(path, Sealer::new(&key, &key_file), opened).await;
        let done = store.replace(key, key_file, at).await;
        store.shutdown().await;
        done
    }

    /// Sessions are ended first: when it is cut off in between, any key serves what is left.
    async fn replace(&self, key: seal::KeyBytes, key_file: PathBuf, at: Timestamp) -> Result<KeyReset> {
        let live = read::live_sealed(&self.shared.readers).await.map_err(self.shared.fail("reset_key"))?;
        let old = key_file.clone();
        let in_use = blocking(move || match seal::read_key(&old) {
            Ok(old_key) => Ok(old_key.is_some_and(|k| fits(&live, &Sealer::new(&k, &old)))),
            Err(e) if e.kind() == ErrorKind::Invalid => Ok(false),
            Err(e) => Err(e),
        });
        if in_use.await? {
            let path = key_file.display();
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("The key file {path} opens the credentials of live sessions: it is not lost"),
            )
            .with_backend(BACKEND)
            .with_hint("Start the server. For another key all the same, stop the sessions first"));
        }
        let ended = self.end_unreadable_sessions(at, Some(StopReason::Operator)).await?;
        let subject = AuditSubject::Key("credentials".to_owned());
        let row = AuditRow::new(at, &Principal::host(), AuditAction::KeyReset, subject)
            .after(serde_json::json!({ "sessions_ended": ended.len() }));
        self.commit(Batch::new().audit(row).from_reserve()).await?;
        let file = key_file.clone();
        let kept = blocking(move || seal::replace_key(&file, &key)).await?;
        Ok(KeyReset { key_file, kept, ended })
    }
}

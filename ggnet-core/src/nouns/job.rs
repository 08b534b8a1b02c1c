//! [`Job`]: work that takes minutes. It is recorded, so that it can be seen, cancelled and retried even if its server dies.
//!
//! ```text
//!            claimed                 done
//!   queued ─────────▶ running ───────────────▶ succeeded
//!   ▲  │                 │
//!   │  │ cancelled       ├─ cancelled ───────▶ cancelled ─┐
//!   │  └─────────────────┼───────────────────▶            │
//!   │                    └─ failed, died ────▶ failed ────┤
//!   └────────────────────────── retry ────────────────────┘
//! ```
//! Invariants: at most one *live* job (queued, running) for one subject, held by the store; a job has a [`Claim`] exactly while it runs;
//! only the holder of the claim records its progress and its end; a job whose claim is lost fails.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Failure, ImageFormat, ImageId, ImageVersionId, JobId, Principal, ServerId, Timestamp};

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// A server works on it.
    Running,
    /// It completed its work.
    Succeeded,
    /// It ended by an error, or by the death of its server.
    Failed,
    /// It ended because its cancellation was requested.
    Cancelled,
}

impl JobState {
    /// Every state, in the order of life.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Whether the job holds its subject.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }

    /// Whether it can be retried.
    #[must_use]
    pub const fn can_be_retried(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled)
    }

    /// The state's name in the API and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The object that a job works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobSubject {
    /// An image version: its bytes are being created.
    Version(ImageVersionId),
}

impl fmt::Display for JobSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(id) => write!(f, "version {id}"),
        }
    }
}

/// The import of a file as an image version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportJob {
    /// The server that has the file. Only this server can import it.
    pub server: ServerId,
    /// The image.
    pub image: ImageId,
    /// The version that it creates. A retry creates the same version.
    pub version: ImageVersionId,
    /// The file.
    pub path: PathBuf,
    /// Its format; `None`: determined by the probe.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// The SHA-256 that the file should have, in hexadecimal.
    #[serde(default)]
    pub expected_sha256: Option<String>,
    /// Whether machines boot the version from their next boot on.
    pub make_current: bool,
}

/// What a job does, with everything that a retry needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum JobKind {
    /// Imports a file.
    Import(ImportJob),
}

impl JobKind {
    /// The object that it works on.
    #[must_use]
    pub const fn subject(&self) -> JobSubject {
        match self {
            Self::Import(import) => JobSubject::Version(import.version),
        }
    }

    /// The only server that can run it; `None`: any server.
    #[must_use]
    pub const fn only_on(&self) -> Option<&ServerId> {
        match self {
            Self::Import(import) => Some(&import.server),
        }
    }
}

/// The record that a server works on a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The server.
    pub server: ServerId,
    /// Grows with each claim of the job: the holder of an earlier claim must no longer record anything.
    pub epoch: u64,
    /// When it was claimed.
    pub at: Timestamp,
    /// When its server last confirmed that it works on it. A claim whose heartbeat is too old is lost.
    pub heartbeat: Timestamp,
}

/// A long operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    #[serde(flatten)]
    pub kind: JobKind,
    /// What it works on: [`JobKind::subject`].
    pub subject: JobSubject,
    /// What it does, for people ("import of debian:3").
    pub title: String,
    /// Its state.
    pub state: JobState,
    /// Who requested it, or its last retry: it acts on their behalf.
    pub requester: Principal,
    /// Which server works on it; only while it runs.
    #[serde(default)]
    pub claim: Option<Claim>,
    /// Its progress. While it runs, the record is a few seconds behind.
    #[serde(default)]
    pub progress_per_mille: u16,
    /// The present step, as text for people.
    #[serde(default)]
    pub step: String,
    /// Whether its cancellation was requested.
    #[serde(default)]
    pub cancel_requested: bool,
    /// How often it was started.
    #[serde(default)]
    pub attempts: u32,
    /// When it was requested.
    pub created_at: Timestamp,
    /// When it was last started.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// What failed, as text for people. The result of a job that succeeded is its subject.
    #[serde(default)]
    pub error: Option<String>,
    /// Which failure that was, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Grows with every change; updates are conditional on it.
    pub revision: u64,
}

impl Job {
    /// A new job, queued.
    #[must_use]
    pub fn new(kind: JobKind, title: String, requester: Principal, now: Timestamp) -> Self {
        Self {
            id: JobId::generate(),
            subject: kind.subject(),
            kind,
            title,
            state: JobState::Queued,
            requester,
            claim: None,
            progress_per_mille: 0,
            step: String::new(),
            cancel_requested: false,
            attempts: 0,
            created_at: now,
            started_at: None,
            finished_at: None,
            error: None,
            failure: None,
            revision: 0,
        }
    }

    /// Records that this server starts it.
    pub fn claim(&mut self, server: &ServerId, now: Timestamp) {
        self.attempts = self.attempts.saturating_add(1);
        let epoch = u64::from(self.attempts);
        self.claim = Some(Claim { server: server.clone(), epoch, at: now, heartbeat: now });
        self.state = JobState::Running;
        self.started_at = Some(now);
    }

    /// Records that it has ended, in this state.
    pub fn end(&mut self, state: JobState, now: Timestamp) {
        self.state = state;
        self.claim = None;
        self.step = String::new();
        self.finished_at = Some(now);
    }

    /// Queues it again, as if it had just been requested.
    pub fn queue_again(&mut self, requester: Principal) {
        self.state = JobState::Queued;
        self.requester = requester;
        self.progress_per_mille = 0;
        self.cancel_requested = false;
        self.started_at = None;
        self.finished_at = None;
        self.error = None;
        self.failure = None;
    }

    /// Whether this server holds the claim of this epoch.
    #[must_use]
    pub fn is_claimed(&self, server: &ServerId, epoch: u64) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.server == *server && claim.epoch == epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_reads_as_it_was_written() {
        let (now, server) = (Timestamp::UNIX_EPOCH, ServerId::generate());
        let import = ImportJob {
            server: server.clone(),
            image: ImageId::generate(),
            version: ImageVersionId::generate(),
            path: "/import/a.raw".into(),
            format: Some(ImageFormat::Raw),
            expected_sha256: None,
            make_current: true,
        };
        let version = import.version;
        let mut job =
            Job::new(JobKind::Import(import), "import of debian:1".to_owned(), Principal::embedder(), now);
        job.claim(&server, now);
        assert!(job.is_claimed(&server, 1) && !job.is_claimed(&server, 2));
        let json = serde_json::to_value(&job).unwrap();
        assert_eq!((&json["kind"], &json["state"]), (&"import".into(), &"running".into()));
        assert_eq!(json["subject"]["version"], version.to_string());
        assert_eq!(serde_json::from_value::<Job>(json).unwrap(), job);
        job.end(JobState::Failed, now);
        assert!(job.claim.is_none() && job.state.can_be_retried());
        job.queue_again(Principal::host());
        job.claim(&server, now);
        assert_eq!((job.attempts, job.claim.unwrap().epoch), (2, 2), "an earlier claim is none any more");
    }
}

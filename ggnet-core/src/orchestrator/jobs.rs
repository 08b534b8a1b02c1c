//! Jobs: queue, claim, heartbeat, cancel and retry. What a job does is in the file of its kind ([`imports`](super::imports)).
//!
//! ```text
//!   recorded ──▶ task here ── waits for a place ──▶ claims ──▶ works, with a heartbeat ──▶ records the end
//!                   │                                             ▲
//!                   └── a place was free: recorded with its claim ┘
//! ```
//! Invariants:
//! * Every live job of this server has a task here, listed in [`Jobs`] from its record to its end. The reconciler handles those without
//!   one: a queued job gets a task, a running one has died and fails.
//! * A running job's record is changed only by the task that holds the claim, by a request to cancel, or because the claim is lost.
//! * A running job costs one small commit each [`HEARTBEAT`]; its progress in between is in memory.
//! * Lock order: the image lock before [`Jobs::changing`].

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use jiff::SignedDuration;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;

use super::Orchestrator;
use crate::{
    authorization::{Command, authorize},
    error::{Error, ErrorKind, Result, code},
    nouns::{
        AuditAction, AuditSubject, Claim, EventKind, ImageVersionId, Job, JobId, JobKind, JobState,
        JobSubject, Principal,
    },
    ports::{Batch, JobFilter, Page, PageRequest, Write},
};

/// How often a running job records that it is worked on, and how far it is.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A claim whose heartbeat is older is lost: its server has died, or cannot reach the store.
const CLAIM_LOST_AFTER: SignedDuration = SignedDuration::from_secs(120);
/// How soon a claim that could not be recorded is recorded again; doubled each time. On a full disk that may take days.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);
const CLAIM_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// Why a job without a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// It was cancelled before its turn came.
    Cancelled,
    /// The server ended in the middle of it.
    ServerEnded,
    /// Its work ended without a result, or another server has lost its claim.
    WorkEnded,
}

/// A job that has a task here.
#[derive(Clone)]
pub(super) struct Running {
    /// The job.
    pub(super) job: JobId,
    /// The epoch of its claim; 0 while it waits for its turn.
    epoch: u64,
    subject: JobSubject,
    /// Who asked for it: what it does is done in that name.
    pub(super) by: Principal,
    /// How far it is.
    pub(super) per_mille: Arc<AtomicU16>,
    step: Arc<Mutex<&'static str>>,
    /// Whether the end is recorded, so that this task touches nothing any more.
    ended: Arc<AtomicBool>,
    /// Cancelled when somebody asked it to end, and at shutdown.
    pub(super) cancel: CancellationToken,
}

impl Running {
    /// Sets what it does now, for people.
    pub(super) fn set_step(&self, step: &'static str) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    /// The record with the progress that is in memory.
    fn with_progress(&self, mut job: Job) -> Job {
        if job.state.is_live() {
            job.progress_per_mille = self.per_mille.load(Ordering::Relaxed);
            job.step = (*self.step.lock().unwrap_or_else(PoisonError::into_inner)).to_owned();
        }
        job
    }
}

/// The tasks, by their jobs.
#[derive(Default)]
struct Tasks {
    by_job: HashMap<JobId, Running>,
    /// A list of versions asks for each of them.
    by_subject: HashMap<JobSubject, JobId>,
}

/// The jobs that have a task here, and the places to run in.
pub(super) struct Jobs {
    known: Mutex<Tasks>,
    /// Fair: the task that waits longest runs first.
    places: Arc<Semaphore>,
    /// Held from reading a job until its change is recorded, so that heartbeats, cancels and ends in this process do not conflict.
    changing: tokio::sync::Mutex<()>,
}

impl Jobs {
    /// With so many places.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            known: Mutex::default(),
            places: Arc::new(Semaphore::new(at_once)),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// A place, if one is free.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place when one is free. Its turn is taken by this call, and not when it is first waited for: many tasks that are spawned one after
    /// the other are first run in any order.
    fn turn(&self) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + use<> {
        let mut place = Box::pin(Arc::clone(&self.places).acquire_owned());
        let free = place.as_mut().now_or_never();
        async move {
            match free {
                Some(place) => place.ok(),
                None => place.await.ok(),
            }
        }
    }

    /// The task that works on this, or waits for its turn to.
    pub(super) fn on(&self, subject: JobSubject) -> Option<Running> {
        let known = self.known();
        known.by_subject.get(&subject).and_then(|job| known.by_job.get(job)).cloned()
    }

    fn get(&self, id: JobId) -> Option<Running> {
        self.known().by_job.get(&id).cloned()
    }

    fn insert(&self, running: Running) {
        let mut known = self.known();
        known.by_subject.insert(running.subject, running.job);
        known.by_job.insert(running.job, running);
    }

    /// Forgets this task, but not one that took the job up again.
    fn remove(&self, running: &Running) {
        let mut known = self.known();
        let now = known.by_job.get(&running.job);
        if now.is_some_and(|now| Arc::ptr_eq(&now.per_mille, &running.per_mille)) {
            known.by_job.remove(&running.job);
            if known.by_subject.get(&running.subject) == Some(&running.job) {
                known.by_subject.remove(&running.subject);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Tasks> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that is known until this is dropped.
struct Known<'a> {
    jobs: &'a Jobs,
    running: Running,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.jobs.remove(&self.running);
    }
}

impl Orchestrator {
    /// A job, with its progress up to date.
    pub async fn job(&self, id: JobId) -> Result<Job> {
        Ok(self.with_live_progress(self.stored_job(id).await?))
    }

    /// Jobs, newest first, with their progress up to date.
    pub async fn jobs(&self, filter: &JobFilter, page: PageRequest) -> Result<Page<Job>> {
        let mut found = self.inner.ports.store().jobs(filter, page).await?;
        found.items = found.items.into_iter().map(|job| self.with_live_progress(job)).collect();
        Ok(found)
    }

    /// The newest job that makes, or made, a version; none for one that no job made.
    pub async fn version_job(&self, version: ImageVersionId) -> Result<Option<Job>> {
        let filter = JobFilter { subject: Some(JobSubject::Version(version)), ..JobFilter::default() };
        let newest = self.jobs(&filter, PageRequest { page: 1, per_page: 1 }).await?;
        Ok(newest.items.into_iter().next())
    }

    /// Asks a live job to end, which it does soon: as `cancelled`, unless it is done before it notices. `Conflict` when it has ended.
    pub async fn cancel_job(&self, id: JobId, by: &Principal) -> Result<Job> {
        authorize(by, Command::JobCancel)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            // Held over read and write: the heartbeat changes the record too.
            let _changing = this.inner.jobs.changing.lock().await;
            let mut job = this.stored_job(id).await?;
            if !job.state.is_live() {
                return Err(Error::new(
                    code::job_ended(id, job.state.as_str()),
                    format!("The {} has ended already: it is {}", job.title, job.state.as_str()),
                ));
            }
            if !job.cancel_requested {
                job.cancel_requested = true;
                let row = this.audit(&by, AuditAction::JobCancel, AuditSubject::Job(id));
                let row = row.before(json!({ "title": job.title, "state": job.state }));
                // Its end frees space.
                this.record(this.with_job(Batch::new(), &job).audit(row).from_reserve()).await?;
                job.revision += 1;
            }
            // Without a task here it is another server's, which sees it at its next heartbeat, or the reconciler's.
            if let Some(running) = this.inner.jobs.get(id) {
                running.cancel.cancel();
            }
            Ok(this.with_live_progress(job))
        })
        .await
    }

    /// Does a failed or cancelled job again, as it was asked for, when its turn comes: the same job, one attempt more. `Conflict` for one
    /// that is live, or ended well.
    pub async fn retry_job(&self, id: JobId, by: &Principal) -> Result<Job> {
        authorize(by, Command::JobRetry)?;
        let (this, by) = (self.clone(), by.clone());
        self.run(async move {
            this.wait_for_sweep().await?;
            let _image = this.inner.image_lock.write().await;
            let _changing = this.inner.jobs.changing.lock().await;
            let job = this.stored_job(id).await?;
            if !job.state.can_be_retried() {
                return Err(Error::new(
                    code::job_not_retryable(id, job.state.as_str()),
                    format!(
                        "The {} is {}: only a job that failed or was cancelled is retried",
                        job.title,
                        job.state.as_str()
                    ),
                ));
            }
            // One whose claim was found lost may still be at work here, on the same object.
            if this.inner.jobs.get(id).is_some_and(|running| !running.ended.load(Ordering::Acquire)) {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("The last attempt of the {} has not ended yet", job.title),
                )
                .with_hint("Wait a moment"));
            }
            if !this.can_run_here(&job) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "The {} can be done by the server that has its file alone, and this is another",
                        job.title
                    ),
                )
                .with_hint("Ask that server"));
            }
            match job.kind.clone() {
                JobKind::Import(import) => this.retry_import(job, import, by).await,
            }
        })
        .await
    }

    /// Waits until what earlier processes left behind is cleaned up: that would take a new job's files for theirs.
    pub(super) async fn wait_for_sweep(&self) -> Result<()> {
        tokio::select! {
            _ = self.inner.swept.wait() => Ok(()),
            () = self.inner.cancel.cancelled() => {
                Err(Error::new(code::shutting_down(), "The server is shutting down"))
            }
        }
    }

    /// Spawns the task of a recorded job. With a `place` it is claimed already and begins at once; without, when its turn comes.
    pub(super) fn spawn_job<F>(
        &self,
        job: &Job,
        place: Option<OwnedSemaphorePermit>,
        work: impl FnOnce(Self, Running) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running {
            job: job.id,
            epoch: job.claim.as_ref().map_or(0, |claim| claim.epoch),
            subject: job.subject,
            by: job.requester.clone(),
            per_mille: Arc::default(),
            step: Arc::default(),
            ended: Arc::default(),
            cancel: self.inner.cancel.child_token(),
        };
        self.inner.jobs.insert(running.clone());
        let place = place.ok_or_else(|| self.inner.jobs.turn());
        let this = self.clone();
        self.spawn(async move {
            // Also dropped by a panic: then the job has no task, and the reconciler ends it.
            let _known = Known { jobs: &this.inner.jobs, running: running.clone() };
            let turn = match place {
                Ok(place) => Some((place, running.epoch)),
                Err(turn) => this.wait_for_place(&running, turn).await,
            };
            match turn {
                // The place is held until the end is recorded.
                Some((_place, epoch)) => work(this.clone(), Running { epoch, ..running }).await,
                None => this.cancelled_before_its_turn(&running).await,
            }
        });
    }

    /// Waits for a place and claims the job; none: it was cancelled meanwhile, or is not to be done any more.
    async fn wait_for_place(
        &self,
        running: &Running,
        turn: impl Future<Output = Option<OwnedSemaphorePermit>>,
    ) -> Option<(OwnedSemaphorePermit, u64)> {
        let place = running.cancel.run_until_cancelled(turn).await??;
        let mut wait = CLAIM_AGAIN;
        loop {
            match self.claim_queued(running.job).await {
                Ok(epoch) => return epoch.map(|epoch| (place, epoch)),
                Err(e) => {
                    tracing::error!(job = %running.job, error = %e.report(), again_in = ?wait, "could not claim a job");
                }
            }
            running.cancel.run_until_cancelled(sleep(wait)).await?;
            wait = (wait * 2).min(CLAIM_AGAIN_AT_MOST);
        }
    }

    async fn claim_queued(&self, id: JobId) -> Result<Option<u64>> {
        // Held over read and write: a cancel changes the record too.
        let _changing = self.inner.jobs.changing.lock().await;
        let Some(mut job) = self.inner.ports.store().job(id).await? else { return Ok(None) };
        if job.state == JobState::Queued && !job.cancel_requested {
            job.claim(&self.inner.config.server, self.now());
            self.record(self.with_job(Batch::new(), &job)).await?;
        }
        // Claimed now, or by an attempt whose answer was lost: nobody else of this server claims it.
        let ours = job.claim.filter(|claim| claim.server == self.inner.config.server);
        Ok(ours.map(|claim| claim.epoch))
    }

    async fn cancelled_before_its_turn(&self, running: &Running) {
        // At the server's end it stays queued, and the next start goes on with it.
        if self.inner.cancel.is_cancelled() {
            return;
        }
        let _image = self.inner.image_lock.write().await;
        let still = |job: &Job| job.state == JobState::Queued;
        if let Err(e) = self.end_job(running.job, still, EndReason::Cancelled).await {
            tracing::warn!(job = %running.job, error = %e.report(), "could not record a cancelled job's end; the reconciler does");
        }
        running.ended.store(true, Ordering::Release);
    }

    /// Runs a job's work, and records each [`HEARTBEAT`] that it is worked on.
    pub(super) async fn with_heartbeat<T>(&self, running: &Running, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beat.tick() => {}
            }
            match self.heartbeat(running).await {
                Ok(true) => {}
                // Another server was asked to cancel it, or the claim is lost.
                Ok(false) => running.cancel.cancel(),
                Err(e) => {
                    tracing::warn!(job = %running.job, error = %e.report(), "could not record a job's heartbeat");
                }
            }
        }
    }

    /// Whether it is still wanted.
    async fn heartbeat(&self, running: &Running) -> Result<bool> {
        let _changing = self.inner.jobs.changing.lock().await;
        let Some(job) = self.claimed_job(running).await? else { return Ok(false) };
        let mut job = running.with_progress(job);
        let wanted = !job.cancel_requested;
        let now = self.now();
        job.claim = job.claim.map(|claim| Claim { heartbeat: now, ..claim });
        self.record(Batch::new().write(Write::Job(Box::new(job)))).await?;
        Ok(wanted)
    }

    /// Adds the end of the work to a batch and records it. Nothing is recorded when the claim is no longer this task's: then the end is
    /// recorded already, by it or by who found the claim lost.
    pub(super) async fn record_end(
        &self,
        running: &Running,
        batch: Batch,
        outcome: Result<(), &Error>,
    ) -> Result<()> {
        let _changing = self.inner.jobs.changing.lock().await;
        if let Some(job) = self.claimed_job(running).await? {
            self.record(self.with_end(batch, running.with_progress(job), outcome)).await?;
        }
        running.ended.store(true, Ordering::Release);
        Ok(())
    }

    /// The job as it is stored, while its claim is this task's.
    async fn claimed_job(&self, running: &Running) -> Result<Option<Job>> {
        let job = self.inner.ports.store().job(running.job).await?;
        Ok(job.filter(|job| job.is_claimed(&self.inner.config.server, running.epoch)))
    }

    /// Adds a job's change and its event.
    pub(super) fn with_job(&self, batch: Batch, job: &Job) -> Batch {
        let event = self.event(EventKind::JobChanged { job: job.id, state: job.state });
        let event = match &job.kind {
            JobKind::Import(import) => event.image(import.image),
        };
        batch.write(Write::Job(Box::new(job.clone()))).event(event)
    }

    /// Adds a job's end.
    pub(super) fn with_end(&self, batch: Batch, mut job: Job, outcome: Result<(), &Error>) -> Batch {
        let state = match outcome {
            Ok(()) => {
                job.progress_per_mille = 1000;
                JobState::Succeeded
            }
            Err(why) => {
                (job.error, job.failure) = (Some(why.report()), Some(why.into()));
                if job.cancel_requested { JobState::Cancelled } else { JobState::Failed }
            }
        };
        job.end(state, self.now());
        self.with_job(batch, &job)
    }

    /// Ends jobs that nobody works on, and gives those that are queued and have no task here one. Returns how many ended.
    pub(super) async fn reconcile_jobs(&self) -> Result<u64> {
        let live = self.inner.ports.store().live_jobs().await?;
        if !live.iter().any(|job| self.is_abandoned(job) || self.lacks_a_task(job)) {
            return Ok(0);
        }
        let ended = self.end_abandoned_jobs(EndReason::WorkEnded).await;
        self.start_queued_jobs().await?;
        ended
    }

    /// Ends what nobody works on: running jobs of this server without a task here, and those of another server whose claim is lost. An error
    /// where one could not be ended.
    pub(super) async fn end_abandoned_jobs(&self, why: EndReason) -> Result<u64> {
        // Whoever begins a job holds this until its task is known.
        let _image = self.inner.image_lock.write().await;
        let (mut ended, mut left) = (0, Ok(()));
        for job in self.inner.ports.store().live_jobs().await? {
            if self.is_abandoned(&job) {
                // One that cannot be ended now keeps no other from it.
                match self.end_job(job.id, |job| self.is_abandoned(job), why).await {
                    Ok(has_ended) => ended += u64::from(has_ended),
                    Err(e) => left = Err(e),
                }
            }
        }
        left.map(|()| ended)
    }

    fn is_abandoned(&self, job: &Job) -> bool {
        if self.inner.jobs.get(job.id).is_some() {
            return false;
        }
        match &job.claim {
            Some(claim) if claim.server == self.inner.config.server => true,
            Some(claim) => self.now().duration_since(claim.heartbeat) > CLAIM_LOST_AFTER,
            None => job.cancel_requested && self.can_run_here(job),
        }
    }

    /// Ends a live job, if it is still so; the caller holds the image lock. Whether it did.
    async fn end_job(&self, id: JobId, still: impl Fn(&Job) -> bool + Send, why: EndReason) -> Result<bool> {
        let _changing = self.inner.jobs.changing.lock().await;
        let job = self.inner.ports.store().job(id).await?;
        let Some(job) = job.filter(|job| job.state.is_live() && still(job)) else { return Ok(false) };
        // It was not begun, so nothing else ended it, whoever finds it.
        let was_cancelled = job.state == JobState::Queued && job.cancel_requested;
        let why = if was_cancelled { EndReason::Cancelled } else { why };
        tracing::info!(job = %id, title = %job.title, ?why, "ending a job without a task");
        match job.kind.clone() {
            JobKind::Import(import) => self.end_import(job, &import, why).await?,
        }
        Ok(true)
    }

    /// Queued jobs of an earlier process, or whose task died, get a task.
    async fn start_queued_jobs(&self) -> Result<()> {
        // Whoever begins a job holds this until its task is known.
        let _image = self.inner.image_lock.write().await;
        let mut left = Ok(());
        for job in self.inner.ports.store().live_jobs().await? {
            if self.lacks_a_task(&job) {
                let started = match job.kind.clone() {
                    JobKind::Import(import) => self.start_queued_import(job, import).await,
                };
                // One that cannot be started now keeps no other from it.
                left = started.and(left);
            }
        }
        left
    }

    fn lacks_a_task(&self, job: &Job) -> bool {
        let queued = job.state == JobState::Queued && !job.cancel_requested;
        queued && self.can_run_here(job) && self.inner.jobs.get(job.id).is_none()
    }

    /// Whether this server can do it.
    fn can_run_here(&self, job: &Job) -> bool {
        job.kind.only_on().is_none_or(|server| *server == self.inner.config.server)
    }

    /// What live jobs make, of every server.
    pub(super) async fn versions_in_jobs(&self) -> Result<HashSet<ImageVersionId>> {
        let live = self.inner.ports.store().live_jobs().await?;
        Ok(live
            .into_iter()
            .map(|job| match job.subject {
                JobSubject::Version(version) => version,
            })
            .collect())
    }

    async fn stored_job(&self, id: JobId) -> Result<Job> {
        self.inner.ports.store().job(id).await?.ok_or_else(|| Error::not_found("job", id))
    }

    fn with_live_progress(&self, job: Job) -> Job {
        match self.inner.jobs.get(job.id) {
            Some(running) => running.with_progress(job),
            None => job,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_turn_is_taken_when_it_is_asked_for_and_not_when_it_is_waited_for() {
        let jobs = Jobs::new(1);
        let held = jobs.place().unwrap();
        let (first, second) = (jobs.turn(), jobs.turn());
        let mut second = pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        drop(held);
        assert!(second.as_mut().now_or_never().is_none() && jobs.place().is_none(), "it is the first one's");
        drop(first.await.unwrap());
        assert!(second.await.is_some());
    }
}

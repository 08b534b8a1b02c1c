//! [`JobRunner`]: the tasks of jobs: turn, claim, heartbeat, and the record of their ends. It knows no kind of job; what one does is said by
//! whoever spawns it.
//!
//! ```text
//!   recorded ──▶ task here ── waits for a place ──▶ claims ──▶ works, with a heartbeat ──▶ records the end
//!                   │                                             ▲
//!                   └── a place was free: recorded with its claim ┘
//! ```
//! Invariants:
//! * Every live job of this server has a task here, listed in [`Tasks`] from its record to its end. The reconciler handles those without
//!   one: a queued job gets a task, a running one has died and fails.
//! * A running job's record is changed only by the task that holds the claim, by a request to cancel, or because the claim is lost.
//! * A running job costs one small commit each [`HEARTBEAT`]; its progress in between is in memory.
//! * Lock order: the image lock before [`Tasks::changing`].

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
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::{
    error::{Error, Result, code},
    nouns::{Claim, EventKind, ImageVersionId, Job, JobId, JobKind, JobState, JobSubject, Principal},
    ports::{Batch, Write},
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
    /// Whether its end is recorded: the task touches nothing any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Its end is recorded.
    pub(super) fn set_ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

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
struct ByJob {
    by_job: HashMap<JobId, Running>,
    /// A list of versions asks for each of them.
    by_subject: HashMap<JobSubject, JobId>,
}

/// The jobs that have a task here, and the places to run in.
struct Tasks {
    known: Mutex<ByJob>,
    /// Fair: the task that waits longest runs first.
    places: Arc<Semaphore>,
    /// Held from reading a job until its change is recorded, so that heartbeats, cancels and ends in this process do not conflict.
    changing: tokio::sync::Mutex<()>,
}

impl Tasks {
    /// With so many places.
    fn new(at_once: usize) -> Self {
        Self {
            known: Mutex::default(),
            places: Arc::new(Semaphore::new(at_once)),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// A place, if one is free.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
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
    fn on(&self, subject: JobSubject) -> Option<Running> {
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

    fn known(&self) -> MutexGuard<'_, ByJob> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that is known until this is dropped.
struct Known<'a> {
    tasks: &'a Tasks,
    running: Running,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.tasks.remove(&self.running);
    }
}

/// Whether a job's turn came.
pub(super) enum Turn {
    /// It did: the job is claimed.
    Came(Running),
    /// It was cancelled before, or is not to be done any more, or the server shuts down.
    Cancelled(Running),
}

/// A job that is about to be ended; nobody else changes it while this lives.
pub(super) struct Ending<'a> {
    pub(super) job: Job,
    pub(super) why: EndReason,
    _changing: tokio::sync::MutexGuard<'a, ()>,
}

/// The tasks of this server's jobs.
pub(super) struct JobRunner {
    shared: Arc<Shared>,
    tasks: Tasks,
    /// Set once what an earlier process's imports left behind is cleaned up: only then may new versions be made.
    swept: tokio::sync::SetOnce<()>,
}

impl JobRunner {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let tasks = Tasks::new(shared.config.jobs_at_once);
        Self { shared, tasks, swept: tokio::sync::SetOnce::new() }
    }

    /// Whether what earlier processes left behind is cleaned up.
    pub(super) fn is_swept(&self) -> bool {
        self.swept.initialized()
    }

    /// What earlier processes left behind is cleaned up: new jobs may begin.
    pub(super) fn set_swept(&self) {
        // Set once: the second time says nothing new.
        let _ = self.swept.set(());
    }

    /// A place to run in, if one is free.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.tasks.place()
    }

    /// The task that works on this, or waits for its turn to.
    pub(super) fn on(&self, subject: JobSubject) -> Option<Running> {
        self.tasks.on(subject)
    }

    /// The task of this job.
    pub(super) fn task(&self, id: JobId) -> Option<Running> {
        self.tasks.get(id)
    }

    /// While it is held nobody else of this process changes a job's record.
    pub(super) async fn lock_changes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.tasks.changing.lock().await
    }

    /// Waits until what earlier processes left behind is cleaned up: that would take a new job's files for theirs.
    pub(super) async fn wait_for_sweep(&self) -> Result<()> {
        tokio::select! {
            _ = self.swept.wait() => Ok(()),
            () = self.shared.cancel.cancelled() => {
                Err(Error::new(code::shutting_down(), "The server is shutting down"))
            }
        }
    }

    /// Spawns the task of a recorded job. With a `place` it is claimed already and begins at once; without, when its turn comes: then
    /// `work` is told whether it came.
    pub(super) fn spawn_job<F>(
        self: &Arc<Self>,
        job: &Job,
        place: Option<OwnedSemaphorePermit>,
        work: impl FnOnce(Turn) -> F + Send + 'static,
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
            cancel: self.shared.cancel.child_token(),
        };
        self.tasks.insert(running.clone());
        let place = place.ok_or_else(|| self.tasks.turn());
        let this = Arc::clone(self);
        self.shared.spawn(async move {
            // Also dropped by a panic: then the job has no task, and the reconciler ends it.
            let _known = Known { tasks: &this.tasks, running: running.clone() };
            let turn = match place {
                Ok(place) => Some((place, running.epoch)),
                Err(turn) => this.wait_for_place(&running, turn).await,
            };
            match turn {
                // The place is held until the end is recorded.
                Some((_place, epoch)) => work(Turn::Came(Running { epoch, ..running })).await,
                None => work(Turn::Cancelled(running)).await,
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
        let _changing = self.tasks.changing.lock().await;
        let Some(mut job) = self.shared.store().job(id).await? else { return Ok(None) };
        if job.state == JobState::Queued && !job.cancel_requested {
            job.claim(&self.shared.config.server, self.shared.now());
            self.shared.record(self.with_job(Batch::new(), &job)).await?;
        }
        // Claimed now, or by an attempt whose answer was lost: nobody else of this server claims it.
        let ours = job.claim.filter(|claim| claim.server == self.shared.config.server);
        Ok(ours.map(|claim| claim.epoch))
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
        let _changing = self.tasks.changing.lock().await;
        let Some(job) = self.claimed_job(running).await? else { return Ok(false) };
        let mut job = running.with_progress(job);
        let wanted = !job.cancel_requested;
        let now = self.shared.now();
        job.claim = job.claim.map(|claim| Claim { heartbeat: now, ..claim });
        self.shared.record(Batch::new().write(Write::Job(Box::new(job)))).await?;
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
        let _changing = self.tasks.changing.lock().await;
        if let Some(job) = self.claimed_job(running).await? {
            self.shared.record(self.with_end(batch, running.with_progress(job), outcome)).await?;
        }
        running.set_ended();
        Ok(())
    }

    /// The job as it is stored, while its claim is this task's.
    async fn claimed_job(&self, running: &Running) -> Result<Option<Job>> {
        let job = self.shared.store().job(running.job).await?;
        Ok(job.filter(|job| job.is_claimed(&self.shared.config.server, running.epoch)))
    }

    /// Adds a job's change and its event.
    pub(super) fn with_job(&self, batch: Batch, job: &Job) -> Batch {
        let event = self.shared.event(EventKind::JobChanged { job: job.id, state: job.state });
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
        job.end(state, self.shared.now());
        self.with_job(batch, &job)
    }

    /// Whether nobody works on a live job, and this server may end it.
    pub(super) fn is_abandoned(&self, job: &Job) -> bool {
        if self.tasks.get(job.id).is_some() {
            return false;
        }
        match &job.claim {
            Some(claim) if claim.server == self.shared.config.server => true,
            Some(claim) => self.shared.now().duration_since(claim.heartbeat) > CLAIM_LOST_AFTER,
            None => job.cancel_requested && self.can_run_here(job),
        }
    }

    /// A live job that is about to be ended, if it is still so. The caller holds the image lock.
    pub(super) async fn ending(
        &self,
        id: JobId,
        still: impl Fn(&Job) -> bool + Send,
        why: EndReason,
    ) -> Result<Option<Ending<'_>>> {
        let changing = self.lock_changes().await;
        let job = self.shared.store().job(id).await?;
        let Some(job) = job.filter(|job| job.state.is_live() && still(job)) else { return Ok(None) };
        // It was not begun, so nothing else ended it, whoever finds it.
        let was_cancelled = job.state == JobState::Queued && job.cancel_requested;
        let why = if was_cancelled { EndReason::Cancelled } else { why };
        tracing::info!(job = %id, title = %job.title, ?why, "ending a job without a task");
        Ok(Some(Ending { job, why, _changing: changing }))
    }

    /// Whether a job is to be done here, and has no task.
    pub(super) fn lacks_a_task(&self, job: &Job) -> bool {
        let queued = job.state == JobState::Queued && !job.cancel_requested;
        queued && self.can_run_here(job) && self.tasks.get(job.id).is_none()
    }

    /// Whether this server can do it.
    pub(super) fn can_run_here(&self, job: &Job) -> bool {
        job.kind.only_on().is_none_or(|server| *server == self.shared.config.server)
    }

    /// What live jobs make, of every server.
    pub(super) async fn versions_in_jobs(&self) -> Result<HashSet<ImageVersionId>> {
        let live = self.shared.store().live_jobs().await?;
        Ok(live
            .into_iter()
            .map(|job| match job.subject {
                JobSubject::Version(version) => version,
            })
            .collect())
    }

    pub(super) async fn stored_job(&self, id: JobId) -> Result<Job> {
        self.shared.store().job(id).await?.ok_or_else(|| Error::not_found("job", id))
    }

    pub(super) fn with_live_progress(&self, job: Job) -> Job {
        match self.tasks.get(job.id) {
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
        let tasks = Tasks::new(1);
        let held = tasks.place().unwrap();
        let (first, second) = (tasks.turn(), tasks.turn());
        let mut second = pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        drop(held);
        assert!(second.as_mut().now_or_never().is_none() && tasks.place().is_none(), "it is the first one's");
        drop(first.await.unwrap());
        assert!(second.await.is_some());
    }
}

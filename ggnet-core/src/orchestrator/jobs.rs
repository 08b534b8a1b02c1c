//! [`Jobs`]: shown, cancelled, retried; and those that nobody works on. The one place that knows whose work each kind of job is.

use std::sync::Arc;

use serde_json::json;

use super::{
    images::Images,
    job_runner::{EndReason, JobRunner},
    shared::Shared,
    versions::Versions,
};
use crate::{
    authorization::{Command, authorize},
    error::{Error, ErrorKind, Result, code},
    nouns::{AuditAction, AuditSubject, ImageVersionId, Job, JobId, JobKind, JobSubject, Principal},
    ports::{Batch, JobFilter, Page, PageRequest},
};

/// Long work, by its record.
pub struct Jobs {
    shared: Arc<Shared>,
    versions: Arc<Versions>,
    runner: Arc<JobRunner>,
    images: Arc<Images>,
}

impl Jobs {
    pub(super) fn new(
        shared: Arc<Shared>,
        versions: Arc<Versions>,
        runner: Arc<JobRunner>,
        images: Arc<Images>,
    ) -> Self {
        Self { shared, versions, runner, images }
    }

    /// A job, with its progress up to date.
    pub async fn get(&self, id: JobId) -> Result<Job> {
        Ok(self.runner.with_live_progress(self.runner.stored_job(id).await?))
    }

    /// Jobs, newest first, with their progress up to date.
    pub async fn list(&self, filter: &JobFilter, page: PageRequest) -> Result<Page<Job>> {
        let mut found = self.shared.store().jobs(filter, page).await?;
        found.items = found.items.into_iter().map(|job| self.runner.with_live_progress(job)).collect();
        Ok(found)
    }

    /// The newest job that makes, or made, a version; none for one that no job made.
    pub async fn of_version(&self, version: ImageVersionId) -> Result<Option<Job>> {
        let filter = JobFilter { subject: Some(JobSubject::Version(version)), ..JobFilter::default() };
        let newest = self.list(&filter, PageRequest { page: 1, per_page: 1 }).await?;
        Ok(newest.items.into_iter().next())
    }

    /// Asks a live job to end, which it does soon: as `cancelled`, unless it is done before it notices. `Conflict` when it has ended.
    pub async fn cancel(self: &Arc<Self>, id: JobId, by: &Principal) -> Result<Job> {
        authorize(by, Command::JobCancel)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                // Held over read and write: the heartbeat changes the record too.
                let _changing = this.runner.lock_changes().await;
                let mut job = this.runner.stored_job(id).await?;
                if !job.state.is_live() {
                    return Err(Error::new(
                        code::job_ended(id, job.state.as_str()),
                        format!("The {} has ended already: it is {}", job.title, job.state.as_str()),
                    ));
                }
                if !job.cancel_requested {
                    job.cancel_requested = true;
                    let row = this.shared.audit(&by, AuditAction::JobCancel, AuditSubject::Job(id));
                    let row = row.before(json!({ "title": job.title, "state": job.state }));
                    // Its end frees space.
                    this.shared
                        .record(this.runner.with_job(Batch::new(), &job).audit(row).from_reserve())
                        .await?;
                    job.revision += 1;
                }
                // Without a task here it is another server's, which sees it at its next heartbeat, or the reconciler's.
                if let Some(running) = this.runner.task(id) {
                    running.cancel.cancel();
                }
                Ok(this.runner.with_live_progress(job))
            })
            .await
    }

    /// Cancels the import of a version; it ends as `failed`, and its job as `cancelled`. `NotFound` when none is under way.
    pub async fn cancel_import(self: &Arc<Self>, version: ImageVersionId, by: &Principal) -> Result<()> {
        authorize(by, Command::JobCancel)?;
        let job = self.of_version(version).await?.filter(|job| job.state.is_live());
        let job = job.ok_or_else(|| Error::not_found("import of version", version))?;
        self.cancel(job.id, by).await.map(|_| ())
    }

    /// Does a failed or cancelled job again, as it was asked for, when its turn comes: the same job, one attempt more. `Conflict` for one
    /// that is live, or ended well.
    pub async fn retry(self: &Arc<Self>, id: JobId, by: &Principal) -> Result<Job> {
        authorize(by, Command::JobRetry)?;
        let (this, by) = (Arc::clone(self), by.clone());
        self.shared
            .run(async move {
                this.runner.wait_for_sweep().await?;
                let _image = this.versions.lock().await;
                let _changing = this.runner.lock_changes().await;
                let job = this.runner.stored_job(id).await?;
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
                if this.runner.task(id).is_some_and(|running| !running.has_ended()) {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("The last attempt of the {} has not ended yet", job.title),
                    )
                    .with_hint("Wait a moment"));
                }
                if !this.runner.can_run_here(&job) {
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
                    JobKind::Import(import) => this.images.retry_import(job, import, by).await,
                }
            })
            .await
    }

    /// Ends jobs that nobody works on, and gives those that are queued and have no task here one. Returns how many ended.
    pub(super) async fn reconcile(&self) -> Result<u64> {
        let live = self.shared.store().live_jobs().await?;
        if !live.iter().any(|job| self.runner.is_abandoned(job) || self.runner.lacks_a_task(job)) {
            return Ok(0);
        }
        let ended = self.end_abandoned(EndReason::WorkEnded).await;
        self.start_queued().await?;
        ended
    }

    /// Ends what nobody works on: running jobs of this server without a task here, and those of another server whose claim is lost. An error
    /// where one could not be ended.
    pub(super) async fn end_abandoned(&self, why: EndReason) -> Result<u64> {
        // Whoever begins a job holds this until its task is known.
        let _image = self.versions.lock().await;
        let (mut ended, mut left) = (0, Ok(()));
        for job in self.shared.store().live_jobs().await? {
            if self.runner.is_abandoned(&job) {
                // One that cannot be ended now keeps no other from it.
                match self.end(job.id, why).await {
                    Ok(has_ended) => ended += u64::from(has_ended),
                    Err(e) => left = Err(e),
                }
            }
        }
        left.map(|()| ended)
    }

    /// Queued jobs of an earlier process, or whose task died, get a task.
    async fn start_queued(&self) -> Result<()> {
        // Whoever begins a job holds this until its task is known.
        let _image = self.versions.lock().await;
        let mut left = Ok(());
        for job in self.shared.store().live_jobs().await? {
            if self.runner.lacks_a_task(&job) {
                let started = match job.kind.clone() {
                    JobKind::Import(import) => self.images.start_queued_import(job, import).await,
                };
                // One that cannot be started now keeps no other from it.
                left = started.and(left);
            }
        }
        left
    }

    /// Ends a live job, if it is still so; the caller holds the image lock. Whether it did.
    async fn end(&self, id: JobId, why: EndReason) -> Result<bool> {
        let ending = self.runner.ending(id, |job| self.runner.is_abandoned(job), why).await?;
        let Some(ending) = ending else { return Ok(false) };
        match ending.job.kind.clone() {
            JobKind::Import(import) => self.images.end_import(ending.job, &import, ending.why).await?,
        }
        Ok(true)
    }
}

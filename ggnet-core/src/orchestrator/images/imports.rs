//! Imports: jobs that make a version of a file.
//!
//! An import: record `importing` and its job → wait for its turn → check the stated checksum of the source → probe → draft in the image store →
//! convert into it → seal → record `ready` and, unless told otherwise, make it current. Whatever fails or is cancelled leaves `failed` with the reason and no bytes. The server's
//! death in the middle leaves an `importing` record, which the next start makes `failed`; an end that cannot be recorded (the disk is full) is
//! recorded later; and what is `importing` though nobody imports it, the reconciler makes `failed`.
//!
//! A retry makes the same version: it is `importing` again, with its number, because people named it so and nothing of it was ever there.
//! An import that the server's death interrupted is not tried again by itself: if it was the import that killed the server (its memory, its
//! disk), each start would die of it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::Images;
use crate::{
    authorization::{Command, authorize},
    checksum::sha256_file,
    error::{Error, Result, code},
    nouns::{
        AuditAction, AuditSubject, EventKind, Image, ImageFormat, ImageId, ImageVersion, ImageVersionId,
        ImportJob, Job, JobKind, JobState, JobSubject, Name, Principal, SystemPart, VersionSource,
        VersionState,
    },
    orchestrator::job_runner::{EndReason, Running, Turn},
    ports::{Batch, Completeness, ConvertSpec, ImageSpec, Write},
};

/// An import.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The image to add a version to; made when there is none of this name.
    pub image: Name,
    /// The file on the server. The caller has made sure that it may be read.
    pub path: PathBuf,
    /// Its format; none: as the probe finds.
    pub format: Option<ImageFormat>,
    /// The SHA-256 that the file should have, in hexadecimal.
    pub expected_sha256: Option<String>,
    /// What the operator says of this version.
    pub comment: String,
    /// Whether machines boot it from their next boot on.
    pub make_current: bool,
    /// Who wants it.
    pub by: Principal,
}

/// How soon an end that could not be recorded is recorded again; doubled each time.
const RECORD_AGAIN: Duration = Duration::from_secs(1);
const RECORD_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

impl Images {
    /// Records an import and returns at once with the version being made: now, or when its [job](super::super::Jobs::of_version)'s turn comes.
    pub async fn import(self: &Arc<Self>, request: ImportRequest) -> Result<(Image, ImageVersion)> {
        authorize(&request.by, Command::ImageImport)?;
        // Record and audit are text. A link of a plain name may lead to such a file.
        if request.path.to_str().is_none() {
            let message = format!("The name of the file {} is not UTF-8 text", request.path.display());
            return Err(Error::invalid("path", message).with_hint("Rename it, or its folder"));
        }
        let this = Arc::clone(self);
        self.shared
            .run(async move {
                this.runner.wait_for_sweep().await?;
                // Two imports of one name must not both make the image, nor take the same number.
                let guard = this.versions.lock().await;
                let now = this.shared.now();
                let store = this.shared.store();
                let known = store.image_by_name(&request.image).await?;
                let mut image = known.unwrap_or_else(|| Image {
                    id: ImageId::generate(),
                    name: request.image.clone(),
                    description: String::new(),
                    current: None,
                    last_version: 0,
                    created_at: now,
                    updated_at: now,
                    revision: 0,
                });
                let source = VersionSource::Import {
                    path: request.path.clone(),
                    format: request.format,
                    expected_sha256: request.expected_sha256.clone(),
                };
                let version = this.versions.next_version(&mut image, source, &request.comment).await?;
                let import = ImportJob {
                    server: this.shared.config.server.clone(),
                    image: image.id,
                    version: version.id,
                    path: request.path.clone(),
                    format: request.format,
                    expected_sha256: request.expected_sha256.clone(),
                    make_current: request.make_current,
                };
                let title = format!("import of {}:{}", image.name, version.number);
                let mut job = Job::new(JobKind::Import(import.clone()), title, request.by.clone(), now);
                let place = this.runner.place();
                if place.is_some() {
                    job.claim(&this.shared.config.server, now);
                }
                let row =
                    this.shared.audit(&request.by, AuditAction::ImageImport, AuditSubject::Image(image.id));
                let new =
                    json!({ "name": image.name, "version": version.id, "path": request.path, "job": job.id });
                let row = row.after(new);
                let mut batch = Batch::new().write(Write::Image(image.clone()));
                if image.revision == 0 {
                    batch = batch.event(this.shared.event(EventKind::ImageCreated).image(image.id));
                }
                batch = batch.write(Write::Version(version.clone()));
                batch =
                    batch.event(this.shared.event(EventKind::VersionImporting).image(image.id)).audit(row);
                this.shared.record(this.runner.with_job(batch, &job)).await?;
                this.spawn_import(&job, import, version.clone(), place);
                drop(guard);
                let image = store.image(image.id).await?.unwrap_or(image);
                Ok((image, version))
            })
            .await
    }

    /// How far an import is, in per mille; `None` when none is under way here. One that waits for its turn is at 0.
    #[must_use]
    pub fn import_progress(&self, version: ImageVersionId) -> Option<u16> {
        let running = self.runner.on(JobSubject::Version(version))?;
        Some(running.per_mille.load(std::sync::atomic::Ordering::Relaxed))
    }

    fn spawn_import(
        self: &Arc<Self>,
        job: &Job,
        import: ImportJob,
        version: ImageVersion,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let this = Arc::clone(self);
        self.runner.spawn_job(job, place, move |turn| async move {
            match turn {
                Turn::Came(running) => this.finish_import(version, &import, running).await,
                Turn::Cancelled(running) => this.cancelled_before_its_turn(&import, &running).await,
            }
        });
    }

    async fn cancelled_before_its_turn(&self, import: &ImportJob, running: &Running) {
        // At the server's end it stays queued, and the next start goes on with it.
        if self.shared.cancel.is_cancelled() {
            return;
        }
        if let Err(e) = self.end_queued_import(import, running).await {
            tracing::warn!(job = %running.job, error = %e.report(), "could not record a cancelled job's end; the reconciler does");
        }
        running.set_ended();
    }

    async fn end_queued_import(&self, import: &ImportJob, running: &Running) -> Result<()> {
        let _image = self.versions.lock().await;
        let still = |job: &Job| job.state == JobState::Queued;
        match self.runner.ending(running.job, still, EndReason::Cancelled).await? {
            Some(ending) => self.end_import(ending.job, import, ending.why).await,
            None => Ok(()),
        }
    }

    /// Takes up an import that an earlier process left queued. The caller holds the image lock.
    pub(in crate::orchestrator) async fn start_queued_import(
        self: &Arc<Self>,
        job: Job,
        import: ImportJob,
    ) -> Result<()> {
        let version = self.shared.store().version(import.version).await?;
        match version.filter(|version| version.state == VersionState::Importing) {
            Some(version) => self.spawn_import(&job, import, version, None),
            // Nothing is left to make.
            None => self.record_import_without_result(job, &import, None, EndReason::WorkEnded).await?,
        }
        Ok(())
    }

    /// Begins a failed or cancelled import anew. The caller holds the image lock, and the right to change the job.
    pub(in crate::orchestrator) async fn retry_import(
        self: &Arc<Self>,
        mut job: Job,
        import: ImportJob,
        by: Principal,
    ) -> Result<Job> {
        let version = self.shared.store().version(import.version).await?;
        let Some(mut version) = version.filter(|version| version.state == VersionState::Failed) else {
            return Err(Error::not_found("image version", import.version)
                .with_hint("The version that this job made was removed: import the file again"));
        };
        version.state = VersionState::Importing;
        (version.error, version.failure, version.finished_at) = (None, None, None);
        let row = self.shared.audit(&by, AuditAction::JobRetry, AuditSubject::Job(job.id));
        let row = row
            .before(json!({ "state": job.state }))
            .after(json!({ "version": version.id, "path": import.path }));
        job.queue_again(by);
        let place = self.runner.place();
        if place.is_some() {
            job.claim(&self.shared.config.server, self.shared.now());
        }
        let event = self.shared.event(EventKind::VersionImporting).image(version.image);
        let batch = Batch::new().write(Write::Version(version.clone())).event(event).audit(row);
        self.shared.record(self.runner.with_job(batch, &job)).await?;
        job.revision += 1;
        self.spawn_import(&job, import, version, place);
        Ok(job)
    }

    /// Ends an import that nobody works on, with its version if that is still `importing`. The caller holds the image lock, and the right to
    /// change the job.
    pub(in crate::orchestrator) async fn end_import(
        &self,
        job: Job,
        import: &ImportJob,
        why: EndReason,
    ) -> Result<()> {
        let version = self.shared.store().version(import.version).await?;
        let version = version.filter(|version| version.state == VersionState::Importing);
        self.record_import_without_result(job, import, version, why).await
    }

    async fn record_import_without_result(
        &self,
        job: Job,
        import: &ImportJob,
        version: Option<ImageVersion>,
        why: EndReason,
    ) -> Result<()> {
        let why = match why {
            EndReason::Cancelled => was_cancelled(),
            EndReason::ServerEnded => interrupted("The server was interrupted during the import"),
            EndReason::WorkEnded => interrupted("The import ended without a result"),
        };
        let has_bytes = version.is_some();
        let batch = version.map_or_else(Batch::new, |version| self.versions.failed_version(version, &why));
        self.shared.record(self.runner.with_end(batch, job, Err(&why)).from_reserve()).await?;
        if has_bytes {
            self.versions.remove_bytes(import.version).await;
        }
        Ok(())
    }

    /// Imports, and records how it ended: again and again while that cannot be recorded. Until it is, the import counts as running, and
    /// can be cancelled.
    async fn finish_import(&self, version: ImageVersion, request: &ImportJob, running: Running) {
        let work = self.perform_import(&version, request, &running);
        let mut outcome = self.runner.with_heartbeat(&running, work).await;
        if outcome.is_err() && self.shared.cancel.is_cancelled() {
            outcome = Err(interrupted("The server was stopped during the import"));
        }
        if let Err(e) = &outcome {
            tracing::warn!(version = %version.id, error = %e.report(), "import failed");
            self.versions.remove_bytes(version.id).await;
        }
        let mut wait = RECORD_AGAIN;
        loop {
            // Held over the record: the image's current version is read and written.
            let image_lock = self.versions.lock().await;
            let recorded = self.record_import(version.clone(), request, &running, &outcome).await;
            let Err(e) = recorded else { return };
            drop(image_lock);
            tracing::error!(version = %version.id, error = %e.report(), again_in = ?wait, "could not record the import's end");
            tokio::select! {
                () = running.cancel.cancelled(), if outcome.is_ok() => {
                    if self.shared.cancel.is_cancelled() {
                        return;
                    }
                    outcome = Err(was_cancelled());
                    self.versions.remove_bytes(version.id).await;
                }
                // The record stays `importing`; the next start makes it `failed` and removes the bytes.
                () = self.shared.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RECORD_AGAIN_AT_MOST);
        }
    }

    /// The caller holds the image lock.
    async fn record_import(
        &self,
        mut version: ImageVersion,
        request: &ImportJob,
        running: &Running,
        outcome: &Result<(u64, String)>,
    ) -> Result<()> {
        version.finished_at = Some(self.shared.now());
        let mut batch = Batch::new();
        match outcome {
            Ok((size_bytes, sha256)) => {
                version.state = VersionState::Ready;
                version.size_bytes = *size_bytes;
                version.sha256 = Some(sha256.clone());
                let event = self.shared.event(EventKind::VersionReady).image(version.image);
                batch = batch.write(Write::Version(version.clone())).event(event);
                batch =
                    self.versions.with_current(batch, &version, request.make_current, &running.by).await?;
            }
            Err(e) => batch = self.versions.failed_version(version, e),
        }
        self.runner.record_end(running, batch, outcome.as_ref().map(|_| ())).await
    }

    /// Versions that are `importing` and that nobody makes: what made them died, or is of a GGnet that had no jobs. Imports become `failed`,
    /// and their bytes go. Returns how many were ended; an error where one could not be.
    pub(in crate::orchestrator) async fn fail_abandoned(&self) -> Result<u64> {
        let importing = self.shared.store().importing_versions().await?;
        if importing.is_empty() {
            return Ok(0);
        }
        let in_jobs = self.runner.versions_in_jobs().await?;
        if importing.iter().all(|version| in_jobs.contains(&version.id)) {
            return Ok(0);
        }
        // Looked at again: whoever begins an import holds this until it is recorded.
        let _image = self.versions.lock().await;
        let in_jobs = self.runner.versions_in_jobs().await?;
        let (mut failed, mut left) = (0, Ok(()));
        for version in self.shared.store().importing_versions().await? {
            if in_jobs.contains(&version.id) {
                continue;
            }
            // One that cannot be ended now keeps no other from it.
            match self.end_abandoned(version, "The import ended without a result").await {
                Ok(()) => failed += 1,
                Err(e) => left = Err(e),
            }
        }
        left.map(|()| failed)
    }

    async fn perform_import(
        &self,
        version: &ImageVersion,
        request: &ImportJob,
        running: &Running,
    ) -> Result<(u64, String)> {
        // Of 1000: the source's checksum takes 150 when one was stated, the conversion the rest but what sealing takes.
        let share = |from: u16, to: u16| -> crate::ports::Progress {
            let shown = running.per_mille.clone();
            Arc::new(move |part: u16| {
                let at = u32::from(from) + u32::from(to - from) * u32::from(part.min(1000)) / 1000;
                shown.store(u16::try_from(at).unwrap_or(1000), std::sync::atomic::Ordering::Relaxed);
            })
        };
        if let Some(expected) = &request.expected_sha256 {
            running.set_step("Checking the file's checksum");
            let found = sha256_file(&request.path, share(0, 150), running.cancel.clone()).await?;
            if !found.eq_ignore_ascii_case(expected) {
                return Err(Error::new(
                    code::checksum_mismatch(request.path.display(), &found, expected),
                    format!("{} has the checksum {found}, not {expected}", request.path.display()),
                )
                .with_field("expected_sha256")
                .with_hint("The file is damaged or is another one; get it again"));
            }
        }
        running.set_step("Converting");
        let converter = self.shared.ports.converter();
        // The probe goes on by itself, and changes nothing.
        let probe = running.cancel.run_until_cancelled(converter.probe(&request.path)).await;
        let probe = probe.ok_or_else(was_cancelled)??;
        if let Some(stated) = request.format
            && stated != probe.format
        {
            return Err(Error::new(
                code::format_mismatch(probe.format.qemu_name(), stated.qemu_name()),
                format!("{} is {:?}, not {stated:?}", request.path.display(), probe.format),
            )
            .with_field("format")
            .with_hint("Import it with the format that it has, or leave the format out"));
        }
        let images = self.shared.ports.images();
        let made = ImageSpec::new(version.id, probe.virtual_size);
        let spec = ConvertSpec {
            source: request.path.clone(),
            format: probe.format,
            virtual_size: probe.virtual_size,
            sink: images.draft(&made).await?,
        };
        let converted = converter.convert(&spec, share(150, 990), running.cancel.clone()).await?;
        // Sealed as large as it was written: of another size than was found before, it is refused.
        let sealed = images.seal(&ImageSpec::new(version.id, converted.size_bytes)).await?;
        Ok((sealed.size_bytes, converted.sha256))
    }

    /// Whether somebody works on it: a version whose import ended and could not be recorded is nobody's, and can be deleted.
    pub(super) fn is_importing(&self, version: &ImageVersion) -> bool {
        version.state == VersionState::Importing && self.runner.on(JobSubject::Version(version.id)).is_some()
    }

    /// Versions that our death interrupted become `failed`, and bytes that no version explains are removed. Jobs that our death interrupted have
    /// been ended before.
    pub(in crate::orchestrator) async fn sweep(&self) -> Result<()> {
        // Those that are queued have not begun; the others are of a GGnet that had no jobs, or publications.
        let in_jobs = self.runner.versions_in_jobs().await?;
        let store = self.shared.store();
        for version in store.importing_versions().await? {
            let id = version.id;
            if in_jobs.contains(&id) {
                continue;
            }
            // One that cannot be ended now stays `importing`, which keeps its bytes; the reconciler goes on with it.
            if let Err(e) = self.end_abandoned(version, "The server was interrupted during the import").await
            {
                tracing::warn!(version = %id, error = %e.report(), "an interrupted version is left as it is");
            }
        }
        let mut listed = self.shared.ports.images().list().await?;
        // The newest first: what stands on another is younger.
        listed.sort_by_key(|listed| std::cmp::Reverse(listed.id));
        for found in listed {
            match store.version(found.id).await? {
                Some(version) if version.state != VersionState::Failed => {}
                // What a machine kept is nowhere else any more.
                Some(version)
                    if matches!(version.source, VersionSource::Writeback { .. })
                        && found.completeness == Completeness::Whole =>
                {
                    tracing::warn!(version = %found.id, "a publication that had failed has its bytes: it is ready");
                    let by = Principal::system(SystemPart::Upkeep);
                    let _image = self.versions.lock().await;
                    if let Err(e) = self.record_published(version, &found, false, &by).await {
                        tracing::warn!(version = %found.id, error = %e.report(), "it is left as it is");
                    }
                }
                // A failed import has no bytes, unless its converter was cut off and went on to its end unheard.
                Some(_) | None => {
                    tracing::info!(version = %found.id, "removing bytes that no image version explains");
                    self.versions.remove_bytes(found.id).await;
                }
            }
        }
        Ok(())
    }

    /// Ends a version that is `importing` and that nobody makes. The caller has made sure of that.
    async fn end_abandoned(&self, version: ImageVersion, why: &str) -> Result<()> {
        if let VersionSource::Writeback { session, .. } = version.source {
            return self.end_abandoned_publication(version, session).await;
        }
        let id = version.id;
        self.shared.record(self.versions.failed_version(version, &interrupted(why))).await?;
        self.versions.remove_bytes(id).await;
        Ok(())
    }
}

fn was_cancelled() -> Error {
    Error::new(code::import_cancelled(), "The import was cancelled").retryable(false)
}

fn interrupted(message: &str) -> Error {
    Error::new(code::import_interrupted(), message)
        .with_hint("`ggnet job retry` does it again, or import the file again")
}

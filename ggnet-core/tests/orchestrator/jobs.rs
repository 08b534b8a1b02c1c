//! Jobs: their turn, cancel, retry, heartbeat, and what is left of them when the server dies.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ggnet_core::{
    ErrorKind, Result,
    boot_text::templates::BootTemplates,
    metrics::Registry,
    nouns::{
        EventKind, ImageFormat, ImageVersion, ImageVersionId, ImportJob, Job, JobId, JobKind, JobState,
        Principal, ServerId, VersionState,
    },
    orchestrator::{Backends, ImportRequest, Orchestrator, Ports},
    ports::{
        Batch, ConvertSpec, Converted, Health, ImageConverter, ImageProbe, ImageStore as _, JobFilter,
        Progress, SinkForm, Store as _, Write,
    },
    testkit::{
        flaky::{Fault, FaultPlan},
        memory::MemoryStore,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    crash::{POLLS, dies},
    house::{House, Process, all, until},
};

fn request(house: &House) -> ImportRequest {
    let path: PathBuf = house.dir.path().join("source.raw");
    std::fs::File::create(&path).unwrap().set_len(4096).unwrap();
    ImportRequest {
        image: "debian".parse().unwrap(),
        path,
        format: None,
        expected_sha256: None,
        comment: String::new(),
        make_current: true,
        by: Principal::embedder(),
    }
}

/// Begins an import; its version and its job.
async fn import(house: &House, p: &Process) -> (ImageVersionId, JobId) {
    let (_, version) = p.o.images().import(request(house)).await.unwrap();
    (version.id, p.o.jobs().of_version(version.id).await.unwrap().unwrap().id)
}

/// A server that runs one job at a time, whose first import hangs in its probe.
async fn one_at_a_time() -> (House, Process) {
    let mut house = House::new();
    house.config.jobs_at_once = 1;
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.probe").nth(1).hangs());
    (house, p)
}

async fn job(store: &MemoryStore, id: JobId) -> Job {
    store.job(id).await.unwrap().unwrap()
}

async fn ends(p: &Process, id: JobId) -> Job {
    until("the job ends", async || !job(&p.store, id).await.state.is_live()).await;
    job(&p.store, id).await
}

async fn version(p: &Process, id: ImageVersionId) -> ImageVersion {
    p.store.version(id).await.unwrap().unwrap()
}

async fn audit_rows(p: &Process) -> u64 {
    p.store.audit(all()).await.unwrap().total
}

#[tokio::test]
async fn jobs_beyond_the_limit_wait_and_come_in_the_order_in_which_they_were_asked_for() {
    let (house, p) = one_at_a_time().await;
    let (_, first) = import(&house, &p).await;
    let (waiting, second) = import(&house, &p).await;
    let (_, third) = import(&house, &p).await;
    let states = async || -> Vec<(JobId, JobState)> {
        let page = p.o.jobs().list(&JobFilter::default(), all()).await.unwrap();
        page.items.into_iter().map(|job| (job.id, job.state)).collect()
    };
    use JobState::{Cancelled, Queued, Running, Succeeded};
    assert_eq!(states().await, [(third, Queued), (second, Queued), (first, Running)]);
    assert_eq!(p.o.images().import_progress(waiting), Some(0));
    assert_eq!(version(&p, waiting).await.state, VersionState::Importing);
    let refused = p.o.images().delete_version(waiting, &Principal::embedder()).await.unwrap_err();
    assert_eq!(refused.code().name(), "version_importing");
    p.reconcile().await;
    assert_eq!(states().await, [(third, Queued), (second, Queued), (first, Running)], "nobody's to touch");

    p.o.jobs().cancel(first, &Principal::embedder()).await.unwrap();
    ends(&p, third).await;
    assert_eq!(states().await, [(third, Succeeded), (second, Succeeded), (first, Cancelled)]);
    let began = p.all_events().await.into_iter().filter_map(|kind| match kind {
        EventKind::JobChanged { job, state: Running } => Some(job),
        _ => None,
    });
    // The first one is told of twice: it was asked to end.
    assert_eq!(began.collect::<Vec<_>>(), [first, first, second, third]);
}

#[tokio::test]
async fn a_job_is_cancelled_while_it_waits_and_while_it_runs_and_not_after_its_end() {
    let (house, p) = one_at_a_time().await;
    let (_, running) = import(&house, &p).await;
    let (waiting, queued) = import(&house, &p).await;
    for id in [queued, running] {
        let rows = audit_rows(&p).await;
        let asked = p.o.jobs().cancel(id, &Principal::embedder()).await.unwrap();
        assert!(asked.cancel_requested);
        assert_eq!(audit_rows(&p).await, rows + 1);
        let ended = ends(&p, id).await;
        assert!(ended.state == JobState::Cancelled && ended.claim.is_none(), "{ended:?}");
        assert_eq!(ended.failure.unwrap().code, "import_cancelled");
        assert!(ended.finished_at.is_some());
    }
    let failed = version(&p, waiting).await;
    assert_eq!(
        (failed.state, failed.failure.unwrap().code.as_str()),
        (VersionState::Failed, "import_cancelled")
    );
    let rows = audit_rows(&p).await;
    let e = p.o.jobs().cancel(queued, &Principal::embedder()).await.unwrap_err();
    assert_eq!((e.kind(), e.code().name()), (ErrorKind::Conflict, "job_ended"));
    let e = p.o.jobs().cancel(JobId::generate(), &Principal::embedder()).await.unwrap_err();
    assert_eq!((e.kind(), e.code().name()), (ErrorKind::NotFound, "job_not_found"));
    assert_eq!(audit_rows(&p).await, rows, "what was refused is not recorded");
}

#[tokio::test]
async fn a_cancel_that_another_server_was_asked_for_is_seen_at_the_next_heartbeat() {
    let (house, p) = one_at_a_time().await;
    let (_, id) = import(&house, &p).await;
    until("it is probed", async || p.plan.calls("image_converter.probe") > 0).await;
    let mut asked = job(&p.store, id).await;
    asked.cancel_requested = true;
    p.store.commit(Batch::new().write(Write::Job(Box::new(asked)))).await.unwrap();
    house.pass(Duration::from_secs(11)).await;
    assert_eq!(ends(&p, id).await.state, JobState::Cancelled);
}

#[tokio::test]
async fn a_failed_job_is_retried_and_makes_the_same_version() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.probe").nth(1).fails(ErrorKind::Full));
    let (made, id) = import(&house, &p).await;
    let failed = ends(&p, id).await;
    assert_eq!(
        (failed.state, failed.attempts, failed.failure.unwrap().code.as_str()),
        (JobState::Failed, 1, "full")
    );
    let number = version(&p, made).await.number;

    let rows = audit_rows(&p).await;
    let begun = p.o.jobs().retry(id, &Principal::embedder()).await.unwrap();
    assert!(begun.state.is_live() && begun.failure.is_none() && begun.error.is_none());
    assert_eq!(audit_rows(&p).await, rows + 1);
    let done = ends(&p, id).await;
    assert_eq!((done.state, done.attempts, done.progress_per_mille), (JobState::Succeeded, 2, 1000));
    let ready = version(&p, made).await;
    assert_eq!((ready.state, ready.number, ready.error), (VersionState::Ready, number, None));
    assert_eq!(p.images.list().await.unwrap().len(), 1);

    let e = p.o.jobs().retry(id, &Principal::embedder()).await.unwrap_err();
    assert_eq!((e.kind(), e.code().name()), (ErrorKind::Conflict, "job_not_retryable"));
}

#[tokio::test]
async fn a_job_whose_version_was_removed_is_not_retried() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.probe").nth(1).fails(ErrorKind::Full));
    let (made, id) = import(&house, &p).await;
    ends(&p, id).await;
    until("its task has ended", async || p.o.images().import_progress(made).is_none()).await;
    p.o.images().delete_version(made, &Principal::embedder()).await.unwrap();
    let e = p.o.jobs().retry(id, &Principal::embedder()).await.unwrap_err();
    assert_eq!((e.kind(), e.code().name()), (ErrorKind::NotFound, "version_not_found"));
    assert!(e.hint().unwrap().contains("import the file again"), "{e:?}");
    assert_eq!(job(&p.store, id).await.state, JobState::Failed);
}

#[tokio::test]
async fn a_second_job_for_one_version_is_refused() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.probe").nth(1).fails(ErrorKind::Full));
    let (made, id) = import(&house, &p).await;
    let failed = ends(&p, id).await;
    // Another server has begun one.
    let JobKind::Import(kind) = failed.kind else { unreachable!() };
    let kind = ImportJob { server: ServerId::generate(), ..kind };
    let other = Job::new(
        JobKind::Import(kind),
        "import of debian:1".to_owned(),
        Principal::embedder(),
        failed.created_at,
    );
    p.store.commit(Batch::new().write(Write::Job(Box::new(other)))).await.unwrap();
    let e = p.o.jobs().retry(id, &Principal::embedder()).await.unwrap_err();
    assert_eq!((e.kind(), e.code().name()), (ErrorKind::Conflict, "job_under_way"));
    assert_eq!(version(&p, made).await.state, VersionState::Failed, "nothing of the batch was applied");
    assert_eq!(p.o.images().import_progress(made), None);
}

#[tokio::test]
async fn after_a_crash_what_ran_has_failed_and_what_waited_is_done() {
    let (house, p) = one_at_a_time().await;
    let (interrupted, ran) = import(&house, &p).await;
    let (made, waited) = import(&house, &p).await;
    until("it is probed", async || p.plan.calls("image_converter.probe") > 0).await;
    drop(p);
    let p = house.open().await;
    let failed = ends(&p, ran).await;
    assert_eq!(
        (failed.state, failed.failure.unwrap().code.as_str()),
        (JobState::Failed, "import_interrupted")
    );
    assert_eq!(version(&p, interrupted).await.state, VersionState::Failed);
    let done = ends(&p, waited).await;
    assert_eq!((done.state, done.attempts), (JobState::Succeeded, 1));
    assert_eq!(version(&p, made).await.state, VersionState::Ready);
    // The one that was interrupted is not tried again by itself, but when somebody asks.
    p.o.jobs().retry(ran, &Principal::embedder()).await.unwrap();
    assert_eq!(ends(&p, ran).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_shutdown_leaves_what_waits_for_the_next_start() {
    let (house, p) = one_at_a_time().await;
    let (_, ran) = import(&house, &p).await;
    let (_, waited) = import(&house, &p).await;
    p.o.shutdown().await;
    drop(p);
    let p = house.open().await;
    let failed = job(&p.store, ran).await;
    assert_eq!(
        (failed.state, failed.failure.unwrap().code.as_str()),
        (JobState::Failed, "import_interrupted")
    );
    assert_eq!(ends(&p, waited).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_that_was_cancelled_and_found_without_a_task_was_cancelled_and_not_interrupted() {
    let (house, p) = one_at_a_time().await;
    let (_, ran) = import(&house, &p).await;
    let (made, waited) = import(&house, &p).await;
    // Its server died between this and the end of it.
    let mut asked = job(&p.store, waited).await;
    asked.cancel_requested = true;
    p.store.commit(Batch::new().write(Write::Job(Box::new(asked)))).await.unwrap();
    drop(p);
    let p = house.open().await;
    assert_eq!(ends(&p, ran).await.state, JobState::Failed);
    let ended = ends(&p, waited).await;
    assert_eq!(
        (ended.state, ended.failure.unwrap().code.as_str()),
        (JobState::Cancelled, "import_cancelled")
    );
    assert_eq!(version(&p, made).await.state, VersionState::Failed);
}

#[tokio::test]
async fn one_job_that_cannot_be_ended_keeps_no_other_from_its_end_or_its_turn() {
    let mut house = House::new();
    house.config.jobs_at_once = 2;
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.probe").hangs());
    let (_, first) = import(&house, &p).await;
    let (_, second) = import(&house, &p).await;
    let (_, waited) = import(&house, &p).await;
    drop(p);
    let plan = FaultPlan::new();
    // The look at what the first one was making.
    plan.add(Fault::on("store.version").nth(1).fails(ErrorKind::Unavailable));
    let p = house.open_unready(&plan);
    for (id, state) in [(second, JobState::Failed), (waited, JobState::Succeeded)] {
        assert_eq!(ends(&p, id).await.state, state);
    }
    p.until_serving().await;
    p.o.reconcile().await;
    assert_eq!(job(&p.store, first).await.state, JobState::Failed, "later");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_cannot_be_recorded_is_tried_again_and_ever_less_often() {
    let (house, p) = one_at_a_time().await;
    let (_, first) = import(&house, &p).await;
    let (_, second) = import(&house, &p).await;
    // What ends a job may use the reserve.
    house.store.set_full(true);
    p.o.jobs().cancel(first, &Principal::embedder()).await.unwrap();
    ends(&p, first).await;
    let commits = p.plan.calls("store.commit");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tried = p.plan.calls("store.commit") - commits;
    assert!((10..=80).contains(&tried), "{tried} times in an hour");
    assert_eq!(job(&p.store, second).await.state, JobState::Queued);
    house.store.set_full(false);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(ends(&p, second).await.state, JobState::Succeeded);
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_whose_name_is_no_text_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt as _;

    let house = House::new();
    let p = house.open().await;
    let path = house.dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff.raw"));
    let e = p.o.images().import(ImportRequest { path, ..request(&house) }).await.unwrap_err();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")));
    assert!(e.hint().is_some(), "{e}");
    assert_eq!(p.store.jobs(&JobFilter::default(), all()).await.unwrap().total, 0);
}

#[tokio::test]
async fn killed_at_every_call_of_an_import() {
    for polls in POLLS {
        for step in 1.. {
            let house = House::new();
            let p = house.open().await;
            let (o, ask) = (p.o.clone(), request(&house));
            let work = async move {
                let Ok((_, version)) = o.images().import(ask).await else { return };
                while o.images().import_progress(version.id).is_some() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let died = dies(&p.plan, step, polls, work).await;
            let why = format!("killed at call {step} after {polls} polls: {:?}", p.plan.log().last());
            drop(p);
            // What the dead process had given to other threads comes to its end.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let p = house.open().await;
            let jobs = p.store.jobs(&JobFilter::default(), all()).await.unwrap().items;
            assert!(jobs.len() <= 1, "{why}: {jobs:?}");
            let mut ready = 0;
            for job in jobs {
                let ended = ends(&p, job.id).await;
                let JobKind::Import(import) = &ended.kind else { unreachable!() };
                let made = version(&p, import.version).await;
                let both = (ended.state, made.state);
                let whole = both == (JobState::Succeeded, VersionState::Ready);
                assert!(whole || both == (JobState::Failed, VersionState::Failed), "{why}: {both:?}");
                let image = p.store.image(made.image).await.unwrap().unwrap();
                assert_eq!(image.current, whole.then_some(made.id), "{why}");
                ready += usize::from(whole);
            }
            assert_eq!(p.images.list().await.unwrap().len(), ready, "{why}: bytes");
            p.reconcile().await;
            let (made, again) = import(&house, &p).await;
            assert_eq!(ends(&p, again).await.state, JobState::Succeeded, "{why}");
            assert_eq!(version(&p, made).await.state, VersionState::Ready, "{why}");
            if !died {
                assert!(step > 5, "an import has more calls than {step}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_running_job_has_a_heartbeat_and_records_little_more() {
    let (house, p) = one_at_a_time().await;
    let (_, id) = import(&house, &p).await;
    until("it is probed", async || p.plan.calls("image_converter.probe") > 0).await;
    let begun = job(&p.store, id).await.claim.unwrap();
    assert_eq!((begun.at, begun.epoch), (begun.heartbeat, 1));
    let commits = p.plan.calls("store.commit");
    for beat in 1..=3 {
        house.pass(Duration::from_secs(10)).await;
        until("its heart beats", async || p.plan.calls("store.commit") >= commits + beat).await;
    }
    let claim = job(&p.store, id).await.claim.unwrap();
    assert!(claim.heartbeat > begun.heartbeat, "{claim:?}");
    assert_eq!((claim.at, claim.epoch), (begun.at, begun.epoch));
    assert_eq!(p.plan.calls("store.commit"), commits + 3, "one commit each 10 seconds");
    let shown = p.o.jobs().get(id).await.unwrap();
    assert_eq!((shown.state, shown.step.as_str()), (JobState::Running, "Converting"));
}

#[tokio::test]
async fn a_job_of_another_server_fails_when_its_heartbeat_is_too_old() {
    let house = House::new();
    let p = house.open().await;
    let (image, ready) = p.image("debian").await;
    let mut theirs = version(&p, ready).await;
    (theirs.id, theirs.number, theirs.state) = (ImageVersionId::generate(), 2, VersionState::Importing);
    let (other, now) = (ServerId::generate(), theirs.created_at);
    let kind = ImportJob {
        server: other.clone(),
        image,
        version: theirs.id,
        path: "/theirs.raw".into(),
        format: Some(ImageFormat::Raw),
        expected_sha256: None,
        make_current: false,
    };
    let mut work =
        Job::new(JobKind::Import(kind), "import of debian:2".to_owned(), Principal::embedder(), now);
    work.claim(&other, now);
    let batch = Batch::new().write(Write::Version(theirs.clone())).write(Write::Job(Box::new(work.clone())));
    p.store.commit(batch).await.unwrap();
    house.clock.advance(Duration::from_secs(100));
    assert_eq!(p.o.reconcile().await.ended, 0, "they may still work on it");
    assert!(job(&p.store, work.id).await.state.is_live());
    assert_eq!(version(&p, theirs.id).await.state, VersionState::Importing);

    house.clock.advance(Duration::from_secs(30));
    assert_eq!(p.o.reconcile().await.ended, 1);
    let lost = job(&p.store, work.id).await;
    assert_eq!((lost.state, lost.claim), (JobState::Failed, None));
    assert_eq!(version(&p, theirs.id).await.state, VersionState::Failed);
    let e = p.o.jobs().retry(work.id, &Principal::embedder()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "the file is theirs");
}

/// A converter with a defect.
struct Panics;

#[async_trait::async_trait]
impl ImageConverter for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    async fn probe(&self, _: &std::path::Path) -> Result<ImageProbe> {
        Ok(ImageProbe { format: ImageFormat::Raw, virtual_size: 4096, actual_size: 4096 })
    }

    fn sinks(&self) -> Vec<SinkForm> {
        vec![SinkForm::File, SinkForm::Blocks]
    }

    async fn convert(&self, _: &ConvertSpec, _: Progress, _: CancellationToken) -> Result<Converted> {
        panic!("a defect of the converter")
    }

    async fn health(&self) -> Health {
        Health::Up
    }
}

/// The ports of a process that has this converter.
fn ports(house: &House, p: &Process, converter: impl ImageConverter) -> Ports {
    let backends = Backends {
        store: Arc::new(p.store.clone()),
        images: p.images.clone(),
        target: p.targets.clone(),
        writeback: p.writebacks.clone(),
        dhcp: p.dhcp.clone(),
        boot_files: p.files.clone(),
        converter: Arc::new(converter),
        clock: Arc::new(house.clock.clone()),
    };
    Ports::new(backends, &house.limits, &mut Registry::default()).unwrap()
}

#[tokio::test]
async fn a_panic_in_the_work_fails_the_job_and_frees_its_place() {
    let mut house = House::new();
    house.config.jobs_at_once = 1;
    let p = house.open().await;
    let templates = BootTemplates::load(None).unwrap();
    let o = Orchestrator::new(ports(&house, &p, Panics), house.config.clone(), templates).unwrap();
    for _ in 0..2 {
        let (_, made) = o.images().import(request(&house)).await.unwrap();
        let id = o.jobs().of_version(made.id).await.unwrap().unwrap().id;
        let failed = ends(&p, id).await;
        assert_eq!(failed.state, JobState::Failed);
        assert!(failed.error.unwrap().contains("panicked"));
        assert_eq!(version(&p, made.id).await.state, VersionState::Failed);
    }
    o.shutdown().await;
}

#[tokio::test]
async fn the_limit_of_jobs_is_at_least_one() {
    let mut house = House::new();
    let p = house.open().await;
    house.config.jobs_at_once = 0;
    let templates = BootTemplates::load(None).unwrap();
    let made = Orchestrator::new(ports(&house, &p, Panics), house.config.clone(), templates);
    let e = made.err().unwrap();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("jobs_at_once")));
}

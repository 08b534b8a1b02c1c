//! Cases of jobs: revisions, one live job per subject, order, pages, filters, pruning.

use std::sync::Arc;

use super::{
    Fresh,
    records::at,
    support::{ALL, refused, says, write},
};
use crate::{
    error::{Error, ErrorKind},
    nouns::{
        Failure, ImageFormat, ImageId, ImageVersionId, ImportJob, Job, JobId, JobKind, JobState, Principal,
        ServerId,
    },
    ports::{Batch, JobFilter, PageRequest, Write},
};

/// A queued import of this version.
#[must_use]
pub fn job(version: ImageVersionId) -> Job {
    let import = ImportJob {
        server: ServerId::generate(),
        image: ImageId::generate(),
        version,
        path: "/srv/images/a.qcow2".into(),
        format: Some(ImageFormat::Qcow2),
        expected_sha256: Some("ab".repeat(32)),
        make_current: true,
    };
    Job::new(JobKind::Import(import), "import of win11:1".to_owned(), Principal::embedder(), at(1))
}

fn put_job(job: &Job) -> Write {
    Write::Job(Box::new(job.clone()))
}

/// A job reads back as it was written, also after a crash, and changes only over the revision it was read with.
pub async fn a_job_changes_only_over_the_revision_it_was_read_with(f: Fresh<'_>) {
    let s = f.fresh().await;
    assert_eq!(s.job(JobId::generate()).await.unwrap(), None);
    assert_eq!(s.live_jobs().await.unwrap(), vec![]);
    assert_eq!(s.jobs(&JobFilter::default(), ALL).await.unwrap().total, 0);
    let mut new = job(ImageVersionId::generate());
    write(&*s, [put_job(&new)]).await;
    refused(&*s, ErrorKind::Conflict, put_job(&new)).await;
    new.revision = 1;
    assert_eq!(s.job(new.id).await.unwrap().as_ref(), Some(&new));

    new.claim(&ServerId::generate(), at(2));
    (new.progress_per_mille, new.step, new.cancel_requested) = (421, "Converting".to_owned(), true);
    write(&*s, [put_job(&new)]).await;
    let e = refused(&*s, ErrorKind::Conflict, put_job(&new)).await;
    says(&e, &[&new.id.to_string(), "job"]);
    new.revision = 2;
    assert_eq!(s.live_jobs().await.unwrap(), [new.clone()]);
    let why = Error::not_found("image", 7).with_hint("Import it");
    (new.error, new.failure) = (Some(why.report()), Some(Failure::from(&why)));
    new.end(JobState::Failed, at(9));
    write(&*s, [put_job(&new)]).await;
    new.revision = 3;
    drop(s);

    let s = f.reopen().await;
    assert_eq!(s.job(new.id).await.unwrap(), Some(new.clone()));
    assert_eq!(s.live_jobs().await.unwrap(), vec![]);
    let mut gone = job(ImageVersionId::generate());
    gone.revision = 1;
    refused(&*s, ErrorKind::NotFound, put_job(&gone)).await;
}

/// A second live job for one subject is refused, with a code, also when many begin at once; after the end of the first there may be one.
pub async fn a_subject_has_at_most_one_live_job(f: Fresh<'_>) {
    let s = f.fresh().await;
    let version = ImageVersionId::generate();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (s, new) = (Arc::clone(&s), job(version));
        tasks.push(tokio::spawn(async move { s.commit(Batch::new().write(put_job(&new))).await }));
    }
    let mut begun = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => begun += 1,
            Err(e) => {
                assert_eq!((e.kind(), e.code().name()), (ErrorKind::Conflict, "job_under_way"), "{e}");
                says(&e, &[&version.to_string()]);
            }
        }
    }
    assert_eq!(begun, 1);
    let mut first = s.live_jobs().await.unwrap().remove(0);
    // Another subject is free.
    write(&*s, [put_job(&job(ImageVersionId::generate()))]).await;
    first.claim(&ServerId::generate(), at(2));
    write(&*s, [put_job(&first)]).await;
    first.revision += 1;
    refused(&*s, ErrorKind::Conflict, put_job(&job(version))).await;

    first.end(JobState::Cancelled, at(3));
    let second = job(version);
    write(&*s, [put_job(&first), put_job(&second)]).await;
    first.revision += 1;
    // The ended one does not come back beside it.
    first.queue_again(Principal::host());
    let e = refused(&*s, ErrorKind::Conflict, put_job(&first)).await;
    assert_eq!(e.code().name(), "job_under_way");
}

/// A thousand jobs come page by page, newest first; live ones oldest first; filters hold at once.
pub async fn jobs_are_listed_by_page_and_filtered(f: Fresh<'_>) {
    let s = f.fresh().await;
    let mut all: Vec<Job> = (0..1000).map(|_| job(ImageVersionId::generate())).collect();
    for (n, job) in all.iter_mut().enumerate() {
        // The clock was set back: the order of recording counts.
        job.created_at = at(-(n as i64));
        match n % 4 {
            0 => {}
            1 => job.claim(&ServerId::generate(), at(5)),
            2 => job.end(JobState::Succeeded, at(6)),
            _ => job.end(JobState::Failed, at(6)),
        }
    }
    write(&*s, all.iter().map(put_job)).await;
    let newest_first: Vec<JobId> = all.iter().rev().map(|job| job.id).collect();
    let mut found = Vec::new();
    for page in 1..=4 {
        let got = s.jobs(&JobFilter::default(), PageRequest { page, per_page: 300 }).await.unwrap();
        assert_eq!((got.total, got.page, got.per_page), (1000, page, 300));
        found.extend(got.items.into_iter().map(|job| job.id));
    }
    assert_eq!(found, newest_first);
    let find = async |filter: JobFilter| -> Vec<JobId> {
        let page = s.jobs(&filter, ALL).await.unwrap();
        assert_eq!(page.total, page.items.len() as u64);
        page.items.into_iter().map(|job| job.id).collect()
    };
    let which = |of: &dyn Fn(&Job) -> bool| -> Vec<JobId> {
        all.iter().rev().filter(|job| of(job)).map(|job| job.id).collect()
    };
    let any = JobFilter::default;
    for state in JobState::ALL {
        let found = find(JobFilter { state: Some(state), ..any() }).await;
        assert_eq!(found, which(&|job| job.state == state), "{state:?}");
    }
    for live in [true, false] {
        let found = find(JobFilter { live: Some(live), ..any() }).await;
        assert_eq!(found, which(&|job| job.state.is_live() == live), "live {live}");
    }
    let (queued, subject) = (JobState::Queued, Some(all[0].subject));
    assert_eq!(find(JobFilter { subject, ..any() }).await, [all[0].id]);
    assert_eq!(find(JobFilter { subject, state: Some(queued), live: Some(true) }).await, [all[0].id]);
    assert!(find(JobFilter { subject, live: Some(false), ..any() }).await.is_empty());
    let live: Vec<JobId> = s.live_jobs().await.unwrap().into_iter().map(|job| job.id).collect();
    let mut oldest_first = which(&|job| job.state.is_live());
    oldest_first.reverse();
    assert_eq!(live, oldest_first);
    let e = s.jobs(&any(), PageRequest { page: 0, per_page: 10 }).await.unwrap_err();
    assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("page")));
}

/// Pruning forgets jobs that ended before, and no live one however old.
pub async fn pruning_forgets_ended_jobs(f: Fresh<'_>) {
    let s = f.fresh().await;
    let [mut old, mut newer, live] = [(); 3].map(|()| job(ImageVersionId::generate()));
    old.end(JobState::Succeeded, at(10));
    newer.end(JobState::Cancelled, at(100));
    write(&*s, [&old, &newer, &live].map(put_job)).await;
    assert_eq!(s.prune(at(10)).await.unwrap(), 0);
    assert_eq!(s.prune(at(50)).await.unwrap(), 1);
    assert_eq!(s.job(old.id).await.unwrap(), None);
    assert_eq!(s.prune(at(1000)).await.unwrap(), 1);
    let left: Vec<JobId> =
        s.jobs(&JobFilter::default(), ALL).await.unwrap().items.into_iter().map(|job| job.id).collect();
    assert_eq!(left, [live.id]);
    assert_eq!(s.job(newer.id).await.unwrap(), None);
}

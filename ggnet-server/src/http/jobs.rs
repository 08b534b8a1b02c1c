//! Jobs: what runs, what waits and what has ended; cancelling and retrying.

use axum::{Extension, Json, extract::State, http::StatusCode};
use ggnet_core::{
    Error, ErrorKind,
    nouns::{ImageVersionId, Job, JobId, JobKind, JobState, JobSubject, Principal},
    ports::{JobFilter, Page},
};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidPath, ValidQuery, page},
    images::confined,
};

/// Filters and page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    page: Option<u32>,
    per_page: Option<u32>,
    state: Option<JobState>,
    live: Option<bool>,
    version: Option<ImageVersionId>,
}

/// `GET /jobs`: the newest first.
pub async fn list(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<ListQuery>,
) -> Answer<Json<Page<Job>>> {
    let filter = JobFilter { state: q.state, live: q.live, subject: q.version.map(JobSubject::Version) };
    Ok(Json(app.orchestrator.jobs().list(&filter, page(q.page, q.per_page)?).await?))
}

/// `GET /jobs/{id}`.
pub async fn show(State(app): State<Shared>, ValidPath(id): ValidPath<JobId>) -> Answer<Json<Job>> {
    Ok(Json(app.orchestrator.jobs().get(id).await?))
}

/// `POST /jobs/{id}/cancel`: asks it to end; 202 with the job, which ends soon.
pub async fn cancel(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<JobId>,
) -> Answer<(StatusCode, Json<Job>)> {
    let job = app.orchestrator.jobs().cancel(id, &by).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// `POST /jobs/{id}/retry`: does a failed or cancelled job again; 202 with the job to watch.
pub async fn retry(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<JobId>,
) -> Answer<(StatusCode, Json<Job>)> {
    let job = app.orchestrator.jobs().get(id).await?;
    // What is no job to retry is refused for that.
    if let JobKind::Import(import) = job.kind
        && job.state.can_be_retried()
    {
        // Links and the configuration may have changed since it was asked for.
        let path = import.path.clone();
        let now = confined(&app.import_dirs, import.path).await?;
        if now != path {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} leads to another file than before: {}", path.display(), now.display()),
            )
            .with_hint("Import that file instead")
            .into());
        }
    }
    let job = app.orchestrator.jobs().retry(id, &by).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

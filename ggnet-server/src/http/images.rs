//! Images, versions and imports.

use std::path::{Path as FsPath, PathBuf};

use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::StatusCode,
};
use ggnet_core::{
    Error, Result,
    api::{ImageResponse, ImportImageRequest, ImportResponse, VersionResponse},
    error::code,
    nouns::{Image, ImageState, ImageVersion, ImageVersionId, VersionState},
    orchestrator::ImportRequest,
    ports::Page,
};
use serde::Deserialize;

use super::{
    Endpoints, Shared,
    auth::admin,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery, free_in_a_path, image, page},
};

/// Words that stand where an image's name may in a path.
const TAKEN: [&str; 1] = ["import"];

/// Page of images.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    page: Option<u32>,
    per_page: Option<u32>,
}

/// `GET /images`.
pub async fn list(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<ListQuery>,
) -> Answer<Json<Page<ImageResponse>>> {
    let got = app.orchestrator.ports().store().images(page(q.page, q.per_page)?).await?;
    let mut items = Vec::with_capacity(got.items.len());
    for image in got.items {
        items.push(respond(&app, image).await?);
    }
    Ok(Json(Page { items, total: got.total, page: got.page, per_page: got.per_page }))
}

async fn respond(app: &Shared, image: Image) -> Result<ImageResponse> {
    let versions = app.orchestrator.ports().store().versions(image.id).await?;
    let state = if image.current.is_some() {
        ImageState::Ready
    } else if versions.iter().any(|v| v.state == VersionState::Importing) {
        ImageState::Importing
    } else {
        ImageState::Empty
    };
    let versions = versions.into_iter().map(|v| with_progress(app, v)).collect();
    Ok(ImageResponse { image, state, versions })
}

fn with_progress(app: &Shared, version: ImageVersion) -> VersionResponse {
    VersionResponse { progress_per_mille: app.orchestrator.import_progress(version.id), version }
}

/// `GET /images/{id}`: by id or name.
pub async fn show(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<String>,
) -> Answer<Json<ImageResponse>> {
    let found = image(app.orchestrator.ports().store().as_ref(), &id).await?;
    Ok(Json(respond(&app, found).await?))
}

/// `GET /images/{id}/versions`.
pub async fn versions(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<String>,
) -> Answer<Json<Vec<VersionResponse>>> {
    let found = image(app.orchestrator.ports().store().as_ref(), &id).await?;
    Ok(Json(respond(&app, found).await?.versions))
}

/// `GET /versions/{id}`.
pub async fn version(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<ImageVersionId>,
) -> Answer<Json<VersionResponse>> {
    let found = app.orchestrator.ports().store().version(id).await?;
    let found = found.ok_or_else(|| Error::not_found("image version", id))?;
    Ok(Json(with_progress(&app, found)))
}

/// `POST /images/import`: begins an import; 202 with the version to watch.
pub async fn import(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    ValidJson(body): ValidJson<ImportImageRequest>,
) -> Answer<(StatusCode, Json<ImportResponse>)> {
    if let Some(sum) = &body.sha256
        && (sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(Error::invalid("sha256", "A SHA-256 is 64 hexadecimal digits")
            .with_code(code::sha256_invalid())
            .into());
    }
    free_in_a_path(&body.name, &TAKEN)?;
    let path = confined(&app.import_dirs, body.path).await?;
    let request = ImportRequest {
        image: body.name,
        path,
        format: body.format,
        expected_sha256: body.sha256,
        comment: body.comment,
        make_current: body.make_current,
        actor: admin(&ends),
    };
    let (image, version) = app.orchestrator.import(request).await?;
    // It has begun: an answer that lacks its job is better than an error.
    let job = app.orchestrator.version_job(version.id).await.ok().flatten().map(|job| job.id);
    Ok((StatusCode::ACCEPTED, Json(ImportResponse { image, version: with_progress(&app, version), job })))
}

/// The real path, below one of the allowed folders; symbolic links are resolved before the look.
pub(super) async fn confined(allowed: &[PathBuf], path: PathBuf) -> Result<PathBuf> {
    let folders = || allowed.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
    if !path.is_absolute() {
        return Err(Error::invalid("path", format!("{} is not an absolute path", path.display()))
            .with_code(code::import_path_not_absolute(path.display(), folders()))
            .with_hint(format!("Files may be imported from below {}", folders())));
    }
    let dirs = allowed.to_vec();
    let asked = path.clone();
    let real = tokio::task::spawn_blocking(move || -> std::io::Result<Option<PathBuf>> {
        let real = asked.canonicalize()?;
        let below =
            |dir: &PathBuf| dir.canonicalize().is_ok_and(|d: PathBuf| real.starts_with(FsPath::new(&d)));
        Ok(dirs.iter().any(below).then_some(real))
    });
    let real = real.await.map_err(|e| Error::internal("A blocking task died").with_source(e))?;
    // The same answer for a missing file and a forbidden one: what lies elsewhere on the server is nobody's business.
    match real {
        Ok(Some(real)) => Ok(real),
        Ok(None) | Err(_) => Err(Error::new(
            code::import_file_not_found(path.display(), folders()),
            format!("There is no file {} below the folders that may be imported from", path.display()),
        )
        .with_hint(format!("Put it below {}", folders()))),
    }
}

/// `POST /versions/{id}/cancel`: cancels an import under way.
pub async fn cancel(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    ValidPath(id): ValidPath<ImageVersionId>,
) -> Answer<StatusCode> {
    app.orchestrator.cancel_import(id, admin(&ends)).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `POST /images/{id}/current/{version}`: what machines boot from their next boot on.
pub async fn set_current(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    ValidPath((id, version)): ValidPath<(String, ImageVersionId)>,
) -> Answer<Json<ImageResponse>> {
    let found = image(app.orchestrator.ports().store().as_ref(), &id).await?;
    let changed = app.orchestrator.set_current_version(found.id, version, admin(&ends)).await?;
    Ok(Json(respond(&app, changed).await?))
}

/// `DELETE /versions/{id}`.
pub async fn remove_version(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    ValidPath(id): ValidPath<ImageVersionId>,
) -> Answer<StatusCode> {
    app.orchestrator.delete_version(id, admin(&ends)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /images/{id}`.
pub async fn remove(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    ValidPath(id): ValidPath<String>,
) -> Answer<StatusCode> {
    let found = image(app.orchestrator.ports().store().as_ref(), &id).await?;
    app.orchestrator.delete_image(found.id, admin(&ends)).await?;
    Ok(StatusCode::NO_CONTENT)
}

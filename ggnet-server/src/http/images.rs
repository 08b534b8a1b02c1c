//! Images, versions and imports.

use std::path::{Path as FsPath, PathBuf};

use axum::{Extension, Json, extract::State, http::StatusCode};
use ggnet_core::{
    Error, Result,
    api::{ImageResponse, ImportImageRequest, ImportResponse, VersionResponse},
    error::code,
    nouns::{ImageVersionId, Principal},
    orchestrator::{ImageView, ImportRequest, VersionView},
    ports::Page,
};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery, free_in_a_path, page},
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
    let got = app.orchestrator.read().images(page(q.page, q.per_page)?).await?;
    let items = got.items.into_iter().map(respond).collect();
    Ok(Json(Page { items, total: got.total, page: got.page, per_page: got.per_page }))
}

fn respond(view: ImageView) -> ImageResponse {
    let ImageView { image, state, versions } = view;
    ImageResponse { image, state, versions: versions.into_iter().map(with_progress).collect() }
}

fn with_progress(view: VersionView) -> VersionResponse {
    let VersionView { version, progress_per_mille } = view;
    VersionResponse { version, progress_per_mille }
}

/// The image of this id or name, with its versions.
async fn view(app: &Shared, reference: &str) -> Result<ImageResponse> {
    let read = app.orchestrator.read();
    let image = read.image(reference).await?;
    Ok(respond(read.image_view(image).await?))
}

/// `GET /images/{id}`: by id or name.
pub async fn show(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<String>,
) -> Answer<Json<ImageResponse>> {
    Ok(Json(view(&app, &id).await?))
}

/// `GET /images/{id}/versions`.
pub async fn versions(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<String>,
) -> Answer<Json<Vec<VersionResponse>>> {
    Ok(Json(view(&app, &id).await?.versions))
}

/// `GET /versions/{id}`.
pub async fn version(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<ImageVersionId>,
) -> Answer<Json<VersionResponse>> {
    Ok(Json(with_progress(app.orchestrator.read().version(id).await?)))
}

/// `POST /images/import`: begins an import; 202 with the version to watch.
pub async fn import(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
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
        by,
    };
    let (image, version) = app.orchestrator.images().import(request).await?;
    // It has begun: an answer that lacks its job is better than an error.
    let job = app.orchestrator.jobs().of_version(version.id).await.ok().flatten().map(|job| job.id);
    let version = with_progress(app.orchestrator.read().version_view(version));
    Ok((StatusCode::ACCEPTED, Json(ImportResponse { image, version, job })))
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
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<ImageVersionId>,
) -> Answer<StatusCode> {
    app.orchestrator.jobs().cancel_import(id, &by).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `POST /images/{id}/current/{version}`: what machines boot from their next boot on.
pub async fn set_current(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath((id, version)): ValidPath<(String, ImageVersionId)>,
) -> Answer<Json<ImageResponse>> {
    let found = app.orchestrator.read().image(&id).await?;
    let changed = app.orchestrator.images().set_current(found.id, version, &by).await?;
    Ok(Json(respond(app.orchestrator.read().image_view(changed).await?)))
}

/// `DELETE /versions/{id}`.
pub async fn remove_version(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<ImageVersionId>,
) -> Answer<StatusCode> {
    app.orchestrator.images().delete_version(id, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /images/{id}`.
pub async fn remove(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<String>,
) -> Answer<StatusCode> {
    let found = app.orchestrator.read().image(&id).await?;
    app.orchestrator.images().delete(found.id, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

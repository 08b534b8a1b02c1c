//! Targets: what is served, and manual ones.

use axum::{Extension, Json, extract::State, http::StatusCode};
use ggnet_core::{
    api::{CreateTargetRequest, TargetResponse},
    nouns::{Principal, TargetId},
    orchestrator::{NewTarget, TargetView},
};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery},
};

/// `GET /targets`: every target that the backend serves for us, with its connections.
pub async fn list(State(app): State<Shared>) -> Answer<Json<Vec<TargetResponse>>> {
    let all = app.orchestrator.read().targets().await?;
    Ok(Json(all.into_iter().map(respond).collect()))
}

fn respond(view: TargetView) -> TargetResponse {
    let TargetView { iqn, manual, session, machine, generation, connections } = view;
    TargetResponse { iqn, manual, session, machine, generation, connections }
}

/// `POST /targets`: exports an image version read-only; the reconciler keeps it.
pub async fn create(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidJson(body): ValidJson<CreateTargetRequest>,
) -> Answer<(StatusCode, Json<TargetResponse>)> {
    let new = NewTarget { name: body.name, version: body.version_id, initiator: body.initiator };
    let (target, endpoint) = app.orchestrator.targets().create(new, &by).await?;
    let response = TargetResponse {
        iqn: endpoint.iqn,
        manual: Some(target),
        session: None,
        machine: None,
        generation: None,
        connections: vec![],
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// `?force=true`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    #[serde(default)]
    force: bool,
}

/// `DELETE /targets/{id}`.
pub async fn remove(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<TargetId>,
    ValidQuery(q): ValidQuery<DeleteQuery>,
) -> Answer<StatusCode> {
    app.orchestrator.targets().delete(id, q.force, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

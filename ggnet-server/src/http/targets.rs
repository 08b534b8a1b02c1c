//! Targets: what is served, and manual ones.

use std::collections::HashMap;

use axum::{Extension, Json, extract::State, http::StatusCode};
use ggnet_core::{
    api::{CreateTargetRequest, TargetResponse},
    nouns::{Iqn, Principal, ResourceId, TargetId},
    orchestrator::NewTarget,
};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery},
};

/// `GET /targets`: every target that the backend serves for us, with its connections.
pub async fn list(State(app): State<Shared>) -> Answer<Json<Vec<TargetResponse>>> {
    let p = app.orchestrator.ports();
    let config = app.orchestrator.config();
    let mut connections: HashMap<ResourceId, Vec<_>> = HashMap::new();
    for connection in p.target().connections().await? {
        connections.entry(connection.target.clone()).or_default().push(connection);
    }
    let manual: HashMap<_, _> =
        p.store().targets().await?.into_iter().map(|t| (ResourceId::manual(t.id), t)).collect();
    let sessions: HashMap<_, _> =
        p.store().live_sessions().await?.into_iter().map(|s| (s.machine, s.id)).collect();
    let mut out = Vec::new();
    for listed in p.target().list().await? {
        let owner = listed.id.owner();
        let machine = owner.map(|(machine, _)| machine);
        out.push(TargetResponse {
            iqn: Iqn::target(&config.iqn_prefix, &config.instance, &listed.id)?,
            manual: manual.get(&listed.id).cloned(),
            session: machine.and_then(|m| sessions.get(&m).copied()),
            machine,
            generation: owner.and_then(|(_, generation)| generation),
            connections: connections.remove(&listed.id).unwrap_or_default(),
        });
    }
    out.sort_by(|a, b| a.iqn.cmp(&b.iqn));
    Ok(Json(out))
}

/// `POST /targets`: exports an image version read-only; the reconciler keeps it.
pub async fn create(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidJson(body): ValidJson<CreateTargetRequest>,
) -> Answer<(StatusCode, Json<TargetResponse>)> {
    let new = NewTarget { name: body.name, version: body.version_id, initiator: body.initiator };
    let (target, endpoint) = app.orchestrator.create_target(new, &by).await?;
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
    app.orchestrator.delete_target(id, q.force, &by).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! Events since a cursor, and the audit log.

use axum::{Json, extract::State};
use ggnet_core::{Error, api::EventListResponse, error::code, nouns::AuditRow, ports::Page};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidQuery, machine, page},
};

/// `?after=…&limit=…&machine=…`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    #[serde(default)]
    after: i64,
    limit: Option<u32>,
    machine: Option<String>,
}

/// `?page=…&per_page=…`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    page: Option<u32>,
    per_page: Option<u32>,
}

/// `GET /events`.
pub async fn events(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<EventQuery>,
) -> Answer<Json<EventListResponse>> {
    let limit = q.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(Error::invalid("limit", "The limit is 1 to 1000")
            .with_code(code::out_of_range(1, 1000))
            .into());
    }
    let store = app.orchestrator.ports().store();
    let machine = match &q.machine {
        Some(reference) => Some(machine(store.as_ref(), reference).await?.id),
        None => None,
    };
    let items = store.events(q.after, limit, machine).await?;
    let cursor = items.last().map_or(q.after, |e| e.seq);
    Ok(Json(EventListResponse { items, cursor }))
}

/// `GET /audit`.
pub async fn audit(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<PageQuery>,
) -> Answer<Json<Page<AuditRow>>> {
    let request = page(q.page, q.per_page)?;
    Ok(Json(app.orchestrator.ports().store().audit(request).await?))
}

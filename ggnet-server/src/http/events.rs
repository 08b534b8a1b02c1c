//! The routes of events and of the audit log.

use axum::{Json, extract::State};
use ggnet_core::{
    Error,
    api::EventListResponse,
    error::code,
    nouns::{AuditRow, Cursor},
    ports::Page,
};
use serde::Deserialize;

use super::{
    Shared,
    error::Answer,
    extract::{ValidQuery, page},
};

/// `?after=…&newest=…&limit=…&machine=…`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    // A string, so that an invalid cursor is refused with its own code.
    after: Option<String>,
    #[serde(default)]
    newest: bool,
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
    let after = q.after.as_deref().map(str::parse::<Cursor>).transpose()?;
    if q.newest && after.is_some() {
        return Err(Error::invalid("newest", "The parameters `newest` and `after` cannot be used together")
            .with_hint("Remove `after` or `newest`")
            .into());
    }
    let read = app.orchestrator.read();
    let machine = match &q.machine {
        Some(reference) => Some(read.machine(reference).await?.id),
        None => None,
    };
    // Read before the events: if there are none of this machine, its follower can skip to this cursor. Otherwise the follower of a quiet
    // machine would keep a cursor that is pruned some day.
    let newest = match machine {
        Some(_) => read.newest_events(1, None).await?.pop(),
        None => None,
    };
    let items = if q.newest {
        read.newest_events(limit, machine).await?
    } else {
        read.events(after.clone(), limit, machine).await?
    };
    let cursor = items.last().or(newest.as_ref()).map(|event| event.cursor.clone()).or(after);
    Ok(Json(EventListResponse { items, cursor }))
}

/// `GET /audit`.
pub async fn audit(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<PageQuery>,
) -> Answer<Json<Page<AuditRow>>> {
    let request = page(q.page, q.per_page)?;
    Ok(Json(app.orchestrator.read().audit(request).await?))
}

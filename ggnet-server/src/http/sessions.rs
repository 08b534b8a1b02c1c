//! Sessions.

use axum::{
    Extension, Json,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode},
};
use ggnet_core::{
    Result,
    api::{
        BootScriptResponse, IscsiDetails, SessionListResponse, SessionResponse, SessionStartRequest,
        SessionStartResponse, SessionStatsResponse, SessionStopRequest, TargetInfo,
    },
    boot_text::SanUri,
    nouns::{Principal, Session, SessionId, SessionState, StopReason},
    orchestrator::{SessionView, StartRequest, StopRequest},
    ports::SessionFilter,
};
use serde::Deserialize;

use super::{
    Endpoints, Shared,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery, page},
};

/// Filters and page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    page: Option<u32>,
    per_page: Option<u32>,
    state: Option<SessionState>,
    machine: Option<String>,
    image: Option<String>,
    live: Option<bool>,
}

fn respond(view: SessionView) -> SessionResponse {
    let SessionView { session, machine_name, image_name, target_iqn, online } = view;
    SessionResponse { session, machine_name, image_name, target_iqn, online }
}

fn iscsi(uri: &SanUri, session: &Session) -> IscsiDetails {
    IscsiDetails {
        target_iqn: uri.target.clone(),
        initiator_iqn: session.initiator.clone(),
        portal: uri.server.to_string(),
        port: uri.port,
        lun: uri.lun,
    }
}

/// `POST /sessions/start`.
pub async fn start(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    Extension(by): Extension<Principal>,
    headers: HeaderMap,
    ValidJson(body): ValidJson<SessionStartRequest>,
) -> Answer<(StatusCode, Json<SessionStartResponse>)> {
    let o = &app.orchestrator;
    let request =
        StartRequest { machine: body.machine_id, image: body.image_id, data_disks: vec![], by: by.clone() };
    let started = o.sessions().start(request).await?;
    let advertised = app.advertise.to(&ends, &headers)?;
    let (boot_script, uri) = o.sessions().current_script(&started.session, &advertised, &by).await?;
    let mac = started.machine.primary_mac()?;
    let target = TargetInfo {
        iqn: started.endpoint.iqn.clone(),
        generation: started.session.current.number,
        backend: o.read().target_backend().to_owned(),
    };
    let response = SessionStartResponse {
        iscsi: iscsi(&uri, &started.session),
        session: respond(o.read().session_view(started.session).await?),
        target,
        boot_script,
        script_url: format!("{}/boot/{}.ipxe", advertised.http_url, mac.hyphenated()),
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// `POST /sessions/{id}/stop`.
pub async fn stop(
    State(app): State<Shared>,
    Extension(by): Extension<Principal>,
    ValidPath(session): ValidPath<SessionId>,
    ValidJson(body): ValidJson<SessionStopRequest>,
) -> Answer<Json<SessionResponse>> {
    let request = StopRequest { session, force: body.force, reason: StopReason::Operator, by };
    let stopped = app.orchestrator.sessions().stop(request).await?;
    Ok(Json(respond(app.orchestrator.read().session_view(stopped).await?)))
}

/// `GET /sessions`.
pub async fn list(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<ListQuery>,
) -> Answer<Json<SessionListResponse>> {
    let read = app.orchestrator.read();
    let mut filter = SessionFilter { state: q.state, live: q.live, ..SessionFilter::default() };
    if let Some(reference) = &q.machine {
        filter.machine = Some(read.machine(reference).await?.id);
    }
    if let Some(reference) = &q.image {
        filter.image = Some(read.image(reference).await?.id);
    }
    let got = read.sessions(&filter, page(q.page, q.per_page)?).await?;
    let items = got.items.into_iter().map(respond).collect();
    Ok(Json(SessionListResponse { items, total: got.total, page: got.page, per_page: got.per_page }))
}

/// `GET /sessions/{id}`.
pub async fn show(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<SessionId>,
) -> Answer<Json<SessionResponse>> {
    Ok(Json(respond(app.orchestrator.read().session(id).await?)))
}

/// `GET /sessions/stats`: from counters, no scan.
pub async fn stats(State(app): State<Shared>) -> Answer<Json<SessionStatsResponse>> {
    let counts = app.orchestrator.read().session_counts().await?;
    let total_sessions = counts.starting + counts.active + counts.stopping + counts.stopped + counts.failed;
    Ok(Json(SessionStatsResponse {
        total_sessions,
        active_sessions: counts.active,
        online_sessions: app.orchestrator.presence().online_count(),
        status_counts: counts,
    }))
}

async fn live_of(app: &Shared, reference: &str) -> Result<Session> {
    let read = app.orchestrator.read();
    read.live_session(&read.machine(reference).await?).await
}

/// `GET /sessions/machine/{id}/active`.
pub async fn active(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<String>,
) -> Answer<Json<SessionResponse>> {
    let session = live_of(&app, &id).await?;
    Ok(Json(respond(app.orchestrator.read().session_view(session).await?)))
}

/// `GET /sessions/machine/{id}/boot-script`: as the machine would read it now; changes nothing.
pub async fn boot_script(
    State(app): State<Shared>,
    ConnectInfo(ends): ConnectInfo<Endpoints>,
    Extension(by): Extension<Principal>,
    ValidPath(id): ValidPath<String>,
    headers: HeaderMap,
) -> Answer<Json<BootScriptResponse>> {
    let session = live_of(&app, &id).await?;
    let (script, uri) = app
        .orchestrator
        .sessions()
        .current_script(&session, &app.advertise.to(&ends, &headers)?, &by)
        .await?;
    Ok(Json(BootScriptResponse { script, iscsi: iscsi(&uri, &session) }))
}

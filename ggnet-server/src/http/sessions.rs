//! Sessions.

use std::collections::BTreeSet;

use axum::{
    Extension, Json,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode},
};
use ggnet_core::{
    Error, Result,
    api::{
        BootScriptResponse, IscsiDetails, SessionListResponse, SessionResponse, SessionStartRequest,
        SessionStartResponse, SessionStatsResponse, SessionStopRequest, TargetInfo,
    },
    boot_text::SanUri,
    error::code,
    nouns::{Principal, Session, SessionId, SessionState, StopReason},
    orchestrator::{StartRequest, StopRequest},
    ports::SessionFilter,
};
use serde::Deserialize;

use super::{
    Endpoints, Shared,
    error::Answer,
    extract::{ValidJson, ValidPath, ValidQuery, image, machine, page},
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

/// Sessions as they are shown; one read for all of them.
async fn respond_all(app: &Shared, sessions: Vec<Session>) -> Result<Vec<SessionResponse>> {
    let machines: Vec<_> = sessions.iter().map(|session| session.machine).collect();
    let images: BTreeSet<_> = sessions.iter().map(|session| session.current.system().image).collect();
    let images = Vec::from_iter(images);
    let names = app.orchestrator.ports().store().names(&machines, &images).await?;
    let respond = |session: Session| {
        Ok(SessionResponse {
            machine_name: names.machines.get(&session.machine).cloned(),
            image_name: names.images.get(&session.current.system().image).cloned(),
            target_iqn: app.orchestrator.target_iqn(&session, &session.current)?,
            online: app.orchestrator.is_online(session.id),
            session,
        })
    };
    sessions.into_iter().map(respond).collect()
}

async fn respond(app: &Shared, session: Session) -> Result<SessionResponse> {
    let response = respond_all(app, vec![session]).await?.pop();
    response.ok_or_else(|| Error::internal("A session was lost on its way to its answer"))
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
    let started = o.start(request).await?;
    let advertised = app.advertise.to(&ends, &headers)?;
    let (boot_script, uri) = o.current_script(&started.session, &advertised, &by).await?;
    let mac = started.machine.primary_mac()?;
    let target = TargetInfo {
        iqn: started.endpoint.iqn.clone(),
        generation: started.session.current.number,
        backend: o.ports().target().name().to_owned(),
    };
    let response = SessionStartResponse {
        iscsi: iscsi(&uri, &started.session),
        session: respond(&app, started.session).await?,
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
    let stopped = app.orchestrator.stop(request).await?;
    Ok(Json(respond(&app, stopped).await?))
}

/// `GET /sessions`.
pub async fn list(
    State(app): State<Shared>,
    ValidQuery(q): ValidQuery<ListQuery>,
) -> Answer<Json<SessionListResponse>> {
    let store = app.orchestrator.ports().store();
    let mut filter = SessionFilter { state: q.state, live: q.live, ..SessionFilter::default() };
    if let Some(reference) = &q.machine {
        filter.machine = Some(machine(store.as_ref(), reference).await?.id);
    }
    if let Some(reference) = &q.image {
        filter.image = Some(image(store.as_ref(), reference).await?.id);
    }
    let got = store.sessions(&filter, page(q.page, q.per_page)?).await?;
    let items = respond_all(&app, got.items).await?;
    Ok(Json(SessionListResponse { items, total: got.total, page: got.page, per_page: got.per_page }))
}

/// `GET /sessions/{id}`.
pub async fn show(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<SessionId>,
) -> Answer<Json<SessionResponse>> {
    let found = app.orchestrator.ports().store().session(id).await?;
    Ok(Json(respond(&app, found.ok_or_else(|| Error::not_found("session", id))?).await?))
}

/// `GET /sessions/stats`: from counters, no scan.
pub async fn stats(State(app): State<Shared>) -> Answer<Json<SessionStatsResponse>> {
    let counts = app.orchestrator.ports().store().session_counts().await?;
    let total_sessions = counts.starting + counts.active + counts.stopping + counts.stopped + counts.failed;
    Ok(Json(SessionStatsResponse {
        total_sessions,
        active_sessions: counts.active,
        online_sessions: app.orchestrator.online_count(),
        status_counts: counts,
    }))
}

async fn live_of(app: &Shared, reference: &str) -> Result<Session> {
    let store = app.orchestrator.ports().store();
    let machine = machine(store.as_ref(), reference).await?;
    store.live_session(machine.id).await?.ok_or_else(|| {
        Error::new(
            code::no_live_session(&machine.name),
            format!("Machine {} has no live session", machine.name),
        )
        .with_hint("Start one with `ggnet session start`, or let the machine boot with auto start on")
    })
}

/// `GET /sessions/machine/{id}/active`.
pub async fn active(
    State(app): State<Shared>,
    ValidPath(id): ValidPath<String>,
) -> Answer<Json<SessionResponse>> {
    let session = live_of(&app, &id).await?;
    Ok(Json(respond(&app, session).await?))
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
    let (script, uri) =
        app.orchestrator.current_script(&session, &app.advertise.to(&ends, &headers)?, &by).await?;
    Ok(Json(BootScriptResponse { script, iscsi: iscsi(&uri, &session) }))
}

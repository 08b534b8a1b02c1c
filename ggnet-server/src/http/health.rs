//! Health: alive, ready, and what this server is.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use ggnet_core::{
    api::{BackendHealth, HealthResponse, ServerInfo},
    ports::Health,
};

use super::Shared;

/// `GET /health/live`: the process answers.
pub async fn live() -> &'static str {
    "ok\n"
}

/// `GET /health/ready`: machines can boot now; else 503 with the reason.
pub async fn ready(State(app): State<Shared>) -> impl IntoResponse {
    let p = app.orchestrator.ports();
    let backends: [BackendHealth; 6] = tokio::join!(
        ask("store", p.store().name(), p.store().health()),
        ask("target", p.target().name(), p.target().health()),
        ask("writeback", p.writeback().name(), p.writeback().health()),
        ask("dhcp", p.dhcp().name(), p.dhcp().health()),
        ask("boot_files", p.boot_files().name(), p.boot_files().health()),
        ask("converter", p.converter().name(), p.converter().health()),
    )
    .into();
    let serving = app.orchestrator.is_serving() && !app.stopping.is_cancelled();
    // A missing converter stops imports, not boots.
    let down = |b: &BackendHealth| matches!(b.health, Health::Down(_)) && b.port != "converter";
    let ready = serving && !backends.iter().any(down);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthResponse { ready, serving, backends: backends.into() }))
}

/// All are asked at once. One that hangs is down when the port's limit for `health` has passed.
async fn ask(port: &str, backend: &str, health: impl Future<Output = Health>) -> BackendHealth {
    BackendHealth { port: port.to_owned(), backend: backend.to_owned(), health: health.await }
}

/// `GET /api/v1/server`.
pub async fn server(State(app): State<Shared>) -> Json<ServerInfo> {
    Json(ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: app.orchestrator.config().instance.to_string(),
        import_dirs: app.import_dirs.iter().map(|d| d.display().to_string()).collect(),
    })
}

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
    let backends = vec![
        backend("store", p.store.name(), p.store.health().await),
        backend("target", p.target.name(), p.target.health().await),
        backend("writeback", p.writeback.name(), p.writeback.health().await),
        backend("dhcp", p.dhcp.name(), p.dhcp.health().await),
        backend("boot_files", p.boot_files.name(), p.boot_files.health().await),
        backend("converter", p.converter.name(), p.converter.health().await),
    ];
    let serving = app.orchestrator.is_serving() && !app.stopping.is_cancelled();
    // A missing converter stops imports, not boots.
    let down = |b: &BackendHealth| matches!(b.health, Health::Down(_)) && b.port != "converter";
    let ready = serving && !backends.iter().any(down);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthResponse { ready, serving, backends }))
}

fn backend(port: &str, backend: &str, health: Health) -> BackendHealth {
    BackendHealth { port: port.to_owned(), backend: backend.to_owned(), health }
}

/// `GET /api/v1/server`.
pub async fn server(State(app): State<Shared>) -> Json<ServerInfo> {
    Json(ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: app.orchestrator.config().instance.to_string(),
        import_dirs: app.import_dirs.iter().map(|d| d.display().to_string()).collect(),
    })
}

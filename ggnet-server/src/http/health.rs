//! Health: alive, ready, and what this server is.

use std::time::Duration;

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

/// How long a backend may take to say how it is: whoever watches `/health/ready` gives up sooner than the calls that do work.
const PATIENCE: Duration = Duration::from_secs(5);

/// `GET /health/ready`: machines can boot now; else 503 with the reason.
pub async fn ready(State(app): State<Shared>) -> impl IntoResponse {
    let p = app.orchestrator.ports();
    let own = app.orchestrator.trouble().or_else(|| app.long_lived.trouble());
    let own = own.or_else(|| app.addresses.trouble()).map_or(Health::Up, Health::Down);
    let backends: [BackendHealth; 7] = tokio::join!(
        ask("store", p.store.name(), p.store.health()),
        ask("target", p.target.name(), p.target.health()),
        ask("writeback", p.writeback.name(), p.writeback.health()),
        ask("dhcp", p.dhcp.name(), p.dhcp.health()),
        ask("boot_files", p.boot_files.name(), p.boot_files.health()),
        ask("converter", p.converter.name(), p.converter.health()),
        ask("server", "ggnet", async { own }),
    )
    .into();
    let serving = app.orchestrator.is_serving() && !app.stopping.is_cancelled();
    let ready = serving && backends.iter().all(|b| b.boots);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthResponse { ready, serving, backends: backends.into() }))
}

/// All are asked at once, and one that hangs is down.
async fn ask(port: &str, backend: &str, health: impl Future<Output = Health>) -> BackendHealth {
    let health = tokio::time::timeout(PATIENCE, health).await;
    let silent = |_| Health::Down(format!("It did not say how it is within {} s", PATIENCE.as_secs()));
    let health = health.unwrap_or_else(silent);
    // A missing converter stops imports, not boots.
    let boots = health.boots() || port == "converter";
    BackendHealth { port: port.to_owned(), backend: backend.to_owned(), health, boots }
}

/// `GET /api/v1/server`.
pub async fn server(State(app): State<Shared>) -> Json<ServerInfo> {
    Json(ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: app.orchestrator.config().instance.to_string(),
        import_dirs: app.import_dirs.iter().map(|d| d.display().to_string()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_hangs_is_down() {
        let silent = ask("dhcp", "isc-dhcpd", std::future::pending()).await;
        assert!(matches!(silent.health, Health::Down(why) if why.contains("within 5 s")));
        assert!(!silent.boots);
        assert_eq!(ask("dhcp", "isc-dhcpd", async { Health::Up }).await.health, Health::Up);
        let blocked = ask("store", "sqlite", async { Health::Blocked("full".into()) }).await;
        assert!(!blocked.boots, "it works for those it serves, and for no other");
        assert!(ask("store", "sqlite", async { Health::Degraded("slow".into()) }).await.boots);
        assert!(ask("converter", "qemu-img", async { Health::Down("gone".into()) }).await.boots);
    }
}

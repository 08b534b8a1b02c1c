//! The routes of health and of the server's information.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use ggnet_backends::carrier;
use ggnet_core::{
    api::{BackendHealth, HealthResponse, ServerInfo},
    ports::Health,
};

use super::{Shared, shared_answer::SharedAnswer};
use crate::log;

/// `GET /health/live`: the process responds.
pub async fn live() -> &'static str {
    "ok\n"
}

/// How long the backends' health is reused: a health check may start a program.
const FRESH: Duration = Duration::from_secs(1);

/// The state of `/health/ready`.
pub(super) struct Ready {
    app: Shared,
    backends: SharedAnswer<Vec<BackendHealth>>,
}

impl Ready {
    pub(super) fn new(app: Shared) -> Self {
        let backends = SharedAnswer::new(FRESH, app.stopping.clone());
        Self { app, backends }
    }
}

/// `GET /health/ready`: 200 if machines can boot now, else 503 with the reason. Requests that arrive while the backends are being checked
/// wait for that result; requests within [`FRESH`] after it get the same one.
pub(super) async fn ready(State(ready): State<Arc<Ready>>) -> impl IntoResponse {
    let app = &ready.app;
    let backends = ready.backends.get(|| ask_all(Arc::clone(app))).await;
    // None: the server is stopping, or the check panicked.
    let backends = backends.map(|all| all.to_vec()).unwrap_or_default();
    let serving = app.orchestrator.is_serving() && !app.stopping.is_cancelled();
    let ready = serving && !backends.is_empty() && backends.iter().all(|b| b.boots);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthResponse { ready, serving, backends }))
}

async fn ask_all(app: Shared) -> Vec<BackendHealth> {
    let asked = app.orchestrator.read().health().await;
    let mut all: Vec<_> = asked.into_iter().map(|of| shown(of.port, of.backend, of.health)).collect();
    all.push(shown("images", "ggnet", app.image_files.health()));
    all.push(shown("server", "ggnet", own(&app)));
    all
}

/// The health of the server itself.
fn own(app: &Shared) -> Health {
    let ended = app.orchestrator.trouble().or_else(|| app.long_lived.trouble());
    if let Some(why) = ended.or_else(|| app.addresses.trouble()) {
        return Health::Down(why);
    }
    let carrier = match carrier::health(&app.interfaces) {
        Health::Up => None,
        Health::Degraded(why) => Some(why),
        worse => return worse,
    };
    let why: Vec<_> = [carrier, app.orchestrator.degraded(), log::losing()].into_iter().flatten().collect();
    if why.is_empty() { Health::Up } else { Health::Degraded(why.join("; ")) }
}

fn shown(port: &str, backend: &str, health: Health) -> BackendHealth {
    // A missing converter and a full image store prevent imports, not boots. Missing versions are reported by the entry `images`.
    let boots = health.boots() || matches!(port, "converter" | "image_store");
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

    #[test]
    fn each_backend_reports_whether_machines_can_boot() {
        let boots = |port, health| shown(port, "x", health).boots;
        assert!(boots("dhcp", Health::Up) && boots("store", Health::Degraded("slow".into())));
        assert!(
            !boots("store", Health::Blocked("full".into())),
            "a blocked backend serves only existing sessions"
        );
        assert!(!boots("dhcp", Health::Down("gone".into())));
        assert!(boots("converter", Health::Down("gone".into())));
        assert!(boots("image_store", Health::Blocked("full".into())));
    }
}

//! The HTTP server: the API under `/api/v1`, the boot routes under `/boot` and `/files`, health under `/health`,
//! `/metrics` for Prometheus. Thin: every rule is core's.
//!
//! Every `/api` route and `/metrics` need the administrator token; boot routes do not, for a machine that boots has nothing to show.

mod advertise;
mod auth;
mod boot;
mod connection;
mod error;
mod events;
mod extract;
mod health;
mod images;
mod jobs;
mod listener;
mod machines;
mod metrics;
mod request_id;
mod sessions;
mod shared_answer;
mod targets;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, StatusCode},
    middleware,
    routing::{delete, get, post},
};
use ggnet_backends::addresses::Addresses;
use ggnet_core::{metrics::Registry, orchestrator::Orchestrator, supervisor::Supervisor};
use tower_http::{
    catch_panic::CatchPanicLayer,
    limit::RequestBodyLimitLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
    trace::TraceLayer,
};

pub use advertise::Advertise;
pub use connection::Endpoints;
pub(crate) use listener::Connections;
pub(crate) use metrics::{PREFIX as METRICS_PREFIX, count_commits};

use crate::{image_files::ImageFiles, token::TokenHash};

/// What the routes need.
pub struct App {
    /// All rules.
    pub orchestrator: Orchestrator,
    /// Who may use the API.
    pub token: TokenHash,
    /// Under which addresses machines reach us.
    pub advertise: Advertise,
    /// The folders below which files may be imported.
    pub import_dirs: Vec<PathBuf>,
    /// What the orchestrator's ports count.
    pub metrics: Registry,
    /// The server's own long-lived tasks.
    pub long_lived: Arc<Supervisor>,
    /// The addresses that HTTP listens on.
    pub addresses: Arc<Addresses>,
    /// The interfaces that machines are served on, those aside that a backend listens on by name and looks at itself.
    pub interfaces: Vec<String>,
    /// The files that machines boot.
    pub image_files: Arc<ImageFiles>,
    /// Cancelled when the server stops.
    pub stopping: tokio_util::sync::CancellationToken,
}

/// The state of every route.
pub type Shared = Arc<App>;

/// All routes.
pub fn router(app: App) -> Router {
    let app = Arc::new(app);
    let request_id = HeaderName::from_static(request_id::HEADER);
    let api = Router::new()
        .route("/server", get(health::server))
        .route("/machines", get(machines::list).post(machines::create))
        .route("/machines/seen", get(machines::seen))
        .route("/machines/seen/{mac}", delete(machines::forget_seen))
        .route("/machines/seen/{mac}/register", post(machines::register_seen))
        .route("/machines/{id}", get(machines::show).patch(machines::update).delete(machines::remove))
        .route("/machines/{id}/writeback", delete(machines::discard_writeback))
        .route("/images", get(images::list))
        .route("/images/import", post(images::import))
        .route("/images/{id}", get(images::show).delete(images::remove))
        .route("/images/{id}/versions", get(images::versions))
        .route("/images/{id}/current/{version}", post(images::set_current))
        .route("/versions/{id}", get(images::version).delete(images::remove_version))
        .route("/versions/{id}/cancel", post(images::cancel))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::show))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/retry", post(jobs::retry))
        .route("/sessions", get(sessions::list))
        .route("/sessions/start", post(sessions::start))
        .route("/sessions/stats", get(sessions::stats))
        .route("/sessions/{id}", get(sessions::show))
        .route("/sessions/{id}/stop", post(sessions::stop))
        .route("/sessions/machine/{id}/boot-script", get(sessions::boot_script))
        .route("/sessions/machine/{id}/active", get(sessions::active))
        .route("/targets", get(targets::list).post(targets::create))
        .route("/targets/{id}", delete(targets::remove))
        .route("/events", get(events::events))
        .route("/audit", get(events::audit))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(middleware::from_fn_with_state(app.clone(), auth::require_token));
    // Names of machines and initiators are in it: not for everybody.
    let metrics = Router::new()
        .route("/metrics", get(metrics::metrics))
        .layer(middleware::from_fn_with_state(app.clone(), auth::require_token));
    let boot = Router::new()
        .route("/boot/first.ipxe", get(boot::first))
        .route("/boot/{mac}", get(boot::script))
        .route("/boot/{mac}/report", get(boot::report))
        .route("/files/{*path}", get(boot::file));
    // Watchers ask every few seconds: "not ready" is an answer and no failure to log each time.
    let health = Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .with_state(Arc::new(health::Ready::new(app.clone())))
        .layer(CatchPanicLayer::custom(error::panicked));
    Router::new()
        .nest("/api/v1", api)
        .merge(boot)
        .merge(metrics)
        .fallback(error::no_route)
        .with_state(app)
        .layer(RequestBodyLimitLayer::new(1 << 20))
        // Between two pieces of a body.
        .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(20)))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, Duration::from_secs(120)))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        // A failure says itself what it is, and that a machine is to come again is none.
        .layer(TraceLayer::new_for_http().make_span_with(error::request_span).on_failure(()))
        .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
        .layer(middleware::map_request(request_id::drop_odd))
        .merge(health)
}

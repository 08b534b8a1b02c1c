//! Concurrent health requests, with backends that count their health checks.

#![expect(clippy::unwrap_used, reason = "that is how a test fails")]

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use ggnet_backends::addresses::Addresses;
use ggnet_core::{
    boot_text::templates::BootTemplates,
    metrics::Registry,
    nouns::InstanceId,
    orchestrator::{Backends, Orchestrator, OrchestratorConfig, Ports},
    ports::SystemClock,
    supervisor::Supervisor,
    testkit::{
        flaky::{Fault, FaultPlan, Flaky},
        memory::{
            MemoryBootFiles, MemoryConverter, MemoryDhcp, MemoryImages, MemoryStore, MemoryTargets,
            MemoryWritebacks,
        },
    },
    wrap::PortLimits,
};
use ggnet_server::{
    http::{Advertise, App, router},
    image_files::ImageFiles,
    token::TokenHash,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

fn question() -> Request<Body> {
    Request::get("/health/ready").body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_thousand_health_questions_at_once_ask_each_backend_once() {
    let plan = FaultPlan::new();
    let backends = Backends {
        store: Arc::new(MemoryStore::new()),
        target: Arc::new(MemoryTargets::new()),
        writeback: Arc::new(MemoryWritebacks::new()),
        images: Arc::new(MemoryImages::new()),
        dhcp: Arc::new(Flaky::new(Arc::new(MemoryDhcp::new()), &plan)),
        boot_files: Arc::new(MemoryBootFiles::new()),
        converter: Arc::new(Flaky::new(Arc::new(MemoryConverter::new()), &plan)),
        clock: Arc::new(SystemClock),
    };
    let mut metrics = Registry::default();
    let ports = Ports::new(backends, &PortLimits::default(), &mut metrics).unwrap();
    let config = OrchestratorConfig::new(InstanceId::generate()).unwrap();
    let orchestrator = Orchestrator::new(ports, config, BootTemplates::load(None).unwrap()).unwrap();
    while !orchestrator.is_serving() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stopping = CancellationToken::new();
    let long_lived = Arc::new(Supervisor::new(stopping.clone()));
    let routes = router(App {
        orchestrator: orchestrator.clone(),
        token: TokenHash::generate().unwrap().1,
        advertise: Advertise { address: None, http_port: 8080 },
        import_dirs: vec![],
        interfaces: vec![],
        metrics,
        addresses: Addresses::watch("HTTP", &[], &long_lived),
        image_files: ImageFiles::watch(&orchestrator, &long_lived),
        long_lived: Arc::clone(&long_lived),
        stopping,
    });
    // The image files must have been checked.
    while routes.clone().oneshot(question()).await.unwrap().status() != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Longer than that result is reused.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = (plan.calls("image_converter.health"), plan.calls("dhcp.health"));
    // So slow that all requests arrive before the first response: on one thread they are sent before anything else runs.
    plan.add(Fault::on("image_converter.health").is_delayed(Duration::from_millis(300)));
    let mut all = JoinSet::new();
    for _ in 0..1000 {
        all.spawn(routes.clone().oneshot(question()));
    }
    for answer in all.join_all().await {
        assert_eq!(answer.unwrap().status(), StatusCode::OK);
    }
    let after = (plan.calls("image_converter.health"), plan.calls("dhcp.health"));
    assert_eq!(after, (before.0 + 1, before.1 + 1));
    long_lived.stop().await;
    orchestrator.shutdown().await;
}

//! A server whose folder of images is emptied, taken away and given back: health says what is missing, and mends.

#![expect(clippy::unwrap_used, reason = "that is how a test fails")]

mod support;

use std::fs;

use ggnet_core::{
    nouns::{ImageVersionId, Principal},
    registry::Registry,
};
use ggnet_server::{config::Config, serve::Server};
use serde_json::Value;
use support::{get, image, until};

/// Waits until the server is as ready as this, and its entry `images` has this status; returns the reason.
async fn wait(server: &Server, ready: bool, status: &str) -> String {
    let mut reason = String::new();
    until(&format!("images are {status}"), async || {
        let health: Value = serde_json::from_str(&get(server.http, "/health/ready", "").await).unwrap();
        let images = health["backends"].as_array().unwrap().iter().find(|b| b["port"] == "images");
        let Some(images) = images.filter(|_| health["ready"] == ready) else { return false };
        reason = images["reason"].as_str().unwrap_or_default().to_owned();
        images["status"] == status
    })
    .await;
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_whose_files_are_gone_are_said_and_those_that_are_back_boot_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let text = format!(
        "data_dir = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[target]\nlisten = [\"127.0.0.1:0\"]\n"
    );
    let mut registry = Registry::new();
    ggnet_backends::register(&mut registry);
    let server = Server::start(&Config::parse(&text, "test").unwrap(), &registry).await.unwrap();
    let o = server.orchestrator.clone();
    assert_eq!(wait(&server, true, "up").await, "", "without any image nothing is missing");
    let (images, away) = (data.join("images"), dir.path().join("away"));
    let file = |version: ImageVersionId| images.join(format!("{version}.raw"));
    let (win11, of_win11) = image(&o, "win11").await;
    let (_, of_debian) = image(&o, "debian").await;

    // As if its disk were not mounted: the folder is there, and empty.
    fs::rename(&images, &away).unwrap();
    fs::create_dir(&images).unwrap();
    let why = wait(&server, false, "blocked").await;
    assert!(why.contains("win11 version 1") && why.contains("debian version 1"), "{why}");
    assert!(why.contains("image store files") && why.contains("mount its disk"), "{why}");
    // Nor when the folder itself is gone.
    fs::remove_dir(&images).unwrap();
    wait(&server, false, "blocked").await;
    fs::rename(&away, &images).unwrap();
    assert_eq!(wait(&server, true, "up").await, "");

    // One of two: the other boots.
    fs::rename(file(of_win11), dir.path().join("win11.raw")).unwrap();
    let why = wait(&server, true, "degraded").await;
    assert!(why.contains(&format!("win11 version 1: {of_win11} is not there")), "{why}");
    assert!(!why.contains("debian"), "{why}");
    // What is no image any more is not missing.
    o.images().delete(win11, &Principal::embedder()).await.unwrap();
    assert_eq!(wait(&server, true, "up").await, "");

    fs::remove_file(file(of_debian)).unwrap();
    wait(&server, false, "blocked").await;
    server.stop().await;
}

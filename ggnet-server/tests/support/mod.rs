//! What tests of the whole server share: its answers over HTTP, and images.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as tests fail")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use ggnet_core::{
    nouns::{ImageFormat, ImageId, ImageVersionId, Principal, VersionState},
    orchestrator::{ImportRequest, Orchestrator},
};

/// Far longer than any limit in these tests.
pub const FOR_EVER: Duration = Duration::from_secs(120);

pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..6000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("this never happened: {what}");
}

/// The answer's body.
pub async fn get(http: SocketAddr, path: &str, token: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {http}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    answer(http, request).await.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The whole answer to a whole request.
pub async fn answer(http: SocketAddr, request: String) -> String {
    let got = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(http).unwrap();
        connection.set_read_timeout(Some(FOR_EVER)).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        text
    });
    got.await.unwrap()
}

/// An image with one ready version of a MiB, and that version.
pub async fn image(o: &Orchestrator, name: &str) -> (ImageId, ImageVersionId) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let request = ImportRequest {
        image: name.parse().unwrap(),
        path,
        format: Some(ImageFormat::Raw),
        expected_sha256: None,
        comment: String::new(),
        make_current: true,
        by: Principal::embedder(),
    };
    let (image, version) = o.images().import(request).await.unwrap();
    until("the import is ready", async || {
        let now = o.read().version(version.id).await.unwrap().version;
        assert_ne!(now.state, VersionState::Failed, "{:?} (apt-get install qemu-utils)", now.error);
        now.state == VersionState::Ready
    })
    .await;
    (image.id, version.id)
}

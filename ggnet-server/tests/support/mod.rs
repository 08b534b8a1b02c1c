//! What tests of the whole server share: its answers over HTTP, and images without an import.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as tests fail")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use ggnet_core::{
    nouns::{Image, ImageId, ImageVersion, ImageVersionId, VersionSource, VersionState},
    orchestrator::Orchestrator,
    ports::{Batch, Clock as _, SystemClock, Write},
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
    let got = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(http).unwrap();
        connection.set_read_timeout(Some(FOR_EVER)).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        text
    });
    got.await.unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// An image with one ready version of a MiB in this folder, and that version.
pub async fn image(o: &Orchestrator, images: &Path, name: &str) -> (ImageId, ImageVersionId) {
    let now = SystemClock.now();
    let mut image = Image {
        id: ImageId::generate(),
        name: name.parse().unwrap(),
        description: String::new(),
        current: None,
        last_version: 0,
        created_at: now,
        updated_at: now,
        revision: 0,
    };
    let version = ImageVersion {
        id: ImageVersionId::generate(),
        image: image.id,
        number: 1,
        state: VersionState::Ready,
        comment: String::new(),
        source: VersionSource::Import { path: "/import".into(), format: None, expected_sha256: None },
        size_bytes: 1 << 20,
        sha256: Some("0".repeat(64)),
        error: None,
        failure: None,
        created_at: now,
        finished_at: Some(now),
    };
    File::create_new(images.join(format!("{}.raw", version.id))).unwrap().set_len(1 << 20).unwrap();
    let batch = Batch::new().write(Write::Image(image.clone())).write(Write::Version(version.clone()));
    o.ports().store().commit(batch).await.unwrap();
    (image.revision, image.current) = (1, Some(version.id));
    o.ports().store().commit(Batch::new().write(Write::Image(image.clone()))).await.unwrap();
    (image.id, version.id)
}

//! The boot file store "builtin", with tftp-hpa as its client.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_backends::bootfile::builtin::{BuiltinBootFiles, TftpConfig};
use ggnet_core::{
    error::{Error, ErrorKind, Result},
    ports::{BootFileStore, BootPath},
    testkit::suite::{BootFileFixture, Fixture},
};

use crate::{iscsi_support::tool, process::Process};

/// The process that serves, and its address.
#[derive(Default)]
struct Tftp(Mutex<Option<(Process, SocketAddr)>>);

#[async_trait]
impl Fixture<dyn BootFileStore> for Tftp {
    async fn fresh(&self) -> Arc<dyn BootFileStore> {
        let (process, store) = (Process::start(), BuiltinBootFiles::new());
        let config = TftpConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], ..TftpConfig::default() };
        let serving = store.clone();
        let bound = process.handle().spawn(async move { serving.serve_tftp(config).await.unwrap() });
        let at = bound.await.unwrap()[0];
        *self.0.lock().unwrap() = Some((process, at));
        Arc::new(store)
    }

    async fn reopen(&self) -> Arc<dyn BootFileStore> {
        let old = self.0.lock().unwrap().take();
        old.expect("fresh() came before").0.kill().await;
        self.fresh().await
    }
}

#[async_trait]
impl BootFileFixture for Tftp {
    fn can_fetch(&self) -> bool {
        true
    }

    fn observes(&self) -> bool {
        true
    }

    async fn fetch(&self, path: &BootPath) -> Result<Bytes> {
        let at = self.0.lock().unwrap().as_ref().expect("fresh() came before").1;
        tftp_get(&[], at, path).await
    }
}

/// Acts as firmware with tftp-hpa, started with the command in `prefix`.
pub async fn tftp_get(prefix: &[String], server: SocketAddr, path: &BootPath) -> Result<Bytes> {
    let dir = tempfile::tempdir().unwrap();
    let (out, path) = (dir.path().join("out"), path.to_string());
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let get = ["tftp", "-m", "binary", &ip, &port, "-c", "get", &path, out.to_str().unwrap()];
    let argv: Vec<&str> = prefix.iter().map(String::as_str).chain(get).collect();
    let said = tool("tftp-hpa", &argv).await;
    if said.ok && said.text.is_empty() {
        return Ok(std::fs::read(&out).unwrap().into());
    }
    let not_found = said.text.contains("Error code 1:");
    Err(Error::new(if not_found { ErrorKind::NotFound } else { ErrorKind::Internal }, said.text))
}

ggnet_core::boot_file_behaviour!(behaviour, Tftp::default(), not_run: [what_is_not_ours_is_left_alone]);

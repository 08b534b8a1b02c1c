//! Serves a file to every initiator: `cargo run --example serve_file -- FILE [ADDRESS:PORT]`, then `iscsi-ls -s iscsi://127.0.0.1/`.

use std::{sync::Arc, time::Duration};

use ggnet_iscsi::{
    Chap, Exclusivity, FileDevice, Identity, IscsiServer, LoginDecision, LoginPolicy, LoginRequest, Lun,
    NoObserver, ServerConfig, TargetConfig,
};

const IQN: &str = "iqn.2026-01.org.example:file";

struct Everybody;

#[async_trait::async_trait]
impl LoginPolicy for Everybody {
    async fn decide(&self, _: &LoginRequest) -> LoginDecision {
        LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared }
    }

    async fn discover(&self, _: &LoginRequest) -> Vec<String> {
        vec![IQN.to_owned()]
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let device = Arc::new(FileDevice::open(args.next().ok_or("serve_file FILE [ADDRESS:PORT]")?, false)?);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:3260".into()).parse()?;
    let config = ServerConfig { listen: vec![listen], ..ServerConfig::default() };
    let server = IscsiServer::bind(config, Arc::new(Everybody), Arc::new(NoObserver))?;
    let lun =
        Lun { number: 0, device, identity: Identity::new("0001", 1), read_only: false, removable: false };
    server.add_target(TargetConfig { iqn: IQN.to_owned(), luns: vec![lun] })?;
    println!("{IQN} at {:?}", server.local_addrs());
    tokio::signal::ctrl_c().await?;
    server.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

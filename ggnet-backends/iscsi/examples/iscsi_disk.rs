//! Exports a file (or memory) as an iSCSI disk, for hand tests and measurements.
//!
//! ```text
//! iscsi_disk [--listen ADDR:PORT]... [--iqn NAME] [--block 512|4096] [--chap USER%SECRET] [--mutual USER%SECRET]
//!            [--physical BYTES] [--exclusive] [--read-only] [--removable] (FILE | SIZE_IN_MIB)
//! ```
//!
//! It prints `listening on ADDR` per listener, and a session's end; SIGTERM or SIGINT stops it cleanly.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ggnet_iscsi::{
    BlockInfo, Chap, ChapPair, Exclusivity, FileDevice, Identity, IscsiServer, LoginDecision, LoginPolicy,
    LoginRequest, Lun, Secret, ServerConfig, SessionEvent, SessionObserver, TargetConfig,
};

struct Policy {
    iqn: String,
    chap: Chap,
    exclusivity: Exclusivity,
}

#[async_trait::async_trait]
impl LoginPolicy for Policy {
    async fn decide(&self, request: &LoginRequest) -> LoginDecision {
        match &request.target {
            Some(target) if *target != self.iqn => LoginDecision::NotFound,
            _ => LoginDecision::Accept {
                chap: if request.target.is_some() { self.chap.clone() } else { Chap::None },
                exclusivity: self.exclusivity,
            },
        }
    }

    async fn discover(&self, _: &LoginRequest) -> Vec<String> {
        vec![self.iqn.clone()]
    }
}

struct Print;

impl SessionObserver for Print {
    fn observe(&self, event: SessionEvent) {
        if let SessionEvent::Disconnected { session, reason } = event {
            eprintln!("{reason:?} after {:?}: {:?}", session.age, session.counters);
        }
    }
}

fn pair(value: &str) -> ChapPair {
    let (user, secret) = value.split_once('%').expect("USER%SECRET");
    ChapPair { user: user.into(), secret: Secret::new(secret) }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut config = ServerConfig { listen: Vec::new(), ..ServerConfig::default() };
    let (mut iqn, mut block, mut one_way, mut mutual) =
        ("iqn.2024-01.org.example:disk".to_owned(), 512, None, None);
    let (mut exclusivity, mut read_only, mut disk, mut physical) = (Exclusivity::Shared, false, None, 4096);
    let mut removable = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value");
        match arg.as_str() {
            "--listen" => config.listen.push(value().parse::<SocketAddr>().expect("ADDR:PORT")),
            "--iqn" => iqn = value(),
            "--block" => block = value().parse().expect("a number"),
            "--physical" => physical = value().parse().expect("a number"),
            "--chap" => one_way = Some(pair(&value())),
            "--mutual" => mutual = Some(pair(&value())),
            "--exclusive" => exclusivity = Exclusivity::ByInitiatorName,
            "--removable" => removable = true,
            "--read-only" => read_only = true,
            _ => disk = Some(arg),
        }
    }
    if config.listen.is_empty() {
        config.listen.push(SocketAddr::from(([127, 0, 0, 1], 3260)));
    }
    let disk = disk.expect("FILE or SIZE_IN_MIB");
    let file = match disk.parse::<u64>() {
        Ok(mib) => {
            let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC)?);
            file.set_len(mib << 20)?;
            file
        }
        Err(_) => File::options().read(true).write(true).open(&disk)?,
    };
    let info = BlockInfo {
        size_bytes: file.metadata()?.len() / u64::from(block) * u64::from(block),
        logical_block: block,
        physical_block: physical,
        read_only: false,
        volatile_cache: true,
        discard: true,
    };
    let chap = match (one_way, mutual) {
        (None, _) => Chap::None,
        (Some(initiator), None) => Chap::OneWay(initiator),
        (Some(initiator), Some(target)) => Chap::Mutual { initiator, target },
    };
    let policy = Policy { iqn: iqn.clone(), chap, exclusivity };
    let server = IscsiServer::bind(config, Arc::new(policy), Arc::new(Print)).map_err(io::Error::other)?;
    let identity = Identity::new("0001", 1);
    let device = Arc::new(FileDevice::new(file, info));
    server
        .add_target(TargetConfig {
            iqn,
            luns: vec![Lun { number: 0, device, identity, read_only, removable }],
        })
        .map_err(io::Error::other)?;
    for address in server.local_addrs() {
        println!("listening on {address}");
    }
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    server.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

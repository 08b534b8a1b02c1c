//! The initiator of the behaviour suite of targets: it logs in once and never again by itself.

use async_trait::async_trait;
use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::ChapPair,
    ports::{Access, TargetEndpoint},
    testkit::suite::TargetClient,
};
use ggnet_iscsi::{
    Secret,
    initiator::{self, Account, Initiator},
};
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Mutex;

const SECTOR: usize = 512;
/// What goes in one command: more than a first burst, so that targets ask for the rest.
const CHUNK: usize = 1 << 20;

/// Logs in as `access` says; any name where everybody may. With a mutual pair the target is left without its proof.
pub async fn log_in(endpoint: &TargetEndpoint, access: &Access) -> Result<Box<dyn TargetClient>> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let (name, chap, mutual) = match access {
        Access::Initiator { name, chap, mutual } => (name.to_string(), chap.as_ref(), mutual.as_ref()),
        Access::Shared => ("iqn.2026-11.local.ggnet:anybody".to_owned(), None, None),
    };
    let account = Account {
        isid: [0x80, 0, 0, 0, 0, NEXT.fetch_add(1, Ordering::Relaxed)],
        lun: endpoint.lun,
        chap: chap.map(pair),
        mutual: mutual.map(pair),
        ..Account::new(endpoint.listen[0], endpoint.iqn.to_string(), name)
    };
    let initiator = Initiator::login(account).await.map_err(ours)?;
    Ok(Box::new(Connected(Mutex::new(initiator))))
}

fn pair(pair: &ChapPair) -> ggnet_iscsi::ChapPair {
    ggnet_iscsi::ChapPair { user: pair.user.clone(), secret: Secret::new(pair.secret.expose()) }
}

/// An initiator's error as the suite tells them apart.
fn ours(e: initiator::Error) -> Error {
    let kind = match (e.status(), &e) {
        (Some((2, 1 | 2)), _) | (_, initiator::Error::Unproved) => ErrorKind::Permission,
        (Some((2, 3)), _) => ErrorKind::NotFound,
        (Some((3, 1)), _) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, e.to_string()).with_source(e)
}

fn lba(offset: u64) -> u64 {
    offset / SECTOR as u64
}

struct Connected(Mutex<Initiator>);

#[async_trait]
impl TargetClient for Connected {
    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let blocks = u32::try_from(len / SECTOR).unwrap();
        self.0.lock().await.read(lba(offset), blocks).await.map_err(ours)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut initiator = self.0.lock().await;
        for (n, chunk) in (0..).zip(data.chunks(CHUNK)) {
            initiator.write(lba(offset + n * CHUNK as u64), chunk).await.map_err(ours)?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.0.lock().await.flush().await.map_err(ours)
    }

    async fn logout(self: Box<Self>) -> Result<()> {
        self.0.into_inner().logout().await.map_err(ours)
    }
}

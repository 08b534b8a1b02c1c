//! Serves a disk of one's own making: in memory, where a block takes room once it is written. Initiators prove themselves by CHAP, and
//! each session says when it begins and ends.
//!
//! ```text
//! cargo run --example own_device -- [ADDRESS:PORT]
//! iscsi-ls -s iscsi://reader%secretsecret@127.0.0.1/
//! ```

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use ggnet_iscsi::{
    BlockDevice, BlockInfo, BlockRun, Chap, ChapPair, Exclusivity, Identity, IscsiServer, LoginDecision,
    LoginPolicy, LoginRequest, Lun, Secret, ServerConfig, SessionEvent, SessionObserver, TargetConfig,
};

const IQN: &str = "iqn.2026-01.org.example:memory";
/// A block of the disk, logical and physical. QEMU 7.2 aborts on a thin disk with blocks of 4096 bytes: it asks for the status of a range
/// that is not a whole number of them (`iscsi_co_block_status` in its block/iscsi.c).
const BLOCK: usize = 512;
/// What initiators see of it: 1 GiB, of which nothing is stored at first.
const SIZE: u64 = 1 << 30;

type Blocks = BTreeMap<u64, Box<[u8]>>;

/// A disk in memory: the blocks that were written, by their number.
#[derive(Default)]
struct Memory(RwLock<Blocks>);

impl Memory {
    // A poisoned lock means a panic elsewhere: the map is whole at every step.
    fn read(&self) -> RwLockReadGuard<'_, Blocks> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Blocks> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Offsets and lengths are whole logical blocks inside of the disk: the target has seen to that.
impl BlockDevice for Memory {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: SIZE,
            logical_block: 512,
            physical_block: 512,
            read_only: false,
            // Nothing of it survives a power cut, whatever is flushed.
            volatile_cache: true,
            discard: true,
        }
    }

    /// Memory never makes anybody wait: every read is done at once, on the runtime's own thread.
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let blocks = self.read();
        for (number, part) in (offset / BLOCK as u64..).zip(buf.chunks_exact_mut(BLOCK)) {
            match blocks.get(&number) {
                Some(block) => part.copy_from_slice(block),
                None => part.fill(0),
            }
        }
        Ok(())
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.write_at(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let parts = buf.chunks_exact(BLOCK).map(Box::<[u8]>::from);
        self.write().extend((offset / BLOCK as u64..).zip(parts));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let (first, end) = (offset / BLOCK as u64, (offset + len) / BLOCK as u64);
        self.write().retain(|number, _| !(first..end).contains(number));
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let (blocks, first) = (self.read(), offset / BLOCK as u64);
        let stored = blocks.range(first..).map(|(number, _)| *number);
        let in_a_row = (first..).zip(stored).take_while(|(want, number)| want == number).count() as u64;
        let mapped = in_a_row > 0;
        let run = if mapped { Some(in_a_row) } else { blocks.range(first..).next().map(|(n, _)| n - first) };
        Ok(BlockRun { len: run.map_or(len, |run| len.min(run * BLOCK as u64)), mapped })
    }
}

/// Lets in whoever knows the secret; discovery needs none.
struct Known;

#[async_trait::async_trait]
impl LoginPolicy for Known {
    async fn decide(&self, request: &LoginRequest) -> LoginDecision {
        let pair = ChapPair { user: "reader".into(), secret: Secret::new("secretsecret") };
        match request.target.as_deref() {
            None => LoginDecision::Accept { chap: Chap::None, exclusivity: Exclusivity::Shared },
            Some(IQN) => {
                LoginDecision::Accept { chap: Chap::OneWay(pair), exclusivity: Exclusivity::ByInitiatorName }
            }
            Some(_) => LoginDecision::NotFound,
        }
    }

    async fn discover(&self, _: &LoginRequest) -> Vec<String> {
        vec![IQN.to_owned()]
    }
}

struct Say;

impl SessionObserver for Say {
    fn observe(&self, event: SessionEvent) {
        match event {
            SessionEvent::LoggedIn(session) => {
                println!("{} logged in from {}", session.initiator, session.peer);
            }
            SessionEvent::Disconnected { session, reason } => {
                let counters = session.counters;
                println!(
                    "{} left ({reason:?}): {} reads, {} writes",
                    session.initiator, counters.reads, counters.writes
                );
            }
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3260".into()).parse()?;
    let config = ServerConfig { listen: vec![listen], ..ServerConfig::default() };
    let server = IscsiServer::bind(config, Arc::new(Known), Arc::new(Say))?;
    let device = Arc::new(Memory::default());
    let lun =
        Lun { number: 0, device, identity: Identity::new("0001", 1), read_only: false, removable: false };
    server.add_target(TargetConfig { iqn: IQN.to_owned(), luns: vec![lun] })?;
    println!("{IQN} at {:?}", server.local_addrs());
    tokio::signal::ctrl_c().await?;
    server.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

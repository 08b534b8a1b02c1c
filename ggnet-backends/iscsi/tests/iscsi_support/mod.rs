//! What the tests of the iSCSI target share: disks, a policy that can be told what to say, a server around them, external
//! tools, and what the tests say over a raw connection again and again.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ggnet_iscsi::initiator::{Account, Connection, Error, Pdu, cdb};
use ggnet_iscsi::{
    BlockDevice, Chap, Exclusivity, Identity, IscsiServer, LoginAbort, LoginDecision, LoginInfo, LoginPolicy,
    LoginRequest, Lun, ServerConfig, SessionEvent, SessionObserver, TargetConfig,
};

pub use self::mem_disk::MemDisk;

pub mod mem_disk;

pub const IQN: &str = "iqn.2024-01.org.example:disk";

/// A policy that says what it is told to.
pub struct Policy {
    pub decision: Mutex<LoginDecision>,
    pub abort: Mutex<Option<LoginAbort>>,
    pub authenticated: Mutex<Vec<LoginInfo>>,
    pub discoverable: Mutex<Vec<String>>,
    /// Removed by force, through this server, in the commit of each login.
    pub removes: Mutex<Option<(IscsiServer, String)>>,
}

impl Policy {
    pub fn accept(chap: Chap, exclusivity: Exclusivity) -> Arc<Self> {
        Arc::new(Self {
            decision: Mutex::new(LoginDecision::Accept { chap, exclusivity }),
            abort: Mutex::new(None),
            authenticated: Mutex::default(),
            discoverable: Mutex::new(vec![IQN.into()]),
            removes: Mutex::new(None),
        })
    }

    pub fn say(&self, decision: LoginDecision) {
        *self.decision.lock().unwrap() = decision;
    }
}

#[async_trait::async_trait]
impl LoginPolicy for Policy {
    async fn decide(&self, request: &LoginRequest) -> LoginDecision {
        match (&request.target, self.decision.lock().unwrap().clone()) {
            // Discovery asks for no proof here.
            (None, LoginDecision::Accept { exclusivity, .. }) => {
                LoginDecision::Accept { chap: Chap::None, exclusivity }
            }
            (_, decision) => decision,
        }
    }

    async fn authenticated(&self, login: &LoginInfo) -> Result<(), LoginAbort> {
        self.authenticated.lock().unwrap().push(login.clone());
        let removes = self.removes.lock().unwrap().clone();
        if let Some((server, iqn)) = removes {
            server.remove_target(&iqn, ggnet_iscsi::Removal::Force).await.unwrap();
        }
        self.abort.lock().unwrap().map_or(Ok(()), Err)
    }

    async fn discover(&self, _: &LoginRequest) -> Vec<String> {
        self.discoverable.lock().unwrap().clone()
    }
}

/// Remembers all events.
#[derive(Default)]
pub struct Events(pub Mutex<Vec<SessionEvent>>);

impl SessionObserver for Events {
    fn observe(&self, event: SessionEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    /// The kinds of events so far, with reasons.
    pub fn names(&self) -> Vec<String> {
        let name = |e: &SessionEvent| match e {
            SessionEvent::LoggedIn(_) => "login".to_owned(),
            SessionEvent::FirstRead(_) => "read".to_owned(),
            SessionEvent::FirstWrite(_) => "write".to_owned(),
            SessionEvent::Disconnected { reason, .. } => format!("{reason:?}"),
            SessionEvent::LoginStalled { target, .. } => {
                format!("stalled {}", target.as_deref().unwrap_or("-"))
            }
        };
        self.0.lock().unwrap().iter().map(name).collect()
    }
}

pub fn identity(n: u64) -> Identity {
    Identity {
        serial: format!("serial-{n}"),
        naa: n,
        vendor: "GGnet".into(),
        product: "TEST DISK".into(),
        revision: "1".into(),
    }
}

pub fn lun(number: u16, device: Arc<dyn BlockDevice>) -> Lun {
    Lun { number, device, identity: identity(u64::from(number) + 1), read_only: false, removable: false }
}

/// A server on a loopback port with its parts.
pub struct Rig {
    pub server: IscsiServer,
    pub policy: Arc<Policy>,
    pub events: Arc<Events>,
    pub address: SocketAddr,
}

impl Rig {
    pub fn new(policy: Arc<Policy>) -> Self {
        Self::with(policy, |_| {})
    }

    pub fn with(policy: Arc<Policy>, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config =
            ServerConfig { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..ServerConfig::default() };
        change(&mut config);
        let events = Arc::new(Events::default());
        let server = IscsiServer::bind(config, Arc::clone(&policy) as _, Arc::clone(&events) as _).unwrap();
        let address = server.local_addrs()[0];
        Self { server, policy, events, address }
    }

    /// A shared, open target with one disk as LUN 0.
    pub fn open(device: Arc<dyn BlockDevice>) -> Self {
        let rig = Self::new(Policy::accept(Chap::None, Exclusivity::Shared));
        rig.add(IQN, device);
        rig
    }

    pub fn add(&self, iqn: &str, device: Arc<dyn BlockDevice>) {
        self.server.add_target(TargetConfig { iqn: iqn.into(), luns: vec![lun(0, device)] }).unwrap();
    }

    /// LUN 0 of the target. Nothing but names is said at a login, so that the RFC's defaults hold.
    pub fn account(&self) -> Account {
        Account::new(self.address, IQN, "iqn.2024-01.org.example:pc").say(&[])
    }

    pub fn url(&self) -> String {
        format!("iscsi://{}/{IQN}/0", self.address)
    }
}

/// WRITE(10).
pub fn write_cdb(lba: u32, blocks: u16, fua: bool) -> [u8; 10] {
    cdb::ten(0x2a, if fua { 8 } else { 0 }, lba, blocks)
}

/// What tests do with a connection; its failures fail the test.
pub trait Say {
    /// READ(10); the data and the PDU with the status.
    async fn read(&mut self, lba: u32, blocks: u16, block: u32) -> (Vec<u8>, Pdu);

    /// WRITE(10) of blocks of 512 bytes with all data immediate; the answer.
    async fn write(&mut self, lba: u32, fua: bool, data: &[u8]) -> Pdu;

    /// Whether the target ends the connection, and says nothing before.
    async fn has_ended(&mut self) -> bool;
}

impl Say for Connection {
    async fn read(&mut self, lba: u32, blocks: u16, block: u32) -> (Vec<u8>, Pdu) {
        let cdb = cdb::ten(0x28, 0, lba, blocks);
        self.command(0xc1, &cdb, u32::from(blocks) * block, &[]).await.unwrap();
        self.collect().await.unwrap()
    }

    async fn write(&mut self, lba: u32, fua: bool, data: &[u8]) -> Pdu {
        let cdb = write_cdb(lba, u16::try_from(data.len() / 512).unwrap(), fua);
        self.command(0xa1, &cdb, u32::try_from(data.len()).unwrap(), data).await.unwrap();
        self.receive().await.unwrap()
    }

    async fn has_ended(&mut self) -> bool {
        matches!(self.receive().await, Err(Error::Closed | Error::Io(_)))
    }
}

/// What an external program said.
pub struct Said {
    pub ok: bool,
    pub text: String,
}

/// Runs an external program; one that is missing fails the test and names its package.
pub async fn tool(package: &str, argv: &[&str]) -> Said {
    #[expect(clippy::disallowed_methods, reason = "fixed programs of the test, with a time limit below")]
    let mut command = tokio::process::Command::new(argv[0]);
    command.args(&argv[1..]).kill_on_drop(true).stdin(std::process::Stdio::null());
    // Only ends a test that would never end: libiscsi's suite takes minutes on a busy host.
    let limit = Duration::from_secs(2400);
    let output = match tokio::time::timeout(limit, command.output()).await.expect("in time") {
        Ok(output) => output,
        Err(e) => panic!("{}: {e}; run: apt-get install {package}", argv[0]),
    };
    let text = [output.stdout, output.stderr].concat();
    Said { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// Waits until it holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Bytes that differ from block to block.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend(x.to_le_bytes());
    }
    out.truncate(len);
    out
}

//! A userspace iSCSI target ([RFC 7143](https://www.rfc-editor.org/rfc/rfc7143), SPC-4, SBC-3) as a library: you provide block devices and
//! a login policy.
//!
//! * [`IscsiServer`] listens; targets are added and removed while it runs;
//! * a [`BlockDevice`] is a disk; [`FileDevice`] is a disk in a file;
//! * a [`LoginPolicy`] decides who may log in to which target, and how the initiator must authenticate ([`Chap`]);
//! * a [`SessionObserver`] is notified of sessions.
//!
//! The examples `serve_file` and `own_device` are complete servers. The feature `initiator` adds an initiator, for tests and load generators.
//!
//! ```text
//!  server  ──▶ connection (a task for each) ──▶ login ──▶ session ──▶ scsi/* ──▶ BlockDevice
//!    │                                            │          │
//!  targets, limits                           LoginPolicy  SessionObserver
//! ```
//!
//! How it is built:
//! * one task per connection owns its buffers, sequence numbers and tasks: a read or a write that the device does at once waits for no lock
//!   and allocates nothing;
//! * a read goes from the device into the socket's buffer, a write from the socket's buffer into the device. The blocking pool is used only
//!   for reads and writes for which the device would wait, for flushes, and for commands that do more than read or write;
//! * one connection per session (MaxConnections=1, section 13.2) and error recovery level 0 (sections 7.1.5 and 13.20): any error of a
//!   connection ends its session, and the initiator logs in again.
//!
//! Which module implements which part of the standard: login (chapter 6, sections 11.12 and 11.13) in `login`, CHAP (section 12.1.3, RFC
//! 1994) in `chap`, text keys (chapter 13) in `negotiate`, command and status numbers (section 4.2.2) in `outbox`, data (sections 11.7 and
//! 11.8) in `reads` and `writes`, task management (sections 11.5 and 11.6) in `tmf`, text requests (sections 11.10 and 11.11) in
//! `text_requests`, NOP (sections 11.18 and 11.19) in `ping`, logout (sections 11.14 and 11.15) in `session`, SCSI in `scsi`.
//!
//! Invariants: the end of a session waits for its requests in flight, so that nothing is written through a target after
//! [`IscsiServer::remove_target`] has returned; the loss of a connection changes neither target nor device; no input from the network
//! causes a panic or makes memory grow without a limit (see [`Limits`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

mod actions;
mod attached;
mod block;
mod bytes;
mod chap;
mod conn;
mod connection;
mod digest;
#[cfg(target_os = "linux")]
mod file;
mod flow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "initiator")]
pub mod initiator;
mod jobs;
mod log_budget;
mod login;
mod memory;
mod negotiate;
mod outbox;
mod pdu;
mod ping;
mod places;
mod reads;
mod scsi;
mod server;
mod session;
mod shared;
mod stats;
mod target;
mod task;
mod tasks;
mod text;
mod text_requests;
mod tmf;
mod workers;
mod writes;

pub use block::{BlockDevice, BlockInfo, BlockRun};
pub use chap::{Chap, ChapPair, Secret};
#[cfg(target_os = "linux")]
pub use file::FileDevice;
pub use log_budget::LogBudget;
pub use places::Occupancy;
pub use server::{Accepting, AddError, BindError, IscsiServer, Removal, RemoveError};
pub use stats::{CountersSnapshot, LATENCY_BUCKETS};

/// How a server listens and behaves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to listen on. Port 0 lets the system choose; see [`IscsiServer::local_addrs`].
    pub listen: Vec<SocketAddr>,
    /// The address that discovery reports (`host:port`; TargetAddress, RFC 7143 section 13.8); none: the connection's own local address.
    pub advertise: Option<String>,
    /// The portal group tag, the same for all targets (TargetPortalGroupTag, RFC 7143 section 13.9).
    pub portal_group: u16,
    /// When TCP probes a silent peer.
    pub keepalive: Keepalive,
    /// Ping a silent initiator after this time (NOP-In, RFC 7143 section 11.19). A missing answer does not close the connection by itself,
    /// because some boot firmware never answers and pauses for minutes. But an initiator that has answered before and then misses
    /// [`NOP_MISSES`] pings in a row counts as dead. None: never ping.
    pub nop_interval: Option<Duration>,
    /// What initiators may use of the server.
    pub limits: Limits,
}

/// The number of unanswered NOP-Ins in a row after which an initiator that has answered before counts as dead.
pub const NOP_MISSES: u32 = 5;

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 3260))],
            advertise: None,
            portal_group: 1,
            keepalive: Keepalive::default(),
            nop_interval: Some(Duration::from_secs(60)),
            limits: Limits::default(),
        }
    }
}

/// TCP keep-alive. Generous by default: boot firmware stops all networking while the boot loader runs.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// How long the peer is silent before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// The number of unanswered probes after which the connection is closed.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(300), interval: Duration::from_secs(30), probes: 10 }
    }
}

/// Limits on what the network may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of sessions that authenticated by CHAP. One more login gets status 0301 (the initiator retries).
    pub max_connections: usize,
    /// Maximum number of sessions without authentication: discovery, and targets without CHAP. One source address may have half of them,
    /// and at least 16.
    pub max_open: usize,
    /// Maximum number of connections whose login is in progress. When one more arrives, the oldest connection of the source with the most
    /// is closed.
    pub max_waiting: usize,
    /// How long each request of a login may take to arrive completely.
    pub proof_timeout: Duration,
    /// Time from the connection to the end of the login.
    pub login_timeout: Duration,
    /// How long a discovery session may last.
    pub discovery_timeout: Duration,
    /// Longest data segment that the target accepts, in bytes (MaxRecvDataSegmentLength, RFC 7143 section 13.12).
    pub max_data_segment: u32,
    /// Longest text of one login or text request, in bytes.
    pub max_text: usize,
    /// Maximum number of open commands of a session (the command window, RFC 7143 section 4.2.2.1).
    pub queue_depth: u32,
    /// Maximum number of open immediate commands of a session, which are outside the window. One more is rejected (RFC 7143 section
    /// 4.2.2.1).
    pub immediate_commands: u32,
    /// Bytes of collected command data that a session may hold; beyond that a command gets TASK SET FULL.
    pub max_staged: usize,
    /// Bytes that all sessions together may hold for data in flight, in addition to 512 KiB and one incoming PDU for each session. When
    /// they are used up, sessions continue in smaller steps.
    pub memory: usize,
    /// Maximum number of reads and writes on the blocking pool at once, for all sessions together; one session has at most a quarter of
    /// them. In addition there are half as many slots for flushes, and four for commands over many blocks.
    pub blocking_jobs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_open: 1024,
            max_waiting: 512,
            proof_timeout: Duration::from_secs(10),
            login_timeout: Duration::from_secs(30),
            discovery_timeout: Duration::from_secs(30),
            max_data_segment: 256 << 10,
            max_text: 16 << 10,
            queue_depth: 128,
            immediate_commands: 16,
            max_staged: 64 << 20,
            memory: 64 << 20,
            blocking_jobs: 64,
        }
    }
}

/// A target: a name and its disks.
#[derive(Clone)]
pub struct TargetConfig {
    /// Its iSCSI name (RFC 7143 section 4.2.7).
    pub iqn: String,
    /// Its logical units; each number at most once.
    pub luns: Vec<Lun>,
}

/// A logical unit.
#[derive(Clone)]
pub struct Lun {
    /// Its number, below 256.
    pub number: u16,
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// Its identifiers. They must not depend on anything that changes with a boot.
    pub identity: Identity,
    /// Refuse writes, whatever the device allows.
    pub read_only: bool,
    /// Present it as a removable medium, which initiators can lock and eject. Not for a disk that a machine boots from.
    pub removable: bool,
}

/// The identifiers of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unit serial number (VPD page 80 of SPC-4), printable ASCII.
    pub serial: String,
    /// A locally assigned NAA identifier (VPD page 83 of SPC-4): 60 bits; the target sets the top four.
    pub naa: u64,
    /// Vendor, at most 8 characters.
    pub vendor: String,
    /// Product, at most 16 characters.
    pub product: String,
    /// Revision, at most 4 characters.
    pub revision: String,
}

impl Identity {
    /// A disk of the vendor "GGNET"; all its fields can be set.
    pub fn new(serial: impl Into<String>, naa: u64) -> Self {
        let (vendor, product, revision) = ("GGNET".to_owned(), "DISK".to_owned(), "1".to_owned());
        Self { serial: serial.into(), naa, vendor, product, revision }
    }
}

/// A request to log in.
#[derive(Clone, Debug)]
pub struct LoginRequest {
    /// The target's name in lower case; none for a discovery session.
    pub target: Option<String>,
    /// The initiator's name in lower case.
    pub initiator: String,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The local address that it connected to.
    pub local: SocketAddr,
}

/// The policy's answer. The statuses are defined in RFC 7143 section 11.13.5.
#[derive(Clone, Debug)]
pub enum LoginDecision {
    /// It cannot decide yet (status 0301: the initiator retries). Return this for every login, also to an unknown target, until the program
    /// knows its targets.
    NotReady,
    /// There is no such target (status 0203; initiators give up).
    NotFound,
    /// This initiator may not use the target (status 0202; initiators give up).
    Refused,
    /// The initiator may log in after it has authenticated.
    Accept {
        /// How it must authenticate.
        chap: Chap,
        /// Which other sessions may exist.
        exclusivity: Exclusivity,
    },
}

/// Which sessions a target may have at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusivity {
    /// One session per initiator name: the newest authenticated login closes the older sessions of that name, whatever their session id,
    /// after their requests in flight have ended. The policy must refuse other names.
    ByInitiatorName,
    /// Any number; only a login with the same name *and* session id replaces a session (session reinstatement, RFC 7143 section 6.3.5).
    Shared,
}

/// An authenticated login that is about to succeed.
#[derive(Clone, Debug)]
pub struct LoginInfo {
    /// The id that the session will have.
    pub session: SessionId,
    /// The request.
    pub request: LoginRequest,
    /// The initiator's session id (ISID, RFC 7143 section 11.12.5).
    pub isid: [u8; 6],
    /// The CHAP user that authenticated.
    pub chap_user: Option<String>,
}

/// Why an authenticated login is refused after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginAbort {
    /// The initiator should retry (status 0301).
    Retry,
    /// The initiator may not log in (status 0202).
    Refuse,
}

/// Decides who may log in. Called at login and discovery only, never for reads and writes.
///
/// Every call is dropped half-way if the login times out or the connection breaks. A change that must not be half-done has to protect
/// itself against that, for example in a spawned task.
#[async_trait::async_trait]
pub trait LoginPolicy: Send + Sync {
    /// Decides by names and addresses, before any authentication.
    async fn decide(&self, request: &LoginRequest) -> LoginDecision;

    /// Called once per login to a target, after the authentication and before the final response: the initiator sends no SCSI command
    /// before this has returned. It may add targets, and remove *other* ones.
    async fn authenticated(&self, login: &LoginInfo) -> Result<(), LoginAbort> {
        let _ = login;
        Ok(())
    }

    /// The targets that a discovery session gets, in this order.
    async fn discover(&self, request: &LoginRequest) -> Vec<String> {
        let _ = request;
        Vec::new()
    }
}

/// A session's id, unique during the life of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A live session.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// The target; none for a discovery session.
    pub target: Option<String>,
    /// The initiator's name.
    pub initiator: String,
    /// The initiator's session id (ISID, RFC 7143 section 11.12.5).
    pub isid: [u8; 6],
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The local address that it connected to.
    pub local: SocketAddr,
    /// Time since its login.
    pub age: Duration,
    /// Its counters.
    pub counters: CountersSnapshot,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The initiator logged out (RFC 7143 section 11.14).
    Logout,
    /// The connection ended or broke.
    ConnectionLost,
    /// The initiator broke the protocol.
    ProtocolError,
    /// A newer login replaced it.
    Replaced,
    /// The target was removed, or an initiator requested a cold reset of it.
    TargetRemoved,
    /// The server shuts down.
    Shutdown,
    /// The initiator answered pings before and no longer does.
    Silent,
}

/// Events of sessions on targets, sent as they happen. Discovery sessions cause no events.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// A session began.
    LoggedIn(SessionInfo),
    /// The session read its first block.
    FirstRead(SessionInfo),
    /// The session wrote its first block.
    FirstWrite(SessionInfo),
    /// A session ended, and so have its requests in flight.
    Disconnected {
        /// The session, with its final counters.
        session: SessionInfo,
        /// Why.
        reason: CloseReason,
    },
    /// A login reached a time limit before the initiator had authenticated: it stopped sending.
    LoginStalled {
        /// The initiator's address.
        peer: SocketAddr,
        /// The target that it named and may log in to; none if it did not send a complete request.
        target: Option<String>,
    },
}

/// Observes sessions. Called inline: it must not block (send into a channel).
pub trait SessionObserver: Send + Sync {
    /// Receives one event.
    fn observe(&self, event: SessionEvent);
}

/// Ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl SessionObserver for NoObserver {
    fn observe(&self, _: SessionEvent) {}
}

/// The code in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

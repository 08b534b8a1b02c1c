//! A userspace iSCSI target ([RFC 7143](https://www.rfc-editor.org/rfc/rfc7143), SPC-4, SBC-3) as a library: you give it block devices and
//! a login policy.
//!
//! * [`IscsiServer`] listens, and targets are added to it and removed from it while it runs;
//! * a [`BlockDevice`] is a disk; [`FileDevice`] is one, on a file;
//! * a [`LoginPolicy`] says who may log in to what, and what must be proved ([`Chap`]);
//! * a [`SessionObserver`] hears of sessions.
//!
//! The examples `serve_file` and `own_device` are whole servers.
//!
//! ```text
//!  server  ──▶ connection (a task for each) ──▶ login ──▶ session ──▶ scsi/* ──▶ BlockDevice
//!    │                                            │          │
//!  targets, limits                           LoginPolicy  SessionObserver
//! ```
//!
//! How it is built:
//! * one task per connection owns its buffers, sequence numbers and tasks: the path of a read or a write takes no lock
//!   and allocates nothing;
//! * a read goes from the device into the socket's buffer, a write from the socket's buffer into the device; the blocking
//!   pool is used only where the device says that it would wait;
//! * one connection per session (MaxConnections=1, section 13.2) and error recovery level 0 (sections 7.1.5 and 13.20): whatever breaks a
//!   connection ends its session, and the initiator logs in again.
//!
//! Where the standard is which code's subject: login (chapter 6, sections 11.12 and 11.13) in `login`, CHAP (section 12.1.3, RFC 1994) in
//! `chap`, text keys (chapter 13) in `negotiate`, command and status numbers (section 4.2.2) in `outbox`, data (sections 11.7 and 11.8) in
//! `reads` and `writes`, task management (sections 11.5 and 11.6) in `tmf`, text requests (sections 11.10 and 11.11) in `text_requests`,
//! NOP (sections 11.18 and 11.19) in `ping`, logout (sections 11.14 and 11.15) in `session`, SCSI in `scsi`.
//!
//! Invariants: a session's end waits for its requests in flight, so that nobody writes after
//! [`IscsiServer::remove_target`] has returned; a connection that merely died touches neither target nor device; no
//! input from the network panics or grows memory without bound (see [`Limits`]).

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
    /// The address that discovery tells (`host:port`; TargetAddress, RFC 7143 section 13.8); none: the connection's own local address.
    pub advertise: Option<String>,
    /// The portal group tag, the same for all targets (TargetPortalGroupTag, RFC 7143 section 13.9).
    pub portal_group: u16,
    /// When TCP looks for a silent peer.
    pub keepalive: Keepalive,
    /// Ask a silent initiator for a sign of life (NOP-In, RFC 7143 section 11.19) after this long. A missing answer closes nothing by itself,
    /// because some boot firmware never answers and pauses for minutes; but an initiator that has answered before and
    /// then misses [`NOP_MISSES`] in a row is taken for dead. None: never ask.
    pub nop_interval: Option<Duration>,
    /// What one may use of us.
    pub limits: Limits,
}

/// Unanswered NOP-Ins after which an initiator that has answered before is taken for dead.
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
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(300), interval: Duration::from_secs(30), probes: 10 }
    }
}

/// Bounds on what the network may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sessions at once that have proved by CHAP who they are; the login of one more is put off (status 0301).
    pub max_connections: usize,
    /// Sessions at once that had to prove nothing: discovery, and targets without CHAP. One source has at most half of them.
    pub max_open: usize,
    /// Connections at once whose login is under way. For one more the oldest of the source that has most is closed.
    pub max_waiting: usize,
    /// How long each request of a login may take to come whole.
    pub proof_timeout: Duration,
    /// Time from the connection to the end of the login.
    pub login_timeout: Duration,
    /// How long a discovery session may last.
    pub discovery_timeout: Duration,
    /// Longest data segment we take, in bytes (MaxRecvDataSegmentLength, RFC 7143 section 13.12).
    pub max_data_segment: u32,
    /// Longest text of one login or text request, in bytes.
    pub max_text: usize,
    /// Commands a session may have open (the command window, RFC 7143 section 4.2.2.1).
    pub queue_depth: u32,
    /// Immediate commands, which stand outside the window, that a session may have open; one more is rejected (RFC 7143 section 4.2.2.1).
    pub immediate_commands: u32,
    /// Bytes of collected command data a session may hold before it is told TASK SET FULL.
    pub max_staged: usize,
    /// Bytes that all sessions together may hold for data under way, beside 512 KiB and one PDU that comes for each. When they are
    /// used up sessions go on in smaller steps.
    pub memory: usize,
    /// Reads and writes at once on the blocking pool, of all sessions together; one session has at most a quarter of them. Flushes
    /// have half as many places of their own, and commands over many blocks four.
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
    /// Its logical units; each number once.
    pub luns: Vec<Lun>,
}

/// A logical unit.
#[derive(Clone)]
pub struct Lun {
    /// Its number, below 256.
    pub number: u16,
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// What it is called. Must not depend on anything that changes with a boot.
    pub identity: Identity,
    /// Refuse writes, whatever the device allows.
    pub read_only: bool,
    /// Present it as a removable medium, which initiators can lock and eject. Not for a disk that something boots from.
    pub removable: bool,
}

/// What a logical unit says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unit serial number (VPD page 80 of SPC-4), printable ASCII.
    pub serial: String,
    /// A locally assigned NAA identifier (VPD page 83 of SPC-4): 60 bits, the top four are ours.
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

/// Who wants to log in.
#[derive(Clone, Debug)]
pub struct LoginRequest {
    /// The target's name in lower case; none for a discovery session.
    pub target: Option<String>,
    /// The initiator's name in lower case.
    pub initiator: String,
    /// Where the connection comes from.
    pub peer: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
}

/// The policy's answer. The statuses are those of RFC 7143 section 11.13.5.
#[derive(Clone, Debug)]
pub enum LoginDecision {
    /// Not yet able to say (status 0301: the initiator tries again). The right answer to every login, also to an unknown
    /// target, until the owner knows its targets.
    NotReady,
    /// No such target (status 0203; initiators give up).
    NotFound,
    /// Not for this initiator (status 0202; initiators give up).
    Refused,
    /// Welcome, after the proof.
    Accept {
        /// What the initiator must prove.
        chap: Chap,
        /// Who else may be there.
        exclusivity: Exclusivity,
    },
}

/// Which sessions a target may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusivity {
    /// One session per initiator name: the newest authenticated login closes the older ones of that name, whatever their
    /// session id, after their requests in flight have ended. Other names are the policy's to refuse.
    ByInitiatorName,
    /// Any number; only a login with the same name *and* session id replaces (session reinstatement, RFC 7143 section 6.3.5).
    Shared,
}

/// An authenticated login that is about to succeed.
#[derive(Clone, Debug)]
pub struct LoginInfo {
    /// The session it will be.
    pub session: SessionId,
    /// The request.
    pub request: LoginRequest,
    /// The initiator's session id (ISID, RFC 7143 section 11.12.5).
    pub isid: [u8; 6],
    /// The CHAP user that was proved.
    pub chap_user: Option<String>,
}

/// Why an authenticated login is not let in after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginAbort {
    /// Try again (status 0301).
    Retry,
    /// Go away (status 0202).
    Refuse,
}

/// Who may log in. Called at login and discovery only, never on the data path.
///
/// All calls are dropped half-way when the login times out or the connection breaks; a commit that must not be half done
/// has to take care of that itself (for instance by spawning).
#[async_trait::async_trait]
pub trait LoginPolicy: Send + Sync {
    /// Decides by names and addresses, before any proof.
    async fn decide(&self, request: &LoginRequest) -> LoginDecision;

    /// Runs once per login to a target, after the proof and before the final response: the initiator sends no SCSI
    /// command before this has returned. It may add targets and remove *other* ones.
    async fn authenticated(&self, login: &LoginInfo) -> Result<(), LoginAbort> {
        let _ = login;
        Ok(())
    }

    /// The targets that a discovery session is told of, in that order.
    async fn discover(&self, request: &LoginRequest) -> Vec<String> {
        let _ = request;
        Vec::new()
    }
}

/// A session, unique in the life of a server.
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
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    /// How long it has lived.
    pub age: Duration,
    /// What it has done.
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
    /// A newer login took its place.
    Replaced,
    /// The target was removed, or reset cold.
    TargetRemoved,
    /// The server shuts down.
    Shutdown,
    /// It answered pings before and no longer does.
    Silent,
}

/// What happens to sessions of targets, as it happens. Discovery sessions make no events.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// A session has begun.
    LoggedIn(SessionInfo),
    /// The first block was read.
    FirstRead(SessionInfo),
    /// The first block was written.
    FirstWrite(SessionInfo),
    /// The session has ended; its requests in flight have too.
    Disconnected {
        /// The session, with its last counters.
        session: SessionInfo,
        /// Why.
        reason: CloseReason,
    },
    /// A login ran into its time limit before the initiator had proved anything: it stopped sending.
    LoginStalled {
        /// From where.
        peer: SocketAddr,
        /// The target that it had named and may log in to; none when it had not said a whole request.
        target: Option<String>,
    },
}

/// Observes sessions. Called inline: it must not block (send into a channel).
pub trait SessionObserver: Send + Sync {
    /// Takes one event.
    fn observe(&self, event: SessionEvent);
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl SessionObserver for NoObserver {
    fn observe(&self, _: SessionEvent) {}
}

/// The code in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

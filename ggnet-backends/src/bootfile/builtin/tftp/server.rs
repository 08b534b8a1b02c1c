//! Sockets and tasks of the TFTP server: one long-lived task for each listening address, one task and one socket for each transfer.
//!
//! Each transfer has its own socket (RFC 1350 section 4), bound to the address to which the request was sent and connected to the client:
//! firmware drops responses from an address that it did not contact, packets from other senders never reach the transfer, and the kernel
//! reports a closed client port with ECONNREFUSED.
//!
//! Invariants:
//! * Every task is in `long_lived` or, for a transfer, in `tracker`, and ends with `cancel`; [`Server::stop`] returns when all have ended.
//! * The table contains exactly the running transfers; an entry is removed only by its own transfer (identified by a number).
//! * A new request from a client's port replaces the old transfer, unless it repeats the same request before any response of ours arrived.
//!   Then the old transfer sends its first packet again, from the port that the client may already know. If the old transfer has ended in
//!   the meantime (firmware queries a file's size, sends ERROR and repeats its request at once), it starts again.
//! * A transfer without any acknowledgement never takes the place of one that has been acknowledged; among the former, the oldest is
//!   removed first.
//! * The table's lock is never held across an await.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ggnet_core::{
    Error, Result,
    nouns::MacAddr,
    ports::{BootPath, Observation},
    supervisor::Supervisor,
};
use ggnet_iscsi::LogBudget;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    TftpConfig,
    content::Content,
    options::{Negotiated, negotiate},
    packet::{self, ErrorCode, Packet, Request},
    quoted::quoted,
    transfer::{Outcome, RetryPolicy, Transfer},
};
use crate::{
    addresses::Addresses,
    bootfile::builtin::{BuiltinBootFiles, Found},
    udp::{Failing, PktinfoSocket, RECEIVE_BUFFER},
};

/// Length of the IPv4, UDP and TFTP headers; and the same for IPv6.
const HEADERS_V4: u32 = 20 + 8 + 4;
const HEADERS_V6: u32 = 40 + 8 + 4;
/// Log lines per second about rejected requests, and about transfers: enough for a room that boots at once.
const REFUSALS_A_SECOND: u32 = 10;
const READS_A_SECOND: u32 = 200;
/// Pause after a failed receive, so that a broken interface does not spin a core.
const RECEIVE_PAUSE: Duration = Duration::from_millis(200);

/// A running TFTP server.
pub(in crate::bootfile::builtin) struct Server {
    shared: Arc<Shared>,
    long_lived: Supervisor,
    addresses: Arc<Addresses>,
    bound: Vec<SocketAddr>,
}

struct Shared {
    files: BuiltinBootFiles,
    config: TftpConfig,
    table: Mutex<Table>,
    /// Log lines about rejected requests, and about transfers.
    refusals: LogBudget,
    reads: LogBudget,
    /// Transfers.
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// Sockets whose last receive failed.
    failing: AtomicUsize,
}

#[derive(Default)]
struct Table {
    by_peer: HashMap<SocketAddr, Entry>,
    /// Transfers without any acknowledgement, the oldest first.
    unanswered: BTreeMap<u64, SocketAddr>,
    per_client: HashMap<IpAddr, usize>,
    last_number: u64,
}

struct Entry {
    number: u64,
    request: Vec<u8>,
    control: Arc<Control>,
}

/// How the listening task controls a transfer.
struct Control {
    cancel: CancellationToken,
    repeat: Notify,
    /// The client repeated its request and the transfer has not processed that yet. Set under the table's lock.
    asked_again: AtomicBool,
    answered: AtomicBool,
}

/// One accepted request: the input of its task.
struct Job {
    number: u64,
    control: Arc<Control>,
    peer: SocketAddr,
    path: String,
    mac: Option<MacAddr>,
    stored: BootPath,
    /// The size of the file.
    size: usize,
    negotiated: Negotiated,
    content: Content,
}

impl Server {
    /// Binds the sockets and starts the tasks.
    pub(in crate::bootfile::builtin) fn start(config: TftpConfig, files: BuiltinBootFiles) -> Result<Self> {
        if config.listen.is_empty() {
            return Err(Error::invalid("listen", "TFTP needs at least one address to listen on"));
        }
        if [config.max_transfers, config.max_unanswered, config.max_transfers_per_client].contains(&0)
            || config.retransmit_ms == 0
        {
            return Err(Error::invalid("max_transfers", "The limits of TFTP must be greater than zero"));
        }
        let mut sockets = Vec::with_capacity(config.listen.len());
        for &address in &config.listen {
            let socket = listen(address).map_err(|e| bind_error(address, e))?;
            sockets.push(socket);
        }
        let bound = sockets
            .iter()
            .map(PktinfoSocket::local_addr)
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| Error::io("Reading the TFTP server's local address", e))?;
        let shared = Arc::new(Shared {
            files,
            config,
            table: Mutex::default(),
            refusals: LogBudget::new(REFUSALS_A_SECOND),
            reads: LogBudget::new(READS_A_SECOND),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            failing: AtomicUsize::new(0),
        });
        let long_lived = Supervisor::new(shared.cancel.clone());
        for (socket, address) in sockets.into_iter().zip(&bound) {
            let (shared, socket) = (Arc::clone(&shared), Arc::new(socket));
            long_lived
                .keep(format!("TFTP on {address}"), move || Arc::clone(&shared).listen(Arc::clone(&socket)));
        }
        let addresses = Addresses::watch("TFTP", &bound, &long_lived);
        for address in &bound {
            tracing::info!(target: "tftp", %address, "TFTP server is listening");
        }
        Ok(Self { shared, long_lived, addresses, bound })
    }

    /// The addresses that it listens on.
    pub(in crate::bootfile::builtin) fn bound(&self) -> &[SocketAddr] {
        &self.bound
    }

    /// The current problem, if any.
    pub(in crate::bootfile::builtin) fn trouble(&self) -> Option<String> {
        let failing = self.shared.failing.load(Ordering::Relaxed);
        let failing = (failing > 0).then(|| {
            format!("TFTP cannot receive on {failing} of {} addresses ({:?})", self.bound.len(), self.bound)
        });
        self.long_lived.trouble().or(failing).or_else(|| self.addresses.trouble())
    }

    /// Cancels every transfer and waits until all tasks have ended.
    pub(in crate::bootfile::builtin) async fn stop(&self) {
        self.shared.cancel.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
        self.long_lived.stop().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

fn listen(address: SocketAddr) -> std::io::Result<PktinfoSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    PktinfoSocket::new(socket)
}

fn bind_error(address: SocketAddr, source: std::io::Error) -> Error {
    let hint = match source.kind() {
        std::io::ErrorKind::PermissionDenied => Some(
            "Ports below 1024 need a capability: setcap 'cap_net_bind_service=+ep' on the server's binary, or \
             AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit"
                .to_owned(),
        ),
        std::io::ErrorKind::AddrInUse => Some(format!(
            "Another TFTP server uses this port (ss -ulpn 'sport = :{}' shows which); stop it or choose another address",
            address.port()
        )),
        std::io::ErrorKind::AddrNotAvailable => Some("No interface of this host has this address (ip address lists them)".to_owned()),
        _ => None,
    };
    let error = Error::io(format!("Binding the TFTP server to {address}"), source)
        .with_backend("builtin")
        .with_operation("serve_tftp")
        .with_subject(address.to_string());
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, socket: Arc<PktinfoSocket>) {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut failing = None;
        loop {
            let received = tokio::select! {
                () = self.cancel.cancelled() => return,
                received = socket.recv(&mut buffer) => received,
            };
            match received {
                Ok(received) => {
                    failing = None;
                    for datagram in received.datagrams(&buffer) {
                        self.request(datagram, received.peer, received.local);
                    }
                }
                Err(error) => {
                    if failing.is_none() {
                        tracing::warn!(target: "tftp", %error, "cannot receive TFTP requests; will retry");
                        failing = Some(Failing::new(&self.failing));
                    }
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = tokio::time::sleep(RECEIVE_PAUSE) => {}
                    }
                }
            }
        }
    }

    fn request(self: &Arc<Self>, datagram: &[u8], peer: SocketAddr, local: Option<IpAddr>) {
        // RFC 1123 section 4.2.3.4: a request to a broadcast address is ignored.
        if local.is_some_and(|ip| ip.is_multicast() || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST)) {
            return;
        }
        match Packet::decode(datagram) {
            Ok(Packet::Read(request)) => self.read_request(datagram, &request, peer, local),
            Ok(Packet::Write(path)) => {
                let path = String::from_utf8_lossy(path);
                self.refuse(peer, local, &path, ErrorCode::Access, "This server is read-only");
            }
            // Late packets of an ended transfer, or noise; a response could start a loop.
            Ok(_) => {}
            Err(why) => tracing::debug!(target: "tftp", %peer, %why, "Not a TFTP request"),
        }
    }

    /// Sends ERROR from a new port, as RFC 1350 requires, and logs the request.
    fn refuse(&self, peer: SocketAddr, local: Option<IpAddr>, path: &str, code: ErrorCode, message: &str) {
        if let Some(left_out) = self.refusals.line() {
            let outcome = format!("refused: {message}");
            tracing::info!(target: "tftp", %peer, path = quoted(path), outcome, left_out, "TFTP request");
        }
        let mut out = Vec::new();
        packet::encode_error(&mut out, code, message);
        // A new UDP socket has space for one packet, so this does not wait.
        if let Err(error) = transfer_socket(peer, local).and_then(|socket| socket.send(&out)) {
            tracing::debug!(target: "tftp", %peer, %error, "cannot send the TFTP error");
        }
    }

    fn read_request(
        self: &Arc<Self>,
        datagram: &[u8],
        request: &Request<'_>,
        peer: SocketAddr,
        local: Option<IpAddr>,
    ) {
        let path = request.clean_path();
        if self.was_repeated(datagram, peer) {
            tracing::debug!(target: "tftp", %peer, path, "duplicate TFTP request");
            return;
        }
        let Ok(parsed) = path.parse::<BootPath>() else {
            return self.refuse(peer, local, &path, ErrorCode::Access, "Not a valid path on this server");
        };
        let Some(found) = self.files.resolve(&parsed) else {
            return self.refuse(peer, local, &path, ErrorCode::NotFound, "File not found");
        };
        let Some(mode) = request.transfer_mode() else {
            return self.refuse(
                peer,
                local,
                &path,
                ErrorCode::Illegal,
                "Only octet and netascii are supported",
            );
        };
        let socket = match transfer_socket(peer, local).and_then(UdpSocket::from_std) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(target: "tftp", %peer, path, %error, outcome = "no socket", "TFTP read");
                return;
            }
        };
        let Found { mac, path: stored, bytes } = found;
        let (size, content) = (bytes.len(), Content::new(bytes, mode));
        let negotiated = negotiate(&request.options, content.size(), largest_block(&socket, peer));
        let Some((number, control)) = self.enter(datagram, peer) else {
            if let Some(left_out) = self.refusals.line() {
                let outcome = "dropped: too many transfers to this client";
                tracing::warn!(target: "tftp", %peer, path = quoted(&path), outcome, left_out, "TFTP read");
            }
            return;
        };
        let job = Job { number, control, peer, path, mac, stored, size, negotiated, content };
        #[expect(clippy::disallowed_methods, reason = "one transfer, tracked")]
        self.tracker.spawn(Arc::clone(self).transfer(job, socket));
    }

    /// Whether this repeats the same request before the client got a response; if so, the transfer is notified.
    fn was_repeated(&self, datagram: &[u8], peer: SocketAddr) -> bool {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = table.by_peer.get(&peer) else { return false };
        let same = entry.request == datagram && !entry.control.answered.load(Ordering::Acquire);
        if same {
            entry.control.asked_again.store(true, Ordering::Release);
            entry.control.repeat.notify_one();
        }
        same
    }

    /// Adds a transfer to the table and replaces an old one to the same port; `None` if there are too many.
    fn enter(&self, datagram: &[u8], peer: SocketAddr) -> Option<(u64, Arc<Control>)> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.give_up(peer);
        let of_client = table.per_client.get(&peer.ip()).copied().unwrap_or(0);
        if of_client >= self.config.max_transfers_per_client {
            // Others may have sent requests with a forged address: transfers without any acknowledgement are removed first, the oldest one
            // first.
            let oldest = table.unanswered.values().find(|other| other.ip() == peer.ip()).copied()?;
            table.give_up(oldest);
        }
        if table.unanswered.len() >= self.config.max_unanswered
            && let Some(oldest) = table.unanswered.values().next().copied()
        {
            table.give_up(oldest);
        }
        table.last_number += 1;
        let number = table.last_number;
        let control = Arc::new(Control {
            cancel: self.cancel.child_token(),
            repeat: Notify::new(),
            asked_again: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        });
        *table.per_client.entry(peer.ip()).or_default() += 1;
        let entry = Entry { number, request: datagram.to_vec(), control: Arc::clone(&control) };
        table.by_peer.insert(peer, entry);
        table.unanswered.insert(number, peer);
        Some((number, control))
    }

    /// Records the client's first acknowledgement. Returns false if there are too many transfers.
    fn answered(&self, number: u64) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // A transfer that was aborted in the meantime ends by itself.
        if table.unanswered.remove(&number).is_none() {
            return true;
        }
        table.by_peer.len() - table.unanswered.len() <= self.config.max_transfers
    }

    /// Ends a transfer. Returns true if the client repeated its request in the meantime; the entry then stays in the table.
    fn leave(&self, job: &Job, cut: bool) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.by_peer.get(&job.peer).is_none_or(|entry| entry.number != job.number) {
            return false;
        }
        if !cut && job.control.asked_again.swap(false, Ordering::AcqRel) {
            return true;
        }
        table.give_up(job.peer);
        false
    }

    async fn transfer(self: Arc<Self>, job: Job, socket: UdpSocket) {
        let retry_policy = RetryPolicy {
            first: Duration::from_millis(self.config.retransmit_ms),
            retries: self.config.retries,
        };
        loop {
            let now = Instant::now();
            let mut transfer = Transfer::new(job.content.clone(), job.negotiated.clone(), retry_policy, now);
            let cut = self.drive(&mut transfer, &socket, &job).await;
            let again = self.leave(&job, cut);
            if cut && self.cancel.is_cancelled() {
                let mut out = Vec::new();
                packet::encode_error(&mut out, ErrorCode::Undefined, "The server is stopping");
                if let Err(error) = socket.send(&out).await {
                    tracing::debug!(target: "tftp", peer = %job.peer, %error, "cannot send the TFTP error to the client");
                }
            }
            self.ended(&transfer, &socket, &job);
            if !again {
                return;
            }
        }
    }

    fn ended(&self, transfer: &Transfer, socket: &UdpSocket, job: &Job) {
        let outcome = match transfer.outcome() {
            Some(Outcome::Complete) => "complete".to_owned(),
            Some(Outcome::ClientError(code, message)) => format!("client error {code}: {message:?}"),
            Some(Outcome::TimedOut) => "timed out".to_owned(),
            Some(Outcome::Gone) => "client closed its port".to_owned(),
            Some(Outcome::Violation) => "client broke the protocol".to_owned(),
            None if self.cancel.is_cancelled() => "server stopping".to_owned(),
            None => "aborted because the client sent a new request".to_owned(),
        };
        if let Some(left_out) = self.reads.line() {
            tracing::info!(
                target: "tftp",
                left_out,
                peer = %job.peer,
                path = quoted(&job.path),
                mac = job.mac.map(tracing::field::display),
                local = socket.local_addr().ok().map(tracing::field::display),
                options = ?job.negotiated.acknowledged,
                size = job.size,
                sent = transfer.bytes_acked(),
                retransmits = transfer.retransmits(),
                outcome,
                "TFTP read"
            );
        }
        if transfer.outcome() == Some(&Outcome::Complete) {
            self.files.observer().observe(Observation::BootFileSent {
                mac: job.mac,
                path: job.stored.as_str().to_owned(),
                peer: job.peer,
            });
        }
    }

    /// Runs the state machine to its end; returns true if it was cancelled instead.
    async fn drive(&self, transfer: &mut Transfer, socket: &UdpSocket, job: &Job) -> bool {
        let control = &job.control;
        let mut incoming = [0; 600];
        let mut out = Vec::new();
        loop {
            while transfer.transmit(&mut out) {
                if let Err(error) = socket.send(&out).await {
                    if error.kind() == std::io::ErrorKind::ConnectionRefused {
                        transfer.gone();
                    } else {
                        // Treated like a lost packet: a retransmission or the retry limit handles it.
                        tracing::debug!(target: "tftp", %error, "Sending failed");
                        break;
                    }
                }
            }
            if transfer.outcome().is_some() {
                return false;
            }
            tokio::select! {
                () = control.cancel.cancelled() => return true,
                received = socket.recv(&mut incoming) => match received {
                    Ok(length) => transfer.receive(&incoming[..length], Instant::now()),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => transfer.gone(),
                    Err(error) => {
                        tracing::debug!(target: "tftp", %error, "Receiving failed");
                        tokio::time::sleep(RECEIVE_PAUSE).await;
                    }
                },
                () = tokio::time::sleep_until(transfer.deadline().into()) => transfer.timeout(Instant::now()),
                () = control.repeat.notified() => {
                    // Datagrams that the client sent before it repeated its request come first: an ERROR among them ends this transfer.
                    while let Some(length) = received_now(socket, &mut incoming) {
                        transfer.receive(&incoming[..length], Instant::now());
                    }
                    // This does not apply if the repeated request restarted this transfer: it has sent its first packet.
                    if transfer.outcome().is_none() && control.asked_again.swap(false, Ordering::AcqRel) {
                        transfer.request_repeated(Instant::now());
                    }
                }
            }
            if transfer.progressed()
                && !control.answered.swap(true, Ordering::AcqRel)
                && !self.answered(job.number)
            {
                if let Some(left_out) = self.refusals.line() {
                    tracing::warn!(target: "tftp", peer = %job.peer, left_out, "too many TFTP transfers");
                }
                return true;
            }
        }
    }
}

/// A datagram that has already arrived. Reads from the kernel, because tokio may not have been notified yet.
fn received_now(socket: &UdpSocket, into: &mut [u8]) -> Option<usize> {
    rustix::net::recv(socket, into, rustix::net::RecvFlags::DONTWAIT).ok().map(|(length, _)| length)
}

impl Table {
    /// Removes a client's entry and cancels its transfer.
    fn give_up(&mut self, peer: SocketAddr) {
        if let Some(entry) = self.by_peer.remove(&peer) {
            entry.control.cancel.cancel();
            self.unanswered.remove(&entry.number);
            self.leave_client(peer.ip());
        }
    }

    fn leave_client(&mut self, ip: IpAddr) {
        if let Some(count) = self.per_client.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_client.remove(&ip);
            }
        }
    }
}

/// A socket with the address that the client contacted, connected to the client.
fn transfer_socket(peer: SocketAddr, local: Option<IpAddr>) -> std::io::Result<std::net::UdpSocket> {
    let from = match (local, peer) {
        (Some(IpAddr::V6(ip)), SocketAddr::V6(peer)) => {
            // A link-local address is only valid on its link; the peer's scope identifies the link.
            SocketAddr::V6(std::net::SocketAddrV6::new(ip, 0, 0, peer.scope_id()))
        }
        (Some(ip), _) => SocketAddr::new(ip, 0),
        (None, SocketAddr::V4(_)) => SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0)),
        (None, SocketAddr::V6(_)) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&from.into())?;
    socket.connect(&peer.into())?;
    Ok(socket.into())
}

/// The largest block that fits into one packet to this client; the 512 bytes of RFC 1350 if the kernel does not report the MTU.
fn largest_block(socket: &UdpSocket, peer: SocketAddr) -> u16 {
    use rustix::net::sockopt;
    let room = if peer.is_ipv4() {
        sockopt::ip_mtu(socket).map(|mtu| mtu.saturating_sub(HEADERS_V4))
    } else {
        sockopt::ipv6_mtu(socket).map(|mtu| mtu.saturating_sub(HEADERS_V6))
    };
    room.map_or(512, |room| u16::try_from(room).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_port_without_the_capability_says_what_to_do() {
        let e = bind_error(
            "0.0.0.0:69".parse().unwrap(),
            std::io::Error::from(std::io::ErrorKind::PermissionDenied),
        );
        assert_eq!(e.kind(), ggnet_core::ErrorKind::Permission);
        assert!(e.to_string().contains("0.0.0.0:69"), "{e}");
        assert!(e.hint().unwrap().contains("setcap 'cap_net_bind_service=+ep'"));
    }
}

//! Sockets and tasks of proxyDHCP: for each interface, one socket for broadcasts to port 67, one for port 4011, and, if relays are served,
//! one for port 67 of the interface's own address.
//!
//! The socket for port 67 is bound to 255.255.255.255, not to the wildcard address. A broadcast is copied to every socket on the port, ours
//! and that of another DHCP server. A unicast packet goes to only one socket, and among equal sockets the kernel selects the one that was
//! bound last (with SO_REUSEADDR as with SO_REUSEPORT). Bound to the wildcard address, we would receive the unicast renewals of a DHCP
//! server on this host that started before us.
//!
//! Each interface has one task, which checks it every [`LOOK_EVERY`]:
//! ```text
//!            exists, has no master, sockets bound
//!   lost ────────────────────────────────────────────▶ served
//!     ▲   gone, replaced by another, added to a bridge     │
//!     └────────────────────────────────────────────────────┘
//! ```
//! A socket belongs to the interface that had the name when it was bound, identified by its index. If that interface is deleted and created
//! again, or renamed, the socket receives nothing any more.
//!
//! Invariants: an interface is lost until its sockets are bound to the interface that has its name now, and until then health is down and
//! names it; one log line for each change; every task ends with `cancel`; a reply leaves through the interface on which its request
//! arrived; an observation is reported after its reply was passed to the kernel.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use ggnet_core::{Result, ports::Health, supervisor::Supervisor};
use ggnet_iscsi::LogBudget;
use tokio_util::sync::CancellationToken;

use super::{
    ProxyDhcpConfig, Table,
    packet::Request,
    policy::{Port, To, decide},
};
use crate::{
    carrier::{self, Carrier},
    dhcp::interface,
    udp::{Failing, PktinfoSocket, RECEIVE_BUFFER},
};

/// The PXE boot server's port.
pub(super) const BOOT_SERVER: u16 = 4011;
/// Pause after a failed receive, so that a broken interface does not spin a core.
const RECEIVE_PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked whether the interface is still the one that the sockets are bound to.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Lines of the log about answers in one second; more are counted and not written.
const ANSWERS_A_SECOND: u32 = 20;

/// The running sockets.
pub(super) struct Server {
    shared: Arc<Shared>,
    long_lived: Supervisor,
}

struct Shared {
    config: ProxyDhcpConfig,
    table: Arc<Table>,
    cancel: CancellationToken,
    failing: AtomicUsize,
    /// Lines of the log about answers.
    answers: LogBudget,
    /// Interfaces that are not served, and why.
    lost: Mutex<BTreeMap<String, String>>,
}

/// The state of an interface when its sockets were bound.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    index: u32,
    /// Its own address; `None` if it has none or if it could not be read.
    address: Option<Ipv4Addr>,
    carrier: Carrier,
}

/// An interface's sockets.
struct Bound {
    place: Place,
    listeners: Vec<Listener>,
}

/// One socket and its purpose.
struct Listener {
    interface: String,
    port: Port,
    socket: PktinfoSocket,
}

impl Server {
    /// Binds everything, then starts the tasks.
    pub(super) fn start(config: ProxyDhcpConfig, table: Arc<Table>) -> Result<Self> {
        let cancel = CancellationToken::new();
        let (failing, lost) = (AtomicUsize::new(0), Mutex::default());
        let answers = LogBudget::new(ANSWERS_A_SECOND);
        let shared = Arc::new(Shared { config, table, cancel: cancel.clone(), failing, answers, lost });
        let names = shared.config.interfaces.clone();
        let mut first = Vec::new();
        for name in names {
            first.push((shared.bind(&name)?, name));
        }
        if first.is_empty() {
            tracing::info!(target: "dhcp", "ProxyDHCP does not answer on any network: no interface is configured");
        }
        let long_lived = Supervisor::new(cancel);
        for (bound, name) in first {
            tracing::info!(target: "dhcp", interface = name, address = ?bound.place.address, "ProxyDHCP is listening");
            let (shared, bound) = (Arc::clone(&shared), Arc::new(Mutex::new(Some(bound))));
            long_lived.keep(format!("proxyDHCP on {name}"), move || {
                let (shared, name, bound) = (Arc::clone(&shared), name.clone(), take(&bound));
                async move { shared.serve(&name, bound).await }
            });
        }
        Ok(Self { shared, long_lived })
    }

    /// Down if it cannot receive, has lost an interface, or no interface has both an address to advertise and a carrier; degraded if this
    /// is true for some interfaces.
    pub(super) fn health(&self) -> Health {
        let config = &self.shared.config;
        if let Some(trouble) = self.long_lived.trouble() {
            return Health::Down(trouble);
        }
        let lost: Vec<String> = lock(&self.shared.lost).values().cloned().collect();
        if !lost.is_empty() {
            return Health::Down(lost.join("; "));
        }
        let failing = self.shared.failing.load(Ordering::Relaxed);
        if failing > 0 {
            return Health::Down(format!(
                "ProxyDHCP cannot receive on {failing} socket(s) of the interfaces {:?}; are they up?",
                config.interfaces
            ));
        }
        reach(config)
    }

    /// Ends every task and waits for them.
    pub(super) async fn stop(&self) {
        self.long_lived.stop().await;
    }
}

/// Whether machines can be reached on the interfaces and have an address to boot from.
fn reach(config: &ProxyDhcpConfig) -> Health {
    let (mut why, mut out) = (Vec::new(), 0);
    for name in &config.interfaces {
        let address =
            (!config.advertise.contains_key(name)).then(|| interface::address(name).err()).flatten();
        let address = address.map(|e| format!("{e}: {}", e.hint().unwrap_or_default()));
        let (gone, waiting) = match interface::look(name) {
            Ok((_, Carrier::Gone(words))) => (Some(words), None),
            Ok((_, Carrier::Waiting(words))) => (None, Some(words)),
            // If an interface no longer exists, its own task reports that.
            Ok((_, Carrier::There)) | Err(_) => (None, None),
        };
        out += usize::from(address.is_some() || gone.is_some());
        why.extend(address.into_iter().chain(gone).chain(waiting));
    }
    carrier::judge(&why, out, config.interfaces.len())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every step under these locks leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(bound: &Mutex<Option<Bound>>) -> Option<Bound> {
    lock(bound).take()
}

impl Shared {
    /// Binds the sockets of the interface that has this name now.
    fn bind(&self, name: &str) -> Result<Bound> {
        // The interface's task checks the carrier.
        let place = Place { carrier: Carrier::There, ..Place::of(name)? };
        let mut listeners = Vec::new();
        let mut bind = |port, address: Ipv4Addr, number| -> Result<()> {
            let socket = interface::open(name, SocketAddrV4::new(address, number))?;
            listeners.push(Listener { interface: name.to_owned(), port, socket });
            Ok(())
        };
        bind(Port::Dhcp, Ipv4Addr::BROADCAST, 67)?;
        bind(Port::BootServer, Ipv4Addr::UNSPECIFIED, BOOT_SERVER)?;
        if self.config.relays {
            bind(Port::Dhcp, interface::address(name)?, 67)?;
        }
        // Another interface may have got this name in the meantime.
        if Place::of(name)?.index != place.index {
            return Err(interface::no_such(name));
        }
        Ok(Bound { place, listeners })
    }

    /// Serves an interface until shutdown, whatever happens to it. `bound`: its sockets, if they are already bound.
    async fn serve(&self, name: &str, mut bound: Option<Bound>) {
        loop {
            let next = match bound.take() {
                Some(bound) => Ok(bound),
                None => self.bind(name),
            };
            match next {
                Ok(mut bound) => {
                    if lock(&self.lost).remove(name).is_some() {
                        tracing::info!(target: "dhcp", interface = name, address = ?bound.place.address, "ProxyDHCP is listening again");
                    }
                    let Bound { place, listeners } = &mut bound;
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = self.watch(name, place) => {}
                        _ = join_all(listeners.iter().map(|listener| self.listen(listener))) => {}
                    }
                }
                Err(e) => {
                    let hint = e.hint().map(|hint| format!(": {hint}")).unwrap_or_default();
                    let why = format!("ProxyDHCP receives nothing on {name}: {}{hint}", e.explain());
                    let before = lock(&self.lost).insert(name.to_owned(), why.clone());
                    if before.as_ref() != Some(&why) {
                        tracing::warn!(target: "dhcp", interface = name, why, "an interface is not served until it is available again");
                    }
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                }
            }
        }
    }

    /// Returns when the sockets must be bound again.
    async fn watch(&self, name: &str, place: &mut Place) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(now) = Place::of(name) else { return };
            if now.index != place.index {
                tracing::warn!(target: "dhcp", interface = name, "the name now belongs to another interface");
                return;
            }
            if now.address != place.address {
                tracing::info!(target: "dhcp", interface = name, before = ?place.address, now = ?now.address, "its address changed");
                // The socket for relays is bound to this address.
                if self.config.relays {
                    return;
                }
            }
            if now.carrier != place.carrier {
                match &now.carrier {
                    Carrier::There => tracing::info!(target: "dhcp", interface = name, "its carrier is back"),
                    Carrier::Waiting(why) | Carrier::Gone(why) => {
                        tracing::warn!(target: "dhcp", interface = name, why, "no machine can be reached through this interface");
                    }
                }
            }
            *place = now;
        }
    }

    async fn listen(&self, listener: &Listener) {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut failing = None;
        loop {
            match listener.socket.recv(&mut buffer).await {
                Ok(received) => {
                    failing = None;
                    for datagram in received.datagrams(&buffer) {
                        // The sockets' buffers never fill up: a reply is one small packet.
                        self.answer(listener, datagram, received.peer, received.local).await;
                    }
                }
                Err(error) => {
                    if failing.is_none() {
                        tracing::warn!(target: "dhcp", interface = listener.interface, %error, "cannot receive DHCP requests; will retry");
                        failing = Some(Failing::new(&self.failing));
                    }
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    async fn answer(&self, listener: &Listener, datagram: &[u8], peer: SocketAddr, local: Option<IpAddr>) {
        let name = listener.interface.as_str();
        let request = match Request::decode(datagram) {
            Ok(request) => request,
            Err(why) => {
                return tracing::debug!(target: "dhcp", interface = name, %peer, why, "Not a DHCP request");
            }
        };
        let own = interface::address(name);
        let advertise = match (self.config.advertise.get(name), &own) {
            (Some(address), _) | (None, Ok(address)) => *address,
            (None, Err(error)) => {
                return tracing::warn!(target: "dhcp", interface = name, %error, "no address to advertise");
            }
        };
        let registered = self.table.is_registered(request.mac);
        let decision = decide(&request, listener.port, &self.config, advertise, registered);
        let mac = request.mac;
        match decision.reply {
            Err(why) => tracing::debug!(target: "dhcp", interface = name, %mac, why, "Not answered"),
            Ok((reply, to)) => {
                // A boot server request was sent to one of our addresses, and its reply must come from that address.
                let (to, from) = match to {
                    To::Sender => (peer, local),
                    To::Address(address) => (SocketAddr::V4(address), own.ok().map(IpAddr::V4)),
                };
                let sent = match reply.encode() {
                    Ok(bytes) => listener.socket.send(&bytes, to, from).await.map_err(|e| e.to_string()),
                    Err(error) => Err(error.report()),
                };
                if let Err(error) = sent {
                    return tracing::warn!(target: "dhcp", interface = name, %mac, %to, error, "cannot send the DHCP response");
                }
                // Anyone can send a request in the name of any machine.
                if let Some(left_out) = self.answers.line() {
                    tracing::info!(
                        target: "dhcp",
                        interface = name, %mac, %to, boot_file = reply.boot_file, ipxe = request.ipxe, registered,
                        left_out, "Answered"
                    );
                }
            }
        }
        let observer = self.table.observer();
        for observation in decision.seen {
            observer.observe(observation);
        }
    }
}

impl Place {
    /// The interface that has this name now; an error if it cannot be served.
    fn of(name: &str) -> Result<Self> {
        let (index, carrier) = interface::look(name)?;
        Ok(Self { index, address: interface::address(name).ok(), carrier })
    }
}

//! Sockets and tasks of proxyDHCP: per interface one for broadcasts to port 67, one for port 4011, and, where relays are
//! served, one for port 67 of the interface's own address.
//!
//! The socket for port 67 is bound to 255.255.255.255, not to the wildcard. A broadcast is copied to every socket that has
//! the port, ours and another DHCP server's alike; but a unicast packet goes to one socket only, and of two equal ones the
//! kernel takes that which was bound last (with SO_REUSEADDR as with SO_REUSEPORT). Bound to the wildcard, we would take the
//! unicast renewals of a DHCP server that started before us on this host.
//!
//! Invariants: every task is in `tracker` and ends with `cancel`; a reply leaves by the interface its request came in by; an
//! observation is told after its reply was handed to the kernel.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ggnet_core::{Result, ports::Health};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ProxyDhcpConfig, Table,
    packet::Request,
    policy::{Port, To, decide},
};
use crate::{
    dhcp::interface,
    udp::{PktinfoSocket, RECEIVE_BUFFER},
};

/// The PXE boot server's port.
const BOOT_SERVER: u16 = 4011;
/// Pause after a failed receive, so that a broken interface does not spin a core.
const RECEIVE_PAUSE: Duration = Duration::from_millis(500);

/// The running sockets.
pub(super) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    config: ProxyDhcpConfig,
    table: Arc<Table>,
    tracker: TaskTracker,
    cancel: CancellationToken,
    failing: AtomicUsize,
}

/// One socket and what it is for.
struct Ear {
    interface: String,
    port: Port,
    socket: PktinfoSocket,
}

impl Server {
    /// Binds everything, then starts.
    pub(super) fn start(config: ProxyDhcpConfig, table: Arc<Table>) -> Result<Self> {
        let mut ears = Vec::new();
        for name in &config.interfaces {
            let mut bind = |port, address: Ipv4Addr, number| -> Result<()> {
                let socket = interface::open(name, SocketAddrV4::new(address, number))?;
                ears.push(Ear { interface: name.clone(), port, socket });
                Ok(())
            };
            bind(Port::Dhcp, Ipv4Addr::BROADCAST, 67)?;
            bind(Port::BootServer, Ipv4Addr::UNSPECIFIED, BOOT_SERVER)?;
            if config.relays {
                bind(Port::Dhcp, interface::address(name)?, 67)?;
            }
        }
        if ears.is_empty() {
            tracing::info!(target: "dhcp", "ProxyDHCP answers on no network: no interface is configured");
        }
        let shared = Arc::new(Shared {
            config,
            table,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            failing: AtomicUsize::new(0),
        });
        for ear in ears {
            tracing::info!(target: "dhcp", interface = ear.interface, port = ?ear.port, "ProxyDHCP listens");
            shared.tracker.spawn(Arc::clone(&shared).listen(ear));
        }
        Ok(Self { shared })
    }

    /// Down when it cannot receive or knows no address to tell, degraded when that is so on a part of the interfaces.
    pub(super) fn health(&self) -> Health {
        let config = &self.shared.config;
        let failing = self.shared.failing.load(Ordering::Relaxed);
        if failing > 0 {
            return Health::Down(format!(
                "ProxyDHCP cannot receive on {failing} socket(s) of the interfaces {:?}; are they up?",
                config.interfaces
            ));
        }
        let asked = |name: &&String| !config.advertise.contains_key(*name);
        let lost: Vec<String> = config
            .interfaces
            .iter()
            .filter(asked)
            .filter_map(|name| {
                interface::address(name).err().map(|e| format!("{e}: {}", e.hint().unwrap_or_default()))
            })
            .collect();
        match lost.len() {
            0 => Health::Up,
            n if n == config.interfaces.len() => Health::Down(lost.join("; ")),
            _ => Health::Degraded(lost.join("; ")),
        }
    }

    /// Ends every task and waits for them.
    pub(super) async fn stop(&self) {
        self.shared.cancel.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, ear: Ear) {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut failing = false;
        loop {
            let received = tokio::select! {
                () = self.cancel.cancelled() => return,
                received = ear.socket.recv(&mut buffer) => received,
            };
            match received {
                Ok(received) => {
                    if std::mem::take(&mut failing) {
                        self.failing.fetch_sub(1, Ordering::Relaxed);
                    }
                    for datagram in received.datagrams(&buffer) {
                        // The sockets are never full: a reply is one small packet.
                        tokio::select! {
                            () = self.cancel.cancelled() => return,
                            () = self.answer(&ear, datagram, received.peer, received.local) => {}
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(target: "dhcp", interface = ear.interface, %error, "Receiving failed; trying again");
                    if !std::mem::replace(&mut failing, true) {
                        self.failing.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = tokio::time::sleep(RECEIVE_PAUSE) => {}
                    }
                }
            }
        }
    }

    async fn answer(&self, ear: &Ear, datagram: &[u8], peer: SocketAddr, local: Option<IpAddr>) {
        let name = ear.interface.as_str();
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
                return tracing::warn!(target: "dhcp", interface = name, %error, "No address to advertise");
            }
        };
        let registered = self.table.is_registered(request.mac);
        let decision = decide(&request, ear.port, &self.config, advertise, registered);
        let mac = request.mac;
        match decision.reply {
            Err(why) => tracing::debug!(target: "dhcp", interface = name, %mac, why, "Not answered"),
            Ok((reply, to)) => {
                // A boot server request was sent to one of our addresses: that is where its answer must come from.
                let (to, from) = match to {
                    To::Sender => (peer, local),
                    To::Address(address) => (SocketAddr::V4(address), own.ok().map(IpAddr::V4)),
                };
                let sent = match reply.encode() {
                    Ok(bytes) => ear.socket.send(&bytes, to, from).await.map_err(|e| e.to_string()),
                    Err(error) => Err(error.report()),
                };
                if let Err(error) = sent {
                    return tracing::warn!(target: "dhcp", interface = name, %mac, %to, error, "Could not answer");
                }
                tracing::info!(
                    target: "dhcp",
                    interface = name, %mac, %to, boot_file = reply.boot_file, ipxe = request.ipxe, registered,
                    "Answered"
                );
            }
        }
        let observer = self.table.observer();
        for observation in decision.seen {
            observer.observe(observation);
        }
    }
}

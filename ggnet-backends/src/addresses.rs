//! Watches the addresses that a service listens on and reports those that the host no longer has.
//!
//! A socket that is bound to an address stays bound when the host loses the address (an interface is deleted, DHCP assigns another one). It
//! receives nothing until the address is back, on any interface, and then works again without a new bind. So it is enough to report the
//! loss. A service that listens on all addresses, or only on loopback, is not watched.
//!
//! Invariants: one log line for each change; [`Addresses::trouble`] names the addresses that were missing at the last check, at most
//! [`LOOK_EVERY`] ago.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ggnet_core::supervisor::Supervisor;

/// How often the addresses are checked.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The addresses of one service.
#[derive(Debug)]
pub struct Addresses {
    service: &'static str,
    wanted: Vec<IpAddr>,
    missing: Mutex<Vec<IpAddr>>,
}

impl Addresses {
    /// Checks the addresses of `service` ("The iSCSI portal") regularly, in a task of `supervisor`.
    pub fn watch(service: &'static str, listen: &[SocketAddr], supervisor: &Supervisor) -> Arc<Self> {
        let own = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback();
        let wanted: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).filter(own).collect();
        let watched = !wanted.is_empty();
        let this = Arc::new(Self { service, wanted, missing: Mutex::default() });
        if watched {
            let (looking, stop) = (Arc::clone(&this), supervisor.stopping());
            supervisor.keep(format!("address watcher of {service}"), move || {
                let (looking, stop) = (Arc::clone(&looking), stop.clone());
                async move {
                    let mut tick = tokio::time::interval(LOOK_EVERY);
                    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                    loop {
                        tokio::select! {
                            () = stop.cancelled() => return,
                            _ = tick.tick() => looking.look(),
                        }
                    }
                }
            });
        }
        this
    }

    /// The addresses that the host does not have, as a message; `None` if it has all of them.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        (!missing.is_empty()).then(|| {
            format!(
                "{} listens on {}, but no interface of this host has that address any more: add it again (ip address), or \
                 configure another one",
                self.service,
                join(&missing)
            )
        })
    }

    fn look(&self) {
        let known = match if_addrs::get_if_addrs() {
            Ok(known) => known,
            Err(error) => return tracing::warn!(%error, "cannot list the host's addresses"),
        };
        let gone = |ip: &&IpAddr| !known.iter().any(|k| k.ip() == **ip);
        let now: Vec<IpAddr> = self.wanted.iter().filter(gone).copied().collect();
        // Every step under the lock leaves valid data.
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if *missing == now {
            return;
        }
        if now.is_empty() {
            tracing::info!(
                service = self.service,
                addresses = join(&missing),
                "the listening addresses are available again"
            );
        } else {
            tracing::warn!(
                service = self.service,
                addresses = join(&now),
                "the host no longer has addresses that this service listens on"
            );
        }
        *missing = now;
    }
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

//! The `proxy` DHCP backend: proxyDHCP (PXE 2.1, section 2.2.5) in addition to the DHCP server that assigns addresses.
//!
//! Firmware that requests an address gets two offers: the address from the network's own server, and the boot file, without an address,
//! from us. The other server needs no changes, and the only state here is the table of registered machines.
//!
//! `packet` is the codec, `policy` decides, `server` has the sockets.
//!
//! Invariants: a machine is answered as soon as its `ensure` returns; the table's lock is never held across an await.

mod descriptor;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub(super) mod packet;
mod policy;
mod server;

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use async_trait::async_trait;
use ggnet_core::{
    Error, Result,
    nouns::{MacAddr, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal, Health, Listed,
        NullObserver, Observer,
    },
};
use serde::{Deserialize, Serialize};

pub use self::descriptor::descriptor;
pub use super::arch::{self, Arch};
use super::{boot_files::BootFiles, loaders};

/// The backend's name in the configuration and in errors.
const NAME: &str = "proxy";

/// What to do with unregistered machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// Observe them and do not answer.
    #[default]
    Ignore,
    /// Give them a loader, and iPXE the script `/boot/first.ipxe`.
    Answer,
}

/// The configuration of proxyDHCP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyDhcpConfig {
    /// The interfaces to answer on; if empty, no network is answered.
    pub interfaces: Vec<String>,
    /// The address of ours that machines should use, by interface; the default is the interface's own address.
    pub advertise: BTreeMap<String, Ipv4Addr>,
    /// The port of our HTTP server, for scripts and HTTP boot.
    pub http_port: u16,
    /// The path of the boot files on our HTTP server, for HTTP boot: `http://<advertise>:<http_port><http_files>/<loader>`.
    pub http_files: String,
    /// What to do with unregistered machines.
    pub unknown: Unknown,
    /// Use `<mac>/<loader>` as the name of a loader, so that a transfer identifies the machine that fetches it (the `builtin` boot file
    /// store supports this).
    pub mac_prefix: bool,
    /// Loaders by architecture (`bios`, `efi-x64`, … or the number in option 93), in addition to the default ones: a path among the boot
    /// files, or a URL; an empty text removes a default.
    pub loaders: BTreeMap<Arch, String>,
    /// Also accept requests that a DHCP relay sends to the interface's address. Do not enable it if another DHCP server runs on this host:
    /// the renewals of its clients would come to us instead.
    pub relays: bool,
}

impl Default for ProxyDhcpConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            advertise: BTreeMap::new(),
            http_port: 8080,
            http_files: "/files".to_owned(),
            unknown: Unknown::default(),
            mac_prefix: true,
            loaders: BTreeMap::new(),
            relays: false,
        }
    }
}

impl ProxyDhcpConfig {
    /// The boot files for machines, at this address of ours.
    fn boot_files(&self, advertise: Ipv4Addr) -> BootFiles<'_> {
        BootFiles {
            advertise,
            http_port: self.http_port,
            http_files: &self.http_files,
            mac_prefix: self.mac_prefix,
            loaders: &self.loaders,
        }
    }

    fn validate(&self) -> Result<()> {
        loaders::validate(&self.loaders)?;
        loaders::validate_http_files(&self.http_files)?;
        for (i, interface) in self.interfaces.iter().enumerate() {
            if self.interfaces[..i].contains(interface) {
                return Err(Error::invalid("interfaces", format!("Interface {interface} is listed twice")));
            }
        }
        if let Some(other) = self.advertise.keys().find(|name| !self.interfaces.contains(name)) {
            let message = format!("`advertise` has an address for {other}, which is not in `interfaces`");
            return Err(Error::invalid("advertise", message));
        }
        Ok(())
    }
}

/// ProxyDHCP.
pub struct ProxyDhcp {
    table: Arc<Table>,
    server: server::Server,
}

/// The registered machines, and the observer of requests.
#[derive(Default)]
struct Table {
    machines: RwLock<Machines>,
    observer: OnceLock<Arc<dyn Observer>>,
}

#[derive(Default)]
struct Machines {
    hosts: BTreeMap<ResourceId, DhcpHost>,
    // Two entries may share a card while a machine is being replaced, so cards are counted.
    macs: HashMap<MacAddr, usize>,
}

impl Table {
    fn is_registered(&self, mac: MacAddr) -> bool {
        self.machines.read().unwrap_or_else(PoisonError::into_inner).macs.contains_key(&mac)
    }

    fn observer(&self) -> Arc<dyn Observer> {
        self.observer.get().cloned().unwrap_or_else(|| Arc::new(NullObserver))
    }
}

impl Machines {
    fn know(&mut self, host: DhcpHost) {
        for mac in &host.macs {
            *self.macs.entry(*mac).or_default() += 1;
        }
        self.hosts.insert(host.id.clone(), host);
    }

    fn forget(&mut self, id: &ResourceId) {
        let Some(old) = self.hosts.remove(id) else { return };
        for mac in old.macs {
            if let Some(count) = self.macs.get_mut(&mac) {
                *count -= 1;
                if *count == 0 {
                    self.macs.remove(&mac);
                }
            }
        }
    }
}

fn listed(host: &DhcpHost) -> Listed {
    Listed { id: host.id.clone(), digest: Some(host.digest()), completeness: Completeness::Whole }
}

impl ProxyDhcp {
    /// Binds ports 67 and 4011 on every configured interface and starts answering. The tasks end with [`DhcpBackend::shutdown`] or when
    /// this value is dropped. If the future is dropped, nothing stays bound.
    ///
    /// # Errors
    /// `Invalid` configuration; `NotFound` if an interface does not exist; `Permission` or `Busy` for a port, with the address and what to
    /// do.
    #[expect(clippy::unused_async, reason = "proof that a runtime is there to spawn on")]
    pub async fn start(config: ProxyDhcpConfig) -> Result<Self> {
        config.validate().map_err(|e| e.with_backend(NAME).with_operation("start"))?;
        let table = Arc::new(Table::default());
        let server = server::Server::start(config, Arc::clone(&table))
            .map_err(|e| e.with_backend(NAME).with_operation("start"))?;
        Ok(Self { table, server })
    }
}

#[async_trait]
impl DhcpBackend for ProxyDhcp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> DhcpCapabilities {
        DhcpCapabilities { leases: false, observes: true }
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        if self.table.observer.set(observer).is_err() {
            tracing::warn!("ignored a second observer for proxyDHCP");
        }
    }

    /// Never waits, so dropping the future has no effect.
    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        let mut machines = self.table.machines.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            machines.forget(change.id());
            if let DhcpChange::Ensure(host) = change {
                machines.know(host.clone());
            }
        }
        Ok(Vec::new())
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        let machines = self.table.machines.read().unwrap_or_else(PoisonError::into_inner);
        Ok(machines.hosts.get(id).map(listed))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let machines = self.table.machines.read().unwrap_or_else(PoisonError::into_inner);
        Ok(machines.hosts.values().map(listed).collect())
    }

    async fn health(&self) -> Health {
        self.server.health()
    }

    async fn shutdown(&self) {
        self.server.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use ggnet_core::{nouns::DeviceType, ports::DhcpBackendExt as _};

    use super::*;

    fn host(id: &str, macs: &[&str]) -> DhcpHost {
        DhcpHost {
            id: id.parse().unwrap(),
            name: "pc".parse().unwrap(),
            macs: macs.iter().map(|m| m.parse().unwrap()).collect(),
            fixed_address: None,
            device_type: DeviceType::X64,
        }
    }

    #[tokio::test]
    async fn the_table_follows_ensure_and_remove() {
        let dhcp = ProxyDhcp::start(ProxyDhcpConfig::default()).await.unwrap();
        let known = |m: &str| dhcp.table.is_registered(m.parse().unwrap());
        let (a, b) = ("52:54:00:aa:00:01", "52:54:00:aa:00:02");
        dhcp.ensure(&host("m1", &[a, b])).await.unwrap();
        dhcp.ensure(&host("m1", &[a, b])).await.unwrap();
        assert!(known(a) && known(b));
        dhcp.ensure(&host("m2", &[a])).await.unwrap();
        let converged = host("m1", &[b]);
        dhcp.ensure(&converged).await.unwrap();
        assert!(known(a), "the other machine still has it");
        dhcp.remove(&"m2".parse().unwrap()).await.unwrap();
        dhcp.remove(&"m2".parse().unwrap()).await.unwrap();
        assert!(!known(a) && known(b));
        let listed = dhcp.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].digest, Some(converged.digest()));
        assert_eq!(dhcp.health().await, Health::Up);
        dhcp.shutdown().await;
    }

    #[tokio::test]
    async fn a_bad_configuration_names_its_field() {
        let bad = |c: ProxyDhcpConfig| async { ProxyDhcp::start(c).await.err().unwrap() };
        let c = ProxyDhcpConfig::default;
        let loaders = [(Arch(0), "../x".to_owned())].into();
        assert_eq!(bad(ProxyDhcpConfig { loaders, ..c() }).await.field(), Some("loaders"));
        assert_eq!(bad(ProxyDhcpConfig { http_files: "x".into(), ..c() }).await.field(), Some("http_files"));
        let twice = vec!["lo".to_owned(), "lo".to_owned()];
        assert_eq!(bad(ProxyDhcpConfig { interfaces: twice, ..c() }).await.field(), Some("interfaces"));
        let advertise = [("eth7".to_owned(), Ipv4Addr::LOCALHOST)].into();
        assert_eq!(bad(ProxyDhcpConfig { advertise, ..c() }).await.field(), Some("advertise"));
        let e = ProxyDhcp::start(ProxyDhcpConfig { interfaces: vec!["nosuchif0".into()], ..c() })
            .await
            .err()
            .unwrap();
        assert_eq!(e.kind(), ggnet_core::ErrorKind::NotFound);
    }

    #[test]
    fn the_configuration_is_read_by_name() {
        let json = r#"{"interfaces": ["br0"], "advertise": {"br0": "10.0.0.1"}, "unknown": "answer",
                       "loaders": {"efi-arm64": "arm.efi", "31": "x"}, "relays": true}"#;
        let config: ProxyDhcpConfig = serde_json::from_str(json).unwrap();
        let loader = |arch| config.boot_files(Ipv4Addr::LOCALHOST).loader(Arch(arch), false, None);
        assert_eq!(loader(11).as_deref(), Some("arm.efi"));
        assert_eq!(loader(31).as_deref(), Some("x"));
        assert_eq!(loader(0).as_deref(), Some("undionly.kpxe"));
        assert_eq!(config.unknown, Unknown::Answer);
        assert!(serde_json::from_str::<ProxyDhcpConfig>(r#"{"interface": "br0"}"#).is_err());
    }
}

//! [`MemoryDhcp`]: a DHCP backend in memory, with a method that acts as a booting machine.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;

use super::world::{Life, World, step};
use crate::{
    error::{ErrorKind, Result},
    nouns::{Firmware, MacAddr, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal, Health, Listed,
        Observation, Observer, apply_each,
    },
};

/// The state that outlives a [`MemoryDhcp`]: its entries, as in a configuration file.
pub type DhcpWorld = World<DhcpState>;

/// The entries.
#[derive(Debug, Default)]
pub struct DhcpState {
    hosts: BTreeMap<ResourceId, (DhcpHost, Completeness)>,
}

/// DHCP in memory: a full server (it honours `fixed_address`) that reports its answers.
pub struct MemoryDhcp {
    life: Life<DhcpState>,
    observer: OnceLock<Arc<dyn Observer>>,
}

impl MemoryDhcp {
    /// In an empty world.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&DhcpWorld::default())
    }

    /// In this world, as after a crash of our process.
    #[must_use]
    pub fn over(world: &DhcpWorld) -> Self {
        Self { life: world.enter("memory", |_| ()), observer: OnceLock::new() }
    }

    /// The state that outlives it.
    #[must_use]
    pub fn world(&self) -> DhcpWorld {
        self.life.world()
    }

    /// Acts as a machine that asks by PXE. Returns the entry that answers it; `None`: it falls through to its next boot device. The
    /// observer is notified as by a real server.
    #[must_use]
    pub fn request(&self, mac: MacAddr, firmware: Firmware, ipxe: bool) -> Option<DhcpHost> {
        let host = {
            let state = self.life.state().ok()?;
            let whole = state.hosts.values().filter(|(_, c)| *c == Completeness::Whole);
            whole.map(|(host, _)| host).find(|host| host.macs.contains(&mac)).cloned()
        };
        if let Some(observer) = self.observer.get() {
            observer.observe(match &host {
                Some(_) => {
                    let boot_file = if ipxe { format!("boot/{mac}") } else { "loader".to_owned() };
                    Observation::AddressOffered { mac, firmware, boot_file, ipxe }
                }
                None => Observation::UnknownAsked { mac, firmware },
            });
        }
        host
    }
}

impl Default for MemoryDhcp {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl DhcpBackend for MemoryDhcp {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> DhcpCapabilities {
        DhcpCapabilities { leases: true, observes: true }
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        // Called once by contract; a second call changes nothing.
        let _ = self.observer.set(observer);
    }

    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        let made = apply_each(changes, |change| async move {
            match change {
                DhcpChange::Ensure(host) => self.ensure_one(host).await,
                DhcpChange::Remove(id) => self.remove_one(id).await,
            }
        });
        Ok(made.await)
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        step().await;
        let state = self.life.state()?;
        let listed = |(id, (host, completeness)): (&ResourceId, &(DhcpHost, Completeness))| Listed {
            id: id.clone(),
            digest: (*completeness == Completeness::Whole).then(|| host.digest()),
            completeness: *completeness,
        };
        Ok(state.hosts.iter().map(listed).collect())
    }

    async fn health(&self) -> Health {
        self.life.health()
    }

    async fn shutdown(&self) {
        self.life.close();
    }
}

impl MemoryDhcp {
    async fn ensure_one(&self, host: &DhcpHost) -> Result<()> {
        let _turn = self.life.lock(&host.id).await;
        {
            let mut state = self.life.state()?;
            if state.hosts.get(&host.id).is_some_and(|(have, c)| have == host && *c == Completeness::Whole) {
                return Ok(());
            }
            let taken =
                |other: &DhcpHost| other.id != host.id && other.macs.iter().any(|m| host.macs.contains(m));
            if let Some((other, _)) = state.hosts.values().find(|(other, _)| taken(other)) {
                let message = format!("{} has a MAC address of {}", other.id, host.id);
                return Err(self.life.error(ErrorKind::Conflict, message).with_operation("ensure"));
            }
            state.hosts.insert(host.id.clone(), (host.clone(), Completeness::Partial));
        }
        step().await;
        self.life.state()?.hosts.insert(host.id.clone(), (host.clone(), Completeness::Whole));
        step().await;
        Ok(())
    }

    async fn remove_one(&self, id: &ResourceId) -> Result<()> {
        let _turn = self.life.lock(id).await;
        if let Some((_, completeness)) = self.life.state()?.hosts.get_mut(id) {
            *completeness = Completeness::Partial;
        }
        step().await;
        self.life.state()?.hosts.remove(id);
        Ok(())
    }
}

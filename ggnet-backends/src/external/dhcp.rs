//! The DHCP backend "external".

use std::sync::Arc;

use async_trait::async_trait;
use ggnet_core::{
    error::Result,
    nouns::{InstanceId, ResourceId},
    ports::{DhcpBackend, DhcpCapabilities, DhcpHost, Health, Listed, Observer, Removal},
};

use super::{
    ExternalConfig, NAME,
    connection::Connection,
    wire::{EnsureHost, Remove},
};

/// DHCP entries that a program of somebody else's keeps. See the module above.
pub struct ExternalDhcp {
    connection: Connection,
    capabilities: DhcpCapabilities,
}

impl ExternalDhcp {
    /// Starts the program and hears what it can do. Dropped half-way: the program is killed.
    ///
    /// # Errors
    /// `Invalid` settings; `NotFound` when there is no such program; `Unsupported` when it does not fit, by version, port or capabilities; what
    /// it refuses the hello with; `Timeout`, `Unavailable` when it does not answer or dies.
    pub async fn open(config: ExternalConfig, instance: InstanceId) -> Result<Self> {
        let connection = Connection::open(config, "dhcp", instance).await?;
        let capabilities = connection.capabilities()?;
        Ok(Self { connection, capabilities })
    }
}

#[async_trait]
impl DhcpBackend for ExternalDhcp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> DhcpCapabilities {
        self.capabilities.clone()
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        self.connection.attach(observer);
    }

    async fn ensure(&self, host: &DhcpHost) -> Result<()> {
        let wanted = EnsureHost { digest: host.digest(), host };
        self.connection.tell("ensure", host.id.as_str(), wanted).await
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.connection.tell("remove", id.as_str(), Remove { id, how }).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.connection.list().await
    }

    async fn health(&self) -> Health {
        self.connection.health().await
    }

    async fn shutdown(&self) {
        self.connection.shut_down().await;
    }
}

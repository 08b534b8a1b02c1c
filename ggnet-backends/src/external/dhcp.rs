//! The DHCP backend "external".

use std::sync::Arc;

use async_trait::async_trait;
use ggnet_core::{
    error::Result,
    nouns::{InstanceId, ResourceId},
    ports::{DhcpBackend, DhcpCapabilities, DhcpChange, DhcpRefusal, Health, Listed, Observer, apply_each},
};

use super::{
    ExternalConfig, NAME,
    connection::Connection,
    wire::{Applied, Apply, Failed, Named},
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

/// How many changes a request may have: a line of them has less than 100 KiB.
const IN_A_LINE: usize = 256;

impl ExternalDhcp {
    async fn request(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        let subject = match changes {
            [one] => one.id().as_str(),
            _ => "",
        };
        let applied: Applied = self.connection.call("apply", subject, Apply::new(changes)).await?;
        let refusal = |failed: Failed| {
            let error = failed.error.into_error().with_backend(NAME).with_operation("apply");
            let error =
                if error.subject().is_none() { error.with_subject(failed.id.as_str()) } else { error };
            DhcpRefusal { id: failed.id, error }
        };
        Ok(applied.failed.into_iter().map(refusal).collect())
    }

    async fn alone(&self, change: &DhcpChange) -> Result<()> {
        DhcpRefusal::of_one(self.request(std::slice::from_ref(change)).await?)
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

    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        let mut failed = Vec::new();
        for some in changes.chunks(IN_A_LINE) {
            match self.request(some).await {
                // Too much for a line: then each in a line of its own, so that what is too long by itself fails alone.
                Err(e) if e.field() == Some("max_line") => {
                    failed.extend(apply_each(some, |one| self.alone(one)).await);
                }
                applied => failed.extend(applied?),
            }
        }
        Ok(failed)
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        self.connection.call("get", id.as_str(), Named { id }).await
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

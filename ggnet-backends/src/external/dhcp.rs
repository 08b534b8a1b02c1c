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

/// DHCP entries that an external program keeps. See the module above.
pub struct ExternalDhcp {
    connection: Connection,
    capabilities: DhcpCapabilities,
}

impl ExternalDhcp {
    /// Starts the program and reads its capabilities. If the future is dropped, the program is killed.
    ///
    /// # Errors
    /// `Invalid` settings; `NotFound` if the program does not exist; `Unsupported` if its version, port or capabilities do not match; the
    /// error with which it rejects the hello; `Timeout`, `Unavailable` if it does not respond or ends.
    pub async fn open(config: ExternalConfig, instance: InstanceId) -> Result<Self> {
        let connection = Connection::open(config, "dhcp", instance).await?;
        let capabilities = connection.capabilities()?;
        Ok(Self { connection, capabilities })
    }
}

/// The maximum number of changes in one request: a line with them has less than 100 KiB.
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
                // Too long for one line: sends each change in its own line, so that only a change that is too long by itself fails.
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

//! The boot file store "external".

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_core::{
    error::Result,
    nouns::{InstanceId, ResourceId},
    ports::{BootBundle, BootFileStore, BootPath, Health, Listed, Observer},
    registry::{Settings, settings},
};

use super::{
    ExternalConfig, NAME,
    connection::Connection,
    wire::{Content, EnsureFiles, Named, Read},
};
use crate::bootfile::loaders::DEBIAN_IPXE_DIR;

/// Reads the section's settings: the program's, and the folder of the loaders that the wiring adds to the store.
///
/// # Errors
/// `Invalid`: an unknown or invalid key, which is named.
pub fn boot_file_settings(mut table: Settings) -> Result<(ExternalConfig, PathBuf)> {
    let loaders = table.as_object_mut().and_then(|keys| keys.remove("loaders_dir"));
    let loaders = loaders.map_or_else(|| Ok(DEBIAN_IPXE_DIR.into()), |dir| settings(NAME, dir))?;
    Ok((settings(NAME, table)?, loaders))
}

/// Boot files that an external program keeps. See the module above.
pub struct ExternalBootFiles {
    connection: Connection,
}

impl ExternalBootFiles {
    /// Starts the program and checks that it is compatible. If the future is dropped, the program is killed.
    ///
    /// # Errors
    /// As [`ExternalDhcp::open`](super::ExternalDhcp::open).
    pub async fn open(config: ExternalConfig, instance: InstanceId) -> Result<Self> {
        Ok(Self { connection: Connection::open(config, "boot_files", instance).await? })
    }
}

#[async_trait]
impl BootFileStore for ExternalBootFiles {
    fn name(&self) -> &'static str {
        NAME
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        self.connection.attach(observer);
    }

    async fn ensure(&self, bundle: &BootBundle) -> Result<()> {
        self.connection.tell("ensure", bundle.id.as_str(), EnsureFiles::new(bundle)).await
    }

    async fn remove(&self, id: &ResourceId) -> Result<()> {
        self.connection.tell("remove", id.as_str(), Named { id }).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        self.connection.call("get", id.as_str(), Named { id }).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.connection.list().await
    }

    async fn read(&self, path: &BootPath) -> Result<Bytes> {
        let read: Content = self.connection.call("read", path.as_str(), Read::new(path)).await?;
        Ok(read.content)
    }

    async fn health(&self) -> Health {
        self.connection.health().await
    }

    async fn shutdown(&self) {
        self.connection.shut_down().await;
    }
}

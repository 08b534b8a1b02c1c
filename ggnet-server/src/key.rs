//! `ggnet-server key reset`: creates a new key for the credentials in the store if the old one is lost.

use ggnet_core::{
    Result,
    nouns::InstanceId,
    registry::{PortName, Registry},
};

use crate::{config::Config, data_dir::DataDir, say::say, wiring};

/// Makes the store create a new key and prints the consequences. The server must be stopped.
pub async fn reset(config: &Config, registry: &Registry) -> Result<()> {
    let store = registry.about(PortName::Store, &config.store.backend)?;
    let data = DataDir::lock(&config.data_dir)?;
    // A store does not use the instance id, because it is opened before the id is known.
    let (instance, http_port) = (InstanceId::generate(), config.http.listen.port());
    let wiring = wiring::wiring(config, registry, data.path(), instance, http_port)?;
    say(&store.reset_key(PortName::Store, wiring, config.store.settings.clone()).await?)
}

//! The descriptor of the writeback store "layers".

use std::sync::Arc;

use ggnet_core::{
    Result,
    ports::WritebackStore,
    registry::{Descriptor, Settings, Wiring},
};

use super::{Layers, LayersConfig, NAME};
use crate::files::opened;

/// The writeback store "layers".
#[must_use]
pub fn descriptor() -> Descriptor<dyn WritebackStore> {
    Descriptor::new(NAME, make)
        .summary("Layers over the image version, served by the server's process")
        .keys(&[])
}

async fn make(wiring: Wiring, _: Settings) -> Result<Arc<dyn WritebackStore>> {
    let config = LayersConfig { dir: wiring.data_dir.join("writebacks"), instance: wiring.instance };
    Ok(Arc::new(opened(move || Layers::open(config)).await?))
}

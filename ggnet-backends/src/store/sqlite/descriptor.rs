//! What the store "sqlite" registers.

use std::{path::Path, sync::Arc};

use ggnet_core::{
    Result,
    ports::Store,
    registry::{Descriptor, Finding, Settings, Wiring},
};

use super::{SqliteConfig, SqliteStore, errors::BACKEND};
use crate::host;

/// The store "sqlite".
#[must_use]
pub fn descriptor() -> Descriptor<dyn Store> {
    Descriptor::new(BACKEND, make)
        .summary("One SQLite file")
        .keys(&[
            ("path", "The database; left out: ggnet.db in the data folder"),
            ("key_file", "The key that seals CHAP secrets; left out: ggnet.key in the data folder"),
        ])
        .check(check)
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn Store>> {
    let config = SqliteConfig::from_settings(&wiring.data_dir, table)?;
    let store = SqliteStore::open(config).await?;
    // One damaged record must not keep the others from being served.
    if let Err(e) = store.end_unreadable_sessions(wiring.clock.now(), None).await {
        store.shutdown().await;
        return Err(e);
    }
    Ok(Arc::new(store))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config = SqliteConfig::from_settings(&wiring.data_dir, table)?;
    host::look(move || {
        let folder = config.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        vec![host::kept_space(folder.unwrap_or(Path::new(".")))]
    })
    .await
}

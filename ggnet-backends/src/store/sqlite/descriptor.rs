//! What the store "sqlite" registers.

use std::{path::Path, sync::Arc};

use ggnet_core::{
    Result,
    ports::Store,
    registry::{Descriptor, Finding, Settings, Wiring},
};

use super::{KeyReset, SqliteConfig, SqliteStore, errors::BACKEND};
use crate::host;

/// The store "sqlite".
#[must_use]
pub fn descriptor() -> Descriptor<dyn Store> {
    Descriptor::new(BACKEND, make)
        .summary("One SQLite file")
        .keys(&[
            ("path", "The database; default: ggnet.db in the data folder"),
            ("key_file", "The key that seals CHAP secrets; default: ggnet.key in the data folder"),
        ])
        .check(check)
        .resets_key(reset_key)
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

/// Makes a new key, ends the sessions that need the old one, and says what that means.
async fn reset_key(wiring: Wiring, table: Settings) -> Result<String> {
    let config = SqliteConfig::from_settings(&wiring.data_dir, table)?;
    Ok(told(&SqliteStore::reset_key(config, wiring.clock.now()).await?))
}

fn told(done: &KeyReset) -> String {
    let mut text = format!("A new key is in {}.", done.key_file.display());
    if let Some(kept) = &done.kept {
        text.push_str(&format!(" The old file is {}.", kept.display()));
    }
    let ended = match done.ended.len() {
        0 => return text + " No session needed the old one.",
        1 => "1 session was ended: its machine must boot anew, even if it still runs.".to_owned(),
        n => format!("{n} sessions were ended: their machines must boot anew, even those that still run."),
    };
    text + "\n" + &ended + " Writes of `discard` machines go when the server starts; kept writes stay."
}

//! `ggnet-server key reset`: a new key for the CHAP credentials in the database, when the old one is lost.

use ggnet_backends::store::sqlite::{KeyReset, SqliteConfig, SqliteStore};
use ggnet_core::{
    Error, Result,
    ports::{Clock as _, SystemClock},
};

use crate::{config::Config, data_dir::DataDir, say::say};

/// Makes a new key, ends the sessions that need the old one, and says what that means. The server must be stopped.
pub async fn reset(config: &Config) -> Result<()> {
    if config.store.backend != "sqlite" {
        return Err(Error::invalid(
            "store.backend",
            format!("The store {} has no key file of GGnet's", config.store.backend),
        ));
    }
    let data = DataDir::lock(&config.data_dir)?;
    let store = SqliteConfig::from_settings(data.path(), config.store.settings.clone())?;
    say(&told(&SqliteStore::reset_key(store, SystemClock.now()).await?))
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

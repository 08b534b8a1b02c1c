//! [`SqliteConfig`]: the store's section of the configuration.

use std::path::{Path, PathBuf};

use ggnet_core::{
    Result,
    registry::{Settings, settings},
};

use super::errors::BACKEND;

/// Where the store keeps its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteConfig {
    /// The database; made when it is not there. Its folder must exist. SQLite keeps `-wal` and `-shm` files beside it.
    pub path: PathBuf,
    /// The key that seals credentials: 32 random bytes, made when it is not there and no live session needs it. Belongs into the
    /// backup, apart from the database.
    pub key_file: PathBuf,
}

impl SqliteConfig {
    /// From the settings of the configuration's section, with the files' usual places in the data folder.
    ///
    /// # Errors
    /// `Invalid`: a key that does not exist, or a value of another type.
    pub fn from_settings(data_dir: &Path, table: Settings) -> Result<Self> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            path: Option<PathBuf>,
            key_file: Option<PathBuf>,
        }
        let table: Table = settings(BACKEND, table)?;
        Ok(Self {
            path: table.path.unwrap_or_else(|| data_dir.join("ggnet.db")),
            key_file: table.key_file.unwrap_or_else(|| data_dir.join("ggnet.key")),
        })
    }
}

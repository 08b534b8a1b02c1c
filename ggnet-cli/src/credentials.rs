//! The stored token: `$XDG_CONFIG_HOME/ggnet/cli.toml`, readable only by its owner and replaced atomically.
//!
//! A stored token is sent only to the server that it was stored for.

use std::{
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
};

use atomic_write_file::{AtomicWriteFile, unix::OpenOptionsExt as _};
use etcetera::BaseStrategy as _;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, Result},
    options::values::ServerUrl,
    output::complain,
};

/// A server and the token for it.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The server's URL.
    pub server: ServerUrl,
    /// The administrator token.
    pub token: String,
}

/// The file's path.
pub fn path() -> Result<PathBuf> {
    let base = etcetera::choose_base_strategy().map_err(|e| {
        Failure::refused(format!("No home directory found: {e}")).hint("Set HOME or XDG_CONFIG_HOME")
    })?;
    Ok(base.config_dir().join("ggnet").join("cli.toml"))
}

impl Credentials {
    /// Loads the stored credentials; `None` if there are none.
    pub fn load() -> Result<Option<Self>> {
        let path = path()?;
        let shown = path.display();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::io(format!("Reading {shown}"), &e)),
        };
        if let Ok(metadata) = path.metadata()
            && metadata.permissions().mode() & 0o077 != 0
        {
            complain(&format!(
                "warning: other users of this machine can read the token in {shown}; run `chmod 600 {shown}`"
            ));
        }
        // The Display of the parser's error would quote the line, which may contain the token.
        toml::from_str(&text).map(Some).map_err(|e| {
            let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
            Failure::input("cli.toml", format!("{shown}, line {line}: {}", e.message()))
                .hint("Run `ggnet login` to write this file again")
        })
    }

    /// Stores the credentials; returns the file's path.
    pub fn save(&self) -> Result<PathBuf> {
        let path = path()?;
        let failed = |e: &io::Error| Failure::io(format!("Writing {}", path.display()), e);
        let text = toml::to_string(self).map_err(|e| Failure::refused(format!("Writing TOML: {e}")))?;
        if let Some(folder) = path.parent() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|e| failed(&e))?;
        }
        let write = || {
            let mut options = AtomicWriteFile::options();
            // Even if an older file was readable by others.
            options.preserve_mode(false).mode(0o600);
            let mut file = options.open(&path)?;
            file.write_all(text.as_bytes())?;
            file.commit()
        };
        write().map_err(|e| failed(&e))?;
        Ok(path)
    }
}

/// Deletes the stored credentials; returns whether there were any.
pub fn forget() -> Result<bool> {
    let path = path()?;
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Failure::io(format!("Removing {}", path.display()), &e)),
    }
}

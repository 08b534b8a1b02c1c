//! Where the token is kept: `$XDG_CONFIG_HOME/ggnet/cli.toml`, readable by its owner alone, replaced whole or not at all.
//!
//! A stored token goes to the server that it was stored for and to no other.

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
        Failure::refused(format!("There is no home directory: {e}")).hint("Set HOME or XDG_CONFIG_HOME")
    })?;
    Ok(base.config_dir().join("ggnet").join("cli.toml"))
}

impl Credentials {
    /// What was stored; `None` when nothing was.
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
                "warning: others on this machine can read the token in {shown}; `chmod 600 {shown}` mends it"
            ));
        }
        // The parser's own message would quote the line, and the line may be the token.
        toml::from_str(&text).map(Some).map_err(|e| {
            let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
            Failure::input("cli.toml", format!("{shown}, line {line}: {}", e.message()))
                .hint("`ggnet login` writes it anew")
        })
    }

    /// Stores them.
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
            // Also where an older file was open to others.
            options.preserve_mode(false).mode(0o600);
            let mut file = options.open(&path)?;
            file.write_all(text.as_bytes())?;
            file.commit()
        };
        write().map_err(|e| failed(&e))?;
        Ok(path)
    }
}

/// Forgets them; whether there were any.
pub fn forget() -> Result<bool> {
    let path = path()?;
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Failure::io(format!("Removing {}", path.display()), &e)),
    }
}

//! Files of the database: who may read them, and that their names are durable.

use std::{
    fs::{self, File},
    io::ErrorKind as Io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use ggnet_core::{Error, Result};

/// Takes the access of group and others from a file, if they have any; a file that is not there is fine.
pub(super) fn tighten(path: &Path) -> Result<()> {
    let doing = || format!("Setting the mode of {}", path.display());
    let mode = match fs::metadata(path) {
        Ok(meta) => meta.permissions().mode(),
        Err(e) if e.kind() == Io::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(doing(), e)),
    };
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o7777), "others could read this file; its mode is now 0600");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| Error::io(doing(), e))
}

/// Makes the name of a new file durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io(format!("Making the folder {} durable", folder.display()), e))
}

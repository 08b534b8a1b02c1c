//! Files that a daemon of another user reads: written atomically, and readable for all.

use std::{
    fs::Permissions,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use atomic_write_file::AtomicWriteFile;
use ggnet_core::{Error, Result};

/// Writes `text` to a temporary file and renames it to `path`. It is readable for other users whatever our umask is.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = AtomicWriteFile::options().open(path)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.commit()
    };
    write().map_err(|e| error("Writing", path, e))
}

/// The content of `path`; `None` if it does not exist. Invalid UTF-8 is replaced; our files never have any.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error("Reading", path, e)),
    }
}

/// Removes `path`, if it exists.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error("Removing", path, e)),
        _ => Ok(()),
    }
}

/// An error with the path and a hint.
pub(super) fn error(doing: &str, path: &Path, e: io::Error) -> Error {
    let denied = matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
    let error = Error::io(format!("{doing} {}", path.display()), e).with_subject(path.display().to_string());
    match path.parent().filter(|_| denied) {
        Some(parent) => {
            error.with_hint(format!("The server's user must be able to write to {}", parent.display()))
        }
        None => error,
    }
}

/// The names in a folder; names that are not UTF-8 are not ours.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| error("Reading", dir, e))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| match entry {
        Ok(entry) => Ok(entry.file_name().into_string().ok()),
        Err(e) => Err(error("Reading", dir, e)),
    };
    entries.filter_map(|entry| name(entry).transpose()).collect()
}

/// Runs a file operation on a blocking thread. It completes even if this future is dropped.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(Error::internal("A blocking task of the DHCP backend panicked").with_source(e))
    })
}

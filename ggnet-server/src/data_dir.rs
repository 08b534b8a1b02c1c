//! The data folder: created with mode 0700 and locked, so that two servers never share it.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ggnet_core::{Error, ErrorKind, Result, error::code};

/// A locked data folder. The lock ends with this value or with the process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the folder if necessary and locks it. The error `Busy` names the process that holds the lock.
    pub fn lock(path: &Path) -> Result<Self> {
        let doing = |what: &str| format!("{what} the data folder {}", path.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| Error::io(doing("creating"), e))?;
        let path = path.canonicalize().map_err(|e| Error::io(doing("finding"), e))?;
        let mode = path.metadata().map_err(|e| Error::io(doing("reading the mode of"), e))?.mode();
        if mode & 0o077 != 0 {
            let dir = path.display();
            tracing::warn!(
                "other users of this host have access to the data folder {dir}; run `chmod 700 {dir}`"
            );
        }
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| Error::io(format!("opening {}", lock_path.display()), e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let holder = holder.trim();
                let who = if holder.is_empty() {
                    "another process".to_owned()
                } else {
                    format!("process {holder}")
                };
                return Err(Error::new(
                    code::data_folder_in_use(path.display(), &who),
                    format!("The data folder {} is in use by {who}", path.display()),
                )
                .retryable(false)
                .with_hint("Stop that server, or give this one another --data-dir"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(doing("locking"), e)),
        }
        // The process id is for people and may be stale; the lock is never stale. A full disk must not prevent the start, because the server
        // is needed to free space.
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        match written.map_err(|e| Error::io(format!("writing {}", lock_path.display()), e)) {
            Err(e) if e.kind() != ErrorKind::Full => return Err(e),
            _ => {}
        }
        Ok(Self { path, _lock: lock })
    }

    /// The folder, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_second_server_names_the_holder_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::lock(dir.path()).unwrap();
        let e = DataDir::lock(dir.path()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.message().contains(&format!("process {}", std::process::id())), "{e}");
        drop(first);
        DataDir::lock(dir.path()).unwrap();
    }
}

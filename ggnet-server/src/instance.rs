//! The instance id: part of every name that this GGnet creates. It is stored in the file `instance` in the data folder and in the database.
//! With another id the server would not find its kept writes, and machines would boot without them.
//!
//! Invariants: neither is written before both are read; the file is written before the database; a refused start changes nothing.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use atomic_write_file::AtomicWriteFile;
use ggnet_core::{
    Error, Result,
    nouns::{AuditAction, AuditRow, AuditSubject, InstanceId, Principal, SystemPart, Timestamp},
    ports::{Batch, Store, Write},
};

const SETTING: &str = "instance";

/// The instance id of the file, not yet compared with the database.
#[derive(Debug)]
pub struct Instance {
    id: InstanceId,
    path: PathBuf,
    file: File,
}

#[derive(Debug)]
enum File {
    Read,
    Missing,
    /// It contains no valid instance id.
    Damaged(Error),
}

impl Instance {
    /// Reads the file; generates an id if there is no file. Writes nothing.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn read(data: &Path) -> Result<Self> {
        let path = data.join("instance");
        let (id, file) = match tokio::fs::read(&path).await {
            Ok(bytes) => match String::from_utf8_lossy(&bytes).trim().parse() {
                Ok(id) => (id, File::Read),
                Err(e) => (InstanceId::generate(), File::Damaged(e)),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (InstanceId::generate(), File::Missing),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        Ok(Self { id, path, file })
    }

    /// The id. Use it only after [`settle`](Self::settle) has succeeded.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Compares the file with the database. At the first start, writes the id to both.
    ///
    /// # Errors
    /// `Invalid`: the database belongs to another instance, or it contains an id and the file is missing or damaged. Other errors come from
    /// the store or the file system.
    pub async fn settle(self, store: &dyn Store, now: Timestamp) -> Result<()> {
        let Self { id, path, file } = self;
        let shown = path.display();
        match (store.setting(SETTING).await?, file) {
            (Some(known), File::Read) if known == id.as_str() => Ok(()),
            (Some(known), file) => {
                let wrong = match file {
                    File::Read => format!("The file {shown} contains instance {id}"),
                    File::Missing => format!("The file {shown} is missing"),
                    File::Damaged(_) => format!("The file {shown} contains no instance id"),
                };
                let message = format!(
                    "{wrong}, but the database belongs to instance {known}: its kept writes and targets have that id in their names"
                );
                Err(Error::invalid("instance", message).with_hint(format!(
                    "If this is the right database, restore the file, which contains only that id: `echo {known} > '{shown}'` (as the \
                     server's user). Otherwise restore the database that belongs to this data folder (store.path)"
                )))
            }
            (None, File::Damaged(e)) => {
                let message = format!("The file {shown} contains no instance id: {}", e.explain());
                Err(Error::invalid("instance", message)
                    .with_hint("Restore it from a backup; the names of writebacks contain the id"))
            }
            (None, file) => {
                if matches!(file, File::Missing) {
                    write_atomically(path, format!("{id}\n")).await?;
                }
                remember(&id, store, now).await;
                Ok(())
            }
        }
    }
}

/// Stores the id in the database. An error (a full disk) must not prevent the start; the next start stores it.
async fn remember(id: &InstanceId, store: &dyn Store, now: Timestamp) {
    let (by, subject) = (Principal::system(SystemPart::Upkeep), AuditSubject::Instance(id.clone()));
    let row = AuditRow::new(now, &by, AuditAction::InstanceRemember, subject);
    let write = Write::Setting { key: SETTING.to_owned(), value: id.to_string() };
    if let Err(error) = store.commit(Batch::new().write(write).audit(row)).await {
        tracing::warn!(error = %error.report(), "the instance id could not be stored in the database yet");
    }
}

/// Writes a file atomically and durably.
async fn write_atomically(path: PathBuf, text: String) -> Result<()> {
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let mut file = AtomicWriteFile::options().open(&path)?;
        file.write_all(text.as_bytes())?;
        file.commit()
    });
    let written = written.await.map_err(|e| Error::internal("A blocking task panicked").with_source(e))?;
    written.map_err(|e| Error::io(format!("writing {shown}"), e))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files as an operator leaves them")]
mod tests {
    use std::fs;

    use ggnet_core::{ErrorKind, ports::PageRequest, testkit::memory::MemoryStore};

    use super::*;

    async fn settle(data: &Path, store: &MemoryStore) -> Result<String> {
        let instance = Instance::read(data).await?;
        let id = instance.id().to_string();
        instance.settle(store, Timestamp::UNIX_EPOCH).await?;
        Ok(id)
    }

    #[tokio::test]
    async fn a_database_without_an_id_takes_that_of_the_file_and_then_refuses_any_other() {
        let (data, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
        let file = data.path().join("instance");
        fs::write(&file, "no id\n").unwrap();
        let e = settle(data.path(), &store).await.unwrap_err();
        assert!(e.message().contains(file.to_str().unwrap()), "{e}");
        assert_eq!(store.setting(SETTING).await.unwrap(), None);

        fs::write(&file, "0badcafe\n").unwrap();
        assert_eq!(settle(data.path(), &store).await.unwrap(), "0badcafe");
        assert_eq!(settle(data.path(), &store).await.unwrap(), "0badcafe");
        for held in [None, Some("1badcafe\n"), Some(""), Some("0badcafe0")] {
            fs::remove_file(&file).unwrap();
            if let Some(held) = held {
                fs::write(&file, held).unwrap();
            }
            let e = settle(data.path(), &store).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid);
            let said = format!("{} {}", e.message(), e.hint().unwrap());
            assert!(said.contains(file.to_str().unwrap()) && said.contains("echo 0badcafe >"), "{said}");
            assert_eq!(fs::read_to_string(&file).ok().as_deref(), held, "a refused start changes nothing");
            fs::write(&file, "0badcafe").unwrap();
        }
        assert_eq!(settle(data.path(), &store).await.unwrap(), "0badcafe");
    }

    #[tokio::test]
    async fn a_first_start_writes_the_file_and_the_database() {
        let (data, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
        let id = settle(data.path(), &store).await.unwrap();
        assert_eq!(fs::read_to_string(data.path().join("instance")).unwrap(), format!("{id}\n"));
        assert_eq!(store.setting(SETTING).await.unwrap().as_deref(), Some(id.as_str()));
        let rows = store.audit(PageRequest::default()).await.unwrap().items;
        let said: Vec<_> = rows.iter().map(|row| (row.action, &row.subject)).collect();
        let subject = AuditSubject::Instance(id.parse().unwrap());
        assert_eq!(said, [(AuditAction::InstanceRemember, &subject)], "it is in the audit");
    }

    #[tokio::test]
    async fn a_full_disk_does_not_prevent_the_start() {
        let (data, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
        fs::write(data.path().join("instance"), "0badcafe\n").unwrap();
        store.world().set_full(true);
        settle(data.path(), &store).await.unwrap();
        store.world().set_full(false);
        settle(data.path(), &store).await.unwrap();
        assert_eq!(store.setting(SETTING).await.unwrap().as_deref(), Some("0badcafe"));
    }
}

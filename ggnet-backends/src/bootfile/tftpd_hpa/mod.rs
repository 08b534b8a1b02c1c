//! The boot file store "tftpd-hpa": a folder that Debian's `in.tftpd` serves; over HTTP the files are served by whoever calls
//! [`BootFileStore::read`].
//!
//! What holds, and where it is argued:
//! * a client gets a file whole, old or new (`bundles`);
//! * the names in the folder tell `list` everything, and two GGnets in one folder leave each other alone (`bundles`);
//! * nothing outside the folder is read or written, whatever links stand in it (`root`);
//! * health knows whether in.tftpd serves this very folder: it asks for a file (`ask`).
//!
//! Floors: `mod` → `bundles` → `root`; `ask`.
//!
//! Invariants: calls for one bundle run one after the other; file work runs on blocking threads and ends there even when the caller's
//! future is dropped. in.tftpd is neither started nor stopped here, and it tells nobody what it sent: no boot stage comes from this store.

mod ask;
mod bundles;
mod descriptor;
mod root;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::{InstanceId, ResourceId},
    ports::{BootBundle, BootFileStore, BootPath, Health, Listed, Observer},
};
use serde::Deserialize;

pub use self::descriptor::descriptor;
use self::{ask::Answer, bundles::Bundles};
use super::loaders::DEBIAN_IPXE_DIR;
use crate::slots::{self, Slots};

/// The store's name in the configuration and in errors.
pub const NAME: &str = "tftpd-hpa";

/// The store's settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TftpdHpaConfig {
    /// The folder that in.tftpd serves (`TFTP_DIRECTORY` in `/etc/default/tftpd-hpa`). It must be there and be ours to write.
    pub root: PathBuf,
    /// Where in.tftpd answers us: health asks it for a file of ours.
    pub server: SocketAddr,
    /// Whether health asks at all; not where the server is on another host and sees the folder over the network.
    pub ask: bool,
    /// Where the loaders are that whoever wires this store puts into it.
    pub loaders_dir: PathBuf,
}

impl Default for TftpdHpaConfig {
    fn default() -> Self {
        Self {
            root: "/srv/tftp".into(),
            server: (Ipv4Addr::LOCALHOST, 69).into(),
            ask: true,
            loaders_dir: DEBIAN_IPXE_DIR.into(),
        }
    }
}

/// The boot file store "tftpd-hpa". See the module. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct TftpdHpa {
    inner: Arc<Inner>,
}

struct Inner {
    config: TftpdHpaConfig,
    bundles: Bundles,
    slots: Slots<()>,
    /// The paths that an `ensure` under way wants, and for which bundle: until its links are there the folder does not say so.
    wanted: Mutex<HashMap<BootPath, ResourceId>>,
}

/// Gives the paths back.
struct Claim {
    inner: Arc<Inner>,
    paths: Vec<BootPath>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut wanted = self.inner.wanted();
        for path in &self.paths {
            wanted.remove(path);
        }
    }
}

impl Inner {
    fn wanted(&self) -> std::sync::MutexGuard<'_, HashMap<BootPath, ResourceId>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of the bundle's paths, or `Conflict`.
    fn claim(self: &Arc<Self>, bundle: &BootBundle) -> Result<Claim> {
        let mut wanted = self.wanted();
        if let Some((path, owner)) = bundle.files.keys().find_map(|path| wanted.get_key_value(path)) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("Boot file {path} is being written for {owner}"),
            ));
        }
        let paths: Vec<BootPath> = bundle.files.keys().cloned().collect();
        wanted.extend(paths.iter().map(|path| (path.clone(), bundle.id.clone())));
        drop(wanted);
        Ok(Claim { inner: Arc::clone(self), paths })
    }
}

impl TftpdHpa {
    /// Opens the folder: removes what an earlier process of this instance left half-made, and writes a sign of life into it.
    /// Dropped half-way: the clean-up goes on.
    ///
    /// # Errors
    /// `NotFound` when the folder is not there, `Permission` when it is not ours to write, `Full`; each names the path.
    pub async fn open(config: TftpdHpaConfig, instance: InstanceId) -> Result<Self> {
        let bundles = Bundles::new(config.root.clone(), instance);
        let inner = Arc::new(Inner { config, bundles, slots: Slots::new(NAME), wanted: Mutex::default() });
        let store = Self { inner };
        store.blocking("open", "", |inner| inner.bundles.clean()).await?;
        Ok(store)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&Arc<Inner>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        slots::blocking(NAME, operation, subject, move || work(&inner)).await
    }

    /// Whether in.tftpd answers, and with a file of this folder.
    async fn served(&self) -> Health {
        let (server, bundles) = (self.inner.config.server, &self.inner.bundles);
        let root = self.inner.config.root.display();
        match ask::ask(server, &bundles.alive()).await {
            Ok(Answer::File(bytes)) if bytes == bundles.alive_text().as_bytes() => Health::Up,
            Ok(Answer::Silence) => Health::Down(format!(
                "No TFTP server answers on {server}: systemctl status tftpd-hpa (sudo apt-get install tftpd-hpa), or set `server`"
            )),
            Ok(Answer::Refused(words)) => Health::Down(format!(
                "The TFTP server on {server} does not serve {root}: it answers {words:?}; see TFTP_DIRECTORY and --secure in \
                 /etc/default/tftpd-hpa"
            )),
            Ok(Answer::File(_)) => {
                Health::Down(format!("The TFTP server on {server} serves another folder than {root}"))
            }
            Err(e) => Health::Down(format!("Cannot send a TFTP request to {server}: {e}")),
        }
    }
}

#[async_trait]
impl BootFileStore for TftpdHpa {
    fn name(&self) -> &'static str {
        NAME
    }

    /// in.tftpd reports to nobody: there is nothing to tell.
    fn attach(&self, _: Arc<dyn Observer>) {}

    /// Dropped half-way: the file work goes on to its end.
    async fn ensure(&self, bundle: &BootBundle) -> Result<()> {
        let slot = self.inner.slots.lock(&bundle.id).await?;
        let wanted = bundle.clone();
        self.blocking("ensure", bundle.id.as_str(), move |inner| {
            let _slot = slot;
            let _claim = inner.claim(&wanted)?;
            inner.bundles.ensure(&wanted)
        })
        .await
    }

    /// Dropped half-way: the file work goes on to its end.
    async fn remove(&self, id: &ResourceId) -> Result<()> {
        let slot = self.inner.slots.lock(id).await?;
        let gone = id.clone();
        self.blocking("remove", id.as_str(), move |inner| {
            let removed = inner.bundles.remove(&gone);
            drop(slot);
            inner.slots.sweep(|()| false);
            removed
        })
        .await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        self.inner.slots.check_open()?;
        let wanted = id.clone();
        self.blocking("get", id.as_str(), move |inner| inner.bundles.get(&wanted)).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.inner.slots.check_open()?;
        self.blocking("list", "", |inner| inner.bundles.list()).await
    }

    /// Only files of this instance.
    async fn read(&self, path: &BootPath) -> Result<Bytes> {
        self.inner.slots.check_open()?;
        let wanted = path.clone();
        self.blocking("read", path.as_str(), move |inner| inner.bundles.read(&wanted)).await
    }

    async fn health(&self) -> Health {
        let looked = self.blocking("health", "", |inner| {
            inner.bundles.show_life()?;
            inner.bundles.closed_folder()
        });
        match looked.await {
            Err(e) if e.kind() == ErrorKind::Full => Health::Degraded(e.explain()),
            Err(e) => {
                let hint = e.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                Health::Down(format!("{}{hint}", e.explain()))
            }
            Ok(Some(closed)) => Health::Down(closed),
            Ok(None) if self.inner.config.ask => self.served().await,
            Ok(None) => Health::Up,
        }
    }

    /// in.tftpd serves on: its files are as good after our end as before.
    async fn shutdown(&self) {
        for (_, slot) in self.inner.slots.close() {
            drop(slot.lock().await);
        }
    }
}

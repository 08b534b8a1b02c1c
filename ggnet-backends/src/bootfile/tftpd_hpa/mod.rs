//! The boot file store "tftpd-hpa": a folder that Debian's `in.tftpd` serves. For HTTP, the caller of [`BootFileStore::read`] serves the
//! files.
//!
//! Guarantees, and the modules that explain them:
//! * a client gets a whole file, old or new (`bundles`);
//! * the names in the folder contain everything that `list` needs, and two GGnets in one folder do not affect each other (`bundles`);
//! * nothing outside the folder is read or written, whatever links it contains (`root`);
//! * health checks whether in.tftpd serves this folder: it requests a file (`ask`).
//!
//! Levels: `mod` → `bundles` → `root`; `ask`.
//!
//! Invariants: calls for the same bundle run one after the other; file operations run on blocking threads and complete even if the caller's
//! future is dropped. This store neither starts nor stops in.tftpd, and in.tftpd does not report what it sent: this store reports no boot
//! stage.

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
    /// The folder that in.tftpd serves (`TFTP_DIRECTORY` in `/etc/default/tftpd-hpa`). It must exist and be writable for us.
    pub root: PathBuf,
    /// The address of in.tftpd: the health check requests a file from it.
    pub server: SocketAddr,
    /// Whether the health check requests a file; false if in.tftpd runs on another host and accesses the folder over the network.
    pub ask: bool,
    /// The folder of the loaders that the wiring adds to this store.
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

/// The boot file store "tftpd-hpa". See the module. Cheap to clone; all clones share one store.
#[derive(Clone)]
pub struct TftpdHpa {
    inner: Arc<Inner>,
}

struct Inner {
    config: TftpdHpaConfig,
    bundles: Bundles,
    slots: Slots<()>,
    /// The paths that a running `ensure` will create, with their bundle: before its links exist, the folder does not show them.
    wanted: Mutex<HashMap<BootPath, ResourceId>>,
}

/// Releases the paths.
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

    /// Reserves all paths of the bundle, or returns `Conflict`.
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
    /// Opens the folder: removes incomplete files of an earlier process of this instance, and writes the `.alive` file. If the future is
    /// dropped, the clean-up continues.
    ///
    /// # Errors
    /// `NotFound` if the folder does not exist, `Permission` if it is not writable for us, `Full`; each names the path.
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

    /// Whether in.tftpd responds, with a file of this folder.
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

    /// in.tftpd does not report transfers, so there is nothing to observe.
    fn attach(&self, _: Arc<dyn Observer>) {}

    /// If the future is dropped, the file operations still complete.
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

    /// If the future is dropped, the file operations still complete.
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

    /// in.tftpd continues to run: its files remain valid after we exit.
    async fn shutdown(&self) {
        for (_, slot) in self.inner.slots.close() {
            drop(slot.lock().await);
        }
    }
}

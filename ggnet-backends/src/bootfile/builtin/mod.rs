//! The `builtin` boot file store: files in memory, served read-only by our own TFTP server. For HTTP, the caller of [`BootFileStore::read`]
//! serves them.
//!
//! If a path `<mac>/<rest>` (the MAC address as six hexadecimal octets joined by hyphens) is not a stored path, the store returns `<rest>`.
//! DHCP offers loaders under such a path, so that a transfer identifies the machine that fetched its loader.
//!
//! Invariants: a reader sees a bundle either before or after an `ensure`, never a mix (one lock, held while pointers are swapped, never
//! across an await). A transfer keeps the bytes it started with, even if the bundle changes. Nothing is kept on disk: after a restart the
//! reconciler fills the store again.

mod descriptor;
mod tftp;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_core::{
    Error, Result,
    nouns::{MacAddr, ResourceId},
    ports::{
        BootBundle, BootFileStore, BootPath, Completeness, Health, Listed, NullObserver, Observer, SpecDigest,
    },
};

pub use descriptor::descriptor;
pub use tftp::TftpConfig;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use tftp::fuzzing;

/// The store's name in the configuration and in errors.
const NAME: &str = "builtin";

/// A larger bundle, in bytes, is hashed on a separate thread instead of the runtime.
const HASH_INLINE_LIMIT: usize = 1 << 20;

/// Boot files in memory, with our own TFTP server. Cheap to clone; all clones share one store.
#[derive(Clone, Default)]
pub struct BuiltinBootFiles {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    files: RwLock<Files>,
    observer: OnceLock<Arc<dyn Observer>>,
    servers: Mutex<Vec<Arc<tftp::Server>>>,
    /// The health of the loaders that firmware requests; `None`: not set.
    loaders: OnceLock<Health>,
}

#[derive(Default)]
struct Files {
    bundles: BTreeMap<ResourceId, Bundle>,
    by_path: HashMap<BootPath, (ResourceId, Bytes)>,
}

struct Bundle {
    digest: SpecDigest,
    paths: Vec<BootPath>,
}

/// A file found for a requested path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The machine in the path: a path component, or a component up to its first dot (`machines/52-54-00-12-34-56.ipxe`).
    pub mac: Option<MacAddr>,
    /// The stored path that matched.
    pub path: BootPath,
    /// The file.
    pub bytes: Bytes,
}

impl BuiltinBootFiles {
    /// An empty store, in memory only until [`serve_tftp`](Self::serve_tftp).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts serving the files by TFTP on the configured addresses and returns the bound addresses (port 0 lets the kernel choose a port).
    /// Must be called inside a tokio runtime; the tasks end with [`BootFileStore::shutdown`].
    ///
    /// # Errors
    /// `Busy` if another program uses the port, `Permission` if the port needs a capability, `Unavailable` if the host does not have the
    /// address, `Invalid` for a limit of zero. Each error names the address and what to do. After an error nothing stays bound.
    #[expect(clippy::unused_async, reason = "proof that a runtime is there to spawn on")]
    pub async fn serve_tftp(&self, config: TftpConfig) -> Result<Vec<SocketAddr>> {
        let server = Arc::new(tftp::Server::start(config, self.clone())?);
        let bound = server.bound().to_vec();
        self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
        Ok(bound)
    }

    /// Sets the health of the loaders ([`Loaders::health`](crate::bootfile::loaders::Loaders::health)) once, for [`BootFileStore::health`].
    pub fn loaders_are(&self, health: Health) {
        let _ = self.inner.loaders.set(health);
    }

    /// The file for a request for `path`: the one stored under that path, or for `<mac>/<rest>` the one stored as `<rest>`.
    #[must_use]
    pub fn resolve(&self, path: &BootPath) -> Option<Found> {
        let files = self.inner.files.read().unwrap_or_else(PoisonError::into_inner);
        let mac = named_machine(path);
        if let Some((_, bytes)) = files.by_path.get(path) {
            return Some(Found { mac, path: path.clone(), bytes: bytes.clone() });
        }
        let (_, rest) = path.split_first().filter(|(first, _)| hyphenated_mac(first).is_some())?;
        let (_, bytes) = files.by_path.get(&rest)?;
        Some(Found { mac, bytes: bytes.clone(), path: rest })
    }

    fn observer(&self) -> Arc<dyn Observer> {
        self.inner.observer.get().cloned().unwrap_or_else(|| Arc::new(NullObserver))
    }

    fn take_servers(&self) -> Vec<Arc<tftp::Server>> {
        std::mem::take(&mut *self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The first machine in the path: a prefix identifies the client.
fn named_machine(path: &BootPath) -> Option<MacAddr> {
    path.as_str().split('/').find_map(|part| hyphenated_mac(part.split('.').next()?))
}

/// Only with hyphens: a file name of twelve hexadecimal digits is not a MAC address.
fn hyphenated_mac(part: &str) -> Option<MacAddr> {
    (part.len() == 17 && part.contains('-')).then(|| part.parse().ok()).flatten()
}

fn listed(id: &ResourceId, bundle: &Bundle) -> Listed {
    Listed { id: id.clone(), digest: Some(bundle.digest), completeness: Completeness::Whole }
}

#[async_trait]
impl BootFileStore for BuiltinBootFiles {
    fn name(&self) -> &'static str {
        NAME
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        if self.inner.observer.set(observer).is_err() {
            tracing::warn!("ignored a second observer for the boot file store");
        }
    }

    /// If the future is dropped, nothing has changed (the only await is before the swap).
    async fn ensure(&self, bundle: &BootBundle) -> Result<()> {
        let size: usize = bundle.files.values().map(Bytes::len).sum();
        let digest = if size <= HASH_INLINE_LIMIT {
            bundle.digest()
        } else {
            let bundle = bundle.clone();
            tokio::task::spawn_blocking(move || bundle.digest()).await.map_err(|e| {
                Error::internal("Hashing a boot file bundle failed").with_backend(NAME).with_source(e)
            })?
        };
        let mut files = self.inner.files.write().unwrap_or_else(PoisonError::into_inner);
        for path in bundle.files.keys() {
            if let Some((owner, _)) = files.by_path.get(path)
                && *owner != bundle.id
            {
                return Err(Error::new(
                    ggnet_core::ErrorKind::Conflict,
                    format!("Boot file {path} already belongs to {owner}"),
                )
                .with_backend(NAME)
                .with_operation("ensure")
                .with_subject(bundle.id.as_str()));
            }
        }
        let paths = bundle.files.keys().cloned().collect();
        if let Some(old) = files.bundles.insert(bundle.id.clone(), Bundle { digest, paths }) {
            for path in old.paths {
                files.by_path.remove(&path);
            }
        }
        for (path, bytes) in &bundle.files {
            files.by_path.insert(path.clone(), (bundle.id.clone(), bytes.clone()));
        }
        Ok(())
    }

    async fn remove(&self, id: &ResourceId) -> Result<()> {
        let mut files = self.inner.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(bundle) = files.bundles.remove(id) {
            for path in bundle.paths {
                files.by_path.remove(&path);
            }
        }
        Ok(())
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        let files = self.inner.files.read().unwrap_or_else(PoisonError::into_inner);
        Ok(files.bundles.get(id).map(|bundle| listed(id, bundle)))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let files = self.inner.files.read().unwrap_or_else(PoisonError::into_inner);
        Ok(files.bundles.iter().map(|(id, bundle)| listed(id, bundle)).collect())
    }

    /// Returns `<rest>` for `<mac>/<rest>`, as TFTP does.
    async fn read(&self, path: &BootPath) -> Result<Bytes> {
        self.resolve(path)
            .map(|found| found.bytes)
            .ok_or_else(|| Error::not_found("boot file", path).with_backend(NAME).with_operation("read"))
    }

    async fn health(&self) -> Health {
        let servers = self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner);
        match servers.iter().find_map(|server| server.trouble()) {
            Some(trouble) => Health::Down(trouble),
            None => self.inner.loaders.get().cloned().unwrap_or(Health::Up),
        }
    }

    async fn shutdown(&self) {
        for server in self.take_servers() {
            server.stop().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(id: &str, files: &[(&str, &'static str)]) -> BootBundle {
        BootBundle {
            id: id.parse().unwrap(),
            files: files
                .iter()
                .map(|(p, b)| (p.parse().unwrap(), Bytes::from_static(b.as_bytes())))
                .collect(),
        }
    }

    async fn text(store: &BuiltinBootFiles, path: &str) -> Option<String> {
        let bytes = store.read(&path.parse().unwrap()).await.ok()?;
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ensure_converges_and_takes_away_what_a_bundle_no_longer_has() {
        let store = BuiltinBootFiles::new();
        let first = bundle("a", &[("x", "1"), ("y", "2")]);
        store.ensure(&first).await.unwrap();
        store.ensure(&first).await.unwrap();
        let second = bundle("a", &[("x", "3"), ("z", "4")]);
        store.ensure(&second).await.unwrap();
        assert_eq!(text(&store, "x").await.as_deref(), Some("3"));
        assert_eq!(text(&store, "y").await, None);
        assert_eq!(text(&store, "z").await.as_deref(), Some("4"));
        let listed = store.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].digest, Some(second.digest()));
        store.remove(&"a".parse().unwrap()).await.unwrap();
        store.remove(&"a".parse().unwrap()).await.unwrap();
        assert!(store.list().await.unwrap().is_empty());
        assert_eq!(text(&store, "z").await, None);
    }

    #[tokio::test]
    async fn two_bundles_never_share_a_path() {
        let store = BuiltinBootFiles::new();
        store.ensure(&bundle("a", &[("x", "1")])).await.unwrap();
        let e = store.ensure(&bundle("b", &[("new", "2"), ("x", "2")])).await.unwrap_err();
        assert_eq!(e.kind(), ggnet_core::ErrorKind::Conflict);
        assert_eq!(text(&store, "x").await.as_deref(), Some("1"));
        assert_eq!(text(&store, "new").await, None, "a refused ensure changed something");
        assert_eq!(store.list().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_mac_prefix_names_the_machine_and_a_stored_path_comes_first() {
        let store = BuiltinBootFiles::new();
        let mac: MacAddr = "52:54:00:12:34:56".parse().unwrap();
        store
            .ensure(&bundle(
                "l",
                &[
                    ("undionly.kpxe", "loader"),
                    ("52-54-00-12-34-56/config.txt", "pi"),
                    ("config.txt", "any"),
                    ("machines/52-54-00-12-34-56.ipxe", "script"),
                ],
            ))
            .await
            .unwrap();
        let found = |p: &str| {
            store.resolve(&p.parse().unwrap()).map(|f| (f.mac, String::from_utf8(f.bytes.to_vec()).unwrap()))
        };
        assert_eq!(found("52-54-00-12-34-56/undionly.kpxe"), Some((Some(mac), "loader".into())));
        assert_eq!(found("52-54-00-12-34-56/config.txt"), Some((Some(mac), "pi".into())));
        assert_eq!(found("undionly.kpxe"), Some((None, "loader".into())));
        assert_eq!(found("525400123456/undionly.kpxe"), None);
        assert_eq!(found("machines/52-54-00-12-34-56.ipxe"), Some((Some(mac), "script".into())));
        assert_eq!(found("52-54-00-12-34-56/nothing"), None);
    }

    #[tokio::test]
    async fn a_large_bundle_is_hashed_to_the_same_digest() {
        let store = BuiltinBootFiles::new();
        let big = BootBundle {
            id: "big".parse().unwrap(),
            files: [("k".parse().unwrap(), Bytes::from(vec![7; HASH_INLINE_LIMIT + 1]))].into(),
        };
        store.ensure(&big).await.unwrap();
        assert_eq!(store.list().await.unwrap()[0].digest, Some(big.digest()));
    }
}

//! [`MemoryBootFiles`]: a boot file store in memory, with a method that acts as a client.
//!
//! Invariant: no path is in two bundles, not even in partial ones.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::world::{Life, World, step};
use crate::{
    error::{Error, ErrorKind, Result},
    nouns::{MacAddr, ResourceId},
    ports::{BootBundle, BootFileStore, BootPath, Completeness, Health, Listed, Observation, Observer},
};

/// The state that outlives a [`MemoryBootFiles`]: its files, as in a folder.
pub type BootFileWorld = World<BootFileState>;

/// The files.
#[derive(Debug, Default)]
pub struct BootFileState {
    bundles: BTreeMap<ResourceId, Bundle>,
    planted: BTreeMap<BootPath, Bytes>,
}

impl World<BootFileState> {
    /// Adds a file that is not ours, as an operator would to the folder; it is served, and never changed.
    pub fn plant(&self, path: BootPath, bytes: Bytes) {
        self.touch(|state| {
            state.planted.insert(path, bytes);
        });
    }

    /// A file that was planted, as it is now.
    #[must_use]
    pub fn planted(&self, path: &BootPath) -> Option<Bytes> {
        let mut found = None;
        self.touch(|state| found = state.planted.get(path).cloned());
        found
    }
}

#[derive(Debug)]
struct Bundle {
    // The files that are served: the old ones until all the new ones exist.
    files: BTreeMap<BootPath, Bytes>,
    // The paths that it claims, so that no other bundle takes them meanwhile.
    claims: BTreeMap<BootPath, Bytes>,
    completeness: Completeness,
}

/// Boot files in memory.
pub struct MemoryBootFiles {
    life: Life<BootFileState>,
    observer: OnceLock<Arc<dyn Observer>>,
}

impl MemoryBootFiles {
    /// In an empty world.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&BootFileWorld::default())
    }

    /// In this world, as after a crash of our process.
    #[must_use]
    pub fn over(world: &BootFileWorld) -> Self {
        Self { life: world.enter("memory", |_| ()), observer: OnceLock::new() }
    }

    /// The state that outlives it.
    #[must_use]
    pub fn world(&self) -> BootFileWorld {
        self.life.world()
    }

    /// Acts as a client that fetches a file; the observer is notified that it was sent to the machine whose address the path contains
    /// (`…/aa-bb-cc-dd-ee-ff.ipxe`).
    pub fn fetch(&self, path: &BootPath, peer: SocketAddr) -> Result<Bytes> {
        let bytes = self.find(path)?;
        if let Some(observer) = self.observer.get() {
            let parts = path.as_str().split('/').filter_map(|p| p.split('.').next());
            let mac: Option<MacAddr> = parts.filter_map(|p| p.parse().ok()).next_back();
            observer.observe(Observation::BootFileSent { mac, path: path.to_string(), peer });
        }
        Ok(bytes)
    }

    fn find(&self, path: &BootPath) -> Result<Bytes> {
        let state = self.life.state()?;
        let found = state.bundles.values().find_map(|bundle| bundle.files.get(path));
        let found = found.or_else(|| state.planted.get(path)).cloned();
        found.ok_or_else(|| Error::not_found("boot file", path).with_backend("memory"))
    }
}

impl Default for MemoryBootFiles {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl BootFileStore for MemoryBootFiles {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn attach(&self, observer: Arc<dyn Observer>) {
        // Called once by contract; a second call changes nothing.
        let _ = self.observer.set(observer);
    }

    async fn ensure(&self, bundle: &BootBundle) -> Result<()> {
        let _turn = self.life.lock(&bundle.id).await;
        {
            let mut state = self.life.state()?;
            let have = state.bundles.get(&bundle.id);
            if have.is_some_and(|b| b.files == bundle.files && b.completeness == Completeness::Whole) {
                return Ok(());
            }
            let clash = |(id, other): (&ResourceId, &Bundle)| {
                let taken =
                    |path: &&BootPath| other.claims.contains_key(*path) || other.files.contains_key(*path);
                let path = bundle.files.keys().find(taken)?;
                (*id != bundle.id).then(|| (id.clone(), path.clone()))
            };
            if let Some((owner, path)) = state.bundles.iter().find_map(clash) {
                let message = format!("{path} of {} belongs to {owner}", bundle.id);
                return Err(self.life.error(ErrorKind::Conflict, message).with_operation("ensure"));
            }
            if let Some(path) = bundle.files.keys().find(|path| state.planted.contains_key(*path)) {
                let message = format!("{path} of {} is a file that does not belong to this store", bundle.id);
                return Err(self.life.error(ErrorKind::Conflict, message).with_operation("ensure"));
            }
            let files = have.map(|b| b.files.clone()).unwrap_or_default();
            let partial = Bundle { files, claims: bundle.files.clone(), completeness: Completeness::Partial };
            state.bundles.insert(bundle.id.clone(), partial);
        }
        for (path, bytes) in &bundle.files {
            step().await;
            if let Some(b) = self.life.state()?.bundles.get_mut(&bundle.id) {
                b.files.insert(path.clone(), bytes.clone());
            }
        }
        step().await;
        if let Some(b) = self.life.state()?.bundles.get_mut(&bundle.id) {
            b.files.clone_from(&bundle.files);
            b.completeness = Completeness::Whole;
        }
        step().await;
        Ok(())
    }

    async fn remove(&self, id: &ResourceId) -> Result<()> {
        let _turn = self.life.lock(id).await;
        if let Some(bundle) = self.life.state()?.bundles.get_mut(id) {
            bundle.completeness = Completeness::Partial;
        }
        step().await;
        self.life.state()?.bundles.remove(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        step().await;
        let state = self.life.state()?;
        let listed = |(id, bundle): (&ResourceId, &Bundle)| Listed {
            id: id.clone(),
            digest: (bundle.completeness == Completeness::Whole)
                .then(|| BootBundle { id: id.clone(), files: bundle.files.clone() }.digest()),
            completeness: bundle.completeness,
        };
        Ok(state.bundles.iter().map(listed).collect())
    }

    async fn read(&self, path: &BootPath) -> Result<Bytes> {
        self.find(path)
    }

    async fn health(&self) -> Health {
        self.life.health()
    }

    async fn shutdown(&self) {
        self.life.close();
    }
}

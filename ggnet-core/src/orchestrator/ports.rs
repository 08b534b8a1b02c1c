//! [`Ports`]: the backends gathered in one value, and the checks that they fit each other and that the store is theirs.

use std::{path::Path, sync::Arc};

use super::images::version_files;
use crate::{
    error::{Error, ErrorKind, Result},
    ports::{
        BootFileStore, Clock, DhcpBackend, ImageConverter, MachineFilter, PageRequest, Store, TargetBackend,
        WritebackStore,
    },
};

/// Everything the orchestrator needs of the world.
#[derive(Clone)]
pub struct Ports {
    /// What must be remembered.
    pub store: Arc<dyn Store>,
    /// iSCSI targets.
    pub target: Arc<dyn TargetBackend>,
    /// Private writable disks.
    pub writeback: Arc<dyn WritebackStore>,
    /// DHCP entries.
    pub dhcp: Arc<dyn DhcpBackend>,
    /// Boot files.
    pub boot_files: Arc<dyn BootFileStore>,
    /// Image conversion.
    pub converter: Arc<dyn ImageConverter>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

impl Ports {
    /// Refuses a pair that cannot work, naming both.
    pub fn check(&self) -> Result<()> {
        let provides = self.writeback.capabilities().provides;
        let accepts = self.target.capabilities().accepts;
        if accepts.contains(&provides) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "The writeback store {} hands out {provides:?}, but the target backend {} takes {accepts:?}",
                self.writeback.name(),
                self.target.name(),
            ),
        )
        .with_hint("Choose a writeback store and a target backend that fit each other in the configuration"))
    }

    /// Refuses a store that has never recorded a thing where images or kept writes are: it is not the one they belong to, and the
    /// reconciler removes what its store does not explain. Call it before [`Orchestrator::new`](super::Orchestrator::new). A store that
    /// is merely older than they are passes.
    ///
    /// # Errors
    /// `Invalid` for such a store, naming one thing that it does not know; else what the store, the folder or the writeback store said.
    pub async fn check_store(&self, images_dir: &Path) -> Result<()> {
        let one = PageRequest { page: 1, per_page: 1 };
        if !self.store.events(0, 1, None).await?.is_empty()
            || self.store.images(one).await?.total > 0
            || self.store.machines(&MachineFilter::default(), one).await?.total > 0
        {
            return Ok(());
        }
        let image = version_files(images_dir).await?.into_iter().next();
        let kept = self.writeback.list().await?.into_iter().map(|w| w.id);
        let mut kept = kept.filter(|id| id.owner().is_some_and(|(_, generation)| generation.is_none()));
        let what = match (image, kept.next()) {
            (Some((path, _)), _) => format!("the image version {} is", path.display()),
            (None, Some(id)) => format!("kept writes of a machine (writeback {id}) are"),
            (None, None) => return Ok(()),
        };
        Err(Error::invalid("store", format!("The database is new, but {what} there: they would be removed"))
            .with_hint("Put back the database that they belong to (store.path), or move images and writebacks out of the data folder"))
    }
}

//! [`Ports`]: the backends gathered in one value, and the check that they fit each other.

use std::sync::Arc;

use crate::{
    error::{Error, ErrorKind, Result},
    ports::{BootFileStore, Clock, DhcpBackend, ImageConverter, Store, TargetBackend, WritebackStore},
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
}

//! Which image versions machines boot: those whose bytes must be there for a machine that asks now.

use std::collections::BTreeSet;

use super::Orchestrator;
use crate::{error::Result, nouns::ImageVersionId, ports::PageRequest};

impl Orchestrator {
    /// The current version of each image, what machines are pinned to, and what live sessions stand on. Reads the store alone: the image
    /// store says whether they are there.
    ///
    /// # Errors
    /// As the store says.
    pub async fn versions_to_boot(&self) -> Result<BTreeSet<ImageVersionId>> {
        let store = self.inner.ports.store();
        let mut versions = BTreeSet::new();
        let mut read = 0;
        for page in 1.. {
            let got = store.images(PageRequest { page, per_page: 1000 }).await?;
            read += got.items.len() as u64;
            let last = got.items.is_empty() || read >= got.total;
            versions.extend(got.items.into_iter().filter_map(|image| image.current));
            if last {
                break;
            }
        }
        versions.extend(self.all_machines().await?.into_iter().filter_map(|machine| machine.pinned_version));
        for session in store.live_sessions().await? {
            versions.extend(session.versions());
        }
        Ok(versions)
    }
}

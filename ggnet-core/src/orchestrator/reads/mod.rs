//! [`Reads`]: the queries for pages and programs, each in a fixed number of reads of the store, for any number of rows in the result.
//!
//! Nothing here changes anything. An embedder and the HTTP server read through it, never through the ports, so that every change passes the
//! orchestrator's rules.

mod boot_files;
mod events;
mod health;
mod images;
mod machines;
mod sessions;
mod targets;

pub use health::PortHealth;
pub use images::{ImageView, VersionView};
pub use sessions::SessionView;
pub use targets::{ConnectionsView, TargetView};

use super::{Orchestrator, Ports};
use crate::{
    error::Result,
    nouns::{ImageId, MachineId},
    ports::{Names, Store},
};

/// The maximum number of ids in one query to the store: one page.
const AT_ONCE: usize = 1000;

/// All queries; [`Orchestrator::read`] returns it.
#[derive(Clone, Copy)]
pub struct Reads<'a> {
    orchestrator: &'a Orchestrator,
}

impl Orchestrator {
    /// All queries.
    #[must_use]
    pub const fn read(&self) -> Reads<'_> {
        Reads { orchestrator: self }
    }
}

impl<'a> Reads<'a> {
    fn ports(self) -> &'a Ports {
        &self.orchestrator.shared().ports
    }

    fn store(self) -> &'a dyn Store {
        self.ports().store().as_ref()
    }

    /// The names of these objects, for any number of them.
    async fn names(self, machines: &[MachineId], images: &[ImageId]) -> Result<Names> {
        let mut names = Names::default();
        let (mut machines, mut images) = (machines.chunks(AT_ONCE), images.chunks(AT_ONCE));
        loop {
            let (some, others) = (machines.next().unwrap_or_default(), images.next().unwrap_or_default());
            if some.is_empty() && others.is_empty() {
                return Ok(names);
            }
            let found = self.store().names(some, others).await?;
            names.machines.extend(found.machines);
            names.images.extend(found.images);
        }
    }
}

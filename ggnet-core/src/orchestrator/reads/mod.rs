//! [`Reads`]: what a page or a program asks for, in a fixed number of reads of the store, however many rows the answer has.
//!
//! Nothing here changes anything. An embedder and the HTTP server read through it and never through the ports, so every change passes
//! the orchestrator's rules.

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

/// Most ids in one question to the store: a page's worth.
const AT_ONCE: usize = 1000;

/// Everything that can be read; [`Orchestrator::read`] gives it.
#[derive(Clone, Copy)]
pub struct Reads<'a> {
    orchestrator: &'a Orchestrator,
}

impl Orchestrator {
    /// Everything that can be read.
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

    /// The names of these, however many they are.
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

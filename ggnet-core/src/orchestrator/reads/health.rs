//! The health of every backend.

use super::Reads;
use crate::ports::Health;

/// The health of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortHealth {
    /// The port: `target`, `dhcp` …
    pub port: &'static str,
    /// The backend's name.
    pub backend: &'static str,
    /// Its health.
    pub health: Health,
}

impl Reads<'_> {
    /// The health of every backend. All are asked concurrently; one that hangs is down when the port's limit for `health` has passed.
    pub async fn health(self) -> Vec<PortHealth> {
        let p = self.ports();
        let all: [PortHealth; 7] = tokio::join!(
            ask("store", p.store().name(), p.store().health()),
            ask("target", p.target().name(), p.target().health()),
            ask("writeback", p.writeback().name(), p.writeback().health()),
            ask("image_store", p.images().name(), p.images().health()),
            ask("dhcp", p.dhcp().name(), p.dhcp().health()),
            ask("boot_files", p.boot_files().name(), p.boot_files().health()),
            ask("converter", p.converter().name(), p.converter().health()),
        )
        .into();
        all.into()
    }
}

async fn ask(port: &'static str, backend: &'static str, health: impl Future<Output = Health>) -> PortHealth {
    PortHealth { port, backend, health: health.await }
}

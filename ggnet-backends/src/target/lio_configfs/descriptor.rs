//! The descriptor of the target backend "lio-configfs".

use std::sync::Arc;

use ggnet_core::{
    Error, Result,
    ports::TargetBackend,
    registry::{
        BoundBy, Descriptor, Finding, Key, Level, Settings, Socket, Wiring, both_families, or_decided,
        settings,
    },
};
use serde_json::json;

use super::{LioConfig, LioConfigfs, NAME};
use crate::host;

/// Keys of every backend that controls the kernel's target.
pub(crate) const KEYS: &[Key] = &[
    ("listen", "Addresses and ports of the portals; default: port 3260 on the address of HTTP"),
    ("buffered", "Whether a write is acknowledged as soon as it is in the host's page cache; default: true"),
    ("root", "The configfs folder of the kernel target; default: /sys/kernel/config/target"),
];

/// The target backend "lio-configfs".
#[must_use]
pub fn descriptor() -> Descriptor<dyn TargetBackend> {
    Descriptor::new(NAME, make)
        .summary("The kernel's own iSCSI target (LIO), through configfs")
        .keys(KEYS)
        .keys(&[("helper", "The helper's socket, for a server that does not run as root")])
        .check(check)
        .listens(|wiring, table| Ok(portals(read::<LioConfig>(NAME, wiring, table)?.listen)))
}

/// Reads the section of a backend that controls the kernel's target.
pub(crate) fn read<T: serde::de::DeserializeOwned>(
    name: &str,
    wiring: &Wiring,
    table: Settings,
) -> Result<T> {
    settings(name, or_decided(table, "listen", json!([wiring.iscsi()])))
}

/// The kernel binds them, possibly already for targets of another program; a socket on `[::]` serves both address families.
pub(crate) fn portals(listen: Vec<std::net::SocketAddr>) -> Vec<Socket> {
    let all = listen.into_iter().flat_map(both_families);
    all.map(|at| Socket::tcp(at, "iSCSI").bound_by(BoundBy::Other)).collect()
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn TargetBackend>> {
    let config = read(NAME, &wiring, table)?;
    let start = move || LioConfigfs::start(config, wiring.iqn_prefix, wiring.instance);
    let started = tokio::task::spawn_blocking(start).await;
    Ok(Arc::new(started.map_err(|e| Error::internal("The task that starts LIO panicked").with_source(e))??))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config: LioConfig = read(NAME, &wiring, table)?;
    host::look(move || {
        // The helper's unit loads the modules.
        let missing = if config.helper.is_some() { Level::Warn } else { Level::Fail };
        let mut findings = vec![host::kernel_target(&config.root, missing)];
        #[cfg(feature = "helper")]
        findings.extend(config.helper.map(|socket| {
            let what = format!("helper on {}", socket.display());
            match crate::helper::Helper::at(socket).reach() {
                Ok(()) => Finding::ok(what, "It responds"),
                Err(e) => Finding::failed(Level::Fail, what, &e),
            }
        }));
        findings
    })
    .await
}

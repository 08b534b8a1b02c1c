//! The descriptor of the target backend "lio-targetcli".

use std::{path::Path, sync::Arc};

use ggnet_core::{
    Error, Result,
    ports::TargetBackend,
    registry::{Descriptor, Finding, Level, Settings, Wiring},
};

use super::{NAME, TargetcliConfig, start};
use crate::{
    host,
    target::lio_configfs::descriptor::{KEYS, portals, read},
};

/// The target backend "lio-targetcli".
#[must_use]
pub fn descriptor() -> Descriptor<dyn TargetBackend> {
    Descriptor::new(NAME, make)
        .summary("The kernel's own iSCSI target (LIO), changed only through the program targetcli")
        .keys(KEYS)
        .keys(&[("time_limit_s", "Time limit for one step of the tool, in seconds; default: 60")])
        .check(check)
        .listens(|wiring, table| Ok(portals(read::<TargetcliConfig>(NAME, wiring, table)?.listen)))
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn TargetBackend>> {
    let config = read(NAME, &wiring, table)?;
    let home = wiring.data_dir.join("targetcli");
    let start = move || start(config, wiring.iqn_prefix, wiring.instance, &home);
    let started = tokio::task::spawn_blocking(start).await;
    Ok(Arc::new(started.map_err(|e| Error::internal("The task that starts LIO panicked").with_source(e))??))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config: TargetcliConfig = read(NAME, &wiring, table)?;
    host::look(move || {
        let user = "targetcli's user";
        let root = if rustix::process::geteuid().is_root() {
            Finding::ok(user, "The server runs as root, as targetcli requires")
        } else {
            let why = "The server does not run as root, which targetcli requires";
            let mend =
                "Use infra/examples/ggnet-server-targetcli.conf for the unit, and run this check as root";
            Finding::bad(Level::Fail, user, why, mend)
        };
        let tool = host::program(Path::new("targetcli"), "targetcli-fb", Level::Fail);
        // targetcli loads the modules.
        let mut findings = vec![host::kernel_target(&config.root, Level::Warn), tool, root];
        findings.extend(host::starters());
        findings
    })
    .await
}

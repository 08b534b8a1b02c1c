//! The descriptor of the boot file store "tftpd-hpa".

use std::{net::Ipv4Addr, path::Path, sync::Arc};

use ggnet_core::{
    Result,
    ports::BootFileStore,
    registry::{BoundBy, Descriptor, Finding, Level, Settings, Socket, Wiring, settings},
};

use super::{NAME, TftpdHpa, TftpdHpaConfig};
use crate::{bootfile::loaders, host};

/// The boot file store "tftpd-hpa".
#[must_use]
pub fn descriptor() -> Descriptor<dyn BootFileStore> {
    Descriptor::new(NAME, make)
        .summary("A folder that Debian's tftpd-hpa serves")
        .keys(&[
            ("root", "The folder; the same as TFTP_DIRECTORY in /etc/default/tftpd-hpa; default: /srv/tftp"),
            ("server", "The address and port of in.tftpd; default: 127.0.0.1:69"),
            ("ask", "Whether the health check requests a file from it; set false if it runs on another host; default: true"),
            loaders::DIR_KEY,
        ])
        .without_mac_paths()
        .check(check)
        .listens(listens)
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn BootFileStore>> {
    let config: TftpdHpaConfig = settings(NAME, table)?;
    let loaders = config.loaders_dir.clone();
    let store = TftpdHpa::open(config, wiring.instance).await?;
    loaders::ensure_in(&store, &loaders).await?;
    Ok(Arc::new(store))
}

async fn check(_: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config: TftpdHpaConfig = settings(NAME, table)?;
    let mut findings = loaders::look(&config.loaders_dir).await;
    let looked = host::look(move || {
        let missing = if config.ask { Level::Fail } else { Level::Warn };
        let mut found =
            vec![host::program(Path::new("in.tftpd"), "tftpd-hpa", missing), host::tftp_folder(&config.root)];
        found.extend(config.ask.then(|| host::tftp_server(config.server, &config.root)));
        found
    });
    findings.extend(looked.await?);
    Ok(findings)
}

/// On every address of this host; if in.tftpd runs on another host, nothing is known.
fn listens(_: &Wiring, table: Settings) -> Result<Vec<Socket>> {
    let config: TftpdHpaConfig = settings(NAME, table)?;
    let at = (Ipv4Addr::UNSPECIFIED, config.server.port()).into();
    Ok(config.ask.then(|| Socket::udp(at, "TFTP").bound_by(BoundBy::Other)).into_iter().collect())
}

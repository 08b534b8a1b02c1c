//! The descriptor of the boot file store "builtin".

use std::{path::PathBuf, sync::Arc};

use ggnet_core::{
    Result,
    ports::BootFileStore,
    registry::{Descriptor, Finding, Settings, Socket, Wiring, settings},
};

use super::{BuiltinBootFiles, NAME, TftpConfig};
use crate::bootfile::loaders::{self, DEBIAN_IPXE_DIR};

/// The boot file store "builtin".
#[must_use]
pub fn descriptor() -> Descriptor<dyn BootFileStore> {
    Descriptor::new(NAME, make)
        .summary("Boot files in memory, over HTTP and GGnet's own TFTP server")
        .keys(&[
            loaders::DIR_KEY,
            ("tftp.listen", "Addresses and ports of TFTP; default: 0.0.0.0:69 when an interface is named"),
            (
                "tftp.max_transfers",
                "Concurrent transfers to clients that have acknowledged a block; default: 512",
            ),
            (
                "tftp.max_unanswered",
                "Concurrent transfers to clients that have not acknowledged a block yet; default: 256",
            ),
            ("tftp.max_transfers_per_client", "Concurrent transfers to one address; default: 16"),
            ("tftp.retransmit_ms", "Milliseconds before the first retransmission; default: 1000"),
            ("tftp.retries", "Retransmissions before a transfer is aborted; default: 5"),
        ])
        .check(check)
        .listens(listens)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// TFTP is served if this is set, or if an interface is configured.
    tftp: Option<TftpConfig>,
    /// The folder of the loaders in Debian's package `ipxe`.
    #[serde(default = "debian")]
    loaders_dir: PathBuf,
}

fn debian() -> PathBuf {
    DEBIAN_IPXE_DIR.into()
}

fn read(wiring: &Wiring, table: Settings) -> Result<Table> {
    let mut table: Table = settings(NAME, table)?;
    table.tftp = table.tftp.or_else(|| (!wiring.interfaces.is_empty()).then(TftpConfig::default));
    Ok(table)
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn BootFileStore>> {
    let table = read(&wiring, table)?;
    let store = BuiltinBootFiles::new();
    let loaders = loaders::ensure_in(&store, &table.loaders_dir).await?;
    if let Some(tftp) = table.tftp {
        // Firmware requests them from GGnet.
        store.loaders_are(loaders.health());
        let bound = store.serve_tftp(tftp).await?;
        tracing::info!(?bound, "TFTP server is listening");
    }
    Ok(Arc::new(store))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    Ok(loaders::look(&read(&wiring, table)?.loaders_dir).await)
}

fn listens(wiring: &Wiring, table: Settings) -> Result<Vec<Socket>> {
    let tftp = read(wiring, table)?.tftp;
    let listen = tftp.into_iter().flat_map(|tftp| tftp.listen);
    Ok(listen.map(|at| Socket::udp(at, "TFTP")).collect())
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::InstanceId;
    use serde_json::json;

    use super::*;

    #[test]
    fn tftp_is_served_where_it_is_configured_or_an_interface_is_named() {
        let listen = |interfaces: &[&str], table: Settings| {
            let prefix = "iqn.2026-11.local.test".parse().unwrap();
            let mut wiring = Wiring::new(InstanceId::generate(), prefix, "/".into());
            wiring.interfaces = interfaces.iter().map(ToString::to_string).collect();
            let sockets = listens(&wiring, table).unwrap();
            sockets.iter().map(|socket| socket.at.to_string()).collect::<Vec<_>>()
        };
        assert!(listen(&[], Settings::Null).is_empty());
        assert_eq!(listen(&["eth0"], Settings::Null), ["0.0.0.0:69"]);
        let own = json!({ "tftp": { "listen": ["127.0.0.1:6969"] } });
        assert_eq!(listen(&[], own.clone()), ["127.0.0.1:6969"]);
        assert_eq!(listen(&["eth0"], own), ["127.0.0.1:6969"]);
    }
}

//! The descriptor of the target backend "builtin".

use std::sync::Arc;

use ggnet_core::{
    Result,
    ports::TargetBackend,
    registry::{Descriptor, Settings, Socket, Wiring, both_families, or_decided, settings},
};
use serde_json::json;

use super::{BuiltinTargetConfig, BuiltinTargets, NAME};

/// The target backend "builtin".
#[must_use]
pub fn descriptor() -> Descriptor<dyn TargetBackend> {
    Descriptor::new(NAME, make)
        .summary("GGnet's own iSCSI target, in the server's process")
        .keys(&[("listen", "Addresses and ports of the portals; default: port 3260 on the address of HTTP")])
        .listens(listens)
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn TargetBackend>> {
    let config = read(&wiring, table)?;
    let (prefix, instance) = (wiring.iqn_prefix, wiring.instance);
    Ok(Arc::new(BuiltinTargets::start(config, prefix, instance, wiring.clock)?))
}

fn listens(wiring: &Wiring, table: Settings) -> Result<Vec<Socket>> {
    let listen = read(wiring, table)?.listen;
    Ok(listen.into_iter().map(|at| Socket::tcp(at, "iSCSI")).collect())
}

/// HTTP serves both address families with one socket, this target needs two.
fn read(wiring: &Wiring, table: Settings) -> Result<BuiltinTargetConfig> {
    let usual: Vec<_> = both_families(wiring.iscsi()).collect();
    settings(NAME, or_decided(table, "listen", json!(usual)))
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::InstanceId;

    use super::*;

    #[test]
    fn it_listens_where_machines_reach_us_unless_told_otherwise() {
        let listen = |reached: &str, table: Settings| {
            let prefix = "iqn.2026-11.local.test".parse().unwrap();
            let mut wiring = Wiring::new(InstanceId::generate(), prefix, "/".into());
            wiring.listen = reached.parse().unwrap();
            let sockets = listens(&wiring, table).unwrap();
            sockets.iter().map(|socket| socket.at.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(listen("127.0.0.1", Settings::Null), ["127.0.0.1:3260"]);
        assert_eq!(listen("10.77.0.1", Settings::Null), ["10.77.0.1:3260"]);
        assert_eq!(listen("::", Settings::Null), ["[::]:3260", "0.0.0.0:3260"]);
        assert_eq!(listen("::", json!({ "listen": ["127.0.0.1:7"] })), ["127.0.0.1:7"]);
    }
}

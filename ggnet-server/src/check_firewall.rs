//! What `ggnet-server check` says about the host's firewall.

use std::collections::BTreeSet;

use ggnet_backends::{
    host::{self, Finding, Level, Transport},
    run::{CommandRunner as _, Invocation, SystemRunner},
};
use ggnet_core::ErrorKind;

/// Whether nftables drops what machines send to these ports. Says nothing where there is no nftables.
pub async fn firewall(ports: &BTreeSet<(Transport, u16)>) -> Vec<Finding> {
    let unknown = |why: String| {
        let mend = "run the check as root (sudo ggnet-server check)";
        vec![Finding::bad(Level::Warn, "firewall", format!("It could not be looked at: {why}"), mend)]
    };
    let runner = match SystemRunner::new() {
        Ok(runner) => runner,
        Err(e) => return unknown(e.report()),
    };
    let list = Invocation::new("nft", "apt-get install nftables").args(["-j", "list", "ruleset"]);
    match runner.run(list).await {
        Err(e) if e.kind() == ErrorKind::Unavailable => vec![],
        Err(e) => unknown(e.report()),
        Ok(output) if output.code == Some(0) => {
            host::firewall(&String::from_utf8_lossy(&output.stdout), ports, Level::Warn)
        }
        Ok(output) => unknown(output.stderr_tail.trim().to_owned()),
    }
}

//! The part of `ggnet-server check` that checks the host's firewall.

use std::collections::BTreeSet;

use ggnet_backends::{
    host::{self, Finding, Level, Transport},
    run::{CommandRunner as _, Invocation, SystemRunner},
};
use ggnet_core::ErrorKind;

/// Checks whether nftables drops packets from machines to these ports. No finding if nftables is not installed.
pub async fn firewall(ports: &BTreeSet<(Transport, u16)>) -> Vec<Finding> {
    let unknown = |why: String| {
        let fix = "run the check as root (sudo ggnet-server check)";
        vec![Finding::bad(Level::Warn, "firewall", format!("The rules cannot be read: {why}"), fix)]
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

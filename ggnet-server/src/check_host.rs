//! What `ggnet-server check` says about the host around the server: the kernel's target, the helper, the firewall.

use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use ggnet_backends::{
    helper::Helper,
    host::{self, Finding, Level, Transport},
    run::{CommandRunner as _, Invocation, SystemRunner},
    target::{
        lio_configfs::{self, LioConfig},
        lio_targetcli::{self, TargetcliConfig},
    },
};
use ggnet_core::{ErrorKind, registry::settings};

use crate::config::Config;

/// What the kernel's target needs of the kernel, and of the helper or the tool. Blocking.
pub fn kernel_target(config: &Config) -> Vec<Finding> {
    let table = config.target.settings.clone();
    let needs = match config.target.backend.as_str() {
        lio_configfs::NAME => settings(lio_configfs::NAME, table).map(by_configfs),
        lio_targetcli::NAME => settings(lio_targetcli::NAME, table).map(|lio| by_targetcli(&lio)),
        _ => return vec![],
    };
    needs.unwrap_or_else(|e| {
        vec![Finding::bad(Level::Fail, "section [target]", e.explain(), "See docs/configuration.md")]
    })
}

fn by_targetcli(lio: &TargetcliConfig) -> Vec<Finding> {
    let root = if nix::unistd::geteuid().is_root() {
        Finding::ok("targetcli's user", "We are root, as it wants")
    } else {
        let mend = "infra/examples/ggnet-server-targetcli.conf, for the unit; and run this check as root";
        Finding::bad(
            Level::Fail,
            "targetcli's user",
            "We are not root, and it changes nothing for others",
            mend,
        )
    };
    let tool = host::program(Path::new("targetcli"), "targetcli-fb", Level::Fail);
    // The tool has the modules loaded.
    vec![host::kernel_target(&lio.root, Level::Warn), tool, root]
}

fn by_configfs(lio: LioConfig) -> Vec<Finding> {
    let Some(socket) = lio.helper else { return vec![host::kernel_target(&lio.root, Level::Fail)] };
    let what = format!("helper on {}", socket.display());
    let reached = match Helper::at(socket).reach() {
        Ok(()) => Finding::ok(what, "It may be asked"),
        Err(e) => Finding::bad(Level::Fail, what, e.explain(), e.hint().unwrap_or("see the message")),
    };
    // Its unit has the modules loaded.
    vec![host::kernel_target(&lio.root, Level::Warn), reached]
}

/// The ports that machines must reach; `builtin` are those of the built-in target.
fn ports(config: &Config, builtin: &[SocketAddr]) -> BTreeSet<(Transport, u16)> {
    let table = config.target.settings.clone();
    let lio = match config.target.backend.as_str() {
        lio_configfs::NAME => settings(lio_configfs::NAME, table).map(|lio: LioConfig| lio.listen).ok(),
        lio_targetcli::NAME => {
            settings(lio_targetcli::NAME, table).map(|lio: TargetcliConfig| lio.listen).ok()
        }
        _ => None,
    };
    let portals = lio.unwrap_or_else(|| builtin.to_vec());
    let mut ports: BTreeSet<_> = portals.iter().map(|at| (Transport::Tcp, at.port())).collect();
    ports.insert((Transport::Tcp, config.http.listen.port()));
    // Whoever serves them, GGnet or a daemon of this host.
    ports.insert((Transport::Udp, 67));
    ports.insert((Transport::Udp, 69));
    if config.dhcp.backend == "proxy" {
        ports.insert((Transport::Udp, 4011));
    }
    ports
}

/// Whether nftables drops what machines send to us. Says nothing where there is no nftables, or no network is served.
pub async fn firewall(config: &Config, builtin: &[SocketAddr]) -> Vec<Finding> {
    if config.network.interfaces.is_empty() {
        return vec![];
    }
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
            let ruleset = String::from_utf8_lossy(&output.stdout);
            host::firewall(&ruleset, &ports(config, builtin), Level::Warn)
        }
        Ok(output) => unknown(output.stderr_tail.trim().to_owned()),
    }
}

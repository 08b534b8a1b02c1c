//! The descriptor of the DHCP backend "dnsmasq".

use std::sync::Arc;

use ggnet_core::{
    Result,
    ports::DhcpBackend,
    registry::{Descriptor, Finding, Level, Settings, Socket, Wiring},
};

use super::{Dnsmasq, DnsmasqConfig, Mode, NAME};
use crate::{
    dhcp::{daemon, section},
    host,
    run::SystemRunner,
    service,
};

/// The DHCP backend "dnsmasq".
#[must_use]
pub fn descriptor() -> Descriptor<dyn DhcpBackend> {
    Descriptor::new(NAME, make)
        .summary("dnsmasq on this host, through files that it reads")
        .keys(&[
            (
                "mode",
                "\"server\": it gives out addresses; \"proxy\": another server does; default: \"server\"",
            ),
            ("hosts_dir", "The folder that dhcp-hostsdir names; default: /var/lib/ggnet-dhcp/dnsmasq/hosts"),
            (
                "options_dir",
                "The folder that dhcp-optsdir names; default: /var/lib/ggnet-dhcp/dnsmasq/options",
            ),
            daemon::ADVERTISE,
        ])
        .keys(section::KEYS)
        .keys(service::KEYS)
        .check(check)
        .listens(listens)
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn DhcpBackend>> {
    let config = daemon::read(NAME, &wiring, table)?;
    Ok(Arc::new(Dnsmasq::open(config, &wiring.instance, Arc::new(SystemRunner::new()?)).await?))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config: DnsmasqConfig = daemon::read(NAME, &wiring, table)?;
    let service = config.service(Arc::new(SystemRunner::new()?))?;
    // In proxy mode dnsmasq's own file names the loaders.
    let mac_paths = section::mac_paths(&wiring, config.mac_prefix && config.mode == Mode::Server);
    let dirs = vec![config.hosts_dir, config.options_dir];
    let looked = host::look(move || {
        let mut findings = daemon::look("dnsmasq", "dnsmasq", &dirs);
        findings.extend(host::apparmor(&host::DNSMASQ, &dirs, Level::Warn));
        findings
    });
    let mut findings = looked.await?;
    findings.extend(mac_paths);
    findings.push(daemon::look_at_service(&service).await);
    Ok(findings)
}

fn listens(wiring: &Wiring, table: Settings) -> Result<Vec<Socket>> {
    let config: DnsmasqConfig = daemon::read(NAME, wiring, table)?;
    Ok(daemon::sockets(match config.mode {
        Mode::Server => &[67],
        Mode::Proxy => &[67, 4011],
    }))
}

//! The descriptor of the DHCP backend "isc-dhcpd".

use std::{path::Path, sync::Arc};

use ggnet_core::{
    Result,
    ports::DhcpBackend,
    registry::{Descriptor, Finding, Level, Settings, Transport, Wiring},
};

use super::{IscDhcpd, IscDhcpdConfig, NAME};
use crate::{
    dhcp::{daemon, section},
    host,
    run::SystemRunner,
    service,
};

/// The DHCP backend "isc-dhcpd".
#[must_use]
pub fn descriptor() -> Descriptor<dyn DhcpBackend> {
    Descriptor::new(NAME, make)
        .summary("ISC dhcpd on this host, through a file that its configuration includes")
        .keys(&[
            ("main_file", "dhcpd's main configuration file; default: /etc/dhcp/dhcpd.conf"),
            ("hosts_file", "The file that the main file includes; default: /etc/dhcp/ggnet/hosts.conf"),
            daemon::ADVERTISE,
            ("omapi.address", "The address and port of dhcpd's omapi-port; default: 127.0.0.1:7911"),
            ("omapi.key_name", "The name of dhcpd's omapi-key; required"),
            ("omapi.key_file", "A file with that key's secret in base64; required"),
            ("omapi.algorithm", "\"hmac-sha256\" or \"hmac-md5\"; default: \"hmac-sha256\""),
        ])
        .keys(section::KEYS)
        .keys(service::KEYS)
        .check(check)
        .listens(|wiring, table| {
            daemon::read::<IscDhcpdConfig>(NAME, wiring, table).map(|_| daemon::sockets(&[67]))
        })
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn DhcpBackend>> {
    let config = daemon::read(NAME, &wiring, table)?;
    Ok(Arc::new(IscDhcpd::open(config, &wiring.instance, Arc::new(SystemRunner::new()?)).await?))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let config: IscDhcpdConfig = daemon::read(NAME, &wiring, table)?;
    let service = config.service(Arc::new(SystemRunner::new()?))?;
    let looked = host::look(move || {
        let dirs = [config.hosts_file.parent().unwrap_or(Path::new("/")).to_owned()];
        let mut findings = daemon::look("dhcpd", "isc-dhcp-server", &dirs);
        findings.extend(host::apparmor(&host::DHCPD, &dirs, Level::Warn));
        findings.push(host::dhcpd_includes(&config.main_file, &config.hosts_file, Level::Fail));
        // Another DHCP server may serve another interface.
        findings.push(host::port_of("dhcpd", Transport::Udp, 67, Level::Warn));
        findings.extend(section::mac_paths(&wiring, config.mac_prefix));
        findings
    });
    let mut findings = looked.await?;
    findings.push(daemon::look_at_service(&service).await);
    Ok(findings)
}

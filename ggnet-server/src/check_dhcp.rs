//! What `ggnet-server check` says about a DHCP server of this host that GGnet writes for: program, files, service.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_backends::{
    dhcp::{
        dnsmasq::{self, DnsmasqConfig},
        isc_dhcpd::{self, IscDhcpdConfig},
    },
    host::{self, Finding, Level, Transport},
    run::{CommandRunner, SystemRunner},
    service::{Service, State},
};
use ggnet_core::{Error, Result, registry::settings};

use crate::config::Config;

/// Looks at the daemon of the configured DHCP backend; says nothing about a backend that needs none.
pub async fn look(config: &Config) -> Vec<Finding> {
    match config.dhcp.backend.as_str() {
        dnsmasq::NAME => look_at_dnsmasq(config).await,
        isc_dhcpd::NAME => look_at_isc_dhcpd(config).await,
        _ => return vec![],
    }
    .unwrap_or_else(|e| {
        let mend = e.hint().unwrap_or("see docs/configuration.md").to_owned();
        vec![Finding::bad(Level::Fail, "section [dhcp]", e.report(), mend)]
    })
}

async fn look_at_dnsmasq(config: &Config) -> Result<Vec<Finding>> {
    let c: DnsmasqConfig = settings(dnsmasq::NAME, config.dhcp.settings.clone())?;
    let dirs = vec![c.hosts_dir.clone(), c.options_dir.clone()];
    let mut findings = files("dnsmasq", "dnsmasq", dirs).await?;
    let dirs = vec![c.hosts_dir.clone(), c.options_dir.clone()];
    findings.extend(confined(host::DNSMASQ, dirs).await?);
    findings.push(service(&c.service(runner()?)?).await);
    Ok(findings)
}

async fn look_at_isc_dhcpd(config: &Config) -> Result<Vec<Finding>> {
    let c: IscDhcpdConfig = settings(isc_dhcpd::NAME, config.dhcp.settings.clone())?;
    let dirs = vec![c.hosts_file.parent().unwrap_or(Path::new("/")).to_owned()];
    let mut findings = files("dhcpd", "isc-dhcp-server", dirs.clone()).await?;
    findings.extend(confined(host::DHCPD, dirs).await?);
    let (main, hosts) = (c.main_file.clone(), c.hosts_file.clone());
    let looked = tokio::task::spawn_blocking(move || {
        [
            host::dhcpd_includes(&main, &hosts, Level::Fail),
            // Another one may serve another interface.
            host::port_of("dhcpd", Transport::Udp, 67, Level::Warn),
        ]
    });
    findings.extend(looked.await.map_err(died)?);
    findings.push(service(&c.service(runner()?)?).await);
    Ok(findings)
}

fn runner() -> Result<Arc<dyn CommandRunner>> {
    Ok(Arc::new(SystemRunner::new()?))
}

async fn files(program: &'static str, package: &'static str, dirs: Vec<PathBuf>) -> Result<Vec<Finding>> {
    let looked = tokio::task::spawn_blocking(move || {
        let program = host::program(Path::new(program), package, Level::Fail);
        std::iter::once(program)
            .chain(dirs.iter().map(|dir| host::writable_folder(dir, Level::Fail)))
            .collect()
    });
    looked.await.map_err(died)
}

fn died(e: tokio::task::JoinError) -> Error {
    Error::internal("The check died").with_source(e)
}

async fn confined(daemon: host::Confined, dirs: Vec<PathBuf>) -> Result<Option<Finding>> {
    let looked = tokio::task::spawn_blocking(move || host::apparmor(&daemon, &dirs, Level::Warn));
    looked.await.map_err(|e| Error::internal("The check died").with_source(e))
}

async fn service(service: &Service) -> Finding {
    let what = service.label();
    match service.state().await {
        Ok(State::Running) => Finding::ok(what, "It runs"),
        // GGnet starts what it has a command for; else nobody answers.
        Ok(State::Stopped(why)) => Finding::bad(Level::Warn, what, why, "start it, before the machines ask"),
        Ok(State::Suspended(why)) => {
            Finding::bad(Level::Warn, what, why, "continue it, before the machines ask")
        }
        Err(e) => {
            Finding::bad(Level::Warn, what, e.report(), e.hint().unwrap_or("see the message").to_owned())
        }
    }
}

//! `ggnet-server check`: finds problems of this host and prints how to fix them.
//!
//! It changes nothing. Every finding is ok, a warning, or a failure that prevents machines from booting; a failure means exit code 3.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use ggnet_backends::{
    dhcp::probe,
    host::{self, Finding, Level},
};
use ggnet_core::{
    Error, Result,
    nouns::InstanceId,
    orchestrator::ChapPolicy,
    ports::{Clock as _, SystemClock},
    registry::{BoundBy, PortName, Registry, Wiring},
};

use crate::{
    check_firewall::firewall,
    config::Config,
    instance::Instance,
    say::say,
    sockets::{self, Owned},
    wiring,
};

/// The minimum for a few machines: one image and some writebacks.
const WANTED_SPACE: u64 = 20 << 30;
/// Two connections and three files for each of a thousand machines.
pub(crate) const WANTED_FILES: u64 = 8192;

/// Runs all checks and prints the findings; the exit code says whether machines can boot.
pub async fn check(config: &Config, registry: &Registry, lan: Option<&str>, json: bool) -> Result<ExitCode> {
    let mut findings = look(config, registry).await?;
    if let Some(interface) = lan {
        findings.extend(ask_network(interface).await);
    }
    if json {
        let text = serde_json::to_string_pretty(&findings)
            .map_err(|e| Error::internal("The findings cannot be written as JSON").with_source(e))?;
        say(&text)?;
    } else {
        for finding in &findings {
            say(&format!("{:<4} {}: {}", finding.level, finding.what, finding.why))?;
            if let Some(mend) = &finding.mend {
                say(&format!("       what to do: {mend}"))?;
            }
        }
    }
    let failed = findings.iter().any(|f| f.level == Level::Fail);
    Ok(if failed { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// Checks the host, then the backend of each port, then all sockets together.
async fn look(config: &Config, registry: &Registry) -> Result<Vec<Finding>> {
    // If the data folder does not exist or cannot be read, any id is good enough for a check.
    let instance = Instance::read(&config.data_dir).await;
    let instance = instance.map_or_else(|_| InstanceId::generate(), |instance| instance.id().clone());
    let wiring = wiring::wiring(config, registry, &config.data_dir, instance, config.http.listen.port())?;
    let owned = config.clone();
    let mut findings = host::look(move || look_at_host(&owned)).await?;
    let mut sockets = sockets::of_http(config);
    for port in PortName::ALL {
        let (found, listens) = look_at_backend(config, registry, &wiring, port).await;
        findings.extend(found);
        sockets.extend(listens);
    }
    let mut findings = without_repeats(findings);
    let failed = |e| Finding::failed(Level::Fail, "ports", &e);
    findings.extend(sockets::collisions(config, &sockets).into_iter().map(failed));
    let fix = "set --iscsi-listen (or target.listen) to that address, or remove it";
    let out_of_reach = sockets::iscsi_out_of_reach(config, &sockets);
    findings.extend(out_of_reach.map(|why| Finding::bad(Level::Warn, "iSCSI", why, fix)));
    findings.extend(chap(config));
    if !config.network.interfaces.is_empty() {
        let ports = sockets.iter().map(|(_, socket)| (socket.transport, socket.at.port())).collect();
        findings.extend(firewall(&ports).await);
    }
    findings.extend(host::look(move || look_at_ports(&sockets)).await?);
    Ok(findings)
}

/// Removes duplicates: several backends may need the same.
fn without_repeats(findings: Vec<Finding>) -> Vec<Finding> {
    let mut kept: Vec<Finding> = Vec::new();
    for finding in findings {
        if !kept.contains(&finding) {
            kept.push(finding);
        }
    }
    kept
}

/// Checks what every server needs, independent of its backends. Blocking.
fn look_at_host(config: &Config) -> Vec<Finding> {
    // The server does this too when it starts.
    host::raise_open_files();
    let mut findings = vec![
        host::free_space(&config.data_dir, WANTED_SPACE),
        host::open_files(WANTED_FILES),
        host::clock(SystemClock.now()),
    ];
    if config.network.interfaces.is_empty() {
        findings.push(Finding::ok("DHCP and TFTP", "Not served, because no interface is configured"));
    } else {
        findings.extend(config.network.interfaces.iter().map(|name| host::interface(name)));
    }
    findings
}

/// The findings of a port's backend, and its sockets. A wrong section is reported once.
async fn look_at_backend(
    config: &Config,
    registry: &Registry,
    wiring: &Wiring,
    port: PortName,
) -> (Vec<Finding>, Vec<Owned>) {
    let section = config.section(port);
    let look = async {
        let about = registry.about(port, &section.backend)?;
        let listens = sockets::of_backend(config, registry, wiring, port)?;
        Ok((about.check(port, wiring.clone(), section.settings.clone()).await, listens))
    };
    look.await.unwrap_or_else(|e: Error| {
        (vec![Finding::failed(Level::Fail, format!("section [{port}]"), &e)], Vec::new())
    })
}

/// Checks whether our addresses and ports are free and may be bound. Blocking.
fn look_at_ports(sockets: &[Owned]) -> Vec<Finding> {
    let ours = sockets.iter().map(|(_, socket)| socket).filter(|socket| socket.bound_by != BoundBy::Other);
    let low = ours.clone().map(|socket| socket.at.port()).filter(|port| (1..1024).contains(port)).min();
    let this = std::env::current_exe().unwrap_or_else(|_| "ggnet-server".into());
    let mut findings: Vec<_> = low.map(|port| host::low_port(port, &this, Level::Fail)).into_iter().collect();
    // One finding for sockets that differ only in their interface.
    let mut seen = BTreeSet::new();
    for socket in ours.filter(|socket| seen.insert((socket.transport, socket.at))) {
        // A port that may be shared and is in use is a warning, not a failure.
        let taken = if socket.bound_by == BoundBy::UsShared { Level::Warn } else { Level::Fail };
        findings.push(host::port(socket.transport, socket.at.ip(), socket.at.port(), taken));
    }
    findings
}

/// Warns if sessions use no CHAP.
fn chap(config: &Config) -> Option<Finding> {
    let why = "Sessions use no CHAP (session.chap = \"off\"): anybody who can reach the iSCSI port and knows a machine's MAC address can read \
               and write its disk";
    let fix = "Allow only trusted devices on this network; or install the guest kit in the images and remove session.chap (docs/guests.md)";
    (config.session.chap == ChapPolicy::Off).then(|| Finding::bad(Level::Warn, "CHAP of sessions", why, fix))
}

/// Lists the servers that respond to a PXE request on this network.
async fn ask_network(interface: &str) -> Vec<Finding> {
    let what = format!("DHCP on {interface}");
    let seen = match probe::probe(interface, Duration::from_secs(4)).await {
        Ok(seen) => seen,
        Err(e) => {
            return vec![Finding::failed(Level::Fail, what, &e)];
        }
    };
    let mut findings: Vec<Finding> = seen.iter().map(|s| Finding::ok(what.clone(), describe(s))).collect();
    if !seen.iter().any(|s| s.address.is_some()) {
        let why = "No DHCP server assigns addresses on this network, but proxyDHCP needs one";
        findings.push(Finding::bad(Level::Fail, what, why, "enable the DHCP server of the router"));
    }
    findings
}

fn describe(seen: &probe::DhcpServerSeen) -> String {
    let asked = if seen.architecture == 0 { "a BIOS machine" } else { "a UEFI machine" };
    let server = seen.server.unwrap_or(seen.from);
    let gives = match seen.address {
        Some(address) => format!("assigns addresses ({address})"),
        None => "responds without assigning an address (proxyDHCP)".to_owned(),
    };
    let boots = match &seen.boot_file {
        Some(file) => format!("and sends the boot file {file}"),
        None => "and sends no boot file".to_owned(),
    };
    format!("For {asked}, {server} {gives} {boots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chap_that_is_off_is_a_warning() {
        let warned = |text: &str| chap(&Config::parse(text, "x").unwrap()).map(|finding| finding.level);
        assert_eq!(warned(""), None);
        assert_eq!(warned("[session]\nchap = \"off\"\n"), Some(Level::Warn));
    }
    #[tokio::test]
    async fn each_section_is_checked_once_and_a_wrong_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "data_dir = \"{0}/data\"\n[http]\nlisten = \"127.0.0.1:3260\"\n[store]\npfad = \"x\"\n[dhcp]\nbackend = \"mine\"\n\
             [boot_files]\nloaders_dir = \"{0}\"\n",
            dir.path().display()
        );
        let mut registry = Registry::new();
        ggnet_backends::register(&mut registry);
        let findings = look(&Config::parse(&text, "x").unwrap(), &registry).await.unwrap();
        let of = |what: &str| findings.iter().filter(|f| f.what == what).collect::<Vec<_>>();
        let store = of("section [store]");
        assert_eq!((store.len(), store[0].level), (1, Level::Fail));
        assert!(store[0].mend.as_deref().unwrap().contains("path, key_file"), "{}", store[0]);
        assert!(of("section [dhcp]")[0].mend.as_deref().unwrap().contains("Available backends: "));
        assert_eq!(of("boot loader ipxe.efi")[0].level, Level::Warn, "it is not in that folder");
        assert!(of("ports")[0].why.contains("[http]") && of("ports")[0].why.contains("[target]"));
        assert_eq!(of("TCP port 3260 on 127.0.0.1").len(), 1);
        assert_eq!(of("program prlimit").len(), 1);
        assert!(!dir.path().join("data").exists(), "a check changes nothing");
    }

    #[test]
    fn the_same_finding_of_two_backends_is_reported_once() {
        let (a, b) = (Finding::ok("a", "x"), Finding::ok("b", "x"));
        assert_eq!(without_repeats(vec![a.clone(), b.clone(), a.clone()]), [a, b]);
    }
}

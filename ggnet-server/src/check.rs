//! `ggnet-server check`: what is missing on this host, and the line that mends it.
//!
//! It looks and changes nothing. Every finding is ok, a warning, or a failure that keeps machines from booting; a failure is exit code 3.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use ggnet_backends::{
    bootfile::tftpd_hpa::{self, TftpdHpaConfig},
    dhcp::probe,
    host::{self, Finding, Level, Transport},
    image::qemu_img::{self, QemuImgConfig},
    writeback::reflink,
};
use ggnet_core::{
    Error, Result,
    orchestrator::ChapPolicy,
    ports::{Clock as _, SystemClock},
    registry::settings,
};

use crate::{check_dhcp, check_external, check_host, config::Config, say::say};

/// What a room of a few machines needs at least: one image and some writebacks.
const WANTED_SPACE: u64 = 20 << 30;
/// Two connections and three files for each of a thousand machines.
pub(crate) const WANTED_FILES: u64 = 8192;

/// Looks, prints, and says by the exit code whether machines can boot.
pub async fn check(config: &Config, lan: Option<&str>, json: bool) -> Result<ExitCode> {
    let owned = config.clone();
    let looked = tokio::task::spawn_blocking(move || look(&owned)).await;
    let mut findings = looked.map_err(|e| Error::internal("The check died").with_source(e))?;
    findings.extend(check_dhcp::look(config).await);
    findings.extend(check_external::look(config).await);
    findings.extend(check_host::firewall(config, &iscsi_listen(config)).await);
    if let Some(interface) = lan {
        findings.extend(ask_network(interface).await);
    }
    if json {
        let text = serde_json::to_string_pretty(&findings)
            .map_err(|e| Error::internal("The findings do not fit into JSON").with_source(e))?;
        say(&text)?;
    } else {
        for finding in &findings {
            say(&format!("{:<4} {}: {}", finding.level, finding.what, finding.why))?;
            if let Some(mend) = &finding.mend {
                say(&format!("       mend: {mend}"))?;
            }
        }
    }
    let failed = findings.iter().any(|f| f.level == Level::Fail);
    Ok(if failed { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn look(config: &Config) -> Vec<Finding> {
    // As the server does when it starts.
    host::raise_open_files();
    let mut findings = vec![
        host::program(&converter(config), "qemu-utils", Level::Fail),
        host::program(Path::new("prlimit"), "util-linux", Level::Fail),
        host::program(Path::new("setpriv"), "util-linux", Level::Fail),
        loader("undionly.kpxe", "PCs with a BIOS"),
        loader("ipxe.efi", "PCs with UEFI"),
        host::free_space(&config.data_dir, WANTED_SPACE),
        host::kept_space(&database(config)),
        host::open_files(WANTED_FILES),
        host::clock(SystemClock.now()),
        port(Transport::Tcp, config.http.listen),
    ];
    findings.extend(iscsi_listen(config).into_iter().map(|at| port(Transport::Tcp, at)));
    let mend = "give --iscsi-listen (or target.listen) that address, or leave it out";
    findings.extend(iscsi_out_of_reach(config).map(|why| Finding::bad(Level::Warn, "iSCSI", why, mend)));
    findings.extend(check_host::kernel_target(config));
    findings.extend(served_folder(config));
    findings.extend(writebacks(config));
    findings.extend(chap(config));
    if config.network.interfaces.is_empty() {
        findings.push(Finding::ok("DHCP and TFTP", "They answer on no network, for no interface is named"));
    } else {
        let this = std::env::current_exe().unwrap_or_else(|_| "ggnet-server".into());
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        findings.extend(config.network.interfaces.iter().map(|name| host::interface(name)));
        let proxy = config.dhcp.backend == "proxy";
        let tftp = config.boot_files.backend == "builtin";
        if proxy || tftp {
            findings.push(host::low_port(if proxy { 67 } else { 69 }, &this, Level::Fail));
        }
        if tftp {
            findings.push(host::port(Transport::Udp, any, 69, Level::Fail));
        }
        if proxy {
            // Shared with a DHCP server on this host on purpose: a holder is worth a word, not a failure.
            findings.push(host::port(Transport::Udp, any, 67, Level::Warn));
            findings.push(host::port(Transport::Udp, any, 4011, Level::Warn));
        }
    }
    findings
}

/// The program that converts images.
fn converter(config: &Config) -> PathBuf {
    settings::<QemuImgConfig>(qemu_img::NAME, config.converter.settings.clone()).unwrap_or_default().program
}

/// Where the database is.
fn database(config: &Config) -> PathBuf {
    let path = config.store.settings.get("path").and_then(serde_json::Value::as_str);
    let folder = path.map(Path::new).and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or_else(|| config.data_dir.clone(), Path::to_owned)
}

fn port(transport: Transport, at: SocketAddr) -> Finding {
    host::port(transport, at.ip(), at.port(), Level::Fail)
}

/// Where the built-in target would listen.
fn iscsi_listen(config: &Config) -> Vec<SocketAddr> {
    if config.target.backend != "builtin" {
        return vec![];
    }
    let listen = config.target.settings.get("listen").cloned();
    let listen = listen.and_then(|l| serde_json::from_value(l).ok());
    listen.unwrap_or_else(|| ggnet_backends::target::builtin::BuiltinTargetConfig::default().listen)
}

/// Why a machine that gets its boot script from us would look for its disk where nobody listens.
pub(crate) fn iscsi_out_of_reach(config: &Config) -> Option<String> {
    let (http, iscsi) = (config.http.listen.ip(), iscsi_listen(config));
    let told = config.network.advertise.is_none() && !http.is_unspecified();
    let reached = |v4: bool| {
        let found = |ip: IpAddr| ip.is_unspecified() || ip == http || !(told || ip.is_loopback());
        iscsi.iter().map(SocketAddr::ip).filter(|ip| ip.is_ipv4() == v4).any(found)
    };
    // HTTP on `[::]` serves both families; a socket of the target only its own.
    let everybody = reached(http.is_ipv4()) && (told || http.is_ipv4() || reached(true));
    if http.is_loopback() || iscsi.is_empty() || everybody {
        return None;
    }
    let iscsi: Vec<_> = iscsi.iter().map(ToString::to_string).collect();
    Some(format!(
        "Machines get their script from {http} and find no disk there: iSCSI listens only on {}",
        iscsi.join(", ")
    ))
}

/// What the boot file store "tftpd-hpa" needs.
fn served_folder(config: &Config) -> Vec<Finding> {
    if config.boot_files.backend != tftpd_hpa::NAME {
        return vec![];
    }
    let what = format!("settings of {}", tftpd_hpa::NAME);
    let store: TftpdHpaConfig = match settings(tftpd_hpa::NAME, config.boot_files.settings.clone()) {
        Ok(store) => store,
        Err(e) => return vec![Finding::bad(Level::Fail, what, e.explain(), "See docs/configuration.md")],
    };
    let mut findings = vec![
        host::program(Path::new("in.tftpd"), "tftpd-hpa", if store.ask { Level::Fail } else { Level::Warn }),
        host::tftp_folder(&store.root),
    ];
    if store.ask {
        findings.push(host::tftp_server(store.server, &store.root));
    }
    let prefix = config.dhcp.settings.get("mac_prefix").and_then(serde_json::Value::as_bool);
    if config.dhcp.backend == "proxy" && prefix != Some(false) {
        let why = "DHCP would name loaders as <mac>/<loader>, and in.tftpd knows no such path";
        findings.push(Finding::bad(Level::Fail, what, why, "Set mac_prefix = false in [dhcp]"));
    }
    findings
}

/// What the writeback store "reflink" needs.
fn writebacks(config: &Config) -> Option<Finding> {
    let settings = &config.writeback.settings;
    let text = |key: &str| settings.get(key).and_then(serde_json::Value::as_str);
    if config.writeback.backend != reflink::NAME {
        return None;
    }
    let missing = if text("copy") == Some("full") { Level::Warn } else { Level::Fail };
    let disks = text("dir").map_or_else(|| config.data_dir.join("disks"), Into::into);
    Some(host::reflinks(&config.data_dir.join("images"), &disks, missing))
}

/// Whether sessions are open to whoever knows a name.
fn chap(config: &Config) -> Option<Finding> {
    let why = "Sessions ask for no CHAP (session.chap = \"off\"): whoever reaches the iSCSI port and knows a machine's MAC address can read \
               and write its disk";
    let mend = "Keep others off this network; or put the guest kit into the images and remove session.chap (docs/guests.md)";
    (config.session.chap == ChapPolicy::Off).then(|| Finding::bad(Level::Warn, "CHAP of sessions", why, mend))
}

fn loader(file: &str, whom: &str) -> Finding {
    let path = Path::new("/usr/lib/ipxe").join(file);
    let what = format!("boot loader {file}");
    if path.is_file() {
        Finding::ok(what, format!("It is {}", path.display()))
    } else {
        let why = format!("{} is missing; {whom} get no loader from us", path.display());
        Finding::bad(Level::Warn, what, why, "apt-get install ipxe")
    }
}

/// Who answers a PXE request on this network.
async fn ask_network(interface: &str) -> Vec<Finding> {
    let what = format!("DHCP on {interface}");
    let seen = match probe::probe(interface, Duration::from_secs(4)).await {
        Ok(seen) => seen,
        Err(e) => {
            return vec![Finding::bad(
                Level::Fail,
                what,
                e.report(),
                e.hint().unwrap_or("see the message").to_owned(),
            )];
        }
    };
    let mut findings: Vec<Finding> = seen.iter().map(|s| Finding::ok(what.clone(), describe(s))).collect();
    if !seen.iter().any(|s| s.address.is_some()) {
        let why = "No server gives out addresses here, and proxyDHCP needs one beside it";
        findings.push(Finding::bad(Level::Fail, what, why, "switch on the router's DHCP server"));
    }
    findings
}

fn describe(seen: &probe::DhcpServerSeen) -> String {
    let asked = if seen.architecture == 0 { "a BIOS machine" } else { "a UEFI machine" };
    let server = seen.server.unwrap_or(seen.from);
    let gives = match seen.address {
        Some(address) => format!("gives out addresses ({address})"),
        None => "answers beside another server (proxyDHCP)".to_owned(),
    };
    let boots = match &seen.boot_file {
        Some(file) => format!("and the boot file {file}"),
        None => "and no boot file".to_owned(),
    };
    format!("To {asked}, {server} {gives} {boots}")
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
}

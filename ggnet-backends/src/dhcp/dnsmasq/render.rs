//! The text that dnsmasq reads about one machine: one line in a hosts file, a few in an options file. Pure functions.
//!
//! ```text
//! <instance>-<id> in hosts/             # {…the spec, as JSON…}
//!                                       52:54:00:aa:00:01,set:ggnet,set:ggnet-<instance>-<id>,192.0.2.11,pc-1
//! <instance>-<id> in options/           tag:ggnet-…,tag:ggnet-bios,tag:!ggnet-ipxe,option:bootfile-name,"undionly.kpxe"
//! ```
//! The operator's configuration (`infra/examples/dnsmasq.conf`) sets the tags `ggnet-ipxe` and `ggnet-arch-<option 93>`, because dnsmasq
//! reads matches only from its main file.
//!
//! Invariants: dnsmasq cuts lines at 1024 bytes and would read the rest as another line, so none of our lines is that long; every text is
//! quoted and escaped; the spec can be read back from the hosts file alone.

use std::{fmt::Write as _, net::IpAddr, net::Ipv4Addr};

use ggnet_core::{Error, Result, ports::DhcpHost};

use super::{DnsmasqConfig, Mode};
use crate::dhcp::{boot_files::BootFiles, daemon};

/// The first line of all our files.
const HEAD: &str = "# Made by GGnet, which writes and removes it.\n# ";
/// dnsmasq reads at most 1024 bytes as one line.
const LONGEST_LINE: usize = 1000;

/// The two files of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) hosts: String,
    /// `None` in proxy mode, in which dnsmasq reads boot files only from its main file.
    pub(super) options: Option<String>,
}

/// The files of `host`; `name` is the name of its files and also its tag.
///
/// # Errors
/// `Invalid`: an address that is not IPv4, or a text that is too long or has forbidden characters.
pub(super) fn render(
    host: &DhcpHost,
    name: &str,
    config: &DnsmasqConfig,
    advertise: Ipv4Addr,
) -> Result<Files> {
    let spec = serde_json::to_string(host)
        .map_err(|e| Error::internal("Cannot encode a DHCP entry as JSON").with_source(e))?;
    let mut hosts = format!("{HEAD}{spec}\n");
    for mac in &host.macs {
        // `write!` to a String cannot fail.
        let _ = write!(hosts, "{mac},");
    }
    let _ = write!(hosts, "set:ggnet,set:{name}");
    if config.mode == Mode::Server {
        match host.fixed_address {
            Some(IpAddr::V4(address)) => {
                let _ = write!(hosts, ",{address}");
            }
            Some(IpAddr::V6(address)) => {
                let message = format!(
                    "{address} is not an IPv4 address; machines boot from dnsmasq with an IPv4 address only"
                );
                return Err(Error::invalid("fixed_address", message));
            }
            None => {}
        }
        let _ = write!(hosts, ",{}", host.name);
    }
    hosts.push('\n');
    let options =
        (config.mode == Mode::Server).then(|| options(host, name, config, advertise)).transpose()?;
    let files = Files { hosts, options };
    let all = files.hosts.lines().chain(files.options.iter().flat_map(|o| o.lines()));
    if all.clone().any(|line| line.len() > LONGEST_LINE) {
        return Err(Error::invalid(
            "macs",
            format!("The DHCP entry of {} is too long for dnsmasq", host.name),
        ));
    }
    Ok(files)
}

fn options(host: &DhcpHost, name: &str, config: &DnsmasqConfig, advertise: Ipv4Addr) -> Result<String> {
    let mut text = format!("{HEAD}The boot files of {}\n", host.name);
    let mut line = |tags: &str, option: &str| {
        let _ = writeln!(text, "tag:{name},{tags}{option}");
    };
    line("", &format!("option:server-ip-address,{advertise}"));
    line("", &format!("option:tftp-server,{}", quoted(&advertise.to_string())?));
    let boot = BootFiles {
        advertise,
        http_port: config.http_port,
        http_files: &config.http_files,
        mac_prefix: config.mac_prefix,
        loaders: &config.loaders,
    };
    line("tag:ggnet-ipxe,", &format!("option:bootfile-name,{}", quoted(&daemon::script(&boot, host))?));
    for (arch, file) in daemon::loaders(&boot, host) {
        let tags = format!("tag:ggnet-arch-{},tag:!ggnet-ipxe,", arch.0);
        line(&tags, &format!("option:bootfile-name,{}", quoted(&file)?));
        if daemon::boots_over_http(arch) {
            line(&tags, "option:vendor-class,HTTPClient");
        }
    }
    Ok(text)
}

/// The spec from which a hosts file of ours was generated.
pub(super) fn spec(hosts: &str) -> Option<DhcpHost> {
    let json = hosts.strip_prefix(HEAD)?.lines().next()?;
    serde_json::from_str(json).ok()
}

/// Quotes one value of an option: within quotes dnsmasq takes everything literally except the backslash.
fn quoted(text: &str) -> Result<String> {
    if let Some(bad) = text.chars().find(|c| c.is_control()) {
        return Err(Error::invalid(
            "loaders",
            format!("{text:?} contains {bad:?}, which cannot be written in a dnsmasq configuration"),
        ));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::DeviceType;

    use super::*;

    fn host(macs: usize) -> DhcpHost {
        DhcpHost {
            id: "m1".parse().unwrap(),
            name: "pc-1".parse().unwrap(),
            macs: (0..macs).map(|n| format!("52:54:00:aa:00:{n:02x}").parse().unwrap()).collect(),
            fixed_address: Some("192.0.2.11".parse().unwrap()),
            device_type: DeviceType::X64,
        }
    }

    fn files(host: &DhcpHost, config: &DnsmasqConfig) -> Result<Files> {
        render(host, "ggnet-0ddba11e-m1", config, Ipv4Addr::new(192, 0, 2, 1))
    }

    #[test]
    fn a_machine_has_a_line_and_its_boot_files_and_is_read_back() {
        let config = DnsmasqConfig::default();
        let written = files(&host(1), &config).unwrap();
        assert!(
            written.hosts.ends_with("}\n52:54:00:aa:00:00,set:ggnet,set:ggnet-0ddba11e-m1,192.0.2.11,pc-1\n"),
            "{written:?}"
        );
        assert_eq!(spec(&written.hosts), Some(host(1)));
        let options = written.options.unwrap();
        for line in [
            "tag:ggnet-0ddba11e-m1,option:server-ip-address,192.0.2.1",
            "tag:ggnet-0ddba11e-m1,tag:ggnet-ipxe,option:bootfile-name,\"http://192.0.2.1:8080/boot/52-54-00-aa-00-00.ipxe\"",
            "tag:ggnet-0ddba11e-m1,tag:ggnet-arch-0,tag:!ggnet-ipxe,option:bootfile-name,\"52-54-00-aa-00-00/undionly.kpxe\"",
            "tag:ggnet-0ddba11e-m1,tag:ggnet-arch-16,tag:!ggnet-ipxe,option:bootfile-name,\"http://192.0.2.1:8080/files/52-54-00-aa-00-00/ipxe.efi\"",
        ] {
            assert!(options.lines().any(|l| l == line), "{line}\n{options}");
        }
        let proxy = files(&host(1), &DnsmasqConfig { mode: Mode::Proxy, ..config }).unwrap();
        assert!(proxy.options.is_none() && proxy.hosts.ends_with(",set:ggnet-0ddba11e-m1\n"), "{proxy:?}");
    }

    #[test]
    fn the_largest_machine_fits_and_several_cards_share_a_script() {
        let mut largest = host(16);
        largest.name = "x".repeat(63).parse().unwrap();
        largest.id = "y".repeat(64).parse().unwrap();
        let written = files(&largest, &DnsmasqConfig::default()).unwrap();
        assert_eq!(spec(&written.hosts), Some(largest));
        assert!(written.options.unwrap().contains("/boot/first.ipxe\""));
        assert_eq!(files(&host(60), &DnsmasqConfig::default()).unwrap_err().field(), Some("macs"));
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_the_rest_is_quoted() {
        let mut six = host(1);
        six.fixed_address = Some("2001:db8::1".parse().unwrap());
        assert_eq!(files(&six, &DnsmasqConfig::default()).unwrap_err().field(), Some("fixed_address"));
        assert_eq!(quoted("a,\"b\\").unwrap(), r#""a,\"b\\""#);
        assert_eq!(quoted("a\nb").unwrap_err().field(), Some("loaders"));
    }
}

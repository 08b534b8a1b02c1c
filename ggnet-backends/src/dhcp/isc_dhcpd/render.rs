//! The file that dhcpd includes: the subnets from a template, then a declaration per network card. Pure text.
//!
//! ```text
//! # GGnet {…a machine's spec, as JSON…}
//! host ggnet-<instance>-<id>-0 { hardware ethernet …; fixed-address …; option host-name "…"; next-server …; if … { filename "…"; } … }
//! ```
//! Which boot file: iPXE is known by its user class (option 77), firmware by the first architecture in option 93, which dhcpd knows as
//! `pxe-system-type`; so no option is defined here, and none of the operator's is redefined.
//!
//! Invariants: every text stands in quotes, escaped for dhcpd, and an entry's spec can be read back; what the operator's template says
//! is the operator's, and `dhcpd -t` judges it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use ggnet_core::{Error, Result, nouns::ResourceId, ports::DhcpHost};
use tera::{Context, Tera};

use super::{IscDhcpdConfig, loaders};
use crate::dhcp::arch::Arch;

/// Before each spec.
const SPEC: &str = "# GGnet ";
/// The subnets, unless the operator has a template.
pub(super) const BUILT_IN: &str = include_str!("subnets.conf.tera");
/// Option 93 of firmware that boots over HTTP.
const HTTP: std::ops::RangeInclusive<u16> = 15..=19;

/// The part with the subnets.
///
/// # Errors
/// `Invalid`, field `template`, with what is wrong and where.
pub(super) fn subnets(template: &str, config: &IscDhcpdConfig, advertise: Ipv4Addr) -> Result<String> {
    let wrong = |e: &tera::Error| {
        let mut text = e.to_string();
        let mut next = std::error::Error::source(e);
        while let Some(cause) = next {
            let _ = write!(text, ": {cause}");
            next = cause.source();
        }
        Error::invalid("template", format!("The template of dhcpd's subnets is wrong: {text}"))
    };
    let mut tera = Tera::default();
    tera.set_escape_fn(|text, out| out.write_all(escape(text).as_bytes()));
    tera.autoescape_on([".tera"]);
    tera.add_raw_template("subnets.conf.tera", template).map_err(|e| wrong(&e))?;
    let mut context = Context::new();
    context.insert("subnets", &config.subnets);
    context.insert("next_server", &advertise);
    tera.render("subnets.conf.tera", &context).map_err(|e| wrong(&e))
}

/// The whole file.
///
/// # Errors
/// As [`entry`].
pub(super) fn file(subnets: &str, entries: &BTreeMap<ResourceId, DhcpHost>, how: &How<'_>) -> Result<String> {
    let mut text = format!(
        "# Made by GGnet, which writes it anew at each change. Instance {}.\n{subnets}\n",
        how.instance
    );
    for host in entries.values() {
        text.push_str(&entry(host, how)?);
    }
    Ok(text)
}

/// What every entry is made with.
pub(super) struct How<'a> {
    pub(super) config: &'a IscDhcpdConfig,
    pub(super) instance: &'a str,
    pub(super) advertise: Ipv4Addr,
}

/// One machine's declarations.
///
/// # Errors
/// `Invalid`: an address that is no IPv4 address, or a text that dhcpd cannot be told.
pub(super) fn entry(host: &DhcpHost, how: &How<'_>) -> Result<String> {
    let spec = serde_json::to_string(host)
        .map_err(|e| Error::internal("A DHCP entry has no JSON").with_source(e))?;
    let mut text = format!("{SPEC}{spec}\n");
    for (n, mac) in host.macs.iter().enumerate() {
        // `write!` to a String cannot fail.
        let _ = writeln!(text, "host ggnet-{}-{}-{n} {{\n  hardware ethernet {mac};", how.instance, host.id);
        match host.fixed_address {
            Some(IpAddr::V4(address)) => {
                let _ = writeln!(text, "  fixed-address {address};");
            }
            Some(IpAddr::V6(address)) => {
                let message =
                    format!("{address} is no IPv4 address, and dhcpd gives machines an IPv4 address to boot");
                return Err(Error::invalid("fixed_address", message));
            }
            None => {}
        }
        let _ = writeln!(text, "  option host-name {};", quoted(host.name.as_str())?);
        let _ = writeln!(text, "  next-server {};", how.advertise);
        boot_files(&mut text, &mac.hyphenated(), how)?;
        text.push_str("}\n");
    }
    Ok(text)
}

fn boot_files(text: &mut String, mac: &str, how: &How<'_>) -> Result<()> {
    let config = how.config;
    let base = format!("http://{}:{}", how.advertise, config.http_port);
    let script = quoted(&format!("{base}/boot/{mac}.ipxe"))?;
    let _ = write!(text, "  if exists user-class and option user-class = \"iPXE\" {{ filename {script}; }}");
    let mut archs = vec![Arch(0), Arch(7), Arch(9), Arch(16)];
    archs.extend(config.loaders.keys().copied());
    archs.sort_unstable();
    archs.dedup();
    for arch in archs {
        let Some(loader) = loaders::loader(&config.loaders, arch) else { continue };
        let http = HTTP.contains(&arch.0);
        let path = if config.mac_prefix { format!("{mac}/{loader}") } else { loader.to_owned() };
        let file = match (loader.contains("://"), http) {
            (true, _) => loader.to_owned(),
            (false, true) => format!("{base}{}/{path}", config.http_files),
            (false, false) => path,
        };
        // dhcpd puts it into the packet's field of 128 bytes, the last of them zero.
        if file.len() > 127 {
            let message = format!("The boot file {file:?} is longer than the 127 bytes that dhcpd can send");
            return Err(Error::invalid("loaders", message));
        }
        let [high, low] = arch.0.to_be_bytes();
        let is = format!("substring(option pxe-system-type, 0, 2) = {high:02x}:{low:02x}");
        let class = if http { " option vendor-class-identifier \"HTTPClient\";" } else { "" };
        let _ = write!(text, "\n  elsif {is} {{ filename {};{class} }}", quoted(&file)?);
    }
    text.push('\n');
    Ok(())
}

/// The entries of a file of ours: their specs, in the file's order.
pub(super) fn specs(file: &str) -> BTreeMap<ResourceId, DhcpHost> {
    let spec = |line: &str| serde_json::from_str::<DhcpHost>(line.strip_prefix(SPEC)?).ok();
    file.lines().filter_map(spec).map(|host| (host.id.clone(), host)).collect()
}

/// Whether a file of ours bears another instance's id.
pub(super) fn is_of_another(file: &str, instance: &str) -> bool {
    file.lines()
        .next()
        .and_then(|l| l.split_once(". Instance "))
        .is_some_and(|(_, id)| id.trim_end_matches('.') != instance)
}

/// As a string of dhcpd's: it knows the backslash before itself, a quote and three octal digits.
fn quoted(text: &str) -> Result<String> {
    if let Some(bad) = text.chars().find(|c| c.is_control()) {
        return Err(Error::invalid("loaders", format!("{text:?} holds {bad:?}, which is no part of a name")));
    }
    Ok(format!("\"{}\"", escape(text)))
}

/// Within quotes. Whatever it was, it stays one string.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => {
                escaped.push('\\');
                escaped.push(char::from(byte));
            }
            0x20..0x7f => escaped.push(char::from(byte)),
            _ => {
                let _ = write!(escaped, "\\{byte:03o}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::DeviceType;

    use super::*;

    #[test]
    fn a_machine_has_a_declaration_per_card_and_is_read_back() {
        let host = DhcpHost {
            id: "m1".parse().unwrap(),
            name: "pc-1".parse().unwrap(),
            macs: vec!["52:54:00:aa:00:01".parse().unwrap(), "52:54:00:aa:00:02".parse().unwrap()],
            fixed_address: Some("192.0.2.11".parse().unwrap()),
            device_type: DeviceType::X64,
        };
        let config = IscDhcpdConfig::default();
        let how = How { config: &config, instance: "0ddba11e", advertise: Ipv4Addr::new(192, 0, 2, 1) };
        let entries = [(host.id.clone(), host.clone())].into();
        let text = file("", &entries, &how).unwrap();
        assert_eq!(specs(&text), entries);
        assert!(text.contains(
            "host ggnet-0ddba11e-m1-1 {\n  hardware ethernet 52:54:00:aa:00:02;\n  fixed-address 192.0.2.11;"
        ));
        assert!(text.contains(
            "= 00:10 { filename \"http://192.0.2.1:8080/files/52-54-00-aa-00-01/ipxe.efi\"; option"
        ));
        let six = DhcpHost { fixed_address: Some("2001:db8::1".parse().unwrap()), ..host };
        assert_eq!(entry(&six, &how).unwrap_err().field(), Some("fixed_address"));
    }

    #[test]
    fn no_text_ends_its_string() {
        assert_eq!(escape("a\"; } host evil {\\"), "a\\\"; } host evil {\\\\");
        assert_eq!(escape("a\nb\u{e4}"), "a\\012b\\303\\244");
        assert_eq!(quoted("a\nb").unwrap_err().field(), Some("loaders"));
        let loaders = [(Arch(7), format!("http://{}", "x".repeat(130)))].into();
        let config = IscDhcpdConfig { loaders, ..IscDhcpdConfig::default() };
        let how = How { config: &config, instance: "0ddba11e", advertise: Ipv4Addr::LOCALHOST };
        assert_eq!(boot_files(&mut String::new(), "m", &how).unwrap_err().field(), Some("loaders"));
    }

    #[test]
    fn a_template_that_is_wrong_says_where() {
        let config = IscDhcpdConfig::default();
        let e = subnets("{{ nothing }}", &config, Ipv4Addr::LOCALHOST).unwrap_err();
        assert_eq!(e.field(), Some("template"));
        assert!(e.message().contains("nothing"), "{e}");
        assert_eq!(subnets(BUILT_IN, &config, Ipv4Addr::LOCALHOST).unwrap().trim(), "");
    }
}

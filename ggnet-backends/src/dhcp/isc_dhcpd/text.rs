//! The text of the file that dhcpd includes: for each machine a comment with its spec, and one declaration for each of its cards.
//!
//! ```text
//! # ggnet-<instance>-<id> {…the spec, as JSON…}
//! host ggnet-<instance>-<id> { hardware ethernet …; fixed-address …; option host-name …; if … { filename …; } … }
//! host ggnet-<instance>-<id>_2 { … }                                              the second card
//! ```
//! The two templates next to this file generate the declarations and escape every value.
//!
//! Invariants: every spec can be read back from the file alone; names are compared as a whole (`_` does not occur in an id, so no name
//! equals another name with a number); every value stays within its quotes.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
};

use ggnet_core::{
    Error, Result,
    nouns::{InstanceId, MacAddr, ResourceId},
    ports::DhcpHost,
};
use serde::Serialize;
use tera::{Context, Tera};

use super::IscDhcpdConfig;
use crate::dhcp::{boot_files::BootFiles, daemon};

/// The packet's field for a boot file has 128 bytes; dhcpd cuts longer names.
const LONGEST_FILENAME: usize = 127;
const HOST: &str = "host.conf.tera";
const STATEMENTS: &str = "statements.conf.tera";

/// The content of a file: each machine's lines.
pub(super) type Blocks = BTreeMap<ResourceId, String>;

/// The declaration of one card, for the file and for OMAPI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declaration {
    pub(super) name: String,
    pub(super) mac: MacAddr,
    pub(super) address: Option<Ipv4Addr>,
    /// The boot statements for the machine.
    pub(super) statements: String,
    text: String,
}

/// Generates and parses the text.
pub(super) struct Text {
    config: IscDhcpdConfig,
    advertise: Ipv4Addr,
    tera: Tera,
    /// `# Made by GGnet <instance>,`: the start of this GGnet's file.
    head: String,
    /// `ggnet-<instance>-`, the prefix of a machine's id.
    prefix: String,
}

#[derive(Serialize)]
struct Loader {
    arch: String,
    statement: &'static str,
    file: String,
    http: bool,
}

impl Text {
    pub(super) fn new(config: IscDhcpdConfig, advertise: Ipv4Addr, instance: &InstanceId) -> Result<Self> {
        let mut tera = Tera::default();
        tera.autoescape_on([".tera"]);
        tera.set_escape_fn(escape);
        let templates =
            [(STATEMENTS, include_str!("statements.conf.tera")), (HOST, include_str!("host.conf.tera"))];
        for (name, source) in templates {
            tera.add_raw_template(name, source).map_err(|e| broken(&e))?;
        }
        let head = format!("# Made by GGnet {instance},");
        Ok(Self { config, advertise, tera, head, prefix: format!("ggnet-{instance}-") })
    }

    /// Whether a file with this text belongs to this GGnet, or to no owner.
    pub(super) fn is_ours(&self, text: &str) -> bool {
        text.trim().is_empty() || text.starts_with(&self.head)
    }

    /// The whole file.
    pub(super) fn file(&self, blocks: &Blocks) -> String {
        let mut text = format!("{} which writes all of this file: changes by hand are lost.\n", self.head);
        text.extend(blocks.values().map(String::as_str));
        text
    }

    /// The machines in a file; other lines are skipped.
    pub(super) fn parse(&self, text: &str) -> Blocks {
        let mut blocks = Blocks::new();
        let mut current = None;
        for line in text.split_inclusive('\n') {
            let name = line.strip_prefix("# ").and_then(|line| line.split_once(' ')).map(|(name, _)| name);
            if let Some(id) = name.and_then(|name| self.id(name)) {
                current = Some(id);
            }
            if let Some(id) = &current {
                blocks.entry(id.clone()).or_default().push_str(line);
            }
        }
        blocks
    }

    /// The machine of a declaration's name, if the declaration is ours.
    pub(super) fn id(&self, name: &str) -> Option<ResourceId> {
        let rest = name.strip_prefix(&self.prefix)?;
        let id = match rest.split_once('_') {
            Some((id, card)) if card.parse::<usize>().is_ok() => id,
            Some(_) => return None,
            None => rest,
        };
        id.parse().ok()
    }

    /// The spec from which a machine's lines were generated.
    pub(super) fn spec(&self, id: &ResourceId, block: &str) -> Option<DhcpHost> {
        let json = block.strip_prefix("# ")?.strip_prefix(&self.prefix)?.strip_prefix(id.as_str())?;
        let spec: DhcpHost = serde_json::from_str(json.strip_prefix(' ')?.lines().next()?).ok()?;
        Some(spec).filter(|spec| spec.id == *id)
    }

    /// The names of a machine's declarations.
    pub(super) fn names(&self, block: &str) -> Vec<String> {
        let name = |line: &str| Some(line.strip_prefix("host ")?.strip_suffix(" {")?.to_owned());
        block.lines().filter_map(name).filter(|name| self.id(name).is_some()).collect()
    }

    /// A machine's lines.
    ///
    /// # Errors
    /// As [`Text::declarations`].
    pub(super) fn block(&self, host: &DhcpHost) -> Result<String> {
        let spec = serde_json::to_string(host)
            .map_err(|e| Error::internal("Cannot encode a DHCP entry as JSON").with_source(e))?;
        let mut block = format!("# {}{} {spec}\n", self.prefix, host.id);
        block.extend(self.declarations(host)?.into_iter().map(|d| d.text));
        Ok(block)
    }

    /// A machine's declarations.
    ///
    /// # Errors
    /// `Invalid`: an address that is not IPv4.
    pub(super) fn declarations(&self, host: &DhcpHost) -> Result<Vec<Declaration>> {
        let address = match host.fixed_address {
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(address)) => {
                let message = format!(
                    "{address} is not an IPv4 address; machines boot from dhcpd with an IPv4 address only"
                );
                return Err(Error::invalid("fixed_address", message));
            }
            None => None,
        };
        let boot = BootFiles {
            advertise: self.advertise,
            http_port: self.config.http_port,
            http_files: &self.config.http_files,
            mac_prefix: self.config.mac_prefix,
            loaders: &self.config.loaders,
        };
        let mut context = Context::new();
        context.insert("host_name", host.name.as_str());
        context.insert("next_server", &boot.advertise.to_string());
        context.insert("script", &daemon::script(&boot, host));
        let loaders = daemon::loaders(&boot, host).into_iter().map(|(arch, file)| Loader {
            arch: format!("{:02x}:{:02x}", arch.0 >> 8, arch.0 & 255),
            statement: if file.len() > LONGEST_FILENAME { "option bootfile-name" } else { "filename" },
            file,
            http: daemon::boots_over_http(arch),
        });
        context.insert("loaders", &loaders.collect::<Vec<_>>());
        if let Some(address) = address {
            context.insert("address", &address.to_string());
        }
        let statements = self.tera.render(STATEMENTS, &context).map_err(|e| broken(&e))?;
        let card = |(n, mac): (usize, &MacAddr)| {
            let name = match n {
                0 => format!("{}{}", self.prefix, host.id),
                n => format!("{}{}_{}", self.prefix, host.id, n + 1),
            };
            context.insert("name", &name);
            context.insert("mac", &mac.to_string());
            let text = self.tera.render(HOST, &context).map_err(|e| broken(&e))?;
            Ok(Declaration { name, mac: *mac, address, statements: statements.clone(), text })
        };
        host.macs.iter().enumerate().map(card).collect()
    }
}

fn broken(e: &tera::Error) -> Error {
    Error::internal(format!("Cannot render the dhcpd configuration: {e}"))
}

/// Escapes a text within quotes: every special byte becomes three octal digits, which dhcpd converts back to that byte.
fn escape(text: &str, out: &mut dyn io::Write) -> io::Result<()> {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => write!(out, "\\{}", char::from(byte))?,
            b' '..=b'~' => out.write_all(&[byte])?,
            _ => write!(out, "\\{byte:03o}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::DeviceType;

    use super::*;

    fn text(config: IscDhcpdConfig) -> Text {
        Text::new(config, Ipv4Addr::new(192, 0, 2, 1), &"0ddba11e".parse().unwrap()).unwrap()
    }

    fn host(macs: usize) -> DhcpHost {
        DhcpHost {
            id: "m1".parse().unwrap(),
            name: "pc-1".parse().unwrap(),
            macs: (0..macs).map(|n| format!("52:54:00:aa:00:{n:02x}").parse().unwrap()).collect(),
            fixed_address: Some("192.0.2.11".parse().unwrap()),
            device_type: DeviceType::X64,
        }
    }

    #[test]
    fn a_machine_is_a_spec_and_a_declaration_for_each_card() {
        let text = text(IscDhcpdConfig::default());
        let block = text.block(&host(1)).unwrap();
        let (spec, declaration) = block.split_once('\n').unwrap();
        assert!(spec.starts_with("# ggnet-0ddba11e-m1 {"), "{spec}");
        assert_eq!(
            declaration,
            r#"host ggnet-0ddba11e-m1 {
  hardware ethernet 52:54:00:aa:00:00;
  fixed-address 192.0.2.11;
  option host-name "pc-1";
  next-server 192.0.2.1;
  option tftp-server-name "192.0.2.1";
  if option user-class = "iPXE" {
    filename "http://192.0.2.1:8080/boot/52-54-00-aa-00-00.ipxe";
  } elsif substring(option pxe-system-type, 0, 2) = 00:00 {
    filename "52-54-00-aa-00-00/undionly.kpxe";
  } elsif substring(option pxe-system-type, 0, 2) = 00:07 {
    filename "52-54-00-aa-00-00/ipxe.efi";
  } elsif substring(option pxe-system-type, 0, 2) = 00:09 {
    filename "52-54-00-aa-00-00/ipxe.efi";
  } elsif substring(option pxe-system-type, 0, 2) = 00:10 {
    filename "http://192.0.2.1:8080/files/52-54-00-aa-00-00/ipxe.efi";
    option vendor-class-identifier "HTTPClient";
  }
}
"#
        );
        let several = text.block(&DhcpHost { fixed_address: None, ..host(2) }).unwrap();
        assert_eq!(text.names(&several), ["ggnet-0ddba11e-m1", "ggnet-0ddba11e-m1_2"]);
        assert!(several.contains("/boot/first.ipxe") && !several.contains("fixed-address"), "{several}");
        let six = DhcpHost { fixed_address: Some("2001:db8::1".parse().unwrap()), ..host(1) };
        assert_eq!(text.block(&six).unwrap_err().field(), Some("fixed_address"));
    }

    #[test]
    fn the_file_is_read_back_and_no_name_is_anothers_beginning() {
        let text = text(IscDhcpdConfig::default());
        let mut blocks = Blocks::new();
        for id in ["m1", "m1.2", "m1-2", "m11"] {
            let host = DhcpHost { id: id.parse().unwrap(), ..host(2) };
            blocks.insert(host.id.clone(), text.block(&host).unwrap());
            assert_eq!(text.spec(&host.id, &blocks[&host.id]), Some(host));
        }
        let file = text.file(&blocks);
        assert!(text.is_ours(&file) && text.is_ours("") && !text.is_ours("host x { }\n"));
        assert!(!text.is_ours(&file.replace("0ddba11e", "0ddba11f")));
        assert_eq!(text.parse(&file), blocks);
        for (name, id) in [
            ("ggnet-0ddba11e-m1", Some("m1")),
            ("ggnet-0ddba11e-m1_2", Some("m1")),
            ("ggnet-0ddba11e-m1_", None),
            ("ggnet-0ddba11e-M1", None),
            ("ggnet-0ddba11e-", None),
            ("ggnet-0ddba11f-m1", None),
        ] {
            assert_eq!(text.id(name).as_ref().map(ResourceId::as_str), id, "{name}");
        }
    }

    #[test]
    fn what_a_value_holds_stays_in_its_quotes_and_a_long_one_is_an_option() {
        let long = format!("http://x/{}", "y".repeat(150));
        let loaders = [
            ("bios".parse().unwrap(), "http://x/\"; } \\ é\n".to_owned()),
            ("efi-x64".parse().unwrap(), long.clone()),
        ];
        let config = IscDhcpdConfig { loaders: loaders.into(), ..IscDhcpdConfig::default() };
        let block = text(config).block(&host(1)).unwrap();
        assert!(block.contains(r#"filename "http://x/\"; } \\ \303\251\012";"#), "{block}");
        assert!(block.contains(&format!("option bootfile-name \"{long}\";")), "{block}");
    }
}

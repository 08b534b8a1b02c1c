//! Registers the descriptor of every compiled backend in core's registry.

use ggnet_core::registry::Registry;

/// Registers our backends.
pub fn register(registry: &mut Registry) {
    // Unused without any backend feature.
    let _ = &registry;
    #[cfg(feature = "store-sqlite")]
    registry.stores.add(crate::store::sqlite::descriptor());
    #[cfg(feature = "target-builtin")]
    registry.targets.add(crate::target::builtin::descriptor());
    #[cfg(feature = "target-lio-configfs")]
    registry.targets.add(crate::target::lio_configfs::descriptor());
    #[cfg(feature = "target-lio-targetcli")]
    registry.targets.add(crate::target::lio_targetcli::descriptor());
    #[cfg(feature = "images-files")]
    registry.images.add(crate::image_store::files::descriptor());
    #[cfg(feature = "writeback-layers")]
    registry.writebacks.add(crate::writeback::layers::descriptor());
    #[cfg(feature = "writeback-reflink")]
    registry.writebacks.add(crate::writeback::reflink::descriptor());
    #[cfg(feature = "dhcp-proxy")]
    registry.dhcp.add(crate::dhcp::proxy::descriptor());
    #[cfg(feature = "dhcp-dnsmasq")]
    registry.dhcp.add(crate::dhcp::dnsmasq::descriptor());
    #[cfg(feature = "dhcp-isc-dhcpd")]
    registry.dhcp.add(crate::dhcp::isc_dhcpd::descriptor());
    #[cfg(feature = "bootfile-builtin")]
    registry.boot_files.add(crate::bootfile::builtin::descriptor());
    #[cfg(feature = "bootfile-tftpd-hpa")]
    registry.boot_files.add(crate::bootfile::tftpd_hpa::descriptor());
    #[cfg(feature = "external")]
    {
        use crate::external::descriptor::{boot_files, dhcp, writebacks};

        registry.dhcp.add(dhcp());
        registry.boot_files.add(boot_files());
        registry.writebacks.add(writebacks());
    }
    #[cfg(feature = "image-qemu-img")]
    registry.converters.add(crate::image::qemu_img::descriptor());
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ggnet_core::{
        nouns::InstanceId,
        registry::{PortName, Wiring},
    };
    use serde_json::json;

    use super::*;

    const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

    /// The texts between backticks.
    fn quoted(text: &str) -> impl Iterator<Item = String> + '_ {
        text.split('`').skip(1).step_by(2).map(|name| name.trim_matches(['[', ']']).to_owned())
    }

    /// The keys in docs/configuration.md, by the headings `### [port]: backend`; those of the table `service` by that word.
    fn documented() -> BTreeMap<(String, String), BTreeSet<String>> {
        let text = std::fs::read_to_string(DOCS).unwrap();
        let backends = text.split_once("\n## Backends\n").unwrap().1.split_once("\n## ").unwrap().0;
        let mut all = BTreeMap::<_, BTreeSet<String>>::new();
        for part in backends.split("\n### ").skip(1) {
            let (heading, body) = part.split_once('\n').unwrap();
            let rows: Vec<_> = body.lines().filter(|line| line.starts_with("| `")).collect();
            let sections: Vec<_> = match heading.split_once(": ") {
                Some((ports, backend)) => {
                    quoted(ports).map(|port| (port, quoted(backend).next().unwrap())).collect()
                }
                None => vec![("service".to_owned(), String::new())],
            };
            for (port, backend) in sections {
                let of_port =
                    |row: &&str| !row.contains("` only") || row.contains(&format!("`[{port}]` only"));
                let cells = rows.iter().filter(|row| of_port(row)).filter_map(|row| row.split('|').nth(1));
                let keys = cells.flat_map(quoted).collect();
                all.insert((port, backend), keys);
            }
        }
        all
    }

    #[test]
    #[cfg(all(feature = "store-sqlite", feature = "target-builtin", feature = "target-lio-targetcli"))]
    #[cfg(all(feature = "images-files", feature = "writeback-layers", feature = "writeback-reflink"))]
    #[cfg(feature = "external")]
    #[cfg(all(feature = "dhcp-proxy", feature = "dhcp-dnsmasq", feature = "dhcp-isc-dhcpd"))]
    #[cfg(all(feature = "bootfile-builtin", feature = "bootfile-tftpd-hpa", feature = "image-qemu-img"))]
    fn every_key_is_in_the_documentation_and_every_one_there_exists() {
        let mut registry = Registry::new();
        register(&mut registry);
        let documented = documented();
        let service = &documented[&("service".to_owned(), String::new())];
        let mut seen = 1;
        for port in PortName::ALL {
            for about in registry.all(port) {
                assert!(!about.summary().is_empty(), "{port} {}", about.name());
                let mut keys = BTreeSet::new();
                for (key, meaning) in about.keys().unwrap() {
                    assert!(
                        !meaning.is_empty() && keys.insert((*key).to_owned()),
                        "{port} {} {key}",
                        about.name()
                    );
                }
                let section = (port.to_string(), about.name().to_owned());
                let mut wanted = documented.get(&section).unwrap_or_else(|| panic!("no {section:?}")).clone();
                if wanted.remove("service") {
                    wanted.extend(service.iter().map(|key| format!("service.{key}")));
                }
                // A table without its own key is documented by one row.
                wanted.retain(|key| !keys.iter().any(|one| one.starts_with(&format!("{key}."))));
                assert_eq!(keys, wanted, "{section:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, documented.len(), "{:?}", documented.keys());
    }

    #[tokio::test]
    async fn every_key_is_one_that_the_backend_reads() {
        let mut registry = Registry::new();
        register(&mut registry);
        let wiring =
            Wiring::new(InstanceId::generate(), "iqn.2026-11.local.test".parse().unwrap(), "/".into());
        for port in PortName::ALL {
            for about in registry.all(port) {
                for (key, _) in about.keys().unwrap() {
                    // Matches no key, so nothing is checked.
                    let mut table = json!({ "no such thing": [] });
                    for part in key.rsplit('.') {
                        table = json!({ part: table });
                    }
                    let listens = about.listens(port, &wiring, table.clone()).err().map(|e| e.report());
                    let found = about.check(port, wiring.clone(), table).await.into_iter().map(|f| f.why);
                    let said: Vec<String> = listens.into_iter().chain(found).collect();
                    let unknown = format!("unknown field `{}`", key.rsplit('.').next().unwrap());
                    assert!(!said.is_empty(), "{port} {} {key}: it is taken", about.name());
                    assert!(
                        !said.iter().any(|why| why.contains(&unknown)),
                        "{port} {} {said:?}",
                        about.name()
                    );
                }
            }
        }
    }
}

//! What the sections of the DHCP backends have in common: their keys, what is decided elsewhere, and whether the boot file store fits.

use ggnet_core::{
    Result,
    registry::{Finding, Key, Level, PortName, Settings, Wiring, or_decided, settings},
};
use serde::de::DeserializeOwned;

/// Keys that every one of them has.
pub(super) const KEYS: &[Key] = &[
    ("http_port", "The port in script and HTTP boot URLs; default: that of http.listen"),
    ("http_files", "The path prefix of boot files in HTTP boot URLs; default: /files"),
    (
        "mac_prefix",
        "Use <mac>/<loader> as the name of a loader, to identify the machine that fetches it; default: true",
    ),
    ("loaders", "Loaders by architecture, in addition to the default ones; an empty string removes one"),
];

/// Reads a section.
pub(super) fn read<T: DeserializeOwned>(backend: &str, wiring: &Wiring, table: Settings) -> Result<T> {
    settings(backend, or_decided(table, "http_port", wiring.http_port))
}

/// What is wrong where loaders are named after machines, and the boot file store does not know such names.
pub(super) fn mac_paths(wiring: &Wiring, mac_prefix: bool) -> Option<Finding> {
    (mac_prefix && !wiring.mac_paths).then(|| {
        let store = wiring.backends.get(&PortName::BootFiles).map_or("the boot file store", String::as_str);
        let why = format!(
            "DHCP would use <mac>/<loader> as the name of a loader, but {store} does not serve such a path"
        );
        Finding::bad(Level::Fail, "names of loaders", why, "Set mac_prefix = false in [dhcp]")
    })
}

#[cfg(test)]
mod tests {
    use ggnet_core::nouns::InstanceId;

    use super::*;

    #[test]
    fn loaders_named_after_machines_fail_with_a_store_that_does_not_know_them() {
        let prefix = "iqn.2026-11.local.test".parse().unwrap();
        let mut wiring = Wiring::new(InstanceId::generate(), prefix, "/".into());
        assert_eq!(mac_paths(&wiring, true), None);
        wiring.backends.insert(PortName::BootFiles, "plain".to_owned());
        assert_eq!(mac_paths(&wiring, true), None);
        wiring.mac_paths = false;
        assert_eq!(mac_paths(&wiring, false), None);
        let found = mac_paths(&wiring, true).unwrap();
        assert!(found.why.contains("plain") && found.mend.unwrap().contains("mac_prefix = false"));
    }
}

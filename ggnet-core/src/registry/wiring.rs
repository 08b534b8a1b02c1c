//! What a backend receives when it is made or checked: [`Wiring`], the same for all backends, and [`Settings`], its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use super::port_name::PortName;
use crate::{
    error::{Error, ErrorKind, Result},
    nouns::{InstanceId, Iqn},
    ports::{Clock, SystemClock},
};

/// The decisions that are the same for all backends.
#[derive(Clone)]
pub struct Wiring {
    /// The id of this instance of GGnet. The store is opened before it is known and must not use it.
    pub instance: InstanceId,
    /// The start of every IQN.
    pub iqn_prefix: Iqn,
    /// The data folder; a backend keeps its files in a folder of its own below it.
    pub data_dir: PathBuf,
    /// The address to advertise, when configured; otherwise the local address of each connection.
    pub advertise: Option<IpAddr>,
    /// The HTTP server's port, for script URLs.
    pub http_port: u16,
    /// The address that machines reach us at, for a backend whose section does not say where to listen; `127.0.0.1`: no machine can.
    pub listen: IpAddr,
    /// The interfaces on which DHCP and TFTP may answer; empty: on no network.
    pub interfaces: Vec<String>,
    /// The backend that each port's section names.
    pub backends: BTreeMap<PortName, String>,
    /// Whether the boot file store that is named there accepts paths that start with a machine's MAC address.
    pub mac_paths: bool,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

impl Wiring {
    /// For no network: no address to advertise, HTTP on port 8080 and the system's clock.
    #[must_use]
    pub fn new(instance: InstanceId, iqn_prefix: Iqn, data_dir: PathBuf) -> Self {
        Self {
            instance,
            iqn_prefix,
            data_dir,
            advertise: None,
            http_port: 8080,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            interfaces: Vec::new(),
            backends: BTreeMap::new(),
            mac_paths: true,
            clock: Arc::new(SystemClock),
        }
    }

    /// Where iSCSI is reached, for a target whose section does not say so.
    #[must_use]
    pub fn iscsi(&self) -> SocketAddr {
        SocketAddr::new(self.listen, 3260)
    }
}

/// A backend's own table of the configuration, as JSON; a missing table is an empty object.
pub type Settings = serde_json::Value;

/// The settings, with a default for a key that the section does not have.
#[must_use]
pub fn or_decided(mut settings: Settings, key: &str, decided: impl Into<Settings>) -> Settings {
    if settings.is_null() {
        settings = Settings::Object(serde_json::Map::new());
    }
    if let Some(table) = settings.as_object_mut() {
        table.entry(key).or_insert_with(|| decided.into());
    }
    settings
}

/// Reads a backend's own settings; an unknown or wrong key is `Invalid`, and the error names it.
pub fn settings<T: serde::de::DeserializeOwned>(backend: &str, settings: Settings) -> Result<T> {
    let settings = if settings.is_null() { Settings::Object(serde_json::Map::new()) } else { settings };
    serde_json::from_value(settings).map_err(|e| {
        Error::new(ErrorKind::Invalid, format!("The settings of backend {backend} are wrong: {e}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_section_has_is_not_decided_elsewhere() {
        assert_eq!(or_decided(Settings::Null, "port", 1), serde_json::json!({ "port": 1 }));
        let own = serde_json::json!({ "port": 2 });
        assert_eq!(or_decided(own.clone(), "port", 1), own);
    }
}

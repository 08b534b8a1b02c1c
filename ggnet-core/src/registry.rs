//! [`Registry`]: a backend's name → the function that makes it. A stranger's backend is registered beside ours, and needs no fork.
//!
//! A factory gets its own table of the configuration and a [`Wiring`] with what is decided once for all backends. Unknown names answer
//! with the names that exist. A factory has [`MAKING`] to make its backend.

use std::{
    collections::BTreeMap, future::Future, net::IpAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration,
};

use crate::{
    error::{Error, ErrorKind, Result},
    nouns::{InstanceId, Iqn},
    ports::{BootFileStore, Clock, DhcpBackend, ImageConverter, Store, TargetBackend, WritebackStore},
};

/// How long a factory may take. Opening the largest database takes seconds; systemd gives a whole start 90 s.
pub const MAKING: Duration = Duration::from_secs(75);

/// How long it may take without a word in the log.
const SLOW: Duration = Duration::from_secs(5);

/// What is decided once for all backends.
#[derive(Clone)]
pub struct Wiring {
    /// This GGnet among others on the host. The store is opened before it is known and must not use it.
    pub instance: InstanceId,
    /// The start of every IQN.
    pub iqn_prefix: Iqn,
    /// The data folder; a backend keeps its files in a folder of its own below it.
    pub data_dir: PathBuf,
    /// The address to hand out, when configured; else each connection's own.
    pub advertise: Option<IpAddr>,
    /// The HTTP server's port, for script URLs.
    pub http_port: u16,
    /// The interfaces on which DHCP and TFTP may answer; none: on no network.
    pub interfaces: Vec<String>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// A backend's own table of the configuration, as JSON; a missing table is an empty object.
pub type Settings = serde_json::Value;

/// What a factory returns.
pub type Making<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

type Factory<P> = Arc<dyn Fn(Wiring, Settings) -> Making<Arc<P>> + Send + Sync>;

/// The factories of one port.
pub struct Factories<P: ?Sized> {
    port: &'static str,
    known: BTreeMap<&'static str, Factory<P>>,
}

impl<P: ?Sized> Factories<P> {
    const fn new(port: &'static str) -> Self {
        Self { port, known: BTreeMap::new() }
    }

    /// Adds a backend; a second one of the same name replaces the first, so that a stranger can replace ours.
    pub fn add<F, Fut>(&mut self, name: &'static str, factory: F)
    where
        F: Fn(Wiring, Settings) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<P>>> + Send + 'static,
    {
        self.known.insert(name, Arc::new(move |wiring, settings| Box::pin(factory(wiring, settings))));
    }

    /// The names that exist.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.known.keys().copied().collect()
    }

    /// Makes the backend of this name.
    ///
    /// # Errors
    /// `Invalid` for a name that is not known; `Timeout` when it was not made within [`MAKING`] (its factory is dropped then); else as the
    /// factory says.
    pub async fn make(&self, name: &str, wiring: Wiring, settings: Settings) -> Result<Arc<P>> {
        let factory = self.known.get(name).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("There is no {} backend {name:?}", self.port))
                .with_hint(format!("Known ones: {}", self.names().join(", ")))
        })?;
        let made = async {
            let mut made = std::pin::pin!(factory(wiring, settings));
            // Said while it lasts, for whoever watches a start that does not end.
            if let Ok(made) = tokio::time::timeout(SLOW, made.as_mut()).await {
                return made;
            }
            tracing::warn!(port = self.port, backend = name, "the start waits for this backend");
            made.await
        };
        let made = tokio::time::timeout(MAKING, made).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                format!("The {} backend {name} was not ready within {MAKING:?}", self.port),
            )
            .with_hint("Look at its daemon, program, folder or mount: it hangs"))
        });
        made.map_err(|e| if e.backend().is_some() { e } else { e.with_backend(name) })
    }
}

/// The factories of every port.
pub struct Registry {
    /// [`Store`]s.
    pub stores: Factories<dyn Store>,
    /// [`TargetBackend`]s.
    pub targets: Factories<dyn TargetBackend>,
    /// [`WritebackStore`]s.
    pub writebacks: Factories<dyn WritebackStore>,
    /// [`DhcpBackend`]s.
    pub dhcp: Factories<dyn DhcpBackend>,
    /// [`BootFileStore`]s.
    pub boot_files: Factories<dyn BootFileStore>,
    /// [`ImageConverter`]s.
    pub converters: Factories<dyn ImageConverter>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            stores: Factories::new("store"),
            targets: Factories::new("target"),
            writebacks: Factories::new("writeback"),
            dhcp: Factories::new("dhcp"),
            boot_files: Factories::new("boot_files"),
            converters: Factories::new("converter"),
        }
    }
}

impl Registry {
    /// No backends yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Reads a backend's own settings; an unknown or wrong key is `Invalid` and named.
pub fn settings<T: serde::de::DeserializeOwned>(backend: &str, settings: Settings) -> Result<T> {
    let settings = if settings.is_null() { Settings::Object(serde_json::Map::new()) } else { settings };
    serde_json::from_value(settings).map_err(|e| {
        Error::new(ErrorKind::Invalid, format!("The settings of backend {backend} are wrong: {e}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::SystemClock;

    #[tokio::test(start_paused = true)]
    async fn a_factory_that_hangs_is_given_up_by_name() {
        let mut registry = Registry::new();
        registry.dhcp.add("stuck", |_, _| std::future::pending());
        let wiring = Wiring {
            instance: InstanceId::generate(),
            iqn_prefix: "iqn.2026-11.local.test".parse().unwrap(),
            data_dir: PathBuf::new(),
            advertise: None,
            http_port: 8080,
            interfaces: vec![],
            clock: Arc::new(SystemClock),
        };
        let e = registry.dhcp.make("stuck", wiring, Settings::Null).await.err().unwrap();
        assert_eq!((e.kind(), e.backend()), (ErrorKind::Timeout, Some("stuck")));
        assert!(e.message().contains("dhcp backend stuck") && e.hint().is_some(), "{}", e.report());
    }
}

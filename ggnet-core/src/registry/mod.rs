//! [`Registry`]: a backend's name → its [`Descriptor`]: how it is made, its keys, what it listens on, its checks of the host. Backends from
//! outside this repository are registered in the same way, and need no fork.
//!
//! To make or check a backend, the caller passes the backend's own table of the configuration and a [`Wiring`] with the decisions that are
//! the same for all backends. The error for an unknown name or key lists those that exist. A factory has [`MAKING`] to make its backend.

mod descriptor;
mod finding;
mod port_name;
mod socket;
mod wiring;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::{BootFileStore, DhcpBackend, ImageConverter, ImageStore, Store, TargetBackend, WritebackStore},
};

pub use self::{
    descriptor::{About, Descriptor, Key, MAKING, Making},
    finding::{Finding, Level},
    port_name::PortName,
    socket::{BoundBy, Socket, Transport, both_families},
    wiring::{Settings, Wiring, or_decided, settings},
};

/// How long it may take before the log mentions it.
const SLOW: Duration = Duration::from_secs(5);

/// The registered backends of one port.
pub struct Descriptors<P: ?Sized> {
    port: PortName,
    known: BTreeMap<&'static str, Descriptor<P>>,
}

impl<P: ?Sized> Descriptors<P> {
    const fn new(port: PortName) -> Self {
        Self { port, known: BTreeMap::new() }
    }

    /// Adds a backend; a second one of the same name replaces the first, so that an embedder can replace a built-in one.
    pub fn add(&mut self, descriptor: Descriptor<P>) {
        self.known.insert(descriptor.about.name(), descriptor);
    }

    /// The names that exist.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.known.keys().copied().collect()
    }

    fn all(&self) -> Vec<&About> {
        self.known.values().map(|descriptor| &descriptor.about).collect()
    }

    fn get(&self, name: &str) -> Result<&Descriptor<P>> {
        self.known.get(name).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("There is no {} backend {name:?}", self.port))
                .with_hint(format!("Available backends: {}", self.names().join(", ")))
        })
    }

    fn about(&self, name: &str) -> Result<&About> {
        self.get(name).map(|descriptor| &descriptor.about)
    }

    /// Makes the backend of this name.
    ///
    /// # Errors
    /// `Invalid` for a name or a key that is not known; `Timeout` when it was not made within [`MAKING`] (its factory is dropped then);
    /// otherwise the factory's error.
    pub async fn make(&self, name: &str, wiring: Wiring, settings: Settings) -> Result<Arc<P>> {
        let Descriptor { about, make } = self.get(name)?;
        about.check_keys(self.port, &settings)?;
        let port = self.port.as_str();
        let made = async {
            let mut made = std::pin::pin!(make(wiring, settings));
            // Logged while it waits, so that an operator can see why a start does not end.
            if let Ok(made) = tokio::time::timeout(SLOW, made.as_mut()).await {
                return made;
            }
            tracing::warn!(port, backend = name, "the start waits for this backend");
            made.await
        };
        let made = tokio::time::timeout(MAKING, made).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                format!("The {port} backend {name} was not ready within {MAKING:?}"),
            )
            .with_hint("Check its daemon, program, folder or mount: it hangs"))
        });
        made.map_err(|e| if e.backend().is_some() { e } else { e.with_backend(name) })
    }
}

/// The registered backends of every port.
pub struct Registry {
    /// [`Store`]s.
    pub stores: Descriptors<dyn Store>,
    /// [`TargetBackend`]s.
    pub targets: Descriptors<dyn TargetBackend>,
    /// [`ImageStore`]s.
    pub images: Descriptors<dyn ImageStore>,
    /// [`WritebackStore`]s.
    pub writebacks: Descriptors<dyn WritebackStore>,
    /// [`DhcpBackend`]s.
    pub dhcp: Descriptors<dyn DhcpBackend>,
    /// [`BootFileStore`]s.
    pub boot_files: Descriptors<dyn BootFileStore>,
    /// [`ImageConverter`]s.
    pub converters: Descriptors<dyn ImageConverter>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            stores: Descriptors::new(PortName::Store),
            targets: Descriptors::new(PortName::Target),
            images: Descriptors::new(PortName::Images),
            writebacks: Descriptors::new(PortName::Writeback),
            dhcp: Descriptors::new(PortName::Dhcp),
            boot_files: Descriptors::new(PortName::BootFiles),
            converters: Descriptors::new(PortName::Converter),
        }
    }
}

impl Registry {
    /// No backends yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every backend of a port, by name.
    #[must_use]
    pub fn all(&self, port: PortName) -> Vec<&About> {
        match port {
            PortName::Store => self.stores.all(),
            PortName::Target => self.targets.all(),
            PortName::Images => self.images.all(),
            PortName::Writeback => self.writebacks.all(),
            PortName::Dhcp => self.dhcp.all(),
            PortName::BootFiles => self.boot_files.all(),
            PortName::Converter => self.converters.all(),
        }
    }

    /// What is known about the backend of this name.
    ///
    /// # Errors
    /// `Invalid`: there is none; the hint names those that exist.
    pub fn about(&self, port: PortName, name: &str) -> Result<&About> {
        match port {
            PortName::Store => self.stores.about(name),
            PortName::Target => self.targets.about(name),
            PortName::Images => self.images.about(name),
            PortName::Writeback => self.writebacks.about(name),
            PortName::Dhcp => self.dhcp.about(name),
            PortName::BootFiles => self.boot_files.about(name),
            PortName::Converter => self.converters.about(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nouns::InstanceId;

    fn wiring() -> Wiring {
        Wiring::new(InstanceId::generate(), "iqn.2026-11.local.test".parse().unwrap(), "/".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_factory_that_hangs_is_given_up_by_name() {
        let mut registry = Registry::new();
        registry.dhcp.add(Descriptor::new("stuck", |_, _| std::future::pending()));
        let e = registry.dhcp.make("stuck", wiring(), Settings::Null).await.err().unwrap();
        assert_eq!((e.kind(), e.backend()), (ErrorKind::Timeout, Some("stuck")));
        assert!(e.message().contains("dhcp backend stuck") && e.hint().is_some(), "{}", e.report());
    }

    #[tokio::test]
    async fn unknown_names_and_keys_answer_with_those_that_exist_and_nothing_is_made() {
        let mut registry = Registry::new();
        registry.dhcp.add(Descriptor::new("mine", |_, _| std::future::pending()).keys(&[("path", "A file")]));
        let e = registry.dhcp.make("yours", wiring(), Settings::Null).await.err().unwrap();
        assert_eq!((e.kind(), e.hint()), (ErrorKind::Invalid, Some("Available backends: mine")));
        let e = registry.dhcp.make("mine", wiring(), serde_json::json!({ "pfad": 1 })).await.err().unwrap();
        assert_eq!((e.kind(), e.hint()), (ErrorKind::Invalid, Some("Keys of mine: path")));
        assert_eq!(registry.about(PortName::Dhcp, "mine").unwrap().keys().unwrap().len(), 1);
        assert!(registry.about(PortName::Target, "mine").is_err());
    }
}

//! [`Descriptor`]: what a backend registers. Its name and its factory are required. With the keys of its configuration, its sockets and its
//! checks of the host, `ggnet-server` can list it, reject a wrong key and check the host before it starts.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{
    finding::{Finding, Level},
    port_name::PortName,
    socket::Socket,
    wiring::{Settings, Wiring},
};
use crate::{
    error::{Error, ErrorKind, Result},
    ports::{BootFileStore, Store},
};

/// How long a factory may take. Opening the largest database takes seconds; systemd gives a whole start 90 s.
pub const MAKING: Duration = Duration::from_secs(75);

/// A key of a backend's section, and one line that says what it means. A key of a nested table is `table.key`.
pub type Key = (&'static str, &'static str);

/// What a factory returns.
pub type Making<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

pub(super) type Factory<P> = Arc<dyn Fn(Wiring, Settings) -> Making<Arc<P>> + Send + Sync>;
type Check = Arc<dyn Fn(Wiring, Settings) -> Making<Vec<Finding>> + Send + Sync>;
type KeyReset = Arc<dyn Fn(Wiring, Settings) -> Making<String> + Send + Sync>;
type Listens = Arc<dyn Fn(&Wiring, Settings) -> Result<Vec<Socket>> + Send + Sync>;

/// What is known about a backend before it is made.
pub struct About {
    name: &'static str,
    summary: &'static str,
    /// `None`: only the factory knows them.
    keys: Option<Vec<Key>>,
    check: Option<Check>,
    listens: Option<Listens>,
    key_reset: Option<KeyReset>,
    serves_mac_paths: bool,
}

/// A backend of port `P` as it is registered. Its name and its factory are required; everything else is optional.
///
/// ```
/// # use std::sync::Arc;
/// # use ggnet_core::{Result, ports::DhcpBackend, registry::{Descriptor, Finding, Registry, Settings, Wiring}};
/// # async fn make(_: Wiring, _: Settings) -> Result<Arc<dyn DhcpBackend>> { std::future::pending().await }
/// # async fn check(_: Wiring, _: Settings) -> Result<Vec<Finding>> { Ok(vec![]) }
/// let mut registry = Registry::new();
/// registry.dhcp.add(
///     Descriptor::new("ethers", make)
///         .summary("An ethers file, for a DHCP server that somebody else runs")
///         .keys(&[("path", "The file; left out: ethers in the data folder")])
///         .check(check),
/// );
/// ```
pub struct Descriptor<P: ?Sized> {
    pub(super) about: About,
    pub(super) make: Factory<P>,
}

impl<P: ?Sized> Descriptor<P> {
    /// A backend of this name, which `make` makes from the wiring and the backend's own section.
    pub fn new<F, Fut>(name: &'static str, make: F) -> Self
    where
        F: Fn(Wiring, Settings) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<P>>> + Send + 'static,
    {
        let about = About {
            name,
            summary: "",
            keys: None,
            check: None,
            listens: None,
            key_reset: None,
            serves_mac_paths: true,
        };
        Self { about, make: Arc::new(move |wiring, settings| Box::pin(make(wiring, settings))) }
    }

    /// What it is, in a few words without a full stop.
    #[must_use]
    pub fn summary(mut self, summary: &'static str) -> Self {
        self.about.summary = summary;
        self
    }

    /// Adds keys that its section may have; all other keys are then rejected. `&[]` for a backend without keys.
    #[must_use]
    pub fn keys(mut self, keys: &[Key]) -> Self {
        self.about.keys.get_or_insert_default().extend_from_slice(keys);
        self
    }

    /// Sets its check of the host: whether the host has what the backend needs. The check changes nothing, and may run while a server is
    /// running. An error that it returns becomes a finding.
    #[must_use]
    pub fn check<F, Fut>(mut self, check: F) -> Self
    where
        F: Fn(Wiring, Settings) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Finding>>> + Send + 'static,
    {
        self.about.check = Some(Arc::new(move |wiring, settings| Box::pin(check(wiring, settings))));
        self
    }

    /// Sets where it would listen with this section, for the check and for collisions at the start.
    #[must_use]
    pub fn listens(
        mut self,
        listens: impl Fn(&Wiring, Settings) -> Result<Vec<Socket>> + Send + Sync + 'static,
    ) -> Self {
        self.about.listens = Some(Arc::new(listens));
        self
    }
}

impl Descriptor<dyn BootFileStore> {
    /// Declares that its TFTP server does not accept paths that start with a machine's MAC address, by which DHCP backends learn which
    /// machine fetched a loader.
    #[must_use]
    pub fn without_mac_paths(mut self) -> Self {
        self.about.serves_mac_paths = false;
        self
    }
}

impl Descriptor<dyn Store> {
    /// Sets what `ggnet-server key reset` does, for a store that encrypts credentials with a key that can be lost: it makes a new key, ends
    /// everything that needs the old one, and reports it. No server uses the store meanwhile.
    #[must_use]
    pub fn resets_key<F, Fut>(mut self, reset: F) -> Self
    where
        F: Fn(Wiring, Settings) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String>> + Send + 'static,
    {
        self.about.key_reset = Some(Arc::new(move |wiring, settings| Box::pin(reset(wiring, settings))));
        self
    }
}

impl About {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it is, in a few words; may be empty.
    #[must_use]
    pub const fn summary(&self) -> &'static str {
        self.summary
    }

    /// The keys of its section; `None` if it does not declare them.
    #[must_use]
    pub fn keys(&self) -> Option<&[Key]> {
        self.keys.as_deref()
    }

    /// Whether its TFTP server accepts paths that start with a machine's MAC address; for boot file stores.
    #[must_use]
    pub const fn serves_mac_paths(&self) -> bool {
        self.serves_mac_paths
    }

    /// Makes a new key in place of a lost one; returns what was done, as text for people.
    ///
    /// # Errors
    /// `Invalid`: it has no such key, or its section is wrong; otherwise the backend's error.
    pub async fn reset_key(&self, port: PortName, wiring: Wiring, settings: Settings) -> Result<String> {
        self.check_keys(port, &settings)?;
        let Some(reset) = &self.key_reset else {
            let message = format!("The {port} {} has no key file that GGnet manages", self.name);
            return Err(Error::invalid(format!("{port}.backend"), message));
        };
        reset(wiring, settings).await
    }

    /// Rejects a key that it does not have.
    ///
    /// # Errors
    /// `Invalid`, naming the key and those that it has.
    pub fn check_keys(&self, port: PortName, settings: &Settings) -> Result<()> {
        let Some(known) = &self.keys else { return Ok(()) };
        let Some(unknown) = unknown_key(known, "", settings) else { return Ok(()) };
        let names: Vec<_> = known.iter().map(|(key, _)| *key).collect();
        let hint = if names.is_empty() {
            format!("Remove it: {} has no keys", self.name)
        } else {
            format!("Keys of {}: {}", self.name, names.join(", "))
        };
        let message =
            format!("Section [{port}] has the key {unknown:?}, which backend {} does not know", self.name);
        Err(Error::new(ErrorKind::Invalid, message).with_backend(self.name).with_hint(hint))
    }

    /// Runs its check of this host. Every failure is a finding: a wrong section, a check that fails or does not end within [`MAKING`].
    pub async fn check(&self, port: PortName, wiring: Wiring, settings: Settings) -> Vec<Finding> {
        let looking = async {
            self.check_keys(port, &settings)?;
            match &self.check {
                Some(check) => check(wiring, settings).await,
                None => Ok(Vec::new()),
            }
        };
        let looked = tokio::time::timeout(MAKING, looking).await.unwrap_or_else(|_| {
            let message = format!("The check of backend {} did not end within {MAKING:?}", self.name);
            Err(Error::new(ErrorKind::Timeout, message))
        });
        looked.unwrap_or_else(|e| vec![Finding::failed(Level::Fail, format!("section [{port}]"), &e)])
    }

    /// Where it would listen.
    ///
    /// # Errors
    /// `Invalid`: its section is wrong.
    pub fn listens(&self, port: PortName, wiring: &Wiring, settings: Settings) -> Result<Vec<Socket>> {
        self.check_keys(port, &settings)?;
        match &self.listens {
            Some(listens) => listens(wiring, settings),
            None => Ok(Vec::new()),
        }
    }
}

/// The first unknown key. A table is searched if keys within it are known.
fn unknown_key(known: &[Key], prefix: &str, settings: &Settings) -> Option<String> {
    settings.as_object()?.iter().find_map(|(key, value)| {
        let key = format!("{prefix}{key}");
        let within = format!("{key}.");
        if known.iter().any(|(name, _)| name.starts_with(&within)) {
            unknown_key(known, &within, value)
        } else {
            known.iter().all(|(name, _)| *name != key).then_some(key)
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{nouns::InstanceId, ports::DhcpBackend};

    fn descriptor() -> Descriptor<dyn DhcpBackend> {
        Descriptor::new("mine", |_, _| std::future::pending())
    }

    #[test]
    fn an_unknown_key_is_refused_with_those_that_exist() {
        let mine =
            descriptor().keys(&[("path", "A file")]).keys(&[("tls.key", "A key"), ("more", "A table")]);
        let check = |settings| mine.about.check_keys(PortName::Dhcp, &settings);
        check(Settings::Null).unwrap();
        check(json!({ "path": "/x", "tls": { "key": 1 }, "more": { "any": 1 } })).unwrap();
        for (settings, unknown) in
            [(json!({ "pfad": "/x" }), "\"pfad\""), (json!({ "tls": { "kee": 1 } }), "\"tls.kee\"")]
        {
            let e = check(settings).unwrap_err();
            assert!(e.message().contains(unknown) && e.message().contains("[dhcp]"), "{e}");
            assert_eq!(e.hint(), Some("Keys of mine: path, tls.key, more"));
        }
        let none = descriptor().keys(&[]);
        let e = none.about.check_keys(PortName::Dhcp, &json!({ "x": 1 })).unwrap_err();
        assert!(e.hint().unwrap().contains("no keys"));
        descriptor().about.check_keys(PortName::Dhcp, &json!({ "x": 1 })).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_fails_or_hangs_is_a_finding() {
        let port = PortName::Dhcp;
        let look = async |mine: Descriptor<dyn DhcpBackend>| {
            let prefix = "iqn.2026-11.local.test".parse().unwrap();
            let wiring = Wiring::new(InstanceId::generate(), prefix, "/".into());
            mine.about.check(port, wiring, Settings::Null).await
        };
        assert_eq!(look(descriptor()).await, []);
        let fine = Finding::ok("a file", "It is there");
        let found = fine.clone();
        assert_eq!(
            look(descriptor().check(move |_, _| std::future::ready(Ok(vec![found.clone()])))).await,
            [fine]
        );
        let refused = || Error::new(ErrorKind::Unavailable, "No file").with_hint("Make it");
        let failed = look(descriptor().check(move |_, _| std::future::ready(Err(refused())))).await;
        assert_eq!((failed[0].level, failed[0].mend.as_deref()), (Level::Fail, Some("Make it")));
        assert_eq!(failed[0].what, "section [dhcp]");
        let hung = look(descriptor().check(|_, _| std::future::pending())).await;
        assert!(hung[0].level == Level::Fail && hung[0].why.contains("did not end"), "{hung:?}");
    }

    #[tokio::test]
    async fn only_a_store_that_says_so_resets_its_key() {
        let reset = async |store: &Descriptor<dyn Store>| {
            let prefix = "iqn.2026-11.local.test".parse().unwrap();
            let wiring = Wiring::new(InstanceId::generate(), prefix, "/".into());
            store.about.reset_key(PortName::Store, wiring, Settings::Null).await
        };
        let plain = Descriptor::<dyn Store>::new("plain", |_, _| std::future::pending());
        let e = reset(&plain).await.unwrap_err();
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("store.backend")));
        assert_eq!(e.message(), "The store plain has no key file that GGnet manages");
        let sealing = plain.resets_key(|_, _| std::future::ready(Ok("A new key".to_owned())));
        assert_eq!(reset(&sealing).await.unwrap(), "A new key");
    }
}

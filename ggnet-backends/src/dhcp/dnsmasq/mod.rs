//! The `dnsmasq` DHCP backend: one or two files for each machine in folders that dnsmasq watches.
//!
//! ```text
//!   ensure, new machine       options file ─▶ hosts file                                dnsmasq reads both by inotify
//!   ensure, changed machine   marker ─▶ options file ─▶ hosts file ─▶ restart ─▶ remove marker
//!   remove                    marker ─▶ remove hosts file ─▶ remove options file ─▶ restart ─▶ remove marker
//! ```
//! dnsmasq reads a new file when it appears, but keeps what it read from a file that was changed or removed. So before a change or a
//! removal the backend creates a marker next to the hosts file, and the entry is `Partial` until dnsmasq was restarted. An addition need
//! not wait: the rename queues the inotify event before it returns, and dnsmasq processes events before it reads a DHCP packet.
//!
//! Why a restart and not SIGHUP: at SIGHUP dnsmasq 2.90 (Debian 12) frees the tags of a `dhcp-hostsdir` line together with everything that
//! the last request of that machine linked to them, and crashes at the next request. A restart keeps the leases (they are in a file), takes
//! some hundredths of a second, and one restart serves all changes within a time window.
//!
//! dnsmasq's main file belongs to the operator; GGnet only writes files named `ggnet-<instance>-<id>`. `render` generates their content.
//!
//! Invariants: only one call at a time works on the files of one machine, in a task that completes even if the caller is gone; the files on
//! disk are the only state.

mod descriptor;
mod render;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use ggnet_core::{
    Error, Result,
    nouns::{InstanceId, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal, Health, Listed,
        Observer,
    },
};
use serde::{Deserialize, Serialize};

pub use self::descriptor::descriptor;
use super::{
    arch::Arch,
    calls::{self, Calls},
    daemon, files, loaders,
};
use crate::{
    run::CommandRunner,
    service::{Batch, Daemon, Service, ServiceConfig, State},
};

/// The backend's name in the configuration and in errors.
pub const NAME: &str = "dnsmasq";

/// Debian's dnsmasq.
const DAEMON: Daemon = Daemon {
    program: "dnsmasq",
    install: "apt-get install dnsmasq",
    unit: "dnsmasq.service",
    pid_file: "/run/dnsmasq/dnsmasq.pid",
    command: None,
};

/// How long a restart waits for further changes: during a restart dnsmasq does not answer, and systemd counts restarts.
const WINDOW: Duration = Duration::from_millis(100);

/// Whether dnsmasq assigns addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Yes: it has each machine's address, host name and boot files.
    #[default]
    Server,
    /// No, another server does. dnsmasq answers in addition, only for registered machines; its main file has the boot files.
    Proxy,
}

/// The files that dnsmasq reads, and their content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsmasqConfig {
    /// Whether dnsmasq assigns addresses; must match dnsmasq's own `dhcp-range`.
    pub mode: Mode,
    /// `dhcp-hostsdir` in dnsmasq's main file; dnsmasq's user must be able to read it.
    pub hosts_dir: PathBuf,
    /// `dhcp-optsdir` in dnsmasq's main file.
    pub options_dir: PathBuf,
    /// The advertised address: next-server, and the host in URLs. Required in server mode.
    pub advertise: Option<Ipv4Addr>,
    /// The port of our HTTP server, for scripts and HTTP boot.
    pub http_port: u16,
    /// The path of the boot files on our HTTP server.
    pub http_files: String,
    /// Use `<mac>/<loader>` as the name of a loader: the `builtin` boot file store supports this, other TFTP servers do not.
    pub mac_prefix: bool,
    /// Loaders by architecture, in addition to the default ones.
    pub loaders: BTreeMap<Arch, String>,
    /// The daemon.
    pub service: ServiceConfig,
}

impl Default for DnsmasqConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            hosts_dir: "/var/lib/ggnet-dhcp/dnsmasq/hosts".into(),
            options_dir: "/var/lib/ggnet-dhcp/dnsmasq/options".into(),
            advertise: None,
            http_port: 8080,
            http_files: "/files".to_owned(),
            mac_prefix: true,
            loaders: BTreeMap::new(),
            service: ServiceConfig::default(),
        }
    }
}

impl DnsmasqConfig {
    /// The configured daemon.
    ///
    /// # Errors
    /// As [`Service::new`].
    pub fn service(&self, runner: Arc<dyn CommandRunner>) -> Result<Service> {
        Service::new(&self.service, &DAEMON, runner)
    }
}

/// dnsmasq, configured through its files.
pub struct Dnsmasq {
    inner: Arc<Inner>,
    calls: Calls,
}

struct Inner {
    config: DnsmasqConfig,
    advertise: Ipv4Addr,
    /// `ggnet-<instance>-`, the prefix of a machine's id.
    prefix: String,
    service: Arc<Service>,
    forget: Batch,
}

impl Dnsmasq {
    /// Creates missing folders, removes incomplete files of a killed GGnet, and starts dnsmasq if a start command is configured
    /// (`service.command`). It is not an error here if dnsmasq does not run: [`DhcpBackend::health`] and each `ensure` report it.
    ///
    /// # Errors
    /// `Invalid` configuration; `Permission` or another kind for a folder, which is named; errors of starting the daemon.
    pub async fn open(
        config: DnsmasqConfig,
        instance: &InstanceId,
        runner: Arc<dyn CommandRunner>,
    ) -> Result<Self> {
        let named = |e: Error| e.with_backend(NAME).with_operation("open");
        loaders::validate(&config.loaders).map_err(named)?;
        loaders::validate_http_files(&config.http_files).map_err(named)?;
        let advertise = match config.mode {
            Mode::Server => daemon::require_advertise(config.advertise).map_err(named)?,
            // dnsmasq's own file has the boot files.
            Mode::Proxy => Ipv4Addr::UNSPECIFIED,
        };
        let service = Arc::new(config.service(runner).map_err(named)?);
        let prefix = format!("ggnet-{instance}-");
        let (dirs, leftover) = ([config.hosts_dir.clone(), config.options_dir.clone()], format!(".{prefix}"));
        files::blocking(move || dirs.iter().try_for_each(|dir| prepare(dir, &leftover)))
            .await
            .map_err(named)?;
        if config.service.command.is_some() {
            // A killed GGnet may have stopped dnsmasq without starting it again: it may be about to exit.
            let (dir, ours) = (config.hosts_dir.clone(), format!(".{prefix}"));
            let unconfirmed =
                move || Ok(files::names(&dir)?.iter().any(|n| n.starts_with(&ours) && n.ends_with(MARKER)));
            if files::blocking(unconfirmed).await.map_err(named)? {
                service.restart().await.map_err(named)?;
            } else if matches!(service.state().await.map_err(named)?, State::Stopped(_)) {
                service.start().await.map_err(named)?;
            }
        }
        let for_batch = Arc::clone(&service);
        let forget = Batch::new(WINDOW, move |_: Vec<()>| {
            let service = Arc::clone(&for_batch);
            async move { forget(&service).await }
        });
        let inner = Inner { config, advertise, prefix, service, forget };
        Ok(Self { inner: Arc::new(inner), calls: Calls::of(NAME) })
    }
}

/// Makes dnsmasq forget removed entries. If it does not run, there is nothing to forget.
async fn forget(service: &Service) -> Result<()> {
    match service.state().await? {
        State::Running | State::Suspended(_) => service.restart().await,
        State::Stopped(_) => Ok(()),
    }
}

/// Creates the folder and removes the temporary files of an `AtomicWriteFile` of a killed process.
fn prepare(dir: &Path, leftover: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| files::error("Making", dir, e))?;
    for name in files::names(dir)? {
        if name.starts_with(leftover) && !name.ends_with(MARKER) {
            files::remove(&dir.join(name))?;
        }
    }
    Ok(())
}

/// The suffix of a marker's name; the name starts with a dot, so dnsmasq does not read it.
const MARKER: &str = ".untold";

impl Inner {
    fn name(&self, id: &ResourceId) -> String {
        format!("{}{id}", self.prefix)
    }

    fn hosts(&self, id: &ResourceId) -> PathBuf {
        self.config.hosts_dir.join(self.name(id))
    }

    fn options(&self, id: &ResourceId) -> PathBuf {
        self.config.options_dir.join(self.name(id))
    }

    fn marker(&self, id: &ResourceId) -> PathBuf {
        self.config.hosts_dir.join(format!(".{}{MARKER}", self.name(id)))
    }

    async fn make(self: Arc<Self>, change: DhcpChange) -> Result<()> {
        match change {
            DhcpChange::Ensure(host) => self.ensure(host).await,
            DhcpChange::Remove(id) => self.remove(id).await,
        }
    }

    async fn ensure(self: Arc<Self>, host: DhcpHost) -> Result<()> {
        let want = render::render(&host, &self.name(&host.id), &self.config, self.advertise)?;
        self.service.require_running().await?;
        let (this, id) = (Arc::clone(&self), host.id.clone());
        let unconfirmed = files::blocking(move || this.write(&id, &want)).await?;
        self.confirm(&host.id, unconfirmed).await
    }

    async fn remove(self: Arc<Self>, id: ResourceId) -> Result<()> {
        let (this, of) = (Arc::clone(&self), id.clone());
        let unconfirmed = files::blocking(move || this.erase(&of)).await?;
        self.confirm(&id, unconfirmed).await
    }

    /// Makes dnsmasq read the change, and removes the marker.
    async fn confirm(self: &Arc<Self>, id: &ResourceId, unconfirmed: bool) -> Result<()> {
        if !unconfirmed {
            return Ok(());
        }
        self.forget.join(()).await?;
        let marker = self.marker(id);
        files::blocking(move || files::remove(&marker)).await
    }

    /// Writes the files; returns whether dnsmasq must be restarted.
    fn write(&self, id: &ResourceId, want: &render::Files) -> Result<bool> {
        let (hosts, options, marker) = (self.hosts(id), self.options(id), self.marker(id));
        let (old_hosts, old_options) = (files::read(&hosts)?, files::read(&options)?);
        let differs = |old: &Option<String>, new: Option<&String>| old.is_some() && old.as_ref() != new;
        let mut unconfirmed = marker.exists();
        if !unconfirmed
            && (differs(&old_hosts, Some(&want.hosts)) || differs(&old_options, want.options.as_ref()))
        {
            files::write(&marker, "")?;
            unconfirmed = true;
        }
        // The options first, so that a machine that dnsmasq knows always has its boot files.
        match &want.options {
            Some(text) if old_options.as_ref() != Some(text) => files::write(&options, text)?,
            Some(_) => {}
            None => files::remove(&options)?,
        }
        if old_hosts.as_ref() != Some(&want.hosts) {
            files::write(&hosts, &want.hosts)?;
        }
        Ok(unconfirmed)
    }

    /// Removes the files; returns whether dnsmasq must be restarted.
    fn erase(&self, id: &ResourceId) -> Result<bool> {
        let (hosts, options, marker) = (self.hosts(id), self.options(id), self.marker(id));
        if !marker.exists() {
            if !hosts.exists() && !options.exists() {
                return Ok(false);
            }
            files::write(&marker, "")?;
        }
        files::remove(&hosts)?;
        files::remove(&options)?;
        Ok(true)
    }

    fn get(&self, id: ResourceId) -> Result<Option<Listed>> {
        let files = [self.hosts(&id), self.options(&id), self.marker(&id)];
        files.iter().any(|file| file.exists()).then(|| self.look(id)).transpose()
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let mut ids = BTreeSet::new();
        for name in
            files::names(&self.config.hosts_dir)?.iter().chain(&files::names(&self.config.options_dir)?)
        {
            let plain = name.strip_prefix('.').and_then(|n| n.strip_suffix(MARKER)).unwrap_or(name);
            ids.extend(plain.strip_prefix(&self.prefix).and_then(|id| id.parse::<ResourceId>().ok()));
        }
        ids.into_iter().map(|id| self.look(id)).collect()
    }

    /// Whole means: dnsmasq has read everything, and both files are what this configuration generates for the spec in the hosts file.
    fn look(&self, id: ResourceId) -> Result<Listed> {
        let hosts = files::read(&self.hosts(&id))?;
        let spec = hosts.as_deref().and_then(render::spec).filter(|spec| spec.id == id);
        let want =
            spec.as_ref().and_then(|s| render::render(s, &self.name(&id), &self.config, self.advertise).ok());
        let whole = match (want, hosts) {
            (Some(want), Some(hosts)) => {
                hosts == want.hosts
                    && files::read(&self.options(&id))? == want.options
                    && !self.marker(&id).exists()
            }
            _ => false,
        };
        let completeness = if whole { Completeness::Whole } else { Completeness::Partial };
        Ok(Listed { id, digest: spec.map(|spec| spec.digest()), completeness })
    }
}

#[async_trait]
impl DhcpBackend for Dnsmasq {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> DhcpCapabilities {
        DhcpCapabilities { leases: self.inner.config.mode == Mode::Server, observes: false }
    }

    /// dnsmasq does not report what it answers.
    fn attach(&self, _: Arc<dyn Observer>) {}

    /// If the future is dropped, the call still completes.
    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        Ok(self.calls.each(changes, |change| Arc::clone(&self.inner).make(change)).await)
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        self.calls.whole("get", files::blocking(move || inner.get(id))).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let inner = Arc::clone(&self.inner);
        self.calls.whole("list", files::blocking(move || inner.list())).await
    }

    async fn health(&self) -> Health {
        let inner = &self.inner;
        let folders = [inner.config.hosts_dir.clone(), inner.config.options_dir.clone()];
        calls::trouble(&inner.service, folders).await.unwrap_or(Health::Up)
    }

    /// dnsmasq continues to run: it is not ours, and running machines have leases from it.
    async fn shutdown(&self) {
        self.calls.finish().await;
        self.inner.forget.finish().await;
    }
}

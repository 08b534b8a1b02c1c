//! The `isc-dhcpd` DHCP backend: host declarations in one file that the main file of ISC dhcpd includes.
//!
//! ```text
//!   ensure, remove ─▶ lock of the machine ─▶ wait for further changes ─▶ one change of the file, one check, one restart for all
//! ```
//! dhcpd reads its files only at start, so it is restarted, once for all changes within a time window; leases survive a restart, because
//! they are in a file. If OMAPI is configured, dhcpd gets each change while it runs. `keeper` makes a change, `text` generates the file,
//! `omapi` is the protocol.
//!
//! dhcpd's main file belongs to the operator; GGnet owns the file that it includes, and two files next to it.
//!
//! Invariants: only one call at a time for one machine, in a task that completes even if the caller is gone; the files on disk are the only
//! state.

mod descriptor;
mod keeper;
mod omapi;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use ggnet_core::{
    ErrorKind, Result,
    nouns::{InstanceId, ResourceId},
    ports::{
        Completeness, DhcpBackend, DhcpCapabilities, DhcpChange, DhcpHost, DhcpRefusal, Health, Listed,
        Observer,
    },
};
use serde::{Deserialize, Serialize};

use self::{
    keeper::{Change, Keeper, OnDisk},
    omapi::Omapi,
    text::Text,
};
use super::{
    arch::Arch,
    calls::{self, Calls},
    daemon, files, loaders,
};
use crate::{
    run::CommandRunner,
    service::{Batch, Daemon, Service, ServiceConfig, State},
};

pub use descriptor::descriptor;
pub use omapi::{KeyAlgorithm, OmapiConfig};

/// The backend's name in the configuration and in errors.
pub const NAME: &str = "isc-dhcpd";

/// Debian's isc-dhcp-server.
const DAEMON: Daemon = Daemon {
    program: "dhcpd",
    install: keeper::INSTALL,
    unit: "isc-dhcp-server.service",
    pid_file: "/run/dhcpd.pid",
    command: None,
};

/// How long a change waits for further changes: during a restart dhcpd does not answer, and systemd counts restarts.
const WINDOW: Duration = Duration::from_millis(100);
/// The same without a restart: only so that concurrent changes share one check.
const OMAPI_WINDOW: Duration = Duration::from_millis(5);

/// The files that dhcpd reads, and their content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IscDhcpdConfig {
    /// dhcpd's main file, which is checked before a change takes effect; we must be able to read it.
    pub main_file: PathBuf,
    /// The file that the main file includes and that we write; dhcpd must be able to read it.
    pub hosts_file: PathBuf,
    /// The advertised address: next-server, and the host in URLs. Required.
    pub advertise: Option<Ipv4Addr>,
    /// The port of our HTTP server, for scripts and HTTP boot.
    pub http_port: u16,
    /// The path of the boot files on our HTTP server.
    pub http_files: String,
    /// Use `<mac>/<loader>` as the name of a loader: the `builtin` boot file store supports this, other TFTP servers do not.
    pub mac_prefix: bool,
    /// Loaders by architecture, in addition to the default ones.
    pub loaders: BTreeMap<Arch, String>,
    /// Pass changes to dhcpd by OMAPI; without this, dhcpd is restarted.
    pub omapi: Option<OmapiConfig>,
    /// The daemon.
    pub service: ServiceConfig,
}

impl Default for IscDhcpdConfig {
    fn default() -> Self {
        Self {
            main_file: "/etc/dhcp/dhcpd.conf".into(),
            // Debian's AppArmor profile allows dhcpd to read below /etc/dhcp.
            hosts_file: "/etc/dhcp/ggnet/hosts.conf".into(),
            advertise: None,
            http_port: 8080,
            http_files: "/files".to_owned(),
            mac_prefix: true,
            loaders: BTreeMap::new(),
            omapi: None,
            service: ServiceConfig::default(),
        }
    }
}

impl IscDhcpdConfig {
    /// The configured daemon.
    ///
    /// # Errors
    /// As [`Service::new`].
    pub fn service(&self, runner: Arc<dyn CommandRunner>) -> Result<Service> {
        Service::new(&self.service, &DAEMON, runner)
    }
}

/// ISC dhcpd, configured through the file that it includes.
pub struct IscDhcpd {
    inner: Arc<Inner>,
    calls: Calls,
}

struct Inner {
    keeper: Arc<Keeper>,
    changes: Batch<Change>,
}

impl IscDhcpd {
    /// Creates the folder and the file if they are missing, reverts what a killed GGnet left unfinished, and starts dhcpd if a start
    /// command is configured (`service.command`). It is not an error here if dhcpd does not run: [`DhcpBackend::health`] and each `ensure`
    /// report it.
    ///
    /// # Errors
    /// `Invalid` configuration; `Conflict` for a file that this GGnet did not write; `Permission` or another kind for a folder or file,
    /// which is named; errors of starting the daemon.
    pub async fn open(
        config: IscDhcpdConfig,
        instance: &InstanceId,
        runner: Arc<dyn CommandRunner>,
    ) -> Result<Self> {
        Self::opened(config, instance, runner).await.map_err(|e| e.with_backend(NAME).with_operation("open"))
    }

    async fn opened(
        config: IscDhcpdConfig,
        instance: &InstanceId,
        runner: Arc<dyn CommandRunner>,
    ) -> Result<Self> {
        loaders::validate(&config.loaders)?;
        loaders::validate_http_files(&config.http_files)?;
        let advertise = daemon::require_advertise(config.advertise)?;
        let service = config.service(Arc::clone(&runner))?;
        let ours_to_start = config.service.command.is_some();
        let window = if config.omapi.is_some() { OMAPI_WINDOW } else { WINDOW };
        let (files, omapi) = ((config.hosts_file.clone(), config.main_file.clone()), config.omapi.clone());
        let text = Text::new(config, advertise, instance)?;
        let prepared = files::blocking(move || {
            let omapi = omapi.as_ref().map(Omapi::open).transpose()?;
            let keeper = Keeper::new(text, files, service, omapi, runner);
            let cut_short = keeper.prepare()?;
            Ok((Arc::new(keeper), cut_short))
        });
        let (keeper, cut_short) = prepared.await?;
        if ours_to_start && cut_short {
            // The running dhcpd may be one that the interrupted restart has already asked to stop.
            keeper.service.restart().await?;
        } else if ours_to_start && matches!(keeper.service.state().await?, State::Stopped(_)) {
            keeper.service.start().await?;
        }
        let changed = Arc::clone(&keeper);
        let changes = Batch::new(window, move |changes| Arc::clone(&changed).apply(changes));
        let inner = Inner { keeper, changes };
        Ok(Self { inner: Arc::new(inner), calls: Calls::of(NAME) })
    }
}

impl Inner {
    async fn make(self: Arc<Self>, change: DhcpChange) -> Result<()> {
        match change {
            DhcpChange::Ensure(host) => self.ensure(host).await,
            DhcpChange::Remove(id) => self.remove(id).await,
        }
    }

    async fn ensure(self: Arc<Self>, host: DhcpHost) -> Result<()> {
        let block = self.keeper.text.block(&host)?;
        self.keeper.service.require_running().await?;
        self.change(host.id, Some(block)).await
    }

    async fn remove(self: Arc<Self>, id: ResourceId) -> Result<()> {
        self.change(id, None).await
    }

    /// Makes the change together with others, unless it is already in effect.
    async fn change(&self, id: ResourceId, block: Option<String>) -> Result<()> {
        let disk = self.look().await?;
        let unconfirmed = disk.unconfirmed(&self.keeper.text);
        if disk.hosts.get(&id) == block.as_ref()
            && disk.checked.get(&id) == block.as_ref()
            && !unconfirmed.contains(&id)
        {
            return Ok(());
        }
        self.changes.join(Change { id, block }).await
    }

    async fn look(&self) -> Result<OnDisk> {
        let keeper = Arc::clone(&self.keeper);
        files::blocking(move || keeper.look()).await
    }

    /// Whole means: dhcpd has loaded the entry as it is in both files, and it is what this configuration generates for its spec.
    async fn list(self: Arc<Self>) -> Result<Vec<Listed>> {
        let keeper = Arc::clone(&self.keeper);
        files::blocking(move || {
            let (disk, text) = (keeper.look()?, &keeper.text);
            let unconfirmed = disk.unconfirmed(text);
            let ids: BTreeSet<_> = disk.hosts.keys().chain(disk.checked.keys()).chain(&unconfirmed).collect();
            let listed = |id: &ResourceId| {
                let block = disk.hosts.get(id);
                let spec = block.and_then(|block| text.spec(id, block));
                let want = spec.as_ref().and_then(|spec| text.block(spec).ok());
                let whole = want.is_some()
                    && want.as_ref() == block
                    && block == disk.checked.get(id)
                    && !unconfirmed.contains(id);
                let completeness = if whole { Completeness::Whole } else { Completeness::Partial };
                Listed { id: id.clone(), digest: spec.map(|spec| spec.digest()), completeness }
            };
            Ok(ids.into_iter().map(listed).collect())
        })
        .await
    }
}

#[async_trait]
impl DhcpBackend for IscDhcpd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> DhcpCapabilities {
        DhcpCapabilities { leases: true, observes: false }
    }

    /// dhcpd does not report what it answers.
    fn attach(&self, _: Arc<dyn Observer>) {}

    /// If the future is dropped, the call still completes.
    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>> {
        Ok(self.calls.each(changes, |change| Arc::clone(&self.inner).make(change)).await)
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.calls.whole("list", Arc::clone(&self.inner).list()).await
    }

    async fn health(&self) -> Health {
        let keeper = &self.inner.keeper;
        if let Some(down) = calls::trouble(&keeper.service, [keeper.dir().to_owned()]).await {
            return down;
        }
        if let Some(omapi) = &keeper.omapi
            && let Err(e) = omapi.connect().await
        {
            return Health::Down(e.report());
        }
        match keeper.check().await {
            Ok(()) => Health::Up,
            // It serves the machines that it has loaded.
            Err(e) if e.kind() == ErrorKind::Invalid => Health::Degraded(e.report()),
            Err(e) => Health::Down(e.report()),
        }
    }

    /// dhcpd continues to run: it is not ours, and running machines have leases from it.
    async fn shutdown(&self) {
        self.calls.finish().await;
        self.inner.changes.finish().await;
    }
}

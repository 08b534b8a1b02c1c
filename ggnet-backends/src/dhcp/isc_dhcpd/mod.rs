//! The `isc-dhcpd` DHCP backend: host declarations in one file that the main file of ISC's dhcpd includes.
//!
//! ```text
//!   ensure, remove ─▶ the machine's turn ─▶ waiting (for others) ─▶ one change of the file, one check, one restart for all
//! ```
//! dhcpd reads its files at its start only, so it is restarted, once for all who come within a window; leases survive that, they are
//! in a file. Where OMAPI is configured dhcpd is told of each change while it runs. `keeper` is the way of a change, `text` what is
//! written, `omapi` the protocol.
//!
//! dhcpd's main file is the operator's; ours is the file that it includes, whole, and two beside it.
//!
//! Invariants: one call at a time for one machine, in a task that ends its work also when the caller goes away; what is on disk tells
//! everything, there is no other memory.

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

/// How long a change waits for others: dhcpd answers nobody while it restarts, and systemd counts.
const WINDOW: Duration = Duration::from_millis(100);
/// The same where dhcpd goes on: only so that those who come at once share a check.
const OMAPI_WINDOW: Duration = Duration::from_millis(5);

/// Where dhcpd reads, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IscDhcpdConfig {
    /// dhcpd's main file, which is checked before anything takes effect; we must be able to read it.
    pub main_file: PathBuf,
    /// The file that it includes and that we write; dhcpd must be able to read it.
    pub hosts_file: PathBuf,
    /// The address that machines are told: next-server, and in URLs. Needed.
    pub advertise: Option<Ipv4Addr>,
    /// The port of our HTTP server, for scripts and HTTP boot.
    pub http_port: u16,
    /// Where our HTTP server has the boot files.
    pub http_files: String,
    /// Name loaders as `<mac>/<loader>`: the `builtin` boot file store understands it, other TFTP servers do not.
    pub mac_prefix: bool,
    /// Loaders by architecture, added to the default ones.
    pub loaders: BTreeMap<Arch, String>,
    /// Tell dhcpd of changes by OMAPI; without it dhcpd is restarted.
    pub omapi: Option<OmapiConfig>,
    /// The daemon.
    pub service: ServiceConfig,
}

impl Default for IscDhcpdConfig {
    fn default() -> Self {
        Self {
            main_file: "/etc/dhcp/dhcpd.conf".into(),
            // Debian's AppArmor profile lets dhcpd read below /etc/dhcp.
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
    /// The daemon that it names.
    ///
    /// # Errors
    /// As [`Service::new`].
    pub fn service(&self, runner: Arc<dyn CommandRunner>) -> Result<Service> {
        Service::new(&self.service, &DAEMON, runner)
    }
}

/// ISC's dhcpd, by the file that it includes.
pub struct IscDhcpd {
    inner: Arc<Inner>,
    calls: Calls,
}

struct Inner {
    keeper: Arc<Keeper>,
    changes: Batch<Change>,
}

impl IscDhcpd {
    /// Makes the folder and the file if they are not there, takes back what a killed GGnet left unfinished, and starts dhcpd if it is
    /// ours to start (`service.command`). A dhcpd that does not run is no error here: [`DhcpBackend::health`] and each `ensure` tell.
    ///
    /// # Errors
    /// `Invalid` configuration; `Conflict` for a file that another GGnet or somebody else made; `Permission` or another kind for a
    /// folder or file, which is named; what starting the daemon said.
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
            // What looks like a running dhcpd may be one that the restart of then has told to end.
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

    /// Makes the change with others, unless all is so already.
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

    /// Whole is: dhcpd knows it as both files have it, and that is what this configuration makes of its spec.
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

    /// dhcpd tells nobody what it answers.
    fn attach(&self, _: Arc<dyn Observer>) {}

    /// Dropped half-way: it goes on to its end.
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
            // It serves those whom it knows.
            Err(e) if e.kind() == ErrorKind::Invalid => Health::Degraded(e.report()),
            Err(e) => Health::Down(e.report()),
        }
    }

    /// dhcpd goes on: it is not ours, and running machines have leases from it.
    async fn shutdown(&self) {
        self.calls.finish().await;
        self.inner.changes.finish().await;
    }
}

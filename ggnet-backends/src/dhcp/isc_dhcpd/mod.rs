//! The `isc-dhcpd` DHCP backend: one file that dhcpd includes, and a restart for each batch of changes.
//!
//! ```text
//!   callers' changes ──(window)──▶ candidate = what the file has, changed ──▶ dhcpd -t ─refused─▶ nothing was touched
//!                                        │ same as the file: done                  │ taken
//!                                        ▼                                          ▼
//!                                      told                    previous ◀─ file; file ◀─ candidate; restart ─ok─▶ previous away
//!                                                                                   │ failed
//!                                                                                   ▼
//!                                                              file ◀─ previous; restart; the callers get the first error
//! ```
//! dhcpd reads its files only when it starts, and a start is dear (Debian's script alone takes two seconds and more), so changes that
//! come within a window are one restart, and a file that would not change is none. While `<file>.previous` exists nobody knows which
//! of the two dhcpd runs: an entry that differs between them is `Partial`, and the next run restarts whatever it finds.
//!
//! dhcpd's main file is the operator's, who includes ours; it is checked as a copy that includes the candidate instead. `render` writes.
//!
//! Invariants: only the task of the batch writes; the file in place was always accepted by `dhcpd -t`; what is on disk tells
//! everything, there is no other memory but what callers wait for.

mod render;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{InstanceId, ResourceId},
    ports::{Completeness, DhcpBackend, DhcpCapabilities, DhcpHost, Health, Listed, Observer, Removal},
};
use serde::{Deserialize, Serialize};

use super::{arch::Arch, files, loaders};
use crate::{
    run::{CommandRunner, Invocation},
    service::{Batch, Daemon, Service, ServiceConfig, State},
};

/// The backend's name in the configuration and in errors.
pub const NAME: &str = "isc-dhcpd";

/// The line that installs it.
const INSTALL: &str = "apt-get install isc-dhcp-server";
/// Debian's dhcpd needs a quarter of a second for a thousand machines.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// A subnet of dhcpd's, for the built-in template and the operator's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Its address.
    pub network: Ipv4Addr,
    /// Its mask.
    pub netmask: Ipv4Addr,
    /// First and last address for those who have none reserved.
    #[serde(default)]
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Its router.
    #[serde(default)]
    pub router: Option<Ipv4Addr>,
    /// Its name servers.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
}

/// Where dhcpd reads, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IscDhcpdConfig {
    /// dhcpd's main file, which is the operator's and includes ours.
    pub config_file: PathBuf,
    /// Our file, in a folder that our user may write in; candidates and copies stand beside it.
    pub include_file: PathBuf,
    /// The subnets to declare; none: the operator's main file declares them.
    pub subnets: Vec<Subnet>,
    /// A Tera template in place of the built-in one for the subnets; it gets `subnets` and `next_server`.
    pub template: Option<PathBuf>,
    /// The address that machines are told: next-server, and in URLs.
    pub advertise: Option<Ipv4Addr>,
    /// The port of our HTTP server, for scripts and HTTP boot.
    pub http_port: u16,
    /// Where our HTTP server has the boot files.
    pub http_files: String,
    /// Name loaders as `<mac>/<loader>`: the `builtin` boot file store understands it, other TFTP servers do not.
    pub mac_prefix: bool,
    /// Loaders by architecture, added to the default ones.
    pub loaders: BTreeMap<Arch, String>,
    /// How many milliseconds a change waits for others before dhcpd is restarted for all of them.
    pub window_ms: u64,
    /// The interfaces for dhcpd's own command line, where systemd does not start it.
    pub interfaces: Vec<String>,
    /// The daemon.
    pub service: ServiceConfig,
}

impl Default for IscDhcpdConfig {
    fn default() -> Self {
        Self {
            config_file: "/etc/dhcp/dhcpd.conf".into(),
            include_file: "/etc/dhcp/ggnet/ggnet.conf".into(),
            subnets: Vec::new(),
            template: None,
            advertise: None,
            http_port: 8080,
            http_files: "/files".to_owned(),
            mac_prefix: true,
            loaders: BTreeMap::new(),
            window_ms: 200,
            interfaces: Vec::new(),
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
        let pid_file = "/run/dhcpd.pid";
        let pids = self.service.pid_file.clone().unwrap_or_else(|| pid_file.into());
        let words = ["dhcpd", "-4", "-q", "-cf"].map(str::to_owned).into_iter();
        let words = words.chain([
            self.config_file.display().to_string(),
            "-pf".to_owned(),
            pids.display().to_string(),
        ]);
        let command = Some(words.chain(self.interfaces.iter().cloned()).collect());
        let daemon =
            Daemon { program: "dhcpd", install: INSTALL, unit: "isc-dhcp-server.service", pid_file, command };
        Service::new(&self.service, &daemon, runner)
    }

    /// A file beside ours.
    fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.include_file.clone().into_os_string();
        name.push(end);
        name.into()
    }
}

/// ISC dhcpd, by a file that it includes.
pub struct IscDhcpd {
    inner: Arc<Inner>,
    apply: Batch,
}

struct Inner {
    config: IscDhcpdConfig,
    advertise: Ipv4Addr,
    instance: String,
    subnets: String,
    service: Service,
    runner: Arc<dyn CommandRunner>,
    /// What callers wait for: an entry, or its removal.
    changes: Mutex<BTreeMap<ResourceId, Option<DhcpHost>>>,
    /// Why the last run failed.
    trouble: Mutex<Option<String>>,
}

impl IscDhcpd {
    /// Makes our file if it is not there, brings it up to this configuration, and starts dhcpd if it is ours to start
    /// (`service.command`). A dhcpd that does not run or refuses the file is no error here: [`DhcpBackend::health`] and each `ensure`
    /// tell, and what it serves stays as it was.
    ///
    /// # Errors
    /// `Invalid` configuration or template, or a main file that does not include ours; `Conflict` when our file is another
    /// GGnet's; `Permission` or another kind for a file, which is named; what starting the daemon said.
    pub async fn open(
        config: IscDhcpdConfig,
        instance: &InstanceId,
        runner: Arc<dyn CommandRunner>,
    ) -> Result<Self> {
        Self::open_unnamed(config, instance, runner)
            .await
            .map_err(|e| e.with_backend(NAME).with_operation("open"))
    }

    async fn open_unnamed(
        config: IscDhcpdConfig,
        instance: &InstanceId,
        runner: Arc<dyn CommandRunner>,
    ) -> Result<Self> {
        loaders::validate(&config.loaders)?;
        loaders::validate_http_files(&config.http_files)?;
        let advertise = config.advertise.ok_or_else(|| {
            Error::invalid("advertise", "Machines must be told an IPv4 address to boot from")
                .with_hint("Set network.advertise, or advertise in the section [dhcp]")
        })?;
        let template = config.template.clone();
        let template = blocking(move || match template {
            Some(path) => files::read(&path)?.ok_or_else(|| Error::not_found("template", path.display())),
            None => Ok(render::BUILT_IN.to_owned()),
        });
        let subnets = render::subnets(&template.await?, &config, advertise)?;
        let service = config.service(Arc::clone(&runner))?;
        let starts = config.service.command.is_some();
        let instance = instance.to_string();
        let (changes, trouble) = (Mutex::default(), Mutex::default());
        let inner =
            Arc::new(Inner { config, advertise, instance, subnets, service, runner, changes, trouble });
        let this = Arc::clone(&inner);
        blocking(move || this.prepare()).await?;
        if starts && matches!(inner.service.state().await?, State::Stopped(_)) {
            inner.service.start().await?;
        }
        let this = Arc::clone(&inner);
        let window = Duration::from_millis(inner.config.window_ms);
        let apply = Batch::new(window, move || Arc::clone(&this).apply());
        // Without changes of its own: a file that this configuration would not write is written anew.
        if let Err(e) = apply.join().await {
            tracing::error!(error = %e.report(), "dhcpd keeps the configuration that it has");
        }
        Ok(Self { inner, apply })
    }

    /// Hands a change to the batch and waits for it. The change and the wait are one step: no drop comes between them.
    async fn change(&self, id: &ResourceId, to: Option<DhcpHost>) -> Result<()> {
        self.inner.changes.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), to);
        self.apply.join().await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::internal("A blocking task of the DHCP backend died").with_source(e)))
}

impl Inner {
    fn how(&self) -> render::How<'_> {
        render::How { config: &self.config, instance: &self.instance, advertise: self.advertise }
    }

    fn previous(&self) -> PathBuf {
        self.config.beside(".previous")
    }

    /// The folder and the file, so that the operator's `include` finds it.
    fn prepare(&self) -> Result<()> {
        let file = &self.config.include_file;
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir).map_err(|e| files::error("Making", dir, e))?;
        }
        match files::read(file)? {
            Some(text) if render::is_of_another(&text, &self.instance) => {
                let message = format!("{} belongs to another GGnet on this host", file.display());
                return Err(Error::new(ErrorKind::Conflict, message).with_hint(
                    "Name another file as include_file, and include it in dhcpd's main file too",
                ));
            }
            Some(_) => {}
            None => files::write(file, "")?,
        }
        self.checked(&self.config.include_file).map(|_| ())
    }

    /// dhcpd's main file, with `instead` included where ours is.
    fn checked(&self, instead: &Path) -> Result<String> {
        let (main, ours) = (&self.config.config_file, format!("\"{}\"", self.config.include_file.display()));
        let text = files::read(main)?
            .ok_or_else(|| Error::not_found("configuration of dhcpd", main.display()).with_hint(INSTALL))?;
        let includes =
            text.lines().any(|line| line.trim_start().starts_with("include") && line.contains(&ours));
        if !includes {
            let message =
                format!("{} does not include {}", main.display(), self.config.include_file.display());
            return Err(
                Error::invalid("config_file", message).with_hint(format!("Add the line: include {ours};"))
            );
        }
        Ok(text.replace(&ours, &format!("\"{}\"", instead.display())))
    }

    /// One run for all callers.
    async fn apply(self: Arc<Self>) -> Result<()> {
        let changes = std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner));
        let done = self.run(changes).await;
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = done.as_ref().err().map(Error::report);
        done
    }

    async fn run(self: &Arc<Self>, changes: BTreeMap<ResourceId, Option<DhcpHost>>) -> Result<()> {
        let this = Arc::clone(self);
        let Some(candidate) = blocking(move || this.candidate(changes)).await? else { return Ok(()) };
        self.check(&candidate).await?;
        let this = Arc::clone(self);
        blocking(move || this.put(&candidate)).await?;
        // A dhcpd that is off reads the file when somebody starts it.
        let off = matches!(self.service.state().await?, State::Stopped(_));
        if let (false, Err(e)) = (off, self.restart().await) {
            self.restore(&e).await;
            return Err(e);
        }
        let previous = self.previous();
        blocking(move || files::remove(&previous)).await
    }

    async fn restart(&self) -> Result<()> {
        tracing::info!(service = self.service.label(), "restarting dhcpd");
        self.service.restart().await
    }

    /// The file as it should be; none when dhcpd has it already.
    fn candidate(&self, changes: BTreeMap<ResourceId, Option<DhcpHost>>) -> Result<Option<String>> {
        let now = files::read(&self.config.include_file)?.unwrap_or_default();
        let mut entries = render::specs(&now);
        for (id, change) in changes {
            match change {
                Some(host) => entries.insert(id, host),
                None => entries.remove(&id),
            };
        }
        let text = render::file(&self.subnets, &entries, &self.how())?;
        let told = !self.previous().exists();
        Ok((text != now || !told).then_some(text))
    }

    /// Asks dhcpd whether it would take the candidate.
    async fn check(self: &Arc<Self>, candidate: &str) -> Result<()> {
        let (new, main) = (self.config.beside(".new"), self.config.beside(".check"));
        let (this, text, paths) = (Arc::clone(self), candidate.to_owned(), (new.clone(), main.clone()));
        blocking(move || {
            files::write(&paths.0, &text)?;
            files::write(&paths.1, &this.checked(&paths.0)?)
        })
        .await?;
        let invocation = Invocation::new("dhcpd", INSTALL).args(["-4", "-t", "-q", "-cf"]).arg(&main);
        let judged = self.runner.run(invocation.time_limit(CHECK_LIMIT)).await;
        blocking(move || files::remove(&new).and(files::remove(&main))).await?;
        let file = self.config.include_file.display();
        judged?
            .require_success(ErrorKind::Invalid, format!("dhcpd refuses what would stand in {file}"))
            .map(|_| ())
            .map_err(|e| {
                e.with_hint("It goes on with what it had. Mend its main file or the template that it names")
            })
    }

    /// Puts the candidate in place and keeps what was there.
    fn put(&self, candidate: &str) -> Result<()> {
        let previous = self.previous();
        if !previous.exists() {
            let now = files::read(&self.config.include_file)?.unwrap_or_default();
            files::write(&previous, &now)?;
        }
        files::write(&self.config.include_file, candidate)
    }

    /// Puts back what was there, and starts dhcpd with it.
    async fn restore(self: &Arc<Self>, why: &Error) {
        tracing::error!(error = %why.report(), "dhcpd did not start; it gets its previous configuration back");
        let this = Arc::clone(self);
        let put_back = blocking(move || match files::read(&this.previous())? {
            Some(text) => files::write(&this.config.include_file, &text),
            None => Ok(()),
        });
        let restored = match put_back.await {
            Ok(()) => self.restart().await,
            Err(e) => Err(e),
        };
        let previous = self.previous();
        let ended = match restored {
            Ok(()) => blocking(move || files::remove(&previous)).await,
            Err(e) => Err(e),
        };
        if let Err(e) = ended {
            tracing::error!(error = %e.report(), "dhcpd did not start with its previous configuration either");
        }
    }

    /// Whole is: dhcpd was told, and the file says what this configuration makes of the spec.
    fn list(&self) -> Result<Vec<Listed>> {
        let now = files::read(&self.config.include_file)?.unwrap_or_default();
        let before = files::read(&self.previous())?;
        let mut specs = render::specs(before.as_deref().unwrap_or_default());
        specs.extend(render::specs(&now));
        let listed = |(id, spec): (ResourceId, DhcpHost)| {
            let has = |file: &String, text: &str| file.contains(text);
            let entry = render::entry(&spec, &self.how());
            let whole =
                entry.is_ok_and(|text| has(&now, &text) && before.as_ref().is_none_or(|b| has(b, &text)));
            let completeness = if whole { Completeness::Whole } else { Completeness::Partial };
            Listed { id, digest: Some(spec.digest()), completeness }
        };
        Ok(specs.into_iter().map(listed).collect())
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

    /// Dropped half-way: nothing was begun, or the batch goes on to its end.
    async fn ensure(&self, host: &DhcpHost) -> Result<()> {
        let named = |e: Error| e.with_backend(NAME).with_operation("ensure");
        // A wrong entry is its caller's error, and nobody else's of the batch.
        render::entry(host, &self.inner.how()).map_err(named)?;
        self.inner.service.require_running().await.map_err(named)?;
        self.change(&host.id, Some(host.clone())).await.map_err(named)
    }

    /// Dropped half-way: nothing was begun, or the batch goes on to its end.
    async fn remove(&self, id: &ResourceId, _how: Removal) -> Result<()> {
        self.change(id, None).await.map_err(|e| e.with_backend(NAME).with_operation("remove"))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.list()).await.map_err(|e| e.with_backend(NAME).with_operation("list"))
    }

    async fn health(&self) -> Health {
        let inner = &self.inner;
        match inner.service.state().await {
            Ok(State::Running) => {}
            Ok(State::Stopped(why)) => return Health::Down(why),
            Err(e) => return Health::Down(e.report()),
        }
        let dir = inner.config.include_file.parent().unwrap_or(Path::new("/"));
        if let Err(e) = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
            return Health::Down(files::error("Writing in", dir, e.into()).report());
        }
        match inner.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(why) => Health::Degraded(why),
            None => Health::Up,
        }
    }

    /// dhcpd goes on: it is not ours, and running machines have leases from it.
    async fn shutdown(&self) {
        self.apply.finish().await;
    }
}

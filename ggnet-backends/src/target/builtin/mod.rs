//! The target backend "builtin": the userspace iSCSI target as a `TargetBackend`.
//!
//! Targets live in this process: a restart of the server ends them, and the reconciler makes them again before any login is served (until
//! then a login gets 0301, which initiators retry). Invariants: what `list` says is what the server serves; calls for one target wait for
//! each other; the old devices are free when `remove` has returned.

mod descriptor;
mod device;
mod gone;
mod policy;
mod pressure;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use ggnet_core::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result, code},
    keyed_locks::KeyedLocks,
    nouns::{InstanceId, Iqn, ResourceId},
    ports::{
        Clock, Completeness, Connection, Health, IoCounters, Listed, LoginGate, LoginVisibility, LunDisks,
        LunSpec, Observer, Removal, SpecDigest, TargetBackend, TargetCapabilities, TargetEndpoint,
        TargetSpec,
    },
    supervisor::Supervisor,
};
use ggnet_iscsi::{
    AddError, Identity, IscsiServer, Lun, Removal as Closing, RemoveError, ServerConfig, TargetConfig,
};

pub use self::descriptor::descriptor;
use self::{
    device::Served,
    policy::{Served as ServedTarget, Targets},
    pressure::Pressure,
};
use crate::addresses::Addresses;

const NAME: &str = "builtin";
/// How long a shutdown waits for requests in flight and the last flush.
const GRACE: Duration = Duration::from_secs(4);

/// What an operator can set.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuiltinTargetConfig {
    /// Where it listens; port 0 lets the system choose.
    pub listen: Vec<SocketAddr>,
}

impl Default for BuiltinTargetConfig {
    fn default() -> Self {
        Self { listen: vec![SocketAddr::from(([127, 0, 0, 1], 3260))] }
    }
}

/// The backend. See the module.
pub struct BuiltinTargets {
    server: IscsiServer,
    long_lived: Supervisor,
    addresses: Arc<Addresses>,
    targets: Arc<Targets>,
    prefix: Iqn,
    instance: InstanceId,
    clock: Arc<dyn Clock>,
    turns: KeyedLocks<ResourceId>,
    pressure: Pressure,
}

impl BuiltinTargets {
    /// Binds the portal. Must be called within a tokio runtime. Errors: `Busy` or `Permission` naming the address.
    pub fn start(
        config: BuiltinTargetConfig,
        prefix: Iqn,
        instance: InstanceId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        if config.listen.is_empty() {
            return Err(Error::invalid("listen", "The iSCSI target needs at least one address to listen on")
                .with_backend(NAME)
                .with_hint("Leave target.listen out for the usual one"));
        }
        let targets = Arc::new(Targets::default());
        let server_config = ServerConfig { listen: config.listen, ..ServerConfig::default() };
        let (server, accepting) = IscsiServer::listen(server_config, targets.clone(), targets.clone()).map_err(|e| {
            Error::io(format!("Binding the iSCSI portal to {}", e.address), e.source)
                .with_backend(NAME)
                .with_subject(e.address.to_string())
                .with_hint("Stop the program that has this port (`ss -ltnp` names it), or set another with --iscsi-listen")
        })?;
        let long_lived = Supervisor::new(server.stopping());
        for (listener, address) in accepting.into_iter().zip(server.local_addrs()) {
            long_lived.keep(format!("the iSCSI accept loop of {address}"), move || listener.run());
        }
        let addresses = Addresses::watch("The iSCSI portal", server.local_addrs(), &long_lived);
        Ok(Self {
            server,
            long_lived,
            addresses,
            targets,
            prefix,
            instance,
            clock,
            turns: KeyedLocks::default(),
            pressure: Pressure::default(),
        })
    }

    /// Where it listens, with the ports that the system chose.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        self.server.local_addrs()
    }

    fn iqn(&self, id: &ResourceId) -> Result<Iqn> {
        Iqn::target(&self.prefix, &self.instance, id)
    }

    fn lun(&self, (spec, disk): (&LunSpec, &Disk), target: &ResourceId) -> Result<Lun> {
        let Disk::Blocks(device) = disk else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("The built-in target serves blocks of our own process, not {:?}", disk.form()),
            )
            .with_backend(NAME));
        };
        Ok(Lun {
            number: spec.number.into(),
            device: Arc::new(Served::new(device.clone(), target.clone(), self.targets.observer())),
            identity: identity(&spec.serial),
            read_only: spec.read_only,
            removable: false,
        })
    }

    /// A target as it is served now.
    fn served(&self, id: &ResourceId) -> Result<Option<ServedTarget>> {
        let iqn = self.iqn(id)?;
        Ok(self.targets.get(&iqn).filter(|_| self.server.has_target(iqn.as_str())))
    }

    fn endpoint_of(&self, spec: &TargetSpec) -> TargetEndpoint {
        TargetEndpoint {
            iqn: spec.iqn.clone(),
            listen: self.server.local_addrs().to_vec(),
            lun: spec.boot_lun(),
        }
    }

    async fn close(&self, iqn: &Iqn, how: Removal) -> Result<()> {
        let closing = match how {
            Removal::IfIdle => Closing::IfIdle,
            Removal::Force => Closing::Force,
        };
        self.server.remove_target(iqn.as_str(), closing).await.map_err(|e| match e {
            RemoveError::Busy { sessions } => {
                Error::new(code::target_in_use(iqn), format!("Target {iqn} has {sessions} live session(s)"))
            }
            RemoveError::Flush { lun, source } => {
                // A disk that cannot flush now has lost nothing.
                let kind = match source.kind() {
                    std::io::ErrorKind::ResourceBusy => ErrorKind::Unavailable,
                    _ => ErrorKind::Corrupt,
                };
                Error::new(kind, format!("LUN {lun} of target {iqn} could not be flushed"))
                    .with_source(source)
            }
            other => Error::internal(format!("Target {iqn} was not removed")).with_source(other),
        })
    }

    async fn replace(&self, spec: &TargetSpec, disks: &[(&LunSpec, &Disk)]) -> Result<()> {
        self.close(&spec.iqn, Removal::IfIdle).await?;
        let luns = disks.iter().map(|lun| self.lun(*lun, &spec.id)).collect::<Result<Vec<_>>>()?;
        // Known before it can be logged in to: a login finds its access rules.
        self.targets.set(
            &spec.iqn,
            ServedTarget { digest: spec.digest(), disks: disks_digest(spec), spec: spec.clone() },
        );
        let added = self.server.add_target(TargetConfig { iqn: spec.iqn.to_string(), luns });
        added.map_err(|e| {
            self.targets.forget(&spec.iqn);
            match e {
                AddError::BadLun(_) | AddError::BadDevice(_) | AddError::BadName(_) => {
                    Error::new(ErrorKind::Invalid, format!("Target {} was refused", spec.iqn)).with_reason(e)
                }
                other => Error::internal(format!("Target {} could not be made", spec.iqn)).with_reason(other),
            }
        })
    }
}

/// The module's counters in the port's words.
fn io(c: &ggnet_iscsi::CountersSnapshot) -> IoCounters {
    IoCounters {
        reads: c.reads,
        writes: c.writes,
        others: c.others,
        not_good: c.not_good,
        device_errors: c.device_errors,
        queue_depth: c.queue_depth,
        latency_us: c.latency.to_vec(),
        latency_us_total: c.latency_sum,
    }
}

/// What a LUN says of itself: from the serial alone, so that it is the same at every boot.
fn identity(serial: &str) -> Identity {
    let digest = SpecDigest::of([serial.as_bytes()]).short();
    Identity {
        serial: serial.to_owned(),
        // 60 bits; the top four say "locally assigned".
        naa: u64::from_str_radix(&digest, 16).unwrap_or(0) & 0x0fff_ffff_ffff_ffff,
        vendor: "GGNET".to_owned(),
        product: "DISKLESS".to_owned(),
        revision: "1".to_owned(),
    }
}

/// Of everything that a live initiator must not have changed under it.
fn disks_digest(spec: &TargetSpec) -> SpecDigest {
    SpecDigest::of(spec.luns.iter().flat_map(|l| [l.disk_key.as_bytes(), l.serial.as_bytes()]))
}

#[async_trait]
impl TargetBackend for BuiltinTargets {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> TargetCapabilities {
        TargetCapabilities {
            accepts: vec![DiskForm::Blocks],
            chap: true,
            mutual_chap: true,
            logins: LoginVisibility::Gated,
            max_luns: 255,
            survives_restart: false,
            follows_growth: true,
        }
    }

    fn attach(&self, gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>) {
        self.targets.attach(gate, observer);
    }

    async fn ensure(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<TargetEndpoint> {
        // Held across awaits: an ensure and a remove of one target are one after the other.
        let _turn = self.turns.lock(&spec.id).await;
        let done = async {
            if self.iqn(&spec.id)? != spec.iqn {
                return Err(Error::invalid(
                    "iqn",
                    format!("{} is not the name of target {}", spec.iqn, spec.id),
                ));
            }
            spec.access.check()?;
            let luns = spec.with_disks(disks)?;
            match self.targets.get(&spec.iqn) {
                Some(have)
                    if have.disks == disks_digest(spec) && self.server.has_target(spec.iqn.as_str()) =>
                {
                    if have.digest != spec.digest() {
                        let served = ServedTarget { digest: spec.digest(), spec: spec.clone(), ..have };
                        self.targets.set(&spec.iqn, served);
                    }
                    Ok(())
                }
                _ => self.replace(spec, &luns).await,
            }
        };
        done.await
            .map_err(|e| e.with_backend(NAME).with_operation("ensure").with_subject(spec.id.to_string()))?;
        Ok(self.endpoint_of(spec))
    }

    async fn endpoint(&self, id: &ResourceId) -> Result<Option<TargetEndpoint>> {
        Ok(self.served(id)?.map(|served| self.endpoint_of(&served.spec)))
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        // Held across awaits, as in `ensure`.
        let _turn = self.turns.lock(id).await;
        let done = async {
            let iqn = self.iqn(id)?;
            let closed = self.close(&iqn, how).await;
            // Also after a failed flush the target is gone.
            if !self.server.has_target(iqn.as_str()) {
                self.targets.forget(&iqn);
            }
            closed
        };
        done.await.map_err(|e| e.with_backend(NAME).with_operation("remove").with_subject(id.to_string()))
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        let listed = |served: ServedTarget| Listed {
            id: id.clone(),
            digest: Some(served.digest),
            completeness: Completeness::Whole,
        };
        Ok(self.served(id)?.map(listed))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let served = self.server.targets();
        let list = |iqn: String| {
            let iqn: Iqn = iqn.parse().ok()?;
            let id = iqn.resource(&self.prefix, &self.instance)?;
            let digest = self.targets.get(&iqn).map(|t| t.digest);
            Some(Listed { id, digest, completeness: Completeness::Whole })
        };
        Ok(served.into_iter().filter_map(list).collect())
    }

    async fn connections(&self) -> Result<Vec<Connection>> {
        let now = self.clock.now();
        let connection = |s: ggnet_iscsi::SessionInfo| {
            let target = s.target?.parse::<Iqn>().ok()?.resource(&self.prefix, &self.instance)?;
            Some(Connection {
                target,
                initiator: s.initiator,
                peer: Some(s.peer),
                since: now.checked_sub(s.age).ok(),
                bytes_read: s.counters.read_bytes,
                bytes_written: s.counters.write_bytes,
                commands: s.counters.reads + s.counters.writes + s.counters.others,
                io: Some(io(&s.counters)),
            })
        };
        Ok(self.server.sessions().into_iter().filter_map(connection).collect())
    }

    async fn health(&self) -> Health {
        match self.long_lived.trouble().or_else(|| self.addresses.trouble()) {
            Some(trouble) => Health::Down(trouble),
            None => self.pressure.health(self.server.occupancy()),
        }
    }

    async fn shutdown(&self) {
        if !self.server.shutdown(GRACE).await {
            tracing::warn!(grace = ?GRACE, "the iSCSI target did not finish everything in time");
        }
        self.long_lived.stop().await;
    }
}

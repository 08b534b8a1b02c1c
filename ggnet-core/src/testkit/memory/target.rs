//! [`MemoryTargets`]: iSCSI targets in memory, without the network: [`MemoryTargets::login`] acts as an initiator.
//!
//! ```text
//!   login: served? ─▶ target whole? ─▶ name, CHAP ─▶ gate's verdict ─▶ older session of that name closed ─▶ connected
//! ```
//! Invariants: a connection exists only to a whole target; a command runs under the connection's lock, which closing takes exclusively, so
//! that closing waits for commands in flight; a closed connection holds no disk.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;

pub use super::initiator::{LoginError, MemoryInitiator};
use super::{
    initiator::{Disks, Link},
    world::{Life, World, step},
};
use crate::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ChapPair, Iqn, ResourceId},
    ports::{
        Access, Completeness, Connection, Health, Listed, Login, LoginGate, LoginVerdict, LoginVisibility,
        LunDisks, LunSpec, Observation, Observer, Removal, TargetBackend, TargetCapabilities, TargetEndpoint,
        TargetSpec,
    },
    testkit::disk,
};

/// The state that outlives a [`MemoryTargets`]: its targets if they survive a restart, as the kernel's do.
pub type TargetWorld = World<TargetState>;

/// The targets and the connections to them.
#[derive(Default)]
pub struct TargetState {
    targets: BTreeMap<ResourceId, Target>,
    links: Vec<Arc<Link>>,
}

struct Target {
    spec: TargetSpec,
    disks: Disks,
    completeness: Completeness,
}

impl TargetState {
    fn links_to(&self, id: &ResourceId) -> Vec<Arc<Link>> {
        self.links.iter().filter(|link| link.target == *id).cloned().collect()
    }
}

type Attached = (Arc<dyn LoginGate>, Arc<dyn Observer>);

/// Targets in memory.
pub struct MemoryTargets {
    life: Life<TargetState>,
    capabilities: TargetCapabilities,
    attached: OnceLock<Attached>,
}

impl MemoryTargets {
    /// In an empty world, with the abilities of the built-in target: blocks and files, CHAP, gated logins, gone with our process.
    #[must_use]
    pub fn new() -> Self {
        Self::over(&TargetWorld::default())
    }

    /// In this world, as after a crash of our process; the abilities of [`MemoryTargets::new`].
    #[must_use]
    pub fn over(world: &TargetWorld) -> Self {
        let capabilities = TargetCapabilities {
            accepts: vec![DiskForm::Blocks, DiskForm::File],
            chap: true,
            mutual_chap: false,
            logins: LoginVisibility::Gated,
            max_luns: 16,
            survives_restart: false,
            follows_growth: true,
        };
        Self::with_capabilities(world, capabilities)
    }

    /// In this world, as after a crash of our process, with other abilities: all of them are honoured. Targets, and the
    /// connections to them, are still there when they survive a restart.
    #[must_use]
    pub fn with_capabilities(world: &TargetWorld, capabilities: TargetCapabilities) -> Self {
        let survives = capabilities.survives_restart;
        let birth = |state: &mut TargetState| {
            if !survives {
                state.targets.clear();
                for link in state.links.drain(..) {
                    link.sever();
                }
            }
        };
        Self { life: world.enter("memory", birth), capabilities, attached: OnceLock::new() }
    }

    /// The state that outlives it.
    #[must_use]
    pub fn world(&self) -> TargetWorld {
        self.life.world()
    }

    /// Acts as an initiator that logs in from `peer` with the secret that the target demands.
    ///
    /// The gate is called as by a real target; the returned connection is listed in [`connections`](TargetBackend::connections) until it is
    /// closed from either side.
    pub async fn login(
        &self,
        target: &ResourceId,
        initiator: &Iqn,
        peer: SocketAddr,
    ) -> Result<MemoryInitiator, LoginError> {
        let knows = self.life.state().ok().and_then(|state| match &state.targets.get(target)?.spec.access {
            Access::Initiator { chap, .. } => chap.clone(),
            Access::Shared => None,
        });
        self.login_with(target, initiator, knows.as_ref(), peer).await
    }

    /// Acts as an initiator that logs in with this CHAP pair, or without CHAP.
    pub async fn login_with(
        &self,
        target: &ResourceId,
        initiator: &Iqn,
        chap: Option<&ChapPair>,
        peer: SocketAddr,
    ) -> Result<MemoryInitiator, LoginError> {
        let (gate, observer) = self.attached.get().ok_or(LoginError::ServiceUnavailable)?;
        let gated = self.capabilities.logins == LoginVisibility::Gated;
        if gated && !gate.serving() {
            return Err(LoginError::ServiceUnavailable);
        }
        self.authenticate(target, initiator, chap)?;
        if gated {
            let login = Login { target: target.clone(), initiator: initiator.to_string(), peer };
            match gate.login(login).await {
                LoginVerdict::Accept => {}
                LoginVerdict::Retry => return Err(LoginError::ServiceUnavailable),
                LoginVerdict::Refuse => return Err(LoginError::AuthorizationFailure),
            }
        }
        let link = self.connect(target, initiator, chap, peer, observer).await?;
        observer.observe(Observation::LoggedIn {
            target: target.clone(),
            initiator: initiator.clone(),
            peer,
        });
        let world = self.life.world();
        let forget = move |link: &Arc<Link>| {
            world.touch(|state| state.links.retain(|other| !Arc::ptr_eq(other, link)));
        };
        Ok(MemoryInitiator::new(link, Arc::new(forget)))
    }

    /// The target's endpoint name, access and disks, if this initiator may have them.
    fn authenticate(
        &self,
        id: &ResourceId,
        initiator: &Iqn,
        chap: Option<&ChapPair>,
    ) -> Result<(Disks, bool), LoginError> {
        let state = self.life.state().map_err(|_| LoginError::ServiceUnavailable)?;
        let target = state.targets.get(id).filter(|t| t.completeness == Completeness::Whole);
        let target = target.ok_or(LoginError::NoSuchTarget)?;
        match &target.spec.access {
            Access::Shared => Ok((target.disks.clone(), false)),
            Access::Initiator { name, chap: wanted, .. } => {
                if wanted.is_some() && wanted.as_ref() != chap {
                    Err(LoginError::AuthenticationFailure)
                } else if name != initiator {
                    Err(LoginError::AuthorizationFailure)
                } else {
                    Ok((target.disks.clone(), true))
                }
            }
        }
    }

    /// Closes the older connections of this name and adds the new one. It repeats the first step until there is nothing left to close,
    /// because another login may overtake this one while a connection is being closed.
    async fn connect(
        &self,
        id: &ResourceId,
        initiator: &Iqn,
        chap: Option<&ChapPair>,
        peer: SocketAddr,
        observer: &Arc<dyn Observer>,
    ) -> Result<Arc<Link>, LoginError> {
        loop {
            // Again: while the gate decided, the target may have been removed or its access may have changed.
            let (disks, exclusive) = self.authenticate(id, initiator, chap)?;
            let older = {
                let mut state = self.life.state().map_err(|_| LoginError::ServiceUnavailable)?;
                if !state.targets.get(id).is_some_and(|t| t.completeness == Completeness::Whole) {
                    continue;
                }
                let mut older = state.links_to(id);
                older.retain(|link| exclusive && link.initiator == initiator.as_str());
                if older.is_empty() {
                    let link = Link::open(id.clone(), initiator.as_str(), peer, disks, Arc::clone(observer));
                    state.links.push(Arc::clone(&link));
                    return Ok(link);
                }
                older
            };
            self.close(&older, "A newer login of the same initiator").await;
        }
    }

    /// Waits for each connection's commands, flushes its disks and closes it.
    async fn close(&self, links: &[Arc<Link>], reason: &str) {
        for link in links {
            link.close(reason).await;
            if let Ok(mut state) = self.life.state() {
                state.links.retain(|other| !Arc::ptr_eq(other, link));
            }
        }
    }

    fn check(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<()> {
        let unsupported =
            |message: String| Err(self.life.error(ErrorKind::Unsupported, message).with_operation("ensure"));
        let id = &spec.id;
        if spec.luns.is_empty() {
            return Err(Error::invalid("luns", format!("{id} has no LUN")));
        }
        if spec.luns.len() > usize::from(self.capabilities.max_luns) {
            return unsupported(format!("{id} has more than {} LUNs", self.capabilities.max_luns));
        }
        for (lun, disk) in spec.with_disks(disks)? {
            if !self.capabilities.accepts.contains(&disk.form()) {
                return unsupported(format!("{id} has a LUN of the form {:?}", disk.form()));
            }
            if spec.access == Access::Shared && !lun.read_only {
                return Err(Error::invalid(
                    "access",
                    format!("{id} shares LUN {}, which is writable", lun.number),
                ));
            }
        }
        if !self.capabilities.chap && matches!(spec.access, Access::Initiator { chap: Some(_), .. }) {
            return unsupported(format!("{id} demands CHAP"));
        }
        if matches!(spec.access, Access::Initiator { mutual: Some(_), .. }) {
            return unsupported(format!("{id} demands mutual CHAP"));
        }
        Ok(())
    }
}

fn endpoint(spec: &TargetSpec) -> TargetEndpoint {
    TargetEndpoint {
        iqn: spec.iqn.clone(),
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 3260))],
        lun: spec.boot_lun(),
    }
}

/// Whether an initiator would notice the difference.
fn same_luns(a: &TargetSpec, b: &TargetSpec) -> bool {
    a.iqn == b.iqn && a.luns == b.luns
}

/// Opens every LUN's disk.
async fn open_disks(spec: &TargetSpec, disks: &LunDisks) -> Result<Disks> {
    let of = |(lun, disk): (&LunSpec, &Disk)| (lun.number, lun.read_only, disk.clone());
    let luns: Vec<_> = spec.with_disks(disks)?.into_iter().map(of).collect();
    let open = move || {
        let open = |(number, read_only, disk): &(u8, bool, Disk)| {
            let doing = || format!("Opening the disk of LUN {number}");
            let disk = disk::open(disk, *read_only).map_err(|e| Error::io(doing(), e))?;
            Ok((*number, (disk, *read_only)))
        };
        luns.iter().map(open).collect()
    };
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|e| Error::internal("The opening task died").with_source(e))?
}

impl Default for MemoryTargets {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl TargetBackend for MemoryTargets {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> TargetCapabilities {
        self.capabilities.clone()
    }

    fn attach(&self, gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>) {
        // Called once by contract; a second call changes nothing.
        let _ = self.attached.set((gate, observer));
    }

    async fn ensure(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<TargetEndpoint> {
        self.check(spec, disks)?;
        let _turn = self.life.lock(&spec.id).await;
        {
            let mut state = self.life.state()?;
            let busy = !state.links_to(&spec.id).is_empty();
            match state.targets.get_mut(&spec.id) {
                Some(have)
                    if have.completeness == Completeness::Whole && have.spec.digest() == spec.digest() =>
                {
                    return Ok(endpoint(spec));
                }
                // Also a partial target: its initiators are still served.
                Some(have) if same_luns(&have.spec, spec) => {
                    have.spec = spec.clone();
                    have.completeness = Completeness::Whole;
                    return Ok(endpoint(spec));
                }
                Some(_) if busy => {
                    let message = format!("{} has a live initiator, its LUNs cannot change", spec.id);
                    return Err(self.life.error(ErrorKind::Busy, message).with_operation("ensure"));
                }
                _ => {}
            }
        }
        // Opened before anything is changed, so that a failure to open changes nothing.
        let opened = open_disks(spec, disks).await;
        let disks = opened.map_err(|e| e.with_backend("memory").with_operation("ensure"))?;
        let target = Target { spec: spec.clone(), disks, completeness: Completeness::Partial };
        self.life.state()?.targets.insert(spec.id.clone(), target);
        step().await;
        if let Some(target) = self.life.state()?.targets.get_mut(&spec.id) {
            target.completeness = Completeness::Whole;
        }
        step().await;
        Ok(endpoint(spec))
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let _turn = self.life.lock(id).await;
        let links = {
            let mut state = self.life.state()?;
            let links = state.links_to(id);
            if how == Removal::IfIdle && !links.is_empty() {
                let message = format!("{id} has a live initiator");
                return Err(self.life.error(ErrorKind::Busy, message).with_operation("remove"));
            }
            // No new login from here on: a partial target takes none.
            if let Some(target) = state.targets.get_mut(id) {
                target.completeness = Completeness::Partial;
            }
            links
        };
        step().await;
        self.close(&links, "The target was removed").await;
        self.life.state()?.targets.remove(id);
        Ok(())
    }

    async fn endpoint(&self, id: &ResourceId) -> Result<Option<TargetEndpoint>> {
        step().await;
        let state = self.life.state()?;
        let whole = state.targets.get(id).filter(|target| target.completeness == Completeness::Whole);
        Ok(whole.map(|target| endpoint(&target.spec)))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        step().await;
        let state = self.life.state()?;
        let listed = |(id, target): (&ResourceId, &Target)| Listed {
            id: id.clone(),
            digest: (target.completeness == Completeness::Whole).then(|| target.spec.digest()),
            completeness: target.completeness,
        };
        Ok(state.targets.iter().map(listed).collect())
    }

    async fn connections(&self) -> Result<Vec<Connection>> {
        step().await;
        Ok(self.life.state()?.links.iter().map(|link| link.connection()).collect())
    }

    async fn health(&self) -> Health {
        self.life.health()
    }

    async fn shutdown(&self) {
        if !self.capabilities.survives_restart {
            let links = self.life.state().map(|state| state.links.clone()).unwrap_or_default();
            self.close(&links, "The server is shutting down").await;
        }
        self.life.close();
    }
}

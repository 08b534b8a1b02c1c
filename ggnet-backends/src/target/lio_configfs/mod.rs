//! The target backend "lio-configfs": the kernel's own iSCSI target (LIO), controlled by writing to its tree in configfs.
//!
//! ```text
//!  TargetSpec ─ want ─▶ Want ┐
//!                            ├─ plan ─▶ [Op] ─ tree ─▶ configfs
//!    configfs ─ have ─▶ Have ┘
//! ```
//! Targets live in the kernel: they outlive our process and are found again by their names, which contain the instance's id. The tree is
//! the only record. A server that is not root reads the tree and lets the helper write it; the backend "lio-targetcli" lets a program write
//! it ([`Hands`]). LIO cannot call us at a login, so logins are polled, and it allows one initiator name to log in twice: the older session
//! ends when its connection does (the kernel pings after 15 s and gives up 30 s later). Before Linux 6.4 (commit "target: iscsi: fix hang
//! in the iSCSI login code") it never aborts a login whose machine loses power half-way: all other logins, and the removal of that target,
//! wait until the connection ends, and nothing in its tree can end it.
//!
//! Invariants: only objects with our names are changed in the tree; calls for the same target wait for each other, even if their futures
//! are dropped (a call that has started completes); a target of ours that is not enabled is listed as partial.

pub(crate) mod descriptor;
pub(crate) mod have;
pub(crate) mod plan;
mod sessions;
#[cfg(test)]
pub(crate) mod tests;
mod want;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_core::{
    error::{Error, ErrorKind, Result, code},
    keyed_locks::KeyedLocks,
    nouns::{InstanceId, Iqn, ResourceId},
    ports::{
        Completeness, Connection, Health, Listed, LoginGate, LoginVisibility, LunDisks, Observer, Removal,
        TargetBackend, TargetCapabilities, TargetEndpoint, TargetSpec,
    },
};

pub use self::descriptor::descriptor;
use self::{
    have::{Have, Shown, folders_in, read},
    want::Want,
};
#[cfg(feature = "helper")]
use crate::helper::Helper;
pub use crate::lio::Hook;
use crate::lio::{Op, names::Names, tree::Tree};

/// The backend's name.
pub const NAME: &str = "lio-configfs";

/// The settings.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LioConfig {
    /// The portals.
    pub listen: Vec<SocketAddr>,
    /// The kernel's tree.
    pub root: PathBuf,
    /// Whether a write to a file is acknowledged once it is in the page cache: as fast as the built-in target, and a flush still reaches
    /// the disk. Without it every write waits for the disk.
    pub buffered: bool,
    /// The helper's socket, for a server that is not root; `None`: we change the tree ourselves.
    pub helper: Option<PathBuf>,
}

impl Default for LioConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 3260))],
            root: "/sys/kernel/config/target".into(),
            buffered: true,
            helper: None,
        }
    }
}

/// The backend. See the module.
pub struct LioConfigfs {
    inner: Arc<Inner>,
    turns: KeyedLocks<ResourceId>,
}

/// Changes the tree for us, and may stop half-way without reporting it: the result is read from the tree. Blocking.
pub trait Hands: Send + Sync + 'static {
    /// Applies operations except flushes; `before` is called for each change, and its error stops the list.
    ///
    /// # Errors
    /// It could not start, or was stopped.
    fn apply(&self, ops: &[Op], before: &(dyn Fn(&Op) -> Result<()> + Sync)) -> Result<()>;

    /// Whether it can start; loads the kernel's iSCSI target if it is not `loaded`.
    ///
    /// # Errors
    /// It cannot.
    fn ready(&self, loaded: bool) -> Result<()>;

    /// The error for operations that were applied but are not visible in the tree, with the known reason.
    fn not_done(&self, message: String) -> Error;
}

struct Inner {
    name: &'static str,
    config: LioConfig,
    prefix: Iqn,
    instance: InstanceId,
    tree: Tree,
    /// What changes the tree; `None`: we do.
    #[cfg(feature = "helper")]
    helper: Option<Helper>,
    hands: Option<Box<dyn Hands>>,
}

impl LioConfigfs {
    /// Checks that the kernel's tree exists, and makes the kernel load its iSCSI target. Blocking.
    ///
    /// Errors: `Unavailable` without LIO or its helper, `Permission` if we cannot change it, `Invalid` for a portal without a port,
    /// `Unsupported` if support for the helper was not compiled in.
    pub fn start(config: LioConfig, prefix: Iqn, instance: InstanceId) -> Result<Self> {
        Self::start_hooked(config, prefix, instance, None)
    }

    /// [`start`](Self::start) with a hook that is called before each change of the tree: for tests.
    #[doc(hidden)]
    pub fn start_hooked(
        config: LioConfig,
        prefix: Iqn,
        instance: InstanceId,
        hook: Option<Hook>,
    ) -> Result<Self> {
        Self::start_with(config, prefix, instance, hook, NAME, None)
    }

    /// The same for a related backend with its own name and its own hands.
    #[cfg(feature = "target-lio-targetcli")]
    pub(crate) fn start_by(
        config: LioConfig,
        prefix: Iqn,
        instance: InstanceId,
        hook: Option<Hook>,
        (name, hands): (&'static str, Box<dyn Hands>),
    ) -> Result<Self> {
        Self::start_with(config, prefix, instance, hook, name, Some(hands))
    }

    fn start_with(
        config: LioConfig,
        prefix: Iqn,
        instance: InstanceId,
        hook: Option<Hook>,
        name: &'static str,
        hands: Option<Box<dyn Hands>>,
    ) -> Result<Self> {
        if let Some(at) = config.listen.iter().find(|at| at.port() == 0) {
            let message = format!("{at} has no port, and the kernel target cannot choose a port");
            return Err(Error::invalid("listen", message));
        }
        #[cfg(not(feature = "helper"))]
        if let Some(socket) = &config.helper {
            let message = format!(
                "The helper on {} cannot be used: this build has no support for it",
                socket.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, message).with_backend(NAME));
        }
        let inner = Inner {
            name,
            hands,
            prefix,
            instance,
            tree: Tree::at(config.root.clone(), hook),
            #[cfg(feature = "helper")]
            helper: config.helper.clone().map(Helper::at),
            config,
        };
        inner.ready()?;
        Ok(Self { inner: Arc::new(inner), turns: KeyedLocks::default() })
    }

    /// Runs blocking work, which completes even if the caller is gone.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (inner, name) = (Arc::clone(&self.inner), self.inner.name);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|e| Error::internal("A task that changes the kernel target panicked").with_source(e))
            .flatten()
            .map_err(|e| e.with_backend(name).with_operation(operation))
    }
}

impl Inner {
    /// Checks that LIO is loaded and can be changed.
    fn ready(&self) -> Result<()> {
        let fabric = self.tree.root().join("iscsi");
        if let Some(hands) = &self.hands {
            let ready = hands.ready(fabric.is_dir());
            return ready.and_then(|()| self.fabric().map(drop)).map_err(|e| e.with_backend(self.name));
        }
        #[cfg(feature = "helper")]
        if let Some(helper) = &self.helper {
            let asked = if fabric.is_dir() { Ok(()) } else { helper.load_target() };
            return asked.map_err(|e| e.with_backend(NAME));
        }
        // The kernel loads iscsi_target_mod when this folder is created.
        match std::fs::create_dir(&fabric) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(Error::io(format!("Making {}", fabric.display()), e)
                    .with_hint("Only root can change the kernel target: set helper in [target], or run the server as root"))
            }
            Err(e) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("The kernel target is not loaded: cannot create {}", fabric.display()),
            )
            .with_reason(e)
            .with_hint(
                "mount -t configfs configfs /sys/kernel/config; modprobe target_core_mod; modprobe iscsi_target_mod",
            )),
        }
        .map_err(|e| e.with_backend(NAME))
    }

    fn names(&self, id: &ResourceId) -> Result<Names> {
        Names::of(&self.prefix, &self.instance, id)
    }

    /// The folder of the kernel's targets. If the tree does not exist (configfs was unmounted), that does not mean that there are no
    /// targets.
    fn fabric(&self) -> Result<PathBuf> {
        let fabric = self.tree.root().join("iscsi");
        match std::fs::metadata(&fabric) {
            Ok(_) => Ok(fabric),
            Err(e) => {
                let message = format!("The kernel target is not loaded: {} does not exist", fabric.display());
                Err(Error::new(ErrorKind::Unavailable, message).with_source(e))
            }
        }
    }

    fn have(&self, names: &Names) -> Result<Have> {
        self.fabric()?;
        Have::of(&self.tree, names, self.shows(), self.hands.is_some())
    }

    /// What we can read: the CHAP attributes are only readable for root.
    fn shows(&self) -> Shown {
        if self.config.helper.is_some() { Shown::WithoutSecrets } else { Shown::All }
    }

    /// Applies changes to the tree.
    fn apply(&self, id: &ResourceId, ops: &[Op]) -> Result<()> {
        if let Some(hands) = &self.hands {
            hands.apply(ops, &|op| self.tree.before(op))?;
            let flushes: Vec<Op> = ops.iter().filter(|op| matches!(op, Op::Flush(_))).cloned().collect();
            return self.tree.apply(&flushes);
        }
        #[cfg(feature = "helper")]
        if let Some(helper) = &self.helper {
            ops.iter().try_for_each(|op| self.tree.before(op))?;
            return helper.apply(id, ops);
        }
        // The helper derives the names from the id.
        let _ = id;
        self.tree.apply(ops)
    }

    /// Applies `ops` to the tree. If another process makes the changes, checks what is `left` to do then; a portal group is enabled only
    /// when nothing else is left.
    fn apply_all(&self, id: &ResourceId, ops: Vec<Op>, left: impl Fn() -> Result<Vec<Op>>) -> Result<()> {
        let Some(hands) = &self.hands else { return self.apply(id, &ops) };
        if ops.is_empty() {
            return Ok(());
        }
        let (enabling, rest): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(is_enabling);
        self.apply(id, &rest)?;
        let mut undone = left()?;
        if undone == enabling && !undone.is_empty() {
            self.apply(id, &enabling)?;
            undone = left()?;
        }
        match undone.first() {
            None => Ok(()),
            Some(first) => {
                Err(hands.not_done(format!("{} changes were not made, first {first:?}", undone.len())))
            }
        }
    }

    fn ensure(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<()> {
        let names = self.names(&spec.id)?;
        let want = Want::of(spec, disks, names, &self.config)?;
        let left = || {
            plan::converge(&want, &self.have(&want.names)?).map_err(|plan::Busy| {
                in_use(spec.iqn.as_str(), "has a live session, so its disks cannot change")
            })
        };
        self.apply_all(&spec.id, left()?, left).inspect_err(|_| self.undo(&spec.id, &want.names))
    }

    /// Cleans up after a failed `ensure`: removes the target if no initiator can have logged in. A group that was enabled stays, even if
    /// its access has changed, because an initiator may be using it.
    fn undo(&self, id: &ResourceId, names: &Names) {
        let undone = self.have(names).and_then(|have| {
            if have.group.as_ref().is_some_and(|g| g.enabled) {
                return Ok(());
            }
            self.apply(id, &plan::take_down(&names.target(), &have))
        });
        if let Err(e) = undone {
            tracing::warn!(target = %names.iqn, error = %e.report(), "cannot remove an incomplete kernel target");
        }
    }

    fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        let names = self.names(id)?;
        let have = self.have(&names)?;
        if how == Removal::IfIdle && have.is_live() {
            return Err(in_use(&names.iqn, "has a live session"));
        }
        let left = || Ok(plan::take_down(&names.target(), &self.have(&names)?));
        self.apply_all(id, plan::take_down(&names.target(), &have), left)
    }

    /// Our existing targets, whole or partial.
    fn targets(&self) -> Result<Vec<(ResourceId, PathBuf)>> {
        let fabric = self.fabric()?;
        let ours = |name: String| {
            let id = name.parse::<Iqn>().ok()?.resource(&self.prefix, &self.instance)?;
            Some((id, fabric.join(name).join("tpgt_1")))
        };
        Ok(folders_in(&fabric)?.into_iter().filter_map(ours).collect())
    }

    /// The portal group of an existing target, whole or partial.
    fn group(&self, id: &ResourceId) -> Result<Option<PathBuf>> {
        let target = self.fabric()?.join(self.names(id)?.iqn);
        Ok(target.is_dir().then(|| target.join("tpgt_1")))
    }

    fn endpoint(&self, id: &ResourceId) -> Result<Option<TargetEndpoint>> {
        let Some(group) = self.group(id)?.filter(|group| is_enabled(group)) else { return Ok(None) };
        let numbers = folders_in(&group.join("lun"))?;
        let numbers = numbers.iter().filter_map(|name| name.strip_prefix("lun_")?.parse().ok());
        Ok(Some(TargetEndpoint {
            iqn: Iqn::target(&self.prefix, &self.instance, id)?,
            listen: self.config.listen.clone(),
            lun: numbers.min().unwrap_or(0),
        }))
    }

    fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        Ok(self.group(id)?.map(|group| listed(id.clone(), &group)))
    }

    fn list(&self) -> Result<Vec<Listed>> {
        Ok(self.targets()?.into_iter().map(|(id, group)| listed(id, &group)).collect())
    }

    fn connections(&self) -> Result<Vec<Connection>> {
        let mut all = Vec::new();
        for (id, group) in self.targets()? {
            all.extend(sessions::of_group(&group, &id)?);
        }
        Ok(all)
    }
}

/// Whether a portal group accepts logins: it is enabled last and disabled first.
fn is_enabled(group: &Path) -> bool {
    read(&group.join("enable")) == "1"
}

fn listed(id: ResourceId, group: &Path) -> Listed {
    let completeness = if is_enabled(group) { Completeness::Whole } else { Completeness::Partial };
    Listed { id, digest: None, completeness }
}

fn in_use(iqn: &str, why: &str) -> Error {
    Error::new(code::target_in_use(iqn), format!("Target {iqn} {why}"))
}

/// Whether it allows initiators to log in.
fn is_enabling(op: &Op) -> bool {
    matches!(op, Op::Write(path, value) if path.ends_with("/tpgt_1/enable") && value.expose() == "1")
}

#[async_trait]
impl TargetBackend for LioConfigfs {
    fn name(&self) -> &'static str {
        self.inner.name
    }

    fn capabilities(&self) -> TargetCapabilities {
        TargetCapabilities {
            accepts: want::accepts(self.inner.config.helper.is_some()),
            chap: true,
            mutual_chap: true,
            logins: LoginVisibility::Polled,
            max_luns: 255,
            survives_restart: true,
            // The kernel keeps the size that a file had when its backstore was created.
            follows_growth: false,
        }
    }

    /// The kernel neither asks us at a login nor reports events.
    fn attach(&self, _: Arc<dyn LoginGate>, _: Arc<dyn Observer>) {}

    async fn ensure(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<TargetEndpoint> {
        // Moved into the task, so that an ensure and a remove of one target run one after the other, even if this future is dropped.
        let turn = self.turns.lock(&spec.id).await;
        let (wanted, disks) = (spec.clone(), disks.clone());
        let done = self.run("ensure", move |inner| {
            let _turn = turn;
            inner.ensure(&wanted, &disks)
        });
        done.await.map_err(|e| e.with_subject(spec.id.to_string()))?;
        Ok(TargetEndpoint {
            iqn: spec.iqn.clone(),
            listen: self.inner.config.listen.clone(),
            lun: spec.boot_lun(),
        })
    }

    async fn endpoint(&self, id: &ResourceId) -> Result<Option<TargetEndpoint>> {
        let id = id.clone();
        self.run("endpoint", move |inner| inner.endpoint(&id)).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        let id = id.clone();
        self.run("get", move |inner| inner.get(&id)).await
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        // As in `ensure`.
        let turn = self.turns.lock(id).await;
        let wanted = id.clone();
        let done = self.run("remove", move |inner| {
            let _turn = turn;
            inner.remove(&wanted, how)
        });
        done.await.map_err(|e| e.with_subject(id.to_string()))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.run("list", Inner::list).await
    }

    async fn connections(&self) -> Result<Vec<Connection>> {
        self.run("connections", Inner::connections).await
    }

    async fn health(&self) -> Health {
        match self.run("health", Inner::ready).await {
            Ok(()) => Health::Up,
            Err(e) => {
                let hint = e.hint().map(|h| format!(" ({h})")).unwrap_or_default();
                Health::Down(format!("{e}{hint}"))
            }
        }
    }

    /// Nothing to do: the kernel continues to serve.
    async fn shutdown(&self) {}
}

//! The target backend "lio-targetcli": the kernel's own iSCSI target, changed only through the program `targetcli`, for hosts whose policy
//! requires it.
//!
//! ```text
//!  TargetSpec, configfs ─ lio_configfs ─▶ [Op] ─ words ─▶ commands ─ tool ─▶ targetcli's stdin ─▶ configfs, read again
//! ```
//! `lio_configfs` computes the wanted state, the current state and the operations; only the code that applies them differs. The kernel's
//! tree shows whether the tool did what it was asked to: its exit code does not, and after a failed command it continues with the next one.
//! So a portal group is enabled after a check of the rest.
//!
//! Invariants: only a program's name and its own folder are in its argv; its stdout, which repeats secrets, is not kept. Only one user of
//! the tool at a time, by its own lock: an operator's targetcli makes ours wait, and vice versa.

mod descriptor;
mod tool;
mod words;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ggnet_core::{
    error::{Error, Result},
    nouns::{InstanceId, Iqn},
};
use tokio::runtime::Handle;

pub use self::descriptor::descriptor;
use self::tool::Tool;
use super::lio_configfs::{Hands, Hook, LioConfig, LioConfigfs};
use crate::lio::Op;
use crate::run::SystemRunner;

/// The backend's name.
pub const NAME: &str = "lio-targetcli";

/// The settings.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetcliConfig {
    /// The portals.
    pub listen: Vec<SocketAddr>,
    /// The kernel's tree, which is only read here.
    pub root: PathBuf,
    /// As in `lio-configfs`.
    pub buffered: bool,
    /// Time limit for one step of a change, including the wait for another targetcli, in seconds.
    pub time_limit_s: u64,
}

impl Default for TargetcliConfig {
    fn default() -> Self {
        let LioConfig { listen, root, buffered, .. } = LioConfig::default();
        Self { listen, root, buffered, time_limit_s: 60 }
    }
}

/// The backend: `lio_configfs` with the tool to apply changes. `home` is a folder for the tool's own settings, created if it does not
/// exist, so that those of an operator do not change. Blocking; must be called within a runtime, from a thread that may block.
///
/// # Errors
/// `Unavailable` without LIO or without the tool, `Invalid` for a portal without a port, errors of creating the folder.
pub fn start(config: TargetcliConfig, prefix: Iqn, instance: InstanceId, home: &Path) -> Result<LioConfigfs> {
    start_hooked(config, prefix, instance, home, None)
}

/// [`start`] with a hook that is called before each change of the tree: for tests.
#[doc(hidden)]
pub fn start_hooked(
    config: TargetcliConfig,
    prefix: Iqn,
    instance: InstanceId,
    home: &Path,
    hook: Option<Hook>,
) -> Result<LioConfigfs> {
    let time_limit = Duration::from_secs(config.time_limit_s);
    let tool = SystemRunner::new().and_then(|runner| Tool::new(home, time_limit, runner));
    let tool = tool.map_err(|e| e.with_backend(NAME))?;
    let TargetcliConfig { listen, root, buffered, .. } = config;
    let config = LioConfig { listen, root, buffered, helper: None };
    let hands = Targetcli { tool, runtime: Handle::current() };
    LioConfigfs::start_by(config, prefix, instance, hook, (NAME, Box::new(hands)))
}

struct Targetcli {
    tool: Tool,
    runtime: Handle,
}

impl Hands for Targetcli {
    fn apply(&self, ops: &[Op], before: &(dyn Fn(&Op) -> Result<()> + Sync)) -> Result<()> {
        let commands = words::commands(ops)?;
        let ask = |n: usize| ops.get(n).map_or(Ok(()), before);
        if commands.is_empty() { Ok(()) } else { self.runtime.block_on(self.tool.say(&commands, &ask)) }
    }

    fn ready(&self, loaded: bool) -> Result<()> {
        self.runtime.block_on(async {
            self.tool.is_there().await?;
            // It loads the kernel's modules when it starts.
            if loaded { Ok(()) } else { self.tool.say(&[], &|_| Ok(())).await }
        })
    }

    fn not_done(&self, message: String) -> Error {
        self.runtime.block_on(self.tool.blamed(message))
    }
}

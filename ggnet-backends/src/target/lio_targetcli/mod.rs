//! The target backend "lio-targetcli": the kernel's own iSCSI target, changed by the program `targetcli` alone, for hosts where policy
//! wants the tool.
//!
//! ```text
//!  TargetSpec, configfs ─ lio_configfs ─▶ [Op] ─ words ─▶ commands ─ tool ─▶ targetcli's stdin ─▶ configfs, read again
//! ```
//! What should be, what is there and what lies between them is the sister's; only the hands differ. The kernel's tree says whether the
//! tool did what it was told: its exit code does not, and it goes on with the next command after one that failed. So a portal group is
//! enabled after a look at the rest.
//!
//! Invariants: nothing but a program's name and its own folder is ever in its argv; what it says on stdout repeats secrets and is not
//! kept. One user of the tool at a time, by its own lock: an operator's own targetcli makes ours wait, and ours theirs.

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

/// What an operator can set.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetcliConfig {
    /// The portals.
    pub listen: Vec<SocketAddr>,
    /// The kernel's tree, which is only read.
    pub root: PathBuf,
    /// As `lio-configfs` has it.
    pub buffered: bool,
    /// How long the tool may take for one step of a target's way, its wait for somebody else's targetcli included, in seconds.
    pub time_limit_s: u64,
}

impl Default for TargetcliConfig {
    fn default() -> Self {
        let LioConfig { listen, root, buffered, .. } = LioConfig::default();
        Self { listen, root, buffered, time_limit_s: 60 }
    }
}

/// The backend: the sister, with the tool for hands. `home` is a folder for the tool's own settings, made if it is not there, so that
/// those of an operator stay as they are. Blocking; within a runtime, from a thread that may block.
///
/// # Errors
/// `Unavailable` without LIO or without the tool, `Invalid` for a portal without a port, what making the folder said.
pub fn start(config: TargetcliConfig, prefix: Iqn, instance: InstanceId, home: &Path) -> Result<LioConfigfs> {
    start_hooked(config, prefix, instance, home, None)
}

/// [`start`] with a function that is called before each change of the tree: for tests.
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
            // It loads the kernel's modules as it starts.
            if loaded { Ok(()) } else { self.tool.say(&[], &|_| Ok(())).await }
        })
    }

    fn not_done(&self, message: String) -> Error {
        self.runtime.block_on(self.tool.blamed(message))
    }
}

//! What an operator can set about sessions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    boot_text::BootUrl,
    error::{Error, Result},
    nouns::{InstanceId, Iqn, ServerId},
};

/// Whether initiators must authenticate by CHAP to get a session's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChapPolicy {
    /// Each generation has its own pair, if the target backend can demand CHAP.
    #[default]
    Required,
    /// New generations have no pair: any client that names target and initiator gets the disk. For a trusted network with guests that
    /// cannot log in again by CHAP while their root file system waits for that login.
    Off,
}

/// The orchestrator's settings.
#[derive(Clone, Debug)]
pub struct OrchestratorConfig {
    /// The id of this installation of GGnet.
    pub instance: InstanceId,
    /// The id of this server within the installation; by default the only one.
    pub server: ServerId,
    /// The start of every IQN.
    pub iqn_prefix: Iqn,
    /// Whether new generations require CHAP (default: required). An existing generation keeps its access.
    pub chap: ChapPolicy,
    /// A `discard` session that was offline for longer is stopped (default 10 minutes).
    pub idle_timeout: Duration,
    /// A generation that was prepared and not used for longer is removed (default 10 minutes).
    pub generation_ttl: Duration,
    /// A start that takes longer is undone (default 60 seconds).
    pub start_deadline: Duration,
    /// How long a shutdown waits for operations in flight before it cuts them off (default 15 seconds).
    pub shutdown_deadline: Duration,
    /// How many jobs (imports) run at once; further ones wait for their turn (default 4, 1 to 1000).
    pub jobs_at_once: usize,
    /// How often the reconciler runs (default 15 seconds).
    pub reconcile_interval: Duration,
    /// Events, audit rows, ended jobs and ended sessions that are older are deleted (default 90 days).
    pub retention: Duration,
    /// How long a UEFI machine that got its loader may take to ask for its script before an event reports that Secure Boot is probably on
    /// (default 30 seconds).
    pub script_deadline: Duration,
    /// How long a boot request waits for its start before the answer is to retry (default 5 seconds).
    pub boot_wait: Duration,
    /// The URL of the HTTP server for the chain scripts in the boot files. `None`: no chain scripts are made, and machines find their
    /// script by DHCP only.
    pub chain_url: Option<BootUrl>,
}

impl OrchestratorConfig {
    /// The defaults, for this instance.
    pub fn new(instance: InstanceId) -> Result<Self> {
        Ok(Self {
            server: ServerId::only_one_of(&instance),
            instance,
            iqn_prefix: Self::default_iqn_prefix()?,
            chap: ChapPolicy::Required,
            idle_timeout: Duration::from_secs(600),
            generation_ttl: Duration::from_secs(600),
            start_deadline: Duration::from_secs(60),
            shutdown_deadline: Duration::from_secs(15),
            jobs_at_once: 4,
            reconcile_interval: Duration::from_secs(15),
            retention: Duration::from_secs(90 * 24 * 3600),
            script_deadline: Duration::from_secs(30),
            boot_wait: Duration::from_secs(5),
            chain_url: None,
        })
    }

    /// The default start of every IQN.
    pub fn default_iqn_prefix() -> Result<Iqn> {
        "iqn.2026-11.local.ggnet".parse()
    }

    pub(super) fn check(&self) -> Result<()> {
        // iPXE puts every string of the iBFT into 384 bytes; two names of 100 leave room for the rest.
        if self.iqn_prefix.as_str().len() > 64 {
            return Err(Error::invalid(
                "iqn_prefix",
                "The IQN prefix is longer than 64 bytes; iPXE has 384 bytes for all names of a boot",
            ));
        }
        if !(1..=1000).contains(&self.jobs_at_once) {
            return Err(Error::invalid(
                "jobs_at_once",
                format!("jobs_at_once is {}; it must be 1 to 1000", self.jobs_at_once),
            ));
        }
        let least = Duration::from_millis(100);
        for (field, value) in [
            ("idle_timeout", self.idle_timeout),
            ("generation_ttl", self.generation_ttl),
            ("start_deadline", self.start_deadline),
            ("reconcile_interval", self.reconcile_interval),
        ] {
            if value < least {
                return Err(Error::invalid(field, format!("{field} is {value:?}; the minimum is {least:?}")));
            }
        }
        Ok(())
    }
}

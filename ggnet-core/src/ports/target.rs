//! [`TargetBackend`]: iSCSI targets, one per session generation or manual target.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Health, Listed, Removal, SpecDigest};
use crate::{
    block::{Disk, DiskForm},
    error::{Error, Result},
    nouns::{ChapPair, Iqn, ResourceId, Timestamp},
    ports::Observer,
};

/// One LUN of a target: everything but its bytes, which are in [`LunDisks`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunSpec {
    /// Its number.
    pub number: u8,
    /// Identifies the bytes in the spec's digest: the name of the writeback or of the version. Two disks with the same key are the same
    /// disk.
    pub disk_key: String,
    /// The unit serial number (VPD page 80) and the seed of the identifiers of page 83. It depends on the machine and the LUN, never on the
    /// generation: to Windows, a changed serial number looks like a swapped disk.
    pub serial: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// One initiator name, exclusively: the newest authenticated login of that name wins and closes the older session,
    /// whatever its ISID; another name is refused.
    Initiator {
        /// The name.
        name: Iqn,
        /// The CHAP pair with which it must authenticate.
        chap: Option<ChapPair>,
        /// The pair with which the target authenticates itself to an initiator that asks for it (mutual CHAP, RFC 7143 section 12.1.3);
        /// only with `chap`, and with a different secret. Each backend decides whether an initiator that does not ask is accepted.
        mutual: Option<ChapPair>,
    },
    /// Every initiator, several at the same time; only for read-only LUNs.
    Shared,
}

impl Access {
    /// Rejects mutual CHAP without one-way CHAP, and mutual CHAP with the initiator's own secret: with equal secrets, a party that is
    /// challenged could send the challenge back and have the other side answer it.
    ///
    /// # Errors
    /// `Invalid`, naming `mutual`.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Initiator { mutual: Some(_), chap: None, .. } => {
                Err(Error::invalid("mutual", "Mutual CHAP needs one-way CHAP as well"))
            }
            Self::Initiator { mutual: Some(target), chap: Some(initiator), .. }
                if target.secret == initiator.secret =>
            {
                Err(Error::invalid("mutual", "The target's secret must not be the initiator's"))
            }
            _ => Ok(()),
        }
    }
}

/// The bytes of a target's LUNs, by the LUN's number.
pub type LunDisks = BTreeMap<u8, Disk>;

/// The wanted state of a target, without the disks: it can be compared with the existing targets without opening a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// Its name among our objects.
    pub id: ResourceId,
    /// Its iSCSI name.
    pub iqn: Iqn,
    /// Its LUNs.
    pub luns: Vec<LunSpec>,
    /// Who may log in.
    pub access: Access,
}

impl TargetSpec {
    /// Each LUN with its disk, in the order of the spec. A backend's `ensure` calls it first.
    ///
    /// # Errors
    /// `Invalid` (field `luns`): a number twice; (field `disks`): a LUN without a disk, or a disk without a LUN.
    pub fn with_disks<'a>(&'a self, disks: &'a LunDisks) -> Result<Vec<(&'a LunSpec, &'a Disk)>> {
        let numbers: BTreeSet<u8> = self.luns.iter().map(|lun| lun.number).collect();
        if numbers.len() < self.luns.len() {
            return Err(Error::invalid("luns", format!("Target {} has a LUN number twice", self.id)));
        }
        if let Some(number) = disks.keys().find(|number| !numbers.contains(number)) {
            return Err(Error::invalid(
                "disks",
                format!("Target {} has a disk for LUN {number}, but no such LUN", self.id),
            ));
        }
        let with_disk = |lun: &'a LunSpec| match disks.get(&lun.number) {
            Some(disk) => Ok((lun, disk)),
            None => {
                Err(Error::invalid("disks", format!("LUN {} of target {} has no disk", lun.number, self.id)))
            }
        };
        self.luns.iter().map(with_disk).collect()
    }

    /// The LUN to boot from: the one with the lowest number.
    #[must_use]
    pub fn boot_lun(&self) -> u8 {
        self.luns.iter().map(|lun| lun.number).min().unwrap_or(0)
    }

    /// The digest of every property whose change requires the backend to converge.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        let mut fields: Vec<Vec<u8>> = vec![self.id.as_str().into(), self.iqn.as_str().into()];
        for lun in &self.luns {
            fields.push(vec![lun.number, u8::from(lun.read_only)]);
            fields.push(lun.disk_key.as_bytes().into());
            fields.push(lun.serial.as_bytes().into());
        }
        match &self.access {
            Access::Shared => fields.push(b"shared".into()),
            Access::Initiator { name, chap, mutual } => {
                fields.push(name.as_str().into());
                for pair in chap.iter().chain(mutual) {
                    fields.push(pair.user.as_bytes().into());
                    fields.push(pair.secret.expose().as_bytes().into());
                }
            }
        }
        SpecDigest::of(fields.iter().map(Vec::as_slice))
    }
}

/// What an initiator needs to reach a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetEndpoint {
    /// The target's iSCSI name.
    pub iqn: Iqn,
    /// Where the backend listens. An unspecified address means every address of this host; the advertised address then decides which one
    /// machines get.
    pub listen: Vec<SocketAddr>,
    /// The number of the LUN to boot from.
    pub lun: u8,
}

/// How much a backend sees of logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginVisibility {
    /// It asks the [`LoginGate`] before an authenticated login completes: generations commit exactly at the login.
    Gated,
    /// It lists connections; the reconciler commits a generation when it sees one. It cannot close the older of two sessions of one
    /// initiator name either: that one stays until its connection ends.
    Polled,
}

/// What a target backend can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCapabilities {
    /// The forms of disk that it accepts.
    pub accepts: Vec<DiskForm>,
    /// Whether it can demand CHAP.
    pub chap: bool,
    /// Whether it supports mutual CHAP.
    pub mutual_chap: bool,
    /// How much of logins it sees.
    pub logins: LoginVisibility,
    /// How many LUNs a target can have.
    pub max_luns: u8,
    /// Whether targets outlive our process (the kernel's do).
    pub survives_restart: bool,
    /// Whether a disk that grows is served with its new size at once, and initiators are notified (see [`crate::block`]). If not, its old
    /// size is served until the target is created again.
    pub follows_growth: bool,
}

/// A connection of an initiator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The target.
    pub target: ResourceId,
    /// The initiator's name.
    pub initiator: String,
    /// The initiator's address; `None` when the backend cannot tell.
    pub peer: Option<SocketAddr>,
    /// The time of its login.
    pub since: Option<Timestamp>,
    /// Bytes that the initiator has read.
    pub bytes_read: u64,
    /// Bytes that the initiator has written.
    pub bytes_written: u64,
    /// Commands that it has sent.
    pub commands: u64,
    /// The commands in detail; `None` when the backend cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoCounters>,
}

/// Counters of a connection's commands and their results, since its login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoCounters {
    /// Commands that read the medium.
    pub reads: u64,
    /// Commands that wrote it.
    pub writes: u64,
    /// All other SCSI commands.
    pub others: u64,
    /// Commands that were answered with any status but GOOD. A few are normal: initiators probe for features that a target may not have.
    pub not_good: u64,
    /// Those of them whose disk had failed or was full.
    pub device_errors: u64,
    /// Commands open now.
    pub queue_depth: u32,
    /// Time from a command's arrival to its status: element *n* counts the commands that took less than 2^n microseconds and are
    /// not counted by an earlier one; the last counts all that took longer.
    pub latency_us: Vec<u64>,
    /// The sum of those times, in microseconds.
    pub latency_us_total: u64,
}

/// An authenticated login that waits for a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The target.
    pub target: ResourceId,
    /// The initiator.
    pub initiator: String,
    /// The initiator's address.
    pub peer: SocketAddr,
}

/// The answer to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginVerdict {
    /// The login succeeds.
    Accept,
    /// Status 0301, service unavailable: the initiator retries.
    Retry,
    /// Status 0202, authorization failure.
    Refuse,
}

/// Decides about logins; implemented by the orchestrator.
#[async_trait]
pub trait LoginGate: Send + Sync + 'static {
    /// Whether logins are served at all. They are not until the first reconcile has ended: every login, also to an unknown target, gets
    /// 0301 (the initiator retries), never a class-2 status (fatal to open-iscsi).
    fn serving(&self) -> bool;

    /// Called after authentication and before the last login response. The verdict may take a transaction and the removal of another
    /// target. Cancellation: the call is finished even when the connection dies.
    async fn login(&self, login: Login) -> LoginVerdict;
}

/// iSCSI targets. See [`crate::ports`] for the contract of `ensure`, `remove` and `list`.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait TargetBackend: Send + Sync + 'static {
    /// The backend's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> TargetCapabilities;

    /// Sets the gate that decides about logins and the observer that is notified of them. Called once, before the first `ensure`. Without
    /// it every login gets 0301.
    fn attach(&self, gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>);

    /// Makes the target match the spec, over these disks (one for each LUN of the spec: [`TargetSpec::with_disks`]), and returns how to
    /// reach it. A target that already matches keeps its disks: the same [`disk_key`](LunSpec::disk_key) is the same disk.
    ///
    /// A changed access takes effect for new logins; changed LUNs under a live initiator are `Busy`. Errors: `Unsupported` for
    /// a disk form that [`TargetCapabilities::accepts`] lacks; `Unavailable`; `Permission`. Cancellation: see [`crate::ports`].
    async fn ensure(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<TargetEndpoint>;

    /// How one of our targets is reached, as its `ensure` returned it; `None` if it does not exist or is not whole. Changes nothing.
    async fn endpoint(&self, id: &ResourceId) -> Result<Option<TargetEndpoint>>;

    /// Removes the target: no new logins; under `Force` requests in flight are finished, disks flushed, connections closed.
    /// When it returns the backend holds no reference to the disks.
    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()>;

    /// One of our targets, as `list` shows it; `None` if nothing of it exists.
    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == *id))
    }

    /// Our targets.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// The live connections to our targets.
    async fn connections(&self) -> Result<Vec<Connection>>;

    /// The backend's health.
    async fn health(&self) -> Health;

    /// Stops serving: flush and sync first, then close. Targets that live in the kernel stay. After it only `health` may be
    /// called.
    async fn shutdown(&self);
}

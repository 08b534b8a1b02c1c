//! [`DhcpBackend`]: the machines that DHCP directs to boot from this server.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::{Health, Listed, Observer, SpecDigest};
use crate::{
    error::{Error, Result},
    nouns::{DeviceType, MacAddr, Name, ResourceId},
};

/// A machine that DHCP should serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpHost {
    /// Its name among our objects.
    pub id: ResourceId,
    /// Its host name.
    pub name: Name,
    /// Its network cards.
    pub macs: Vec<MacAddr>,
    /// The address to reserve, where the backend gives out addresses.
    pub fixed_address: Option<IpAddr>,
    /// What kind of computer it is.
    pub device_type: DeviceType,
}

impl DhcpHost {
    /// The digest of the spec.
    #[must_use]
    pub fn digest(&self) -> SpecDigest {
        let json = serde_json::to_vec(self).unwrap_or_default();
        SpecDigest::of([json.as_slice()])
    }
}

/// What a DHCP backend can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpCapabilities {
    /// Whether it gives out addresses (and honours `fixed_address`), or answers alongside a server that does.
    pub leases: bool,
    /// Whether it reports its answers to the observer.
    pub observes: bool,
}

/// A change of the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DhcpChange {
    /// Make DHCP answer this machine, as described.
    Ensure(DhcpHost),
    /// Remove this machine from DHCP. An entry has no users, so this is never `Busy`; removing an entry that does not exist succeeds.
    Remove(ResourceId),
}

impl DhcpChange {
    /// The entry that it changes.
    #[must_use]
    pub const fn id(&self) -> &ResourceId {
        match self {
            Self::Ensure(host) => &host.id,
            Self::Remove(id) => id,
        }
    }
}

/// A change that failed.
#[derive(Clone, Debug)]
pub struct DhcpRefusal {
    /// The entry that it should have changed.
    pub id: ResourceId,
    /// Why it failed.
    pub error: Error,
}

impl DhcpRefusal {
    /// The result of a set that has a single change: its error, if it was refused.
    pub fn of_one(refused: Vec<Self>) -> Result<()> {
        refused.into_iter().next().map_or(Ok(()), |refusal| Err(refusal.error))
    }
}

/// [`DhcpBackend::apply`] for a backend that makes each change separately: makes all of them concurrently.
pub async fn apply_each<'a, Done>(
    changes: &'a [DhcpChange],
    one: impl Fn(&'a DhcpChange) -> Done,
) -> Vec<DhcpRefusal>
where
    Done: Future<Output = Result<()>>,
{
    let done = join_all(changes.iter().map(one)).await;
    let refused = |(change, done): (&DhcpChange, Result<()>)| {
        done.err().map(|error| DhcpRefusal { id: change.id().clone(), error })
    };
    changes.iter().zip(done).filter_map(refused).collect()
}

/// DHCP entries. See [`crate::ports`] for the contract of `apply` (the `ensure` and `remove` of this port), `get` and `list`.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait DhcpBackend: Send + Sync + 'static {
    /// The backend's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> DhcpCapabilities;

    /// Sets the observer that is notified of requests. Called once, before the first `apply`.
    fn attach(&self, observer: Arc<dyn Observer>);

    /// Makes these changes, each of a different entry. They come as a set because a daemon that must be restarted is restarted once for all
    /// of them. When it returns, the next request is answered accordingly. The result lists the changes that failed, and why; all the
    /// others are made. A failed change may be partly made: making it again completes it. An error in place of the result means that all of
    /// them failed.
    async fn apply(&self, changes: &[DhcpChange]) -> Result<Vec<DhcpRefusal>>;

    /// One of our entries, as `list` shows it; `None` if nothing of it exists.
    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.id == *id))
    }

    /// Our entries.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// The backend's health.
    async fn health(&self) -> Health;

    /// Stops answering.
    async fn shutdown(&self);
}

/// Changes of a single entry.
#[async_trait]
pub trait DhcpBackendExt: DhcpBackend {
    /// Makes DHCP answer this machine: [`DhcpBackend::apply`] with this single change.
    async fn ensure(&self, host: &DhcpHost) -> Result<()> {
        DhcpRefusal::of_one(self.apply(&[DhcpChange::Ensure(host.clone())]).await?)
    }

    /// Removes this machine from DHCP: [`DhcpBackend::apply`] with this single change.
    async fn remove(&self, id: &ResourceId) -> Result<()> {
        DhcpRefusal::of_one(self.apply(&[DhcpChange::Remove(id.clone())]).await?)
    }
}

impl<B: DhcpBackend + ?Sized> DhcpBackendExt for B {}

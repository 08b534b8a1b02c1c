//! [`DhcpBackend`]: who is told by DHCP to boot from us.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Health, Listed, Observer, Removal, SpecDigest};
use crate::{
    error::Result,
    nouns::{DeviceType, MacAddr, Name, ResourceId},
};

/// A machine that DHCP should know.
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
    /// Whether it gives out addresses (and honours `fixed_address`), or answers beside a server that does.
    pub leases: bool,
    /// Whether it reports what it answers.
    pub observes: bool,
}

/// DHCP entries. See [`crate::ports`] for what holds for `ensure`, `remove` and `list`.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait DhcpBackend: Send + Sync + 'static {
    /// The backend's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// What it can do; constant.
    fn capabilities(&self) -> DhcpCapabilities;

    /// Who is told of requests. Called once, before the first `ensure`.
    fn attach(&self, observer: Arc<dyn Observer>);

    /// Makes DHCP answer this machine. When it returns the next request is answered so.
    async fn ensure(&self, host: &DhcpHost) -> Result<()>;

    /// Lets DHCP forget this machine. Entries have no users, so `how` makes no difference.
    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()>;

    /// Our entries.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// How it is.
    async fn health(&self) -> Health;

    /// Stops answering.
    async fn shutdown(&self);
}

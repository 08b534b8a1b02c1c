//! `DhcpBackend` backends, and a look at which DHCP servers a network has.

#[cfg(feature = "dhcp-proxy")]
mod interface;
#[cfg(feature = "dhcp-proxy")]
pub mod probe;
#[cfg(feature = "dhcp-proxy")]
pub mod proxy;

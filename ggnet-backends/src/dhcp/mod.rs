//! `DhcpBackend` backends, and a look at which DHCP servers a network has.
//!
//! `proxy` answers itself; `dnsmasq` writes what a daemon of the host reads. `arch` and `loaders` are what they have in common: who gets
//! which boot file. `files` is how the latter writes.

pub mod arch;
#[cfg(feature = "dhcp-dnsmasq")]
pub mod dnsmasq;
#[cfg(feature = "dhcp-dnsmasq")]
mod files;
#[cfg(feature = "dhcp-proxy")]
mod interface;
mod loaders;
#[cfg(feature = "dhcp-proxy")]
pub mod probe;
#[cfg(feature = "dhcp-proxy")]
pub mod proxy;

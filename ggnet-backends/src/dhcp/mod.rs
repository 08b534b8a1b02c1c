//! `DhcpBackend` backends, and a look at which DHCP servers a network has.
//!
//! `proxy` answers itself; `dnsmasq` and `isc_dhcpd` write what a daemon of the host reads. `arch` and `loaders` are what the three
//! have in common: who gets which boot file. `files` is what the two that write have in common.

pub mod arch;
#[cfg(feature = "dhcp-dnsmasq")]
pub mod dnsmasq;
#[cfg(any(feature = "dhcp-dnsmasq", feature = "dhcp-isc"))]
mod files;
#[cfg(feature = "dhcp-proxy")]
mod interface;
#[cfg(feature = "dhcp-isc")]
pub mod isc_dhcpd;
mod loaders;
#[cfg(feature = "dhcp-proxy")]
pub mod probe;
#[cfg(feature = "dhcp-proxy")]
pub mod proxy;

//! `DhcpBackend` backends, and a look at which DHCP servers a network has.
//!
//! `proxy` answers itself; `dnsmasq` and `isc_dhcpd` write what a daemon of the host reads. `arch`, `loaders`, `boot_files` and `section`
//! are what they have in common: who gets which boot file, and what the configuration says. `daemon`, `files` and `calls` are what the
//! latter two share: what a daemon must know beforehand and what it needs of the host, how they write, and how they are called.

pub mod arch;
mod boot_files;
#[cfg(any(feature = "dhcp-dnsmasq", feature = "dhcp-isc-dhcpd"))]
mod calls;
#[cfg(any(feature = "dhcp-dnsmasq", feature = "dhcp-isc-dhcpd"))]
mod daemon;
#[cfg(feature = "dhcp-dnsmasq")]
pub mod dnsmasq;
#[cfg(any(feature = "dhcp-dnsmasq", feature = "dhcp-isc-dhcpd"))]
mod files;
#[cfg(feature = "dhcp-proxy")]
mod interface;
#[cfg(feature = "dhcp-isc-dhcpd")]
pub mod isc_dhcpd;
mod loaders;
#[cfg(feature = "dhcp-proxy")]
pub mod probe;
#[cfg(feature = "dhcp-proxy")]
pub mod proxy;
mod section;

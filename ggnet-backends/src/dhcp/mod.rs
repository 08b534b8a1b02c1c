//! `DhcpBackend` backends, and a probe for the DHCP servers of a network.
//!
//! `proxy` answers itself; `dnsmasq` and `isc_dhcpd` write the files that a daemon of the host reads. `arch`, `loaders`, `boot_files` and
//! `section` are common to all: which machine gets which boot file, and the configuration. `daemon`, `files` and `calls` are common to the
//! latter two: what a daemon needs in advance and from the host, how files are written, and how the backends are called.

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

//! Backends for the ports of `ggnet-core`, one folder per port and one feature per backend.

#[cfg(feature = "bootfile-builtin")]
pub mod bootfile;
#[cfg(any(feature = "dhcp-proxy", feature = "dhcp-dnsmasq"))]
pub mod dhcp;
#[cfg(feature = "host-check")]
pub mod host;
#[cfg(feature = "image-qemu-img")]
pub mod image;
#[cfg(feature = "iscsi")]
pub mod iscsi;
pub mod register;
#[cfg(feature = "run")]
pub mod run;
#[cfg(feature = "service")]
pub mod service;
#[cfg(feature = "store-sqlite")]
pub mod store;
#[cfg(feature = "target-builtin")]
pub mod target;
#[cfg(any(feature = "bootfile-builtin", feature = "dhcp-proxy"))]
mod udp;
#[cfg(feature = "writeback-layers")]
pub mod writeback;

pub use register::register;

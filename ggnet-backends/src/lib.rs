//! Backends for the ports of `ggnet-core`: one folder for each port (and one for external programs), one feature for each backend.

#[cfg(any(feature = "bootfile-builtin", feature = "target-builtin"))]
pub mod addresses;
#[cfg(any(feature = "bootfile-builtin", feature = "bootfile-tftpd-hpa", feature = "external"))]
pub mod bootfile;
#[cfg(any(feature = "dhcp-proxy", feature = "host-check"))]
pub mod carrier;
#[cfg(feature = "host-check")]
mod cloning;
#[cfg(feature = "service")]
mod daemon;
#[cfg(any(feature = "dhcp-dnsmasq", feature = "dhcp-isc-dhcpd", feature = "dhcp-proxy"))]
pub mod dhcp;
#[cfg(feature = "external")]
pub mod external;
#[cfg(any(feature = "images-files", feature = "writeback-layers", feature = "writeback-reflink"))]
mod files;
#[cfg(feature = "helper")]
pub mod helper;
#[cfg(feature = "helper")]
pub mod helper_server;
#[cfg(feature = "host-check")]
pub mod host;
#[cfg(feature = "image-qemu-img")]
pub mod image;
#[cfg(feature = "images-files")]
pub mod image_store;
#[cfg(any(feature = "images-files", feature = "writeback-layers"))]
pub mod layers;
#[cfg(any(feature = "dhcp-proxy", feature = "host-check"))]
mod links;
#[cfg(feature = "target-lio-configfs")]
pub mod lio;
#[cfg(feature = "target-lio-configfs")]
pub mod owner;
pub mod register;
#[cfg(feature = "run")]
pub mod run;
#[cfg(feature = "service")]
pub mod service;
#[cfg(any(
    feature = "bootfile-tftpd-hpa",
    feature = "images-files",
    feature = "writeback-layers",
    feature = "writeback-reflink"
))]
mod slots;
#[cfg(feature = "store-sqlite")]
pub mod store;
#[cfg(any(feature = "target-builtin", feature = "target-lio-configfs"))]
pub mod target;
#[cfg(any(feature = "bootfile-builtin", feature = "dhcp-proxy"))]
mod udp;
#[cfg(any(feature = "writeback-layers", feature = "writeback-reflink"))]
pub mod writeback;

pub use register::register;

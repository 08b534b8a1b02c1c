//! The behaviour suites of the ports on the backends that come with GGnet: a module per backend, each with its fixture. What a
//! backend cannot run is named there (`not_run`), and anything else that is not run fails. (The store's suite: `store_sqlite`.)
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "../iscsi_support/mod.rs"]
mod iscsi_support;
#[path = "../netns/mod.rs"]
#[expect(clippy::disallowed_methods, reason = "the tools of the host")]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod netns;
#[path = "../sandbox/mod.rs"]
#[expect(clippy::disallowed_methods, reason = "the tools of the host")]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod sandbox;

mod builtin_boot_files;
mod builtin_target;
mod dnsmasq;
mod external;
mod external_programs;
mod external_writeback;
mod helper;
mod hung;
mod image_files;
mod isc_dhcpd;
mod layers;
mod machine;
mod native_dhcp;
mod process;
mod proxy_dhcp;
mod qemu_img;
mod reflink;
mod tftpd_hpa;

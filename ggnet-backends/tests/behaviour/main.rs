//! The behaviour suites of the ports on GGnet's backends: one module for each backend, each with its fixture. A module lists the cases that
//! its backend cannot run (`not_run`); any other case that does not run fails. (The suite of the store: `store_sqlite`.)
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

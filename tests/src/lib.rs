//! GGnet's boot lab: what whole-system tests and the demo are written with.
//!
//! A test reads like a bench in a workshop: take the guest image, serve it by something, switch a machine on, ask the
//! machine what it sees. Everything here is owned: what a value started ends when the value is dropped, and with the
//! test process if that is killed.
//!
//! ```no_run
//! use ggnet_tests::{Firmware, Guest, GuestImage, Http};
//! # fn main() -> anyhow::Result<()> {
//! let image = GuestImage::get()?;
//! let http = Http::serve()?;
//! http.set("/boot.ipxe", "#!ipxe\nsanboot iscsi:10.0.2.2::3260:1:iqn.2024-01.org.example:pc\n");
//! let mut pc = Guest::builder("pc").firmware(Firmware::Uefi).user_network(http.guest_url("/boot.ipxe")).boot()?;
//! assert_eq!(pc.wait_boot()?.transport, "iscsi");
//! pc.sh("echo hello >/root/note && sync")?;
//! # let _ = image; Ok(())
//! # }
//! ```
//!
//! Calls block. From async code use a multi-thread runtime and `tokio::task::block_in_place`, or `spawn_blocking`.
//! A missing tool is an error that carries the `apt-get install` line, never a skipped test.

pub mod accel;
pub mod account;
pub mod api;
pub mod boot_line;
pub mod boots;
pub mod checksum;
pub mod cpio;
pub mod crowd;
pub mod debian;
pub mod guest;
pub mod hostile;
pub mod http;
pub mod image;
pub mod kernel;
pub mod lan;
pub mod native_room;
pub mod netns;
pub mod open_iscsi;
pub mod process;
pub mod server;
pub mod slots;
pub mod tgt;
pub mod wait;

pub use accel::Accel;
pub use api::{Api, ApiError, refusal};
pub use boot_line::BootLine;
pub use boots::Machine;
pub use checksum::sha256_file;
pub use crowd::Crowd;
pub use ggnet_iscsi::initiator::{Account, Initiator};
pub use guest::{Answer, Firmware, Guest, GuestBuilder, Nic};
pub use http::Http;
pub use image::{GuestImage, RootFs};
pub use lan::Lan;
pub use native_room::NativeRoom;
pub use netns::Netns;
pub use open_iscsi::OpenIscsi;
pub use process::Process;
pub use server::{GgnetServer, ServerOptions};
pub use slots::{Slot, reserve};
pub use tgt::{Chap, Tgt};

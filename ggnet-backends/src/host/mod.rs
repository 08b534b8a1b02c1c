//! Checks of the host that a server runs before it starts.
//!
//! Every check is a plain function that changes nothing and returns a [`Finding`]: what was checked, the result, and the command that fixes
//! a problem. The caller decides what a finding means for the start. The checks read files in `/proc`, `/sys` and on disk and may block for
//! milliseconds: call them on a blocking thread, as [`look`] does. A backend's descriptor lists the checks that it needs.

mod apparmor;
mod clock;
mod dhcpd;
mod firewall;
mod folder;
mod interfaces;
mod kept_space;
mod kernel_target;
mod limits;
mod port;
mod privilege;
mod program;
mod reflinks;
mod space;
mod tftp;

use ggnet_core::{Error, Result};

pub use ggnet_core::registry::{Finding, Level, Transport};

pub use apparmor::{Confined, DHCPD, DNSMASQ, apparmor};
pub use clock::clock;
pub use dhcpd::dhcpd_includes;
pub use firewall::firewall;
pub use folder::writable_folder;
pub use interfaces::{Address, Interface, interface, interfaces};
pub use kept_space::kept_space;
pub use kernel_target::kernel_target;
pub use limits::{open_files, raise_open_files};
pub use port::{Holder, holders, port, port_of};
pub use privilege::low_port;
pub use program::{find_program, program, starters};
pub use reflinks::reflinks;
pub use space::{Space, free_space, space};
pub use tftp::{tftp_folder, tftp_server};

/// Runs checks on a blocking thread.
///
/// # Errors
/// `Internal`: a check panicked.
pub async fn look<T: Send + 'static>(looks: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let looked = tokio::task::spawn_blocking(looks).await;
    looked.map_err(|e| Error::internal("A check of the host panicked").with_source(e))
}

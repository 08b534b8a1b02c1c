//! `TargetBackend` backends.

use std::path::PathBuf;

use ggnet_core::{Result, registry::Settings};

#[cfg(feature = "target-builtin")]
pub mod builtin;
#[cfg(feature = "target-lio-configfs")]
pub mod lio_configfs;
#[cfg(feature = "target-lio-targetcli")]
pub mod lio_targetcli;

/// The kernel's tree that the helper, which runs as root, changes for a server with this section `[target]`; `None`: the server does not
/// use the helper for it.
///
/// # Errors
/// `Invalid`: the section is invalid.
pub fn tree_of_helper(backend: &str, table: Settings) -> Result<Option<PathBuf>> {
    #[cfg(feature = "target-lio-configfs")]
    if backend == lio_configfs::NAME {
        let lio: lio_configfs::LioConfig = ggnet_core::registry::settings(backend, table)?;
        return Ok(lio.helper.map(|_socket| lio.root));
    }
    #[cfg(not(feature = "target-lio-configfs"))]
    let _ = (backend, table);
    Ok(None)
}

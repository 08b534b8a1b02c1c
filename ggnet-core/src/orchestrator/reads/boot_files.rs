//! Boot files.

use bytes::Bytes;

use super::Reads;
use crate::{error::Result, ports::BootPath};

impl Reads<'_> {
    /// A boot file, as the boot file store has it.
    ///
    /// # Errors
    /// `NotFound`: there is no such file; otherwise the store's error.
    pub async fn boot_file(self, path: &BootPath) -> Result<Bytes> {
        self.ports().boot_files().read(path).await
    }
}

//! [`QemuImgConfig`]: the settings of the converter.

use std::path::PathBuf;

use serde::Deserialize;

/// Settings of the `qemu-img` converter; every one has a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QemuImgConfig {
    /// The program: a path, or a name that is looked up in the system's folders.
    pub program: PathBuf,
    /// Bytes per second that a conversion may write; none for as fast as the disks allow.
    pub rate_limit: Option<u64>,
    /// The largest disk in bytes that is imported; a header that claims more is refused. The default is 16 TiB, the largest file of ext4.
    pub max_virtual_size: u64,
    /// Seconds until a probe that does not end is given up (a dead network mount).
    pub probe_timeout_secs: u64,
    /// Seconds until a conversion that does not end is given up.
    pub convert_timeout_secs: u64,
}

impl Default for QemuImgConfig {
    fn default() -> Self {
        Self {
            program: "qemu-img".into(),
            rate_limit: None,
            max_virtual_size: 16 << 40,
            probe_timeout_secs: 600,
            convert_timeout_secs: 24 * 3600,
        }
    }
}

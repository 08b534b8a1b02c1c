//! [`QemuImgConfig`]: the settings of the converter.

use std::path::PathBuf;

use serde::Deserialize;

/// Settings of the `qemu-img` converter; all of them have a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QemuImgConfig {
    /// The program: a path, or a name that is looked up in the system's folders.
    pub program: PathBuf,
    /// Write limit of a conversion in bytes per second; `None`: no limit.
    pub rate_limit: Option<u64>,
    /// The largest disk that can be imported, in bytes; a header with a larger size is rejected. The default is 16 TiB, the largest file of
    /// ext4.
    pub max_virtual_size: u64,
    /// Time limit for a probe in seconds (a dead network mount would block it forever).
    pub probe_timeout_secs: u64,
    /// Time limit for a conversion in seconds.
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

//! The names of a target's objects in the kernel's tree, and the texts that the tree stores unchanged.

use std::path::Path;

use ggnet_core::{
    error::{Error, Result},
    nouns::{InstanceId, Iqn, ResourceId},
    ports::SpecDigest,
};

/// Maximum length in bytes of a path that the kernel's file backstore stores.
const MAX_PATH: usize = 255;
/// Below the kernel's limits for a user name, a secret and a serial number.
pub const MAX_TEXT: usize = 200;

/// The name of our links.
pub const LINK: &str = "ggnet";
/// The value that the kernel treats as "no user name" and "no secret".
pub const NOTHING: &str = "NULL";
/// The attributes of a portal group that a plan may set.
pub const GROUP_ATTRIBUTES: [&str; 5] = [
    "authentication",
    "generate_node_acls",
    "cache_dynamic_acls",
    "demo_mode_write_protect",
    "demo_mode_discovery",
];

/// The names of a target's objects, all derived from instance and resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The target's iSCSI name.
    pub iqn: String,
    device_prefix: String,
    adapter: u64,
}

impl Names {
    /// The names for a resource of this instance.
    pub fn of(prefix: &Iqn, instance: &InstanceId, id: &ResourceId) -> Result<Self> {
        let iqn = Iqn::target(prefix, instance, id)?.to_string();
        // 48 bits of a hash, and a byte for the LUN. If two targets had the same adapter number, it would still work, because an adapter
        // may have many devices.
        let digest = SpecDigest::of([iqn.as_bytes()]).short();
        let adapter = u64::from_str_radix(&digest[..12], 16).unwrap_or(0) << 8;
        Ok(Self { iqn, device_prefix: format!("{instance}.{id}."), adapter })
    }

    /// The target's folder.
    pub fn target(&self) -> String {
        format!("iscsi/{}", self.iqn)
    }

    /// The folder of the target's only portal group.
    pub fn group(&self) -> String {
        format!("iscsi/{}/tpgt_1", self.iqn)
    }

    /// The folder of a LUN's adapter: one for each backstore, as rtslib creates them. `plugin` is the kernel's name of its kind.
    pub fn adapter(&self, lun: u8, plugin: &str) -> String {
        format!("core/{plugin}_{}", self.adapter | u64::from(lun))
    }

    /// Whether an adapter's folder name (`fileio_7`) is one that this target uses for its LUNs.
    pub fn is_adapter(&self, name: &str) -> bool {
        let number = name.strip_prefix("fileio_").or_else(|| name.strip_prefix("iblock_"));
        number.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n & !0xff == self.adapter)
    }

    /// The name of a LUN's backstore, as `targetcli ls` shows it.
    pub fn device(&self, lun: u8) -> String {
        format!("{}{lun}", self.device_prefix)
    }

    /// Whether a backstore with this name belongs to this target.
    pub fn is_device(&self, name: &str) -> bool {
        name.strip_prefix(&self.device_prefix).is_some_and(|n| n.parse::<u8>().is_ok())
    }
}

/// Whether a text is valid as a user name or a secret.
pub fn is_credential(text: &str) -> bool {
    is_text(text) && !text.starts_with("NULL")
}

/// Whether a text is valid as an attribute's value.
pub fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Characters that end or split a word for the kernel, or for a reader of its tree.
fn is_cutting(c: char) -> bool {
    c.is_control() || c.is_whitespace() || [',', '"', '\\'].contains(&c)
}

/// A path that can be passed to the kernel: its control line is split at commas and white space.
pub fn plain_path(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|t| path.is_absolute() && t.len() <= MAX_PATH && !t.contains(is_cutting));
    text.map(str::to_owned).ok_or_else(|| {
        Error::invalid(
            "disk",
            format!(
                "{} cannot be passed to the kernel target; it needs an absolute path without commas, blanks, control \
                 characters, quotes or backslashes, of at most {MAX_PATH} bytes",
                path.display()
            ),
        )
    })
}

//! How a target's objects are called in the kernel's tree, and which texts the tree keeps as they are.

use std::path::Path;

use ggnet_core::{
    error::{Error, Result},
    nouns::{InstanceId, Iqn, ResourceId},
    ports::SpecDigest,
};

/// The most bytes of a path that the kernel's file backstore keeps.
const MAX_PATH: usize = 255;
/// Less than the kernel's limits for a user name, a secret and a serial number.
pub const MAX_TEXT: usize = 200;

/// The name of our links.
pub const LINK: &str = "ggnet";
/// What the kernel takes for "no user name" and "no secret".
pub const NOTHING: &str = "NULL";
/// The attributes of a portal group that a plan may set.
pub const GROUP_ATTRIBUTES: [&str; 5] = [
    "authentication",
    "generate_node_acls",
    "cache_dynamic_acls",
    "demo_mode_write_protect",
    "demo_mode_discovery",
];

/// The names of a target's objects, all of them derived from instance and resource.
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
        // 48 bits of a hash, and a byte for the LUN. An adapter whose number two targets share would still work: it may hold many
        // devices.
        let digest = SpecDigest::of([iqn.as_bytes()]).short();
        let adapter = u64::from_str_radix(&digest[..12], 16).unwrap_or(0) << 8;
        Ok(Self { iqn, device_prefix: format!("{instance}.{id}."), adapter })
    }

    /// The target's folder.
    pub fn target(&self) -> String {
        format!("iscsi/{}", self.iqn)
    }

    /// The folder of the target's one portal group.
    pub fn group(&self) -> String {
        format!("iscsi/{}/tpgt_1", self.iqn)
    }

    /// The folder of a LUN's adapter: one for each backstore, as rtslib makes them. `plugin` is the kernel's name of its kind.
    pub fn adapter(&self, lun: u8, plugin: &str) -> String {
        format!("core/{plugin}_{}", self.adapter | u64::from(lun))
    }

    /// Whether an adapter's folder name (`fileio_7`) is one that this target gives to its LUNs.
    pub fn is_adapter(&self, name: &str) -> bool {
        let number = name.strip_prefix("fileio_").or_else(|| name.strip_prefix("iblock_"));
        number.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n & !0xff == self.adapter)
    }

    /// The name of a LUN's backstore: what `targetcli ls` shows.
    pub fn device(&self, lun: u8) -> String {
        format!("{}{lun}", self.device_prefix)
    }

    /// Whether a backstore of this name is one of this target's.
    pub fn is_device(&self, name: &str) -> bool {
        name.strip_prefix(&self.device_prefix).is_some_and(|n| n.parse::<u8>().is_ok())
    }
}

/// Whether a text can be a user name or a secret.
pub fn is_credential(text: &str) -> bool {
    is_text(text) && !text.starts_with("NULL")
}

/// Whether a text can be an attribute's value as it is.
pub fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic())
}

/// What ends or splits a word for the kernel, or for whoever reads its tree.
fn is_cutting(c: char) -> bool {
    c.is_control() || c.is_whitespace() || [',', '"', '\\'].contains(&c)
}

/// What the kernel can be told as a path: its control line is cut at commas and white space.
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

//! [`Want`]: what a target's part of the tree should be. Made from a [`TargetSpec`] that was checked: a `Want` holds nothing that the
//! kernel would take for something else.

use std::path::Path;

use ggnet_core::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ChapPair, ImageFormat, InstanceId, Iqn, ResourceId},
    ports::{Access, LunSpec, SpecDigest, TargetSpec},
};

use super::{LioConfig, NAME};

/// The most bytes of a path that the kernel's file backstore keeps.
const MAX_PATH: usize = 255;
/// Less than the kernel's limits for a user name, a secret and a serial number.
const MAX_TEXT: usize = 200;

/// Where a LUN's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file, through the page cache or not.
    File {
        /// Its path.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Whether writes are acknowledged once they are in the page cache (a flush is a flush either way).
        buffered: bool,
    },
    /// A block device of the kernel.
    Block {
        /// Its path.
        path: String,
    },
}

impl Store {
    /// The kernel's name of the kind of backstore.
    pub fn plugin(&self) -> &'static str {
        match self {
            Self::File { .. } => "fileio",
            Self::Block { .. } => "iblock",
        }
    }

    /// The file's or device's path.
    pub fn path(&self) -> &str {
        match self {
            Self::File { path, .. } | Self::Block { path } => path,
        }
    }
}

/// One LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// Its number.
    pub number: u8,
    /// Its bytes.
    pub store: Store,
    /// VPD page 80, and the digits of page 83.
    pub serial: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// One initiator.
    One {
        /// Its name.
        name: String,
        /// What it must know.
        chap: Option<ChapPair>,
        /// What the target proves to know.
        mutual: Option<ChapPair>,
    },
    /// Everybody; nobody may write.
    All,
}

/// A target as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its names.
    pub names: Names,
    /// Its LUNs.
    pub luns: Vec<Lun>,
    /// Its portals, as configfs writes them.
    pub portals: Vec<String>,
    /// Who may log in.
    pub who: Who,
}

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

    /// The folder of a LUN's adapter: one for each backstore, as rtslib makes them.
    pub fn adapter(&self, lun: u8, store: &Store) -> String {
        format!("core/{}_{}", store.plugin(), self.adapter | u64::from(lun))
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

impl Want {
    /// Checks a spec and turns it into what the tree should be. Looks at the files' sizes: blocking.
    pub fn of(spec: &TargetSpec, names: Names, config: &LioConfig) -> Result<Self> {
        if names.iqn != spec.iqn.as_str() {
            return Err(Error::invalid("iqn", format!("{} is not the name of target {}", spec.iqn, spec.id)));
        }
        spec.access.check()?;
        let luns = spec.luns.iter().map(|l| lun(l, config)).collect::<Result<Vec<_>>>()?;
        let mut numbers: Vec<u8> = luns.iter().map(|l| l.number).collect();
        numbers.sort_unstable();
        if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid("luns", format!("Target {} has a LUN number twice", spec.id)));
        }
        let who = match &spec.access {
            Access::Shared => Who::All,
            Access::Initiator { name, chap, mutual } => {
                if let Some(pair) = chap {
                    credential("chap.user", &pair.user)?;
                    credential("chap.secret", pair.secret.expose())?;
                }
                if let Some(pair) = mutual {
                    credential("mutual.user", &pair.user)?;
                    credential("mutual.secret", pair.secret.expose())?;
                }
                Who::One { name: name.to_string(), chap: chap.clone(), mutual: mutual.clone() }
            }
        };
        let portals = config.listen.iter().map(ToString::to_string).collect();
        Ok(Self { names, luns, portals, who })
    }
}

/// A text that the kernel keeps as it is: it has no way to quote, takes a newline for a part of it, and `NULL` for nothing.
fn credential(field: &'static str, text: &str) -> Result<()> {
    if !is_credential(text) {
        return Err(Error::invalid(
            field,
            format!(
                "The kernel target takes 1 to {MAX_TEXT} printable ASCII characters that do not begin with \"NULL\""
            ),
        ));
    }
    Ok(())
}

/// Whether a text can be a user name or a secret.
pub fn is_credential(text: &str) -> bool {
    is_text(text) && !text.starts_with("NULL")
}

/// Whether a text can be an attribute's value as it is.
pub fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic())
}

fn lun(spec: &LunSpec, config: &LioConfig) -> Result<Lun> {
    if !is_text(&spec.serial) {
        return Err(Error::invalid("serial", format!("{:?} cannot be a unit's serial number", spec.serial)));
    }
    let store = match &spec.disk {
        Disk::File { path, format: ImageFormat::Raw } => {
            let path = plain_path(path)?;
            // Looked at first: the kernel would make a file that is not there, and an empty one.
            let meta = std::fs::metadata(&path).map_err(|e| Error::io(format!("Looking at {path}"), e))?;
            Store::File { path, size: meta.len(), buffered: config.buffered }
        }
        Disk::Device { .. } if config.helper.is_some() => {
            return Err(unsupported("The helper serves files, not block devices".to_owned()));
        }
        Disk::Device { path } => Store::Block { path: plain_path(path)? },
        Disk::File { format, .. } => {
            return Err(unsupported(format!("The kernel target serves raw files, not {format:?} ones")));
        }
        other => return Err(unsupported(format!("The kernel target cannot serve {:?}", other.form()))),
    };
    Ok(Lun { number: spec.number, store, serial: spec.serial.clone(), read_only: spec.read_only })
}

fn unsupported(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message)
        .with_backend(NAME)
        .with_hint("Choose a writeback store whose disks are files or devices")
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
                "{} cannot be named to the kernel target: an absolute path without comma, blank, control character, quote or backslash, at most \
                 {MAX_PATH} bytes",
                path.display()
            ),
        )
    })
}

/// The forms of disk that can be served; by the helper files only.
pub fn accepts(helped: bool) -> Vec<DiskForm> {
    if helped { vec![DiskForm::File] } else { vec![DiskForm::File, DiskForm::Device] }
}

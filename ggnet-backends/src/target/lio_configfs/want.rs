//! [`Want`]: the wanted state of a target's part of the tree. Created from a checked [`TargetSpec`]: a `Want` contains nothing that the
//! kernel would interpret differently.

use ggnet_core::{
    block::{Disk, DiskForm},
    error::{Error, ErrorKind, Result},
    nouns::{ChapPair, ImageFormat},
    ports::{Access, LunDisks, LunSpec, TargetSpec},
};

use super::{LioConfig, NAME};
use crate::lio::names::{MAX_TEXT, Names, is_credential, is_text, plain_path};

/// The storage of a LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file, with or without the page cache.
    File {
        /// Its path.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Whether writes are acknowledged once they are in the page cache (a flush reaches the disk in either case).
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
    /// Its storage.
    pub store: Store,
    /// VPD page 80, and the digits of page 83.
    pub serial: String,
    /// Whether writes are rejected.
    pub read_only: bool,
}

/// The initiators that may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// One initiator.
    One {
        /// Its name.
        name: String,
        /// The credentials that it must prove.
        chap: Option<ChapPair>,
        /// The credentials that the target proves.
        mutual: Option<ChapPair>,
    },
    /// Any initiator; none may write.
    All,
}

/// The wanted state of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its names.
    pub names: Names,
    /// Its LUNs.
    pub luns: Vec<Lun>,
    /// Its portals, as configfs writes them.
    pub portals: Vec<String>,
    /// The initiators that may log in.
    pub who: Who,
}

impl Want {
    /// Checks a spec and converts it to the wanted state. Reads the files' sizes: blocking.
    pub fn of(spec: &TargetSpec, disks: &LunDisks, names: Names, config: &LioConfig) -> Result<Self> {
        if names.iqn != spec.iqn.as_str() {
            return Err(Error::invalid("iqn", format!("{} is not the name of target {}", spec.iqn, spec.id)));
        }
        spec.access.check()?;
        let luns =
            spec.with_disks(disks)?.into_iter().map(|of| lun(of, config)).collect::<Result<Vec<_>>>()?;
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

/// Checks a text that the kernel stores as it is: it has no quoting, includes a newline in the value, and treats `NULL` as not set.
fn credential(field: &'static str, text: &str) -> Result<()> {
    if !is_credential(text) {
        return Err(Error::invalid(
            field,
            format!(
                "The kernel target accepts 1 to {MAX_TEXT} printable ASCII characters that do not start with \"NULL\""
            ),
        ));
    }
    Ok(())
}

fn lun((spec, disk): (&LunSpec, &Disk), config: &LioConfig) -> Result<Lun> {
    if !is_text(&spec.serial) {
        return Err(Error::invalid(
            "serial",
            format!("{:?} is not a valid serial number of a unit", spec.serial),
        ));
    }
    let store = match disk {
        Disk::File { path, format: ImageFormat::Raw } => {
            let path = plain_path(path)?;
            // Checked first, because the kernel would create a missing file, and an empty one.
            let meta = std::fs::metadata(&path).map_err(|e| Error::io(format!("Inspecting {path}"), e))?;
            Store::File { path, size: meta.len(), buffered: config.buffered }
        }
        Disk::Device { .. } if config.helper.is_some() => {
            return Err(unsupported("The helper serves files, not block devices".to_owned()));
        }
        Disk::Device { path } => Store::Block { path: plain_path(path)? },
        Disk::File { format, .. } => {
            return Err(unsupported(format!("The kernel target serves raw files, not {format:?} files")));
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

/// The forms of disk that can be served; through the helper only files.
pub fn accepts(helped: bool) -> Vec<DiskForm> {
    if helped { vec![DiskForm::File] } else { vec![DiskForm::File, DiskForm::Device] }
}

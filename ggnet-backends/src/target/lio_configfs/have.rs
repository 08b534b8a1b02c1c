//! [`Have`]: the current state of a target, read from the tree. Read-only; blocking.

use std::{collections::BTreeMap, fs, io, path::Path};

use ggnet_core::{
    error::{Error, Result},
    nouns::Secret,
};

use crate::lio::{
    names::{GROUP_ATTRIBUTES, Names},
    tree::Tree,
};

/// A backstore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Whether its file or device is open.
    pub enabled: bool,
    /// The file's or device's path.
    pub path: String,
    /// VPD page 80.
    pub serial: String,
    /// Size and mode, if the kernel reports them (for a file).
    pub size: Option<u64>,
    /// Whether writes go to the page cache, if the kernel reports it.
    pub buffered: Option<bool>,
}

/// A LUN of the portal group, or one that is mapped to an initiator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lun {
    /// The names of its links, each with the last two components of its target.
    pub links: BTreeMap<String, String>,
    /// Whether writes are rejected; only for a mapped LUN.
    pub write_protect: bool,
}

/// An initiator that is allowed by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    /// Its LUNs.
    pub luns: BTreeMap<u64, Lun>,
    /// Its attribute `authentication`; `None` if the kernel does not have it.
    pub authentication: Option<String>,
    /// What it must prove; `None` if we have no permission to read it.
    pub auth: Option<Auth>,
    /// Whether it is logged in.
    pub live: bool,
}

/// The credentials of both sides of a login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// The credentials of the initiator.
    pub initiator: Known,
    /// The credentials of the target.
    pub target: Known,
}

/// A name and a secret, if they are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The user name; empty if not set.
    pub user: String,
    /// The secret.
    pub secret: Option<Secret>,
}

/// How much of the tree is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// All of it.
    All,
    /// What every user can read.
    WithoutSecrets,
}

/// The portal group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Whether it accepts logins.
    pub enabled: bool,
    /// The attributes in [`GROUP_ATTRIBUTES`].
    pub attributes: BTreeMap<String, String>,
    /// Its LUNs.
    pub luns: BTreeMap<u64, Lun>,
    /// Its portals.
    pub portals: Vec<String>,
    /// The initiators that are allowed by name.
    pub acls: BTreeMap<String, Acl>,
    /// Whether an initiator is logged in that is not allowed by name.
    pub dynamic: bool,
}

impl Group {
    /// Whether an initiator is logged in.
    pub fn is_live(&self) -> bool {
        self.dynamic || self.acls.values().any(|a| a.live)
    }
}

/// The current state of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Whether the target's folder exists.
    pub target: bool,
    /// Its portal group.
    pub group: Option<Group>,
    /// The adapters of its backstores (`fileio_7`), each with its devices, including those that are not linked.
    pub adapters: BTreeMap<String, BTreeMap<String, Device>>,
}

impl Have {
    /// Reads the state. Looks for backstores in the adapters that we give to this target and in those that its LUNs link to (targetcli's
    /// `restoreconfig` uses others); with `everywhere` in all adapters.
    pub fn of(tree: &Tree, names: &Names, shown: Shown, everywhere: bool) -> Result<Self> {
        let root = tree.root();
        let mut have = Self { target: root.join(names.target()).is_dir(), ..Self::default() };
        let group_at = root.join(names.group());
        if group_at.is_dir() {
            have.group = Some(group(&group_at, shown)?);
        }
        let links = have.group.iter().flat_map(|g| g.luns.values()).flat_map(|lun| lun.links.values());
        let led_to: Vec<&str> =
            links.filter_map(|to| to.split_once('/')).map(|(adapter, _)| adapter).collect();
        let mut adapters = BTreeMap::new();
        for adapter in names_in(&root.join("core"))? {
            let ours = names.is_adapter(&adapter);
            if !ours && !everywhere && !led_to.contains(&adapter.as_str()) {
                continue;
            }
            let at = root.join("core").join(&adapter);
            let devices = folders_in(&at)?.into_iter().filter(|d| names.is_device(d));
            let devices: BTreeMap<_, _> = devices.map(|d| (d.clone(), device(&at.join(&d)))).collect();
            if ours || !devices.is_empty() {
                adapters.insert(adapter, devices);
            }
        }
        have.adapters = adapters;
        Ok(have)
    }

    /// Whether an initiator is logged in.
    pub fn is_live(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_live)
    }

    /// Whether nothing exists.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

fn device(at: &Path) -> Device {
    let info = read(&at.join("info"));
    let serial = read(&at.join("wwn/vpd_unit_serial"));
    Device {
        enabled: read(&at.join("enable")) == "1",
        path: read(&at.join("udev_path")),
        serial: serial.strip_prefix("T10 VPD Unit Serial Number: ").unwrap_or(&serial).to_owned(),
        size: word_after(&info, " Size:").and_then(|w| w.parse().ok()),
        buffered: word_after(&info, "Mode:").map(|w| w == "Buffered-WCE"),
    }
}

fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_once(key)?.1.split_whitespace().next()
}

fn group(at: &Path, shown: Shown) -> Result<Group> {
    let mut group = Group { enabled: read(&at.join("enable")) == "1", ..Group::default() };
    for name in GROUP_ATTRIBUTES {
        group.attributes.insert(name.to_owned(), read(&at.join("attrib").join(name)));
    }
    group.luns = luns(&at.join("lun"))?;
    group.portals = folders_in(&at.join("np"))?;
    for name in folders_in(&at.join("acls"))? {
        group.acls.insert(name.clone(), acl(&at.join("acls").join(name), shown)?);
    }
    group.dynamic = !read(&at.join("dynamic_sessions")).is_empty();
    Ok(group)
}

fn acl(at: &Path, shown: Shown) -> Result<Acl> {
    let known = |name: &str| Some(read(&at.join("auth").join(name))).filter(|v| !v.is_empty() && v != "NULL");
    let authentication = at.join("attrib/authentication");
    Ok(Acl {
        luns: luns(at)?,
        authentication: authentication.exists().then(|| read(&authentication)),
        auth: (shown == Shown::All).then(|| Auth {
            initiator: Known {
                user: known("userid").unwrap_or_default(),
                secret: known("password").map(Secret::new),
            },
            target: Known {
                user: known("userid_mutual").unwrap_or_default(),
                secret: known("password_mutual").map(Secret::new),
            },
        }),
        live: is_logged_in(&read(&at.join("info"))),
    })
}

/// Whether an initiator's `info` shows a session that is served. A session with a broken connection is not served.
pub fn is_logged_in(info: &str) -> bool {
    info.contains("TARG_SESS_STATE_LOGGED_IN")
}

/// The LUNs in a folder, of the portal group or of an initiator.
fn luns(at: &Path) -> Result<BTreeMap<u64, Lun>> {
    let mut luns = BTreeMap::new();
    for name in folders_in(at)? {
        let Some(number) = name.strip_prefix("lun_").and_then(|n| n.parse().ok()) else { continue };
        let folder = at.join(name);
        let mut lun = Lun { write_protect: read(&folder.join("write_protect")) == "1", ..Lun::default() };
        for link in names_in(&folder)? {
            if let Ok(to) = fs::read_link(folder.join(&link)) {
                lun.links.insert(link, last_two(&to));
            }
        }
        luns.insert(number, lun);
    }
    Ok(luns)
}

/// `core/fileio_7/name` → `fileio_7/name`; `tpgt_1/lun/lun_0` → `lun/lun_0`.
fn last_two(path: &Path) -> String {
    let mut names: Vec<_> = path.iter().rev().take(2).map(|n| n.to_string_lossy()).collect();
    names.reverse();
    names.join("/")
}

/// An attribute without the newline that the kernel adds; an unreadable one counts as not set.
pub fn read(path: &Path) -> String {
    let mut text = fs::read_to_string(path).unwrap_or_default();
    text.truncate(text.trim_end_matches(['\n', '\0']).len());
    text
}

/// The names in a folder, sorted; empty if it does not exist.
pub fn names_in(path: &Path) -> Result<Vec<String>> {
    entries(path, |_| true)
}

/// The folders in a folder, without links.
pub fn folders_in(path: &Path) -> Result<Vec<String>> {
    entries(path, |entry| entry.file_type().is_ok_and(|t| t.is_dir()))
}

fn entries(path: &Path, wanted: impl Fn(&fs::DirEntry) -> bool) -> Result<Vec<String>> {
    let failed = |e| Error::io(format!("Reading {}", path.display()), e);
    let dir = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        dir => dir.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in dir {
        let entry = entry.map_err(failed)?;
        if wanted(&entry) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

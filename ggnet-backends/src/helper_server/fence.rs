//! Which changes to the kernel's tree are allowed: a pure function of a change and a target's names, and a check of the files in it.
//!
//! A path is parsed into a [`Place`] in the structure that this GGnet gives a target; any other path is rejected. Each place allows only
//! the operations and values that `plan` can generate. Block devices are not allowed, because for a device, unlike for a file, the kernel
//! does not check whether the user who enables it has access.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::Iqn,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};

use crate::{
    lio::{
        Op, Value,
        names::{GROUP_ATTRIBUTES, LINK, NOTHING, Names, is_credential, is_text, plain_path},
    },
    owner::Owner,
};

/// An object, attribute or link of a target, classified by the allowed operations.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Adapter,
    Device,
    Control,
    DevicePath,
    Serial,
    /// An attribute of a device with exactly one allowed value.
    Always(&'static str),
    Target,
    Group,
    /// An attribute that is 0 or 1.
    Switch,
    Lun,
    LunLink(&'a str),
    Portal(&'a str),
    Acl(&'a str),
    AclLun,
    AclLunLink(&'a str),
    Demand,
    User,
    Password,
}

/// Whether `op` is allowed for the target of `names`, with disks below one of the folders `disks`. Does not access the file system.
///
/// # Errors
/// `Permission`, which names the path and never the value.
pub(super) fn judge(names: &Names, disks: &[PathBuf], op: &Op) -> Result<()> {
    let allowed = match op {
        Op::Mkdir(path) => place(names, path).is_some_and(|p| may_make(&p)),
        Op::Rmdir(path) => place(names, path).is_some_and(|p| may_remove(&p)),
        Op::Write(path, value) => {
            place(names, path).is_some_and(|p| may_hold(&p, value, |path| is_disk(disks, Path::new(path))))
        }
        Op::Link(path, to) => match (place(names, path), place(names, to)) {
            (Some(Place::LunLink(LINK)), Some(to)) => to == Place::Device,
            (Some(Place::AclLunLink(LINK)), Some(to)) => to == Place::Lun,
            _ => false,
        },
        Op::Unlink(path) => {
            matches!(place(names, path), Some(Place::LunLink(_) | Place::AclLunLink(_)))
        }
        Op::Flush(path) => is_disk(disks, path),
    };
    if allowed { Ok(()) } else { Err(refused(op, "GGnet never makes this change for this target")) }
}

fn may_make(place: &Place<'_>) -> bool {
    match place {
        Place::Adapter | Place::Device | Place::Target | Place::Group | Place::Lun | Place::AclLun => true,
        Place::Portal(at) => at.parse::<SocketAddr>().is_ok_and(|a| a.port() != 0 && a.to_string() == *at),
        Place::Acl(name) => name.parse::<Iqn>().is_ok(),
        _ => false,
    }
}

/// Everything inside one of our targets is removed with it.
fn may_remove(place: &Place<'_>) -> bool {
    may_make(place) || matches!(place, Place::Portal(_) | Place::Acl(_))
}

fn may_hold(place: &Place<'_>, value: &Value, is_disk: impl Fn(&str) -> bool) -> bool {
    match (place, value) {
        (Place::Control, Value::Plain(text)) => controlled_disk(text).is_some_and(is_disk),
        (Place::DevicePath, Value::Plain(text)) => is_disk(text),
        (Place::Serial, Value::Plain(text)) => is_text(text),
        (Place::Always(only), Value::Plain(text)) => text == only,
        (Place::Switch, Value::Plain(text)) => text == "0" || text == "1",
        (Place::Demand, Value::Plain(text)) => text == "1" || text == "-1",
        (Place::User, Value::Plain(text)) => text == NOTHING || is_credential(text),
        (Place::Password, Value::Plain(text)) => text == NOTHING,
        (Place::Password, Value::Secret(secret)) => is_credential(secret.expose()),
        _ => false,
    }
}

/// The file in the control line of a file backstore, which is `fd_dev_name=…,fd_dev_size=…` with an optional `,fd_buffered_io=1`.
fn controlled_disk(control: &str) -> Option<&str> {
    let (path, size) = control.strip_prefix("fd_dev_name=")?.split_once(",fd_dev_size=")?;
    is_number(size.strip_suffix(",fd_buffered_io=1").unwrap_or(size)).then_some(path)
}

fn place<'a>(names: &Names, path: &'a str) -> Option<Place<'a>> {
    let parts: Vec<&'a str> = path.split('/').collect();
    if !parts.iter().all(|part| is_plain(part)) {
        return None;
    }
    match parts[..] {
        ["core", adapter, ref rest @ ..] if is_adapter(names, adapter) => device_place(names, rest),
        ["iscsi", target, ref rest @ ..] if target == names.iqn => match rest {
            [] => Some(Place::Target),
            ["tpgt_1", rest @ ..] => group_place(rest),
            _ => None,
        },
        _ => None,
    }
}

fn device_place<'a>(names: &Names, parts: &[&'a str]) -> Option<Place<'a>> {
    match parts {
        [] => Some(Place::Adapter),
        [device, rest @ ..] if names.is_device(device) && is_number(device.rsplit('.').next()?) => match rest
        {
            [] => Some(Place::Device),
            ["control"] => Some(Place::Control),
            ["udev_path"] => Some(Place::DevicePath),
            ["wwn", "vpd_unit_serial"] => Some(Place::Serial),
            ["attrib", "emulate_3pc"] => Some(Place::Always("0")),
            ["enable"] => Some(Place::Always("1")),
            _ => None,
        },
        _ => None,
    }
}

fn group_place<'a>(parts: &[&'a str]) -> Option<Place<'a>> {
    match *parts {
        [] => Some(Place::Group),
        ["enable"] => Some(Place::Switch),
        ["attrib", name] if GROUP_ATTRIBUTES.contains(&name) => Some(Place::Switch),
        ["lun", lun] if is_lun(lun) => Some(Place::Lun),
        ["lun", lun, link] if is_lun(lun) => Some(Place::LunLink(link)),
        ["np", portal] => Some(Place::Portal(portal)),
        ["acls", name] => Some(Place::Acl(name)),
        ["acls", _, "attrib", "authentication"] => Some(Place::Demand),
        ["acls", _, "auth", "userid" | "userid_mutual"] => Some(Place::User),
        ["acls", _, "auth", "password" | "password_mutual"] => Some(Place::Password),
        ["acls", _, lun] if is_lun(lun) => Some(Place::AclLun),
        ["acls", _, lun, "write_protect"] if is_lun(lun) => Some(Place::Switch),
        ["acls", _, lun, link] if is_lun(lun) => Some(Place::AclLunLink(link)),
        _ => None,
    }
}

fn is_adapter(names: &Names, name: &str) -> bool {
    name.strip_prefix("fileio_").is_some_and(is_number) && names.is_adapter(name)
}

fn is_lun(name: &str) -> bool {
    name.strip_prefix("lun_").is_some_and(is_number)
}

/// Digits in the format of the kernel and of GGnet: no sign, no leading zero, within 64 bits.
fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok_and(|n| n.to_string() == text)
}

/// A path component that only leads down.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && name.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether a path is below one of the folders and can be passed to the kernel.
fn is_disk(folders: &[PathBuf], path: &Path) -> bool {
    below(folders, path).is_some() && plain_path(path).is_ok()
}

/// The folder of a path, and the relative path from there.
fn below<'a>(folders: &[PathBuf], path: &'a Path) -> Option<(PathBuf, &'a Path)> {
    // Compared as text, because `components` would ignore "//" and "/./".
    let plain = path.to_str()?.strip_prefix('/')?.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let folder = folders.iter().filter(|_| plain).find(|folder| path.starts_with(folder))?;
    let rest = path.strip_prefix(folder).ok().filter(|rest| !rest.as_os_str().is_empty())?;
    Some((folder.clone(), rest))
}

/// Checks the files of the operations: no part of a path in the tree may be a symbolic link, and each disk must be a regular file that its
/// owner can reach without a link. A missing file is allowed. Blocking.
///
/// # Errors
/// `Permission` for a link or another kind of file; errors of opening the tree.
pub(super) fn look(root: &Path, disks: &[PathBuf], owner: &Owner, ops: &[Op]) -> Result<()> {
    let tree = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(format!("Opening {}", root.display()), e.into()))?;
    for op in ops {
        let ways: Vec<&str> = match op {
            Op::Mkdir(path) | Op::Rmdir(path) | Op::Write(path, _) => vec![path],
            Op::Unlink(path) => vec![parent(path)],
            Op::Link(path, to) => vec![parent(path), to],
            Op::Flush(_) => vec![],
        };
        for way in ways {
            match openat2(&tree, way, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside()) {
                Ok(_) | Err(Errno::NOENT) => {}
                Err(Errno::LOOP | Errno::XDEV) => {
                    return Err(refused(op, "a part of the path is a symbolic link"));
                }
                Err(e) => return Err(Error::io(format!("Inspecting {way}"), e.into())),
            }
        }
        if let Op::Write(path, Value::Plain(control)) = op
            && path.ends_with("/control")
            && let Some(disk) = controlled_disk(control)
        {
            look_at_disk(disks, owner, Path::new(disk)).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => Error::io(format!("Inspecting {disk:?}"), e),
                _ => refused(op, &format!("disk {disk:?}: {e}")),
            })?;
        }
    }
    Ok(())
}

fn look_at_disk(folders: &[PathBuf], owner: &Owner, path: &Path) -> io::Result<()> {
    let (folder, rest) = below(folders, path).ok_or(io::ErrorKind::PermissionDenied)?;
    owner.run(|| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(CWD, &folder, flags, Mode::empty())?;
        let file = openat2(&folder, rest, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside())?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
    })
}

fn inside() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Formatted with Debug, because a rejected path may contain anything.
fn refused(op: &Op, why: &str) -> Error {
    let what = match op {
        Op::Mkdir(path) => format!("Making {path:?}"),
        Op::Rmdir(path) => format!("Removing {path:?}"),
        Op::Write(path, _) => format!("Writing {path:?}"),
        Op::Link(path, to) => format!("Linking {path:?} to {to:?}"),
        Op::Unlink(path) => format!("Removing the link {path:?}"),
        Op::Flush(path) => format!("Flushing {path:?}"),
    };
    Error::new(ErrorKind::Permission, format!("{what}: rejected by the helper: {why}"))
}

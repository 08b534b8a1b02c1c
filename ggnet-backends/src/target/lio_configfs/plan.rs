//! The plan: a pure function from the wanted state ([`Want`]) and the current state ([`Have`]) to the ordered list of operations between
//! them.
//!
//! Creating, in this order: the target's folder (from then on `list` shows it), backstores, portal group, attributes, LUNs, portals,
//! initiators; the portal group is enabled last. Removing, in the opposite order: disable first (which closes the sessions), initiators
//! before LUNs (the kernel would remove a LUN even if it is mapped), and the target's folder last. So wherever a plan is interrupted, the
//! target is listed, no initiator can log in to an incomplete target, and the next plan starts from what exists.
//!
//! With a live initiator the disks do not change. A changed access rule is not enough to disconnect it: while an initiator is logged in,
//! one that is no longer allowed keeps its session, if it has one, and cannot log in again; a plan that finds no session removes it. The
//! kernel waits, and blocks changes to all targets, until the last session of a removed initiator has ended, and a login that it is just
//! answering is a session that it does not show yet: so the portal group is disabled for the removal.

use ggnet_core::nouns::ChapPair;

use super::{
    have::{Acl, Auth, Device, Group, Have, Known},
    want::{Lun, Store, Want, Who},
};
use crate::lio::{
    Op, Value,
    names::{LINK, NOTHING},
};

/// The value of an initiator's `authentication`: as in the portal group, or required.
const INHERITED: &str = "-1";
const DEMANDED: &str = "1";

/// The LUNs would have to change, but an initiator is logged in.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

/// The operations from `have` to `want`; empty if they are equal.
pub fn converge(want: &Want, have: &Have) -> Result<Vec<Op>, Busy> {
    let mut ops = Vec::new();
    let nothing = Have::default();
    let have = if same_disks(want, have) {
        have
    } else if have.is_live() {
        return Err(Busy);
    } else {
        ops.extend(take_down(want.names.target().as_str(), have));
        &nothing
    };
    let at = want.names.group();
    let mut group = have.group.clone().unwrap_or_default();
    if group.enabled && !group.is_live() && locked_out(want, &group).next().is_some() {
        ops.push(plain(format!("{at}/enable"), "0"));
        group.enabled = false;
    }
    let group = &group;
    if !have.target {
        ops.push(Op::Mkdir(want.names.target()));
    }
    if have.group.is_none() {
        want.luns.iter().for_each(|lun| backstore(&mut ops, want, lun));
        ops.push(Op::Mkdir(at.clone()));
    }
    // Demo mode is disabled before the first initiator is added, and enabled after the last is removed.
    attributes(&mut ops, want, group, |name, value| name == "generate_node_acls" && value == "0");
    if have.group.is_none() {
        for lun in &want.luns {
            let folder = format!("{at}/lun/lun_{}", lun.number);
            ops.push(Op::Mkdir(folder.clone()));
            ops.push(Op::Link(format!("{folder}/{LINK}"), device_at(want, lun)));
        }
    }
    for portal in want.portals.iter().filter(|p| !group.portals.contains(p)) {
        ops.push(Op::Mkdir(format!("{at}/np/{portal}")));
    }
    for portal in group.portals.iter().filter(|p| !want.portals.contains(p)) {
        ops.push(Op::Rmdir(format!("{at}/np/{portal}")));
    }
    initiators(&mut ops, want, group);
    attributes(&mut ops, want, group, |name, value| !(name == "generate_node_acls" && value == "0"));
    unlock(&mut ops, want, group);
    if !group.enabled {
        ops.push(plain(format!("{at}/enable"), "1"));
    }
    Ok(ops)
}

/// The operations from `have` to nothing; `target` is the target's folder.
pub fn take_down(target: &str, have: &Have) -> Vec<Op> {
    let mut ops = Vec::new();
    let at = format!("{target}/tpgt_1");
    if let Some(group) = &have.group {
        if group.enabled {
            ops.push(plain(format!("{at}/enable"), "0"));
        }
        for (name, acl) in &group.acls {
            remove_acl(&mut ops, &format!("{at}/acls/{name}"), acl);
        }
        for portal in &group.portals {
            ops.push(Op::Rmdir(format!("{at}/np/{portal}")));
        }
        for (number, lun) in &group.luns {
            let folder = format!("{at}/lun/lun_{number}");
            ops.extend(lun.links.keys().map(|link| Op::Unlink(format!("{folder}/{link}"))));
            ops.push(Op::Rmdir(folder));
        }
        ops.push(Op::Rmdir(at));
    }
    for (adapter, devices) in &have.adapters {
        for (name, device) in devices {
            if device.enabled {
                ops.push(Op::Flush(device.path.clone().into()));
            }
            ops.push(Op::Rmdir(format!("core/{adapter}/{name}")));
        }
        ops.push(Op::Rmdir(format!("core/{adapter}")));
    }
    if have.target {
        ops.push(Op::Rmdir(target.to_owned()));
    }
    ops
}

fn plain(path: String, value: &str) -> Op {
    Op::Write(path, Value::Plain(value.to_owned()))
}

fn device_at(want: &Want, lun: &Lun) -> String {
    format!("{}/{}", want.names.adapter(lun.number, lun.store.plugin()), want.names.device(lun.number))
}

fn backstore(ops: &mut Vec<Op>, want: &Want, lun: &Lun) {
    let at = device_at(want, lun);
    let control = match &lun.store {
        Store::File { path, size, buffered } => {
            let buffered = if *buffered { ",fd_buffered_io=1" } else { "" };
            format!("fd_dev_name={path},fd_dev_size={size}{buffered}")
        }
        Store::Block { path } if lun.read_only => format!("udev_path={path},readonly=1"),
        Store::Block { path } => format!("udev_path={path}"),
    };
    ops.push(Op::Mkdir(want.names.adapter(lun.number, lun.store.plugin())));
    ops.push(Op::Mkdir(at.clone()));
    ops.push(plain(format!("{at}/control"), &control));
    // targetcli shows and saves this one.
    ops.push(plain(format!("{at}/udev_path"), lun.store.path()));
    ops.push(plain(format!("{at}/wwn/vpd_unit_serial"), &lun.serial));
    // EXTENDED COPY finds its disks by their serial, which the generations of a machine share.
    ops.push(plain(format!("{at}/attrib/emulate_3pc"), "0"));
    ops.push(plain(format!("{at}/enable"), "1"));
}

/// Whether the group's LUNs and their backstores are the wanted ones and complete; a group without LUNs matches if none is wanted.
fn same_disks(want: &Want, have: &Have) -> bool {
    let Some(group) = &have.group else { return have.is_nothing() };
    let devices: usize = have.adapters.values().map(|d| d.len()).sum();
    group.luns.len() == want.luns.len()
        && devices == want.luns.len()
        && have.adapters.len() == want.luns.len()
        && want.luns.iter().all(|lun| same_disk(want, lun, group, have))
}

fn same_disk(want: &Want, lun: &Lun, group: &Group, have: &Have) -> bool {
    let name = want.names.device(lun.number);
    let devices = have.adapters.iter().find_map(|(adapter, devices)| Some((adapter, devices.get(&name)?)));
    let (Some((adapter, device)), Some(linked)) = (devices, group.luns.get(&u64::from(lun.number))) else {
        return false;
    };
    // The program that created the adapter chose its number: targetcli uses other numbers than we do.
    adapter.starts_with(lun.store.plugin())
        && linked.links.len() == 1
        && linked.links.values().all(|to| *to == format!("{adapter}/{name}"))
        && same_store(lun, device)
}

fn same_store(lun: &Lun, device: &Device) -> bool {
    let same_kind = match &lun.store {
        Store::File { size, buffered, .. } => {
            device.size.is_none_or(|s| s == *size) && device.buffered.is_none_or(|b| b == *buffered)
        }
        Store::Block { .. } => true,
    };
    same_kind && device.enabled && device.path == lun.store.path() && device.serial == lun.serial
}

/// Sets the portal group's attributes that differ and for which `now` returns true.
fn attributes(ops: &mut Vec<Op>, want: &Want, group: &Group, now: impl Fn(&str, &str) -> bool) {
    let (chap, all) = match &want.who {
        Who::One { chap, .. } => (chap.is_some(), false),
        Who::All => (false, true),
    };
    let bit = |so: bool| if so { "1" } else { "0" };
    let values = [
        // The kernel requires it by default.
        ("authentication", bit(chap)),
        ("generate_node_acls", bit(all)),
        // The kernel sets it together with the previous one, and rejects 0 while that one is set.
        ("cache_dynamic_acls", bit(all)),
        ("demo_mode_write_protect", "1"),
        // An initiator that may not log in does not learn the name.
        ("demo_mode_discovery", bit(all)),
    ];
    for (name, value) in values {
        if group.attributes.get(name).is_none_or(|have| have != value) && now(name, value) {
            ops.push(plain(format!("{}/attrib/{name}", want.names.group()), value));
        }
    }
}

/// The existing initiators that are not allowed.
fn locked_out<'a>(want: &'a Want, group: &'a Group) -> impl Iterator<Item = (&'a String, &'a Acl)> {
    let allowed = |name: &String| matches!(&want.who, Who::One { name: one, .. } if one == name);
    group.acls.iter().filter(move |(name, _)| !allowed(name))
}

/// Locks out or removes the initiators that are no longer allowed, then adds the allowed one.
fn initiators(ops: &mut Vec<Op>, want: &Want, group: &Group) {
    let at = |name: &str| format!("{}/acls/{name}", want.names.group());
    for (name, acl) in locked_out(want, group) {
        if group.enabled { lock(ops, &at(name), acl) } else { remove_acl(ops, &at(name), acl) }
    }
    let Who::One { name, chap, mutual } = &want.who else { return };
    let (at, none) = (at(name), Acl::default());
    let have = group.acls.get(name);
    if have.is_none() {
        ops.push(Op::Mkdir(at.clone()));
        // Not before its LUNs are correct.
        if group.enabled {
            ops.push(plain(format!("{at}/attrib/authentication"), DEMANDED));
        }
    }
    let acl = have.unwrap_or(&none);
    let groups = want.names.group();
    for lun in &want.luns {
        let folder = format!("{at}/lun_{}", lun.number);
        let have = acl.luns.get(&u64::from(lun.number));
        if have.is_none() {
            ops.push(Op::Mkdir(folder.clone()));
        }
        if have.is_none_or(|h| h.links.is_empty()) {
            let to = format!("{groups}/lun/lun_{}", lun.number);
            ops.push(Op::Link(format!("{folder}/{LINK}"), to));
        }
        if have.is_some_and(|h| h.write_protect) != lun.read_only {
            ops.push(plain(format!("{folder}/write_protect"), if lun.read_only { "1" } else { "0" }));
        }
    }
    // For a new initiator we know that nothing is set, and that it cannot log in yet.
    let nothing = Auth::default();
    let auth = if have.is_none() { Some(&nothing) } else { acl.auth.as_ref() };
    credentials(ops, &at, auth, chap.as_ref(), mutual.as_ref());
}

/// Sets the credentials of both sides. Those of the target are removed first and added last: without CHAP of the initiator there is none of
/// the target.
fn credentials(
    ops: &mut Vec<Op>,
    at: &str,
    have: Option<&Auth>,
    chap: Option<&ChapPair>,
    mutual: Option<&ChapPair>,
) {
    let initiator = (format!("{at}/auth/userid"), format!("{at}/auth/password"));
    let target = (format!("{at}/auth/userid_mutual"), format!("{at}/auth/password_mutual"));
    let own = |ops: &mut Vec<Op>| pair(ops, target, have.map(|h| &h.target), mutual);
    if mutual.is_none() {
        own(ops);
        pair(ops, initiator, have.map(|h| &h.initiator), chap);
    } else {
        pair(ops, initiator, have.map(|h| &h.initiator), chap);
        own(ops);
    }
}

/// Sets user name and secret if they differ, or if we cannot read them. When removing, the secret first; when adding, the user name first:
/// between the two writes no login succeeds that would not succeed before or after.
fn pair(
    ops: &mut Vec<Op>,
    (user_at, secret_at): (String, String),
    have: Option<&Known>,
    want: Option<&ChapPair>,
) {
    match want {
        Some(pair) => {
            if have.is_none_or(|have| have.user != pair.user) {
                ops.push(plain(user_at, &pair.user));
            }
            if have.is_none_or(|have| have.secret.as_ref() != Some(&pair.secret)) {
                ops.push(Op::Write(secret_at, Value::Secret(pair.secret.clone())));
            }
        }
        None => {
            if have.is_none_or(|have| have.secret.is_some()) {
                ops.push(plain(secret_at, NOTHING));
            }
            if have.is_none_or(|have| !have.user.is_empty()) {
                ops.push(plain(user_at, NOTHING));
            }
        }
    }
}

/// Keeps the session and rejects the next login: CHAP is required, and no secret would match.
fn lock(ops: &mut Vec<Op>, at: &str, acl: &Acl) {
    if acl.authentication.as_deref() != Some(DEMANDED) {
        ops.push(plain(format!("{at}/attrib/authentication"), DEMANDED));
    }
    credentials(ops, at, acl.auth.as_ref(), None, None);
}

/// Allows the initiator to log in, if it was locked out before or while its LUNs were mapped.
fn unlock(ops: &mut Vec<Op>, want: &Want, group: &Group) {
    let Who::One { name, .. } = &want.who else { return };
    let locked = match group.acls.get(name) {
        None => group.enabled,
        Some(acl) => acl.authentication.as_deref().is_some_and(|a| a != INHERITED),
    };
    if locked {
        let at = format!("{}/acls/{name}/attrib/authentication", want.names.group());
        ops.push(plain(at, INHERITED));
    }
}

fn remove_acl(ops: &mut Vec<Op>, at: &str, acl: &Acl) {
    for (number, lun) in &acl.luns {
        let folder = format!("{at}/lun_{number}");
        ops.extend(lun.links.keys().map(|link| Op::Unlink(format!("{folder}/{link}"))));
        ops.push(Op::Rmdir(folder));
    }
    ops.push(Op::Rmdir(at.to_owned()));
}

//! Converts the operations of `lio_configfs` to targetcli's commands: a pure function.
//!
//! The tool's objects are larger than the kernel's: creating a backstore is one command and seven operations, and removing an object
//! removes the objects below it. Related operations are adjacent in a plan, so a command is sent for the operation that completes it;
//! adjacent settings of one object become one command.
//!
//! Invariant: every word from outside consists of characters without a special meaning in the tool's grammar; otherwise nothing is sent.

use ggnet_core::{
    error::{Error, Result},
    nouns::Secret,
};

use crate::lio::{Op, names::NOTHING};

/// One line for the tool.
pub(super) struct Command {
    /// The line. It may contain a secret.
    pub(super) text: Secret,
    /// The number of the operation that it completes.
    pub(super) op: usize,
}

/// The output for an operation.
enum Said {
    Nothing,
    Lines(Vec<String>),
    /// A setting of an object: appended to the previous line if that is for the same object.
    Setting {
        object: String,
        setting: String,
    },
}

impl Said {
    fn line(text: String) -> Self {
        Self::Lines(vec![text])
    }
}

/// The parts of a backstore that is being created.
#[derive(Default)]
struct Backstore<'a> {
    control: &'a str,
    serial: &'a str,
    attributes: Vec<String>,
}

/// The commands for these operations, in order. Flushes are skipped: they do not concern the tool.
pub(super) fn commands(ops: &[Op]) -> Result<Vec<Command>> {
    ops.iter().try_for_each(check)?;
    let mut lines: Vec<(String, Option<String>, usize)> = Vec::new();
    let mut making = Backstore::default();
    for (n, op) in ops.iter().enumerate() {
        match words(op, ops, n, &mut making) {
            Said::Nothing => {}
            Said::Lines(said) => lines.extend(said.into_iter().map(|line| (line, None, n))),
            Said::Setting { object, setting } => match lines.last_mut() {
                // After an empty value the tool would parse the next setting as the value.
                Some((line, Some(about), at)) if *about == object && !line.ends_with('=') => {
                    line.push(' ');
                    line.push_str(&setting);
                    *at = n;
                }
                _ => lines.push((format!("{object} {setting}"), Some(object), n)),
            },
        }
    }
    Ok(lines.into_iter().map(|(line, _, op)| Command { text: Secret::new(line), op }).collect())
}

fn words<'a>(op: &'a Op, ops: &[Op], n: usize, making: &mut Backstore<'a>) -> Said {
    let Some(path) = path(op) else { return Said::Nothing };
    let (before, after) = (&ops[..n], &ops[n + 1..]);
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["core", adapter, rest @ ..] => core(making, kind(adapter), rest, op),
        ["iscsi", target] => {
            Said::line(format!("/iscsi {} {target}", if is_making(op) { "create" } else { "delete" }))
        }
        ["iscsi", target, "tpgt_1"] if is_making(op) => {
            // The tool creates it together with the target; an incomplete target may have existed.
            let came = before.contains(&Op::Mkdir(format!("iscsi/{target}")));
            if came { Said::Nothing } else { Said::line(format!("/iscsi/{target} create 1")) }
        }
        ["iscsi", target, "tpgt_1"] => Said::line(format!("/iscsi/{target} delete 1")),
        // It is removed with its portal group, which the tool disables first.
        ["iscsi", target, "tpgt_1", ..] if after.contains(&Op::Rmdir(format!("iscsi/{target}/tpgt_1"))) => {
            Said::Nothing
        }
        ["iscsi", target, "tpgt_1", rest @ ..] => group(&format!("/iscsi/{target}/tpg1"), rest, op, ops),
        _ => Said::Nothing,
    }
}

fn path(op: &Op) -> Option<&str> {
    match op {
        Op::Mkdir(path) | Op::Rmdir(path) | Op::Write(path, _) | Op::Link(path, _) | Op::Unlink(path) => {
            Some(path)
        }
        Op::Flush(_) => None,
    }
}

fn is_making(op: &Op) -> bool {
    matches!(op, Op::Mkdir(_))
}

/// Whether every word consists of characters without a special meaning in the tool's grammar.
fn check(op: &Op) -> Result<()> {
    let fits = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_+/.:,@%-=~[]".contains(c));
    let plain = match op {
        Op::Mkdir(path) | Op::Rmdir(path) | Op::Unlink(path) => fits(path),
        Op::Write(path, value) => fits(path) && fits(value.expose()),
        Op::Link(path, to) => fits(path) && fits(to),
        Op::Flush(_) => true,
    };
    // Without the word, because it may be a secret.
    let message = "targetcli accepts only letters, digits and _+/.:,@%-=~[] in names, paths and CHAP pairs";
    if plain { Ok(()) } else { Err(Error::invalid("target", message)) }
}

/// `fileio_7` → `fileio`, the tool's name.
fn kind(adapter: &str) -> &'static str {
    if adapter.starts_with("fileio_") { "fileio" } else { "block" }
}

fn value(op: &Op) -> &str {
    match op {
        Op::Write(_, value) => value.expose(),
        _ => "",
    }
}

fn core<'a>(making: &mut Backstore<'a>, kind: &str, rest: &[&str], op: &'a Op) -> Said {
    match (op, rest) {
        (Op::Rmdir(_), [name]) => return Said::line(format!("/backstores/{kind} delete {name}")),
        (Op::Write(..), [_, "control"]) => *making = Backstore { control: value(op), ..Backstore::default() },
        (Op::Write(..), [_, "wwn", "vpd_unit_serial"]) => making.serial = value(op),
        (Op::Write(..), [_, "attrib", name]) => making.attributes.push(format!("{name}={}", value(op))),
        (Op::Write(..), [name, "enable"]) => {
            let made = backstore(kind, name, making);
            let attributes = std::mem::take(&mut making.attributes).join(" ");
            return Said::Lines(vec![made, format!("/backstores/{kind}/{name} set attribute {attributes}")]);
        }
        _ => {}
    }
    Said::Nothing
}

fn backstore(kind: &str, name: &str, Backstore { control, serial, .. }: &Backstore<'_>) -> String {
    let field = |key: &str| control.split(',').find_map(|f| f.strip_prefix(key)?.strip_prefix('='));
    let has = |key: &str| field(key).is_some();
    let made = format!("/backstores/{kind} create name={name} wwn={serial}");
    match (field("fd_dev_name"), field("udev_path")) {
        (Some(file), _) => format!("{made} file_or_dev={file} write_back={}", has("fd_buffered_io")),
        (None, device) => format!("{made} dev={} readonly={}", device.unwrap_or_default(), has("readonly")),
    }
}

fn group(at: &str, rest: &[&str], op: &Op, ops: &[Op]) -> Said {
    match (op, rest) {
        (Op::Write(..), ["enable"]) => {
            Said::line(format!("{at} {}", if value(op) == "1" { "enable" } else { "disable" }))
        }
        (Op::Write(..), ["attrib", name]) => setting(format!("{at} set attribute"), name, value(op)),
        (Op::Link(_, to), ["lun", lun, _]) => {
            let (adapter, name) =
                to.strip_prefix("core/").and_then(|to| to.split_once('/')).unwrap_or_default();
            Said::line(format!("{at}/luns create /backstores/{}/{name} {} false", kind(adapter), number(lun)))
        }
        (Op::Rmdir(_), ["lun", lun]) => Said::line(format!("{at}/luns delete {}", number(lun))),
        (Op::Mkdir(_) | Op::Rmdir(_), ["np", portal]) => {
            let (address, port) = portal.rsplit_once(':').unwrap_or_default();
            let verb = if is_making(op) { "create" } else { "delete" };
            Said::line(format!("{at}/portals {verb} {address} {port}"))
        }
        (_, ["acls", name, rest @ ..]) => initiator(&format!("{at}/acls"), name, rest, op, ops),
        _ => Said::Nothing,
    }
}

fn setting(object: String, name: &str, value: &str) -> Said {
    Said::Setting { object, setting: format!("{name}={value}") }
}

/// `lun_3` → `3`.
fn number(lun: &str) -> &str {
    lun.strip_prefix("lun_").unwrap_or(lun)
}

fn initiator(acls: &str, name: &str, rest: &[&str], op: &Op, ops: &[Op]) -> Said {
    let at = format!("{acls}/{name}");
    match (op, rest) {
        (Op::Mkdir(_), []) => Said::line(format!("{acls} create {name} false")),
        (Op::Rmdir(_), []) => Said::line(format!("{acls} delete {name}")),
        (Op::Write(..), ["attrib", attribute]) => {
            setting(format!("{at} set attribute"), attribute, value(op))
        }
        (Op::Write(..), ["auth", field]) => {
            // The tool's syntax for no value is an empty one.
            let value = Some(value(op)).filter(|v| *v != NOTHING).unwrap_or_default();
            let name = match *field {
                "userid_mutual" => "mutual_userid",
                "password_mutual" => "mutual_password",
                one_way => one_way,
            };
            setting(format!("{at} set auth"), name, value)
        }
        (Op::Link(path, _), [lun, _]) => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let protect = format!("{folder}/write_protect");
            let protected =
                ops.iter().any(|o| matches!(o, Op::Write(p, v) if *p == protect && v.expose() == "1"));
            Said::line(format!("{at} create {0} {0} {1}", number(lun), u8::from(protected)))
        }
        (Op::Rmdir(_), [lun]) => Said::line(format!("{at} delete {}", number(lun))),
        // With its mapping, if that is new; otherwise the mapping is created again.
        (Op::Write(path, _), [lun, "write_protect"]) => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let is_new = ops
                .iter()
                .any(|o| matches!(o, Op::Link(p, _) if p.rsplit_once('/').is_some_and(|(f, _)| f == folder)));
            if is_new {
                return Said::Nothing;
            }
            let (number, protect) = (number(lun), value(op));
            Said::Lines(vec![
                format!("{at} delete {number}"),
                format!("{at} create {number} {number} {protect}"),
            ])
        }
        _ => Said::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lio::Value;

    fn said(ops: &[Op]) -> Vec<String> {
        commands(ops).unwrap().iter().map(|c| c.text.expose().to_owned()).collect()
    }

    fn write(path: &str, value: &str) -> Op {
        Op::Write(path.to_owned(), Value::Plain(value.to_owned()))
    }

    #[test]
    fn a_target_in_the_tools_words() {
        let group = "iscsi/iqn.2026-11.a:b/tpgt_1";
        let acl = format!("{group}/acls/iqn.2026-11.a:pc");
        let ops = [
            Op::Mkdir("iscsi/iqn.2026-11.a:b".into()),
            Op::Mkdir("core/fileio_512".into()),
            Op::Mkdir("core/fileio_512/i.m.1.0".into()),
            write(
                "core/fileio_512/i.m.1.0/control",
                "fd_dev_name=/d/x.raw,fd_dev_size=1048576,fd_buffered_io=1",
            ),
            write("core/fileio_512/i.m.1.0/udev_path", "/d/x.raw"),
            write("core/fileio_512/i.m.1.0/wwn/vpd_unit_serial", "5e71"),
            write("core/fileio_512/i.m.1.0/attrib/emulate_3pc", "0"),
            write("core/fileio_512/i.m.1.0/enable", "1"),
            Op::Mkdir(group.into()),
            write(&format!("{group}/attrib/generate_node_acls"), "0"),
            Op::Mkdir(format!("{group}/lun/lun_0")),
            Op::Link(format!("{group}/lun/lun_0/ggnet"), "core/fileio_512/i.m.1.0".into()),
            Op::Mkdir(format!("{group}/np/[::1]:3260")),
            Op::Mkdir(acl.clone()),
            Op::Mkdir(format!("{acl}/lun_0")),
            Op::Link(format!("{acl}/lun_0/ggnet"), format!("{group}/lun/lun_0")),
            write(&format!("{acl}/lun_0/write_protect"), "1"),
            write(&format!("{acl}/auth/userid"), "pc"),
            Op::Write(format!("{acl}/auth/password"), Value::Secret(Secret::new("S3cret"))),
            write(&format!("{acl}/auth/userid_mutual"), "disk"),
            write(&format!("{group}/attrib/authentication"), "1"),
            write(&format!("{group}/attrib/cache_dynamic_acls"), "0"),
            write(&format!("{group}/enable"), "1"),
        ];
        let tpg = "/iscsi/iqn.2026-11.a:b/tpg1";
        assert_eq!(
            said(&ops),
            [
                "/iscsi create iqn.2026-11.a:b".to_owned(),
                "/backstores/fileio create name=i.m.1.0 wwn=5e71 file_or_dev=/d/x.raw write_back=true"
                    .to_owned(),
                "/backstores/fileio/i.m.1.0 set attribute emulate_3pc=0".to_owned(),
                format!("{tpg} set attribute generate_node_acls=0"),
                format!("{tpg}/luns create /backstores/fileio/i.m.1.0 0 false"),
                format!("{tpg}/portals create [::1] 3260"),
                format!("{tpg}/acls create iqn.2026-11.a:pc false"),
                format!("{tpg}/acls/iqn.2026-11.a:pc create 0 0 1"),
                format!("{tpg}/acls/iqn.2026-11.a:pc set auth userid=pc password=S3cret mutual_userid=disk"),
                format!("{tpg} set attribute authentication=1 cache_dynamic_acls=0"),
                format!("{tpg} enable"),
            ]
        );
        // `before` is called for the last operation of each command.
        assert_eq!(commands(&ops).unwrap().iter().map(|c| c.op).collect::<Vec<_>>()[..4], [0, 7, 7, 9]);
    }

    #[test]
    fn and_away_again() {
        let group = "iscsi/iqn.2026-11.a:b/tpgt_1";
        let ops = [
            write(&format!("{group}/enable"), "0"),
            Op::Unlink(format!("{group}/acls/iqn.2026-11.a:pc/lun_0/x")),
            Op::Rmdir(format!("{group}/acls/iqn.2026-11.a:pc/lun_0")),
            Op::Rmdir(format!("{group}/acls/iqn.2026-11.a:pc")),
            Op::Rmdir(format!("{group}/np/0.0.0.0:3260")),
            Op::Unlink(format!("{group}/lun/lun_0/x")),
            Op::Rmdir(format!("{group}/lun/lun_0")),
            Op::Rmdir(group.into()),
            Op::Flush("/dev/loop0".into()),
            Op::Rmdir("core/iblock_3/i.m.1.0".into()),
            Op::Rmdir("core/iblock_3".into()),
            Op::Rmdir("iscsi/iqn.2026-11.a:b".into()),
        ];
        assert_eq!(
            said(&ops),
            [
                "/iscsi/iqn.2026-11.a:b delete 1",
                "/backstores/block delete i.m.1.0",
                "/iscsi delete iqn.2026-11.a:b",
            ]
        );
    }

    #[test]
    fn one_initiator_leaves_a_group_that_stays() {
        let acl = "iscsi/iqn.2026-11.a:b/tpgt_1/acls/iqn.2026-11.a:pc";
        let ops = [
            write(&format!("{acl}/auth/password"), NOTHING),
            write(&format!("{acl}/auth/userid"), NOTHING),
            Op::Unlink(format!("{acl}/lun_0/x")),
            Op::Rmdir(format!("{acl}/lun_0")),
            Op::Rmdir(acl.into()),
        ];
        let acls = "/iscsi/iqn.2026-11.a:b/tpg1/acls";
        assert_eq!(
            said(&ops),
            [
                format!("{acls}/iqn.2026-11.a:pc set auth password="),
                format!("{acls}/iqn.2026-11.a:pc set auth userid="),
                format!("{acls}/iqn.2026-11.a:pc delete 0"),
                format!("{acls} delete iqn.2026-11.a:pc"),
            ]
        );
    }

    #[test]
    fn what_could_be_taken_for_something_else_is_refused_and_not_repeated() {
        for hostile in ["a b; exit", "a\nexit", "a(b", "a\"b", "a'b", "ä"] {
            let path = "iscsi/iqn.2026-11.a:b/tpgt_1/acls/iqn.2026-11.a:pc/auth/password";
            let op = Op::Write(path.into(), Value::Secret(Secret::new(hostile)));
            match commands(&[op]) {
                Err(e) => assert!(!e.to_string().contains(hostile), "{e}"),
                Ok(_) => panic!("{hostile:?} was said"),
            }
        }
    }
}

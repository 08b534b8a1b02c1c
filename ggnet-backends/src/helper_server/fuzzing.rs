//! The properties that must hold for every line that the helper could receive. `fuzz/` and the test `fuzz_corpus` run them.

use std::{
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use ggnet_core::nouns::{InstanceId, Iqn, ResourceId};

use super::fence::judge;
use crate::{
    helper::{Request, decode, encode},
    lio::{Op, Value, names::Names},
};

/// The folder of the disks.
const DISKS: &str = "/var/lib/ggnet/disks";

/// A line that parses is encoded to the same value again; every allowed change is below the target's own names and the folder of the disks,
/// checked by an independent implementation.
///
/// # Panics
/// If a property is violated.
pub fn request(input: &[u8]) {
    let Ok(request) = decode::<Request>(input) else { return };
    assert!(input.len() > 1 && input.ends_with(b"\n"), "half a line was understood");
    assert_eq!(input.iter().filter(|b| **b == b'\n').count(), 1, "two lines were understood as one");
    let line = encode(&request).unwrap_or_else(|e| unreachable!("what was decoded encodes: {e}"));
    assert!(line.len() <= input.len().saturating_mul(6).max(64), "{} bytes of {}", line.len(), input.len());
    assert!(decode::<Request>(&line).is_ok_and(|again| again == request), "it does not come back the same");
    let Request::Apply { target, ops } = request else { return };
    let Some(names) = names(&target) else { return };
    let disks = [PathBuf::from(DISKS)];
    for op in &ops {
        if judge(&names, &disks, op).is_ok() {
            allowed(&names, op);
        }
        // The same change of another target is never allowed for this target.
        if let Some(other) = names_of_another(&target)
            && judge(&other, &disks, op).is_ok()
        {
            assert!(
                matches!(op, Op::Flush(_)) || judge(&names, &disks, op).is_err(),
                "{op:?} is two targets'"
            );
        }
    }
}

fn names(target: &ResourceId) -> Option<Names> {
    static OURS: OnceLock<Option<(Iqn, InstanceId)>> = OnceLock::new();
    let ours = OURS.get_or_init(|| Some(("iqn.2026-11.local.ggnet".parse().ok()?, "0ddba11e".parse().ok()?)));
    let (prefix, instance) = ours.as_ref()?;
    Names::of(prefix, instance, target).ok()
}

fn names_of_another(target: &ResourceId) -> Option<Names> {
    names(&format!("{target}0").parse().ok()?)
}

fn allowed(names: &Names, op: &Op) {
    match op {
        Op::Mkdir(path) | Op::Rmdir(path) | Op::Unlink(path) => ours(names, path),
        Op::Link(path, to) => {
            ours(names, path);
            ours(names, to);
        }
        Op::Write(path, value) => {
            ours(names, path);
            let secret = path.ends_with("/auth/password") || path.ends_with("/auth/password_mutual");
            match value {
                Value::Plain(text) => {
                    assert!(!secret || text == "NULL", "a secret in the open");
                    let cut = |c: char| c.is_control() || c.is_whitespace();
                    assert!(!text.is_empty() && !text.contains(cut), "{text:?}");
                    if path.ends_with("/control") {
                        let named = text.split(',').filter(|part| part.contains('/')).collect::<Vec<_>>();
                        let [one] = named[..] else { unreachable!("one file is named, not {named:?}") };
                        disk(Path::new(one.strip_prefix("fd_dev_name=").unwrap_or(one)));
                    }
                    if path.ends_with("/udev_path") {
                        disk(Path::new(text));
                    }
                }
                Value::Secret(text) => {
                    assert!(secret, "a secret goes to {path}");
                    assert!(text.expose().bytes().all(|b| b.is_ascii_graphic()));
                }
            }
        }
        Op::Flush(path) => disk(path),
    }
}

/// Two to eight plain path components, the second of which is the target's name.
fn ours(names: &Names, path: &str) {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))), "{path:?} leads elsewhere");
    assert_eq!(parts.len(), path.split('/').count(), "{path:?} is not what it looks like");
    assert!(path.bytes().all(|b| b.is_ascii_graphic()), "{path:?}");
    let mut words = path.split('/');
    match (words.next(), words.next(), words.next()) {
        (Some("iscsi"), Some(target), _) => assert_eq!(target, names.iqn, "{path:?} is another's"),
        (Some("core"), Some(adapter), device) => {
            assert!(adapter.starts_with("fileio_") && names.is_adapter(adapter), "{path:?} is another's");
            assert!(device.is_none_or(|device| names.is_device(device)), "{path:?} is another's");
        }
        _ => unreachable!("{path:?} is no place of a target"),
    }
}

fn disk(path: &Path) {
    assert!(path.starts_with(DISKS) && path != Path::new(DISKS), "{} is no disk", path.display());
    assert!(!path.components().any(|part| part == Component::ParentDir), "{} leads out", path.display());
}

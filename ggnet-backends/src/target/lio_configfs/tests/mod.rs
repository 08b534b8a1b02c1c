//! The plan on a plain folder in the place of configfs: order, exact values, differences. The behaviour of the kernel is tested in a guest
//! with LIO (`--test native`).

mod access;
mod cut;
mod order;

use std::{fs, path::Path};

use ggnet_core::{
    block::Disk,
    nouns::{ChapPair, ImageFormat, InstanceId, Iqn, MachineId, ResourceId, Secret},
    ports::{Access, LunDisks, LunSpec, TargetSpec},
    testkit::suite::Wanted,
};

use super::{
    LioConfig,
    have::{Have, Shown},
    plan,
    want::Want,
};
use crate::lio::{Op, Value, names::Names, tree::Tree};

const INFO: &str = "info";
const LIVE: &str = "InitiatorName: x\nSession State: TARG_SESS_STATE_LOGGED_IN\n";

/// Applies an operation for a target.
pub(crate) type Apply = Box<dyn Fn(&ResourceId, &Op) -> ggnet_core::Result<()>>;

/// A folder as the root of the tree, with a disk beside it.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) tree: Tree,
    pub(crate) prefix: Iqn,
    pub(crate) instance: InstanceId,
    config: LioConfig,
    /// What changes the tree; `None`: we do.
    pub(crate) apply: Option<Apply>,
    pub(crate) shown: Shown,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("target");
        for folder in ["core/alua", "iscsi/discovery_auth"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::File::create(dir.path().join("disk")).unwrap().set_len(4096).unwrap();
        Self {
            tree: Tree::at(root.clone(), None),
            prefix: "iqn.2026-11.local.ggnet".parse().unwrap(),
            instance: "0ddba11e".parse().unwrap(),
            config: LioConfig { root, ..LioConfig::default() },
            apply: None,
            shown: Shown::All,
            dir,
        }
    }

    pub(crate) fn id(&self) -> ResourceId {
        let machine: MachineId = "0196f0d2-0000-7000-8000-000000000001".parse().unwrap();
        ResourceId::generation(machine, 7)
    }

    fn disk(&self) -> Disk {
        Disk::File { path: self.dir.path().join("disk"), format: ImageFormat::Raw }
    }

    pub(crate) fn spec(&self, access: Access) -> Wanted {
        let id = self.id();
        let lun = LunSpec {
            number: 0,
            disk_key: "disk".into(),
            serial: "5e71a1".into(),
            read_only: access == Access::Shared,
        };
        let iqn = Iqn::target(&self.prefix, &self.instance, &id).unwrap();
        Wanted {
            spec: TargetSpec { id, iqn, luns: vec![lun], access },
            disks: LunDisks::from([(0, self.disk())]),
        }
    }

    pub(crate) fn names(&self, id: &ResourceId) -> Names {
        Names::of(&self.prefix, &self.instance, id).unwrap()
    }

    pub(crate) fn want(&self, wanted: &Wanted) -> Want {
        Want::of(wanted, &wanted.disks, self.names(&wanted.id), &self.config).unwrap()
    }

    pub(crate) fn have(&self, want: &Want) -> Have {
        Have::of(&self.tree, &want.names, self.shown, false).unwrap()
    }

    pub(crate) fn plan(&self, want: &Want) -> Vec<Op> {
        plan::converge(want, &self.have(want)).unwrap()
    }

    /// Applies operations, and imitates the kernel: attributes exist with their folder, and disappear with it.
    pub(crate) fn apply(&self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Mkdir(path) => {
                    fs::create_dir_all(self.tree.root().join(path).parent().unwrap()).unwrap();
                }
                Op::Write(path, _) => {
                    let at = self.tree.root().join(path);
                    fs::create_dir_all(at.parent().unwrap()).unwrap();
                    fs::File::create(at).unwrap();
                }
                Op::Rmdir(path) => clear(&self.tree.root().join(path)),
                _ => {}
            }
            match &self.apply {
                Some(apply) => apply(&self.id(), op).unwrap(),
                None => self.tree.apply(std::slice::from_ref(op)).unwrap(),
            }
        }
    }

    pub(crate) fn ensure(&self, wanted: &Wanted) -> Vec<Op> {
        let want = self.want(wanted);
        let ops = self.plan(&want);
        self.apply(&ops);
        assert_eq!(self.plan(&want), [], "a second ensure has nothing to do");
        ops
    }

    /// Everything in the tree, for comparison.
    pub(crate) fn everything(&self) -> Vec<String> {
        let mut all = Vec::new();
        walk(self.tree.root(), &mut all);
        all.sort();
        all
    }

    /// Makes an initiator appear logged in, as the kernel would.
    pub(crate) fn log_in(&self, want: &Want, initiator: &str) {
        let at = self.tree.root().join(want.names.group()).join("acls").join(initiator).join(INFO);
        fs::File::create(&at).unwrap();
        self.tree
            .apply(&[Op::Write(
                at.strip_prefix(self.tree.root()).unwrap().to_str().unwrap().into(),
                Value::Plain(LIVE.into()),
            )])
            .unwrap();
    }
}

/// The attributes and default groups of an object; links and objects that were created in it stay, and prevent its removal.
fn clear(at: &Path) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_file() {
            fs::remove_file(entry.path()).unwrap();
        } else if ["attrib", "auth", "wwn", "np", "lun", "acls", "param"].contains(&name.as_str()) {
            clear(&entry.path());
            // Rejected while it contains an object.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn walk(at: &Path, all: &mut Vec<String>) {
    for entry in fs::read_dir(at).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        let what = if kind.is_symlink() {
            format!("{:?}", fs::read_link(entry.path()).unwrap())
        } else if kind.is_file() {
            fs::read_to_string(entry.path()).unwrap()
        } else {
            walk(&entry.path(), all);
            String::new()
        };
        all.push(format!("{} {what}", entry.path().display()));
    }
}

pub(crate) fn initiator(n: u32) -> String {
    format!("iqn.2026-11.local.ggnet:pc-{n}")
}

pub(crate) fn only(n: u32) -> Access {
    Access::Initiator { name: initiator(n).parse().unwrap(), chap: None, mutual: None }
}

pub(crate) fn chap(n: u32, secret: &str) -> Access {
    let pair = ChapPair { user: format!("user-{n}"), secret: Secret::new(secret) };
    Access::Initiator { name: initiator(n).parse().unwrap(), chap: Some(pair), mutual: None }
}

/// The operations as lines, without their common parts.
pub(crate) fn lines(ops: &[Op], want: &Want) -> Vec<String> {
    let group = want.names.group();
    let line = |op: &Op| {
        let text = match op {
            Op::Mkdir(path) => format!("mkdir {path}"),
            Op::Rmdir(path) => format!("rmdir {path}"),
            Op::Write(path, value) => format!("write {path} {value:?}"),
            Op::Link(path, to) => format!("link {path} → {to}"),
            Op::Unlink(path) => format!("unlink {path}"),
            Op::Flush(path) => format!("flush {}", path.file_name().unwrap().to_string_lossy()),
        };
        text.replace(&group, "TPG").replace(&want.names.target(), "TARGET")
    };
    ops.iter().map(line).collect()
}

//! Checks whether the kernel's own iSCSI target (LIO) is loaded or can be loaded.

use std::{fs, path::Path};

use super::{Finding, Level};

/// The commands that load it and mount its tree.
const LOAD: &str = "sudo modprobe -a target_core_mod iscsi_target_mod; mount | grep configfs || sudo mount -t configfs configfs \
                    /sys/kernel/config";

/// Whether the kernel's target exists below `root` (`/sys/kernel/config/target`); otherwise `missing`, with the command that loads it, or a
/// message that this kernel does not have it.
#[must_use]
pub fn kernel_target(root: &Path, missing: Level) -> Finding {
    judge(root, has_module("target_core_mod") && has_module("iscsi_target_mod"), missing)
}

fn judge(root: &Path, modules: bool, missing: Level) -> Finding {
    let what = "kernel target (LIO)";
    if root.join("iscsi").is_dir() {
        return Finding::ok(what, format!("It is loaded: {}", root.join("iscsi").display()));
    }
    match (root.is_dir(), modules) {
        (true, true) => Finding::ok(
            what,
            "target_core_mod is loaded; iscsi_target_mod will be loaded with the first target",
        ),
        (false, true) => {
            Finding::bad(missing, what, format!("It is not loaded: {} does not exist", root.display()), LOAD)
        }
        (_, false) => Finding::bad(
            Level::Fail,
            what,
            "This kernel has no module iscsi_target_mod",
            "apt-get install linux-image-amd64 and boot it (cloud kernels do not have LIO); or set backend = \"builtin\" in [target]",
        ),
    }
}

/// Whether the running kernel has a module, as a file or built in.
fn has_module(name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let folder = Path::new("/lib/modules").join(release);
    let listed = |list: &str| {
        let text = fs::read_to_string(folder.join(list)).unwrap_or_default();
        text.lines().any(|line| line.contains(&format!("/{name}.ko")))
    };
    Path::new("/sys/module").join(name).is_dir() || listed("modules.dep") || listed("modules.builtin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_to_be_loaded_and_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("target");
        let f = judge(&root, true, Level::Warn);
        assert!(f.level == Level::Warn && f.mend.as_deref().unwrap().contains("modprobe"), "{f}");
        let f = judge(&root, false, Level::Warn);
        assert!(f.level == Level::Fail && f.mend.as_deref().unwrap().contains("builtin"), "{f}");
        fs::create_dir(&root).unwrap();
        assert_eq!(judge(&root, true, Level::Fail).level, Level::Ok);
        fs::create_dir(root.join("iscsi")).unwrap();
        assert_eq!(judge(&root, false, Level::Fail).level, Level::Ok);
        assert!(!has_module("no_such_module_of_ggnet"));
    }
}

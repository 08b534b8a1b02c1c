//! Whether a program is installed.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{Finding, Level};

/// Where programs are: the system's folders, whatever our own `PATH` is (a user's often lacks the `sbin` ones).
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The executable file that `program` means: a path, or a name that is looked up in the system's folders.
#[must_use]
pub fn find_program(program: &Path) -> Option<PathBuf> {
    let executable = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(executable);
    }
    FOLDERS.iter().map(|dir| Path::new(dir).join(program)).find(executable)
}

/// Whether `program` is there; else `missing`, with the line that installs Debian's `package`.
#[must_use]
pub fn program(program: &Path, package: &str, missing: Level) -> Finding {
    let what = format!("program {}", program.display());
    match find_program(program) {
        Some(file) => Finding::ok(what, format!("Found at {}", file.display())),
        None => Finding::bad(missing, what, "It is not installed", format!("sudo apt-get install {package}")),
    }
}

/// Whether what starts every program of ours is there: it sets their limits and has them end with us.
#[must_use]
pub fn starters() -> [Finding; 2] {
    ["prlimit", "setpriv"].map(|name| program(Path::new(name), "util-linux", Level::Fail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_and_missing() {
        assert_eq!(program(Path::new("sh"), "dash", Level::Fail).level, Level::Ok);
        assert_eq!(program(Path::new("/bin/sh"), "dash", Level::Fail).level, Level::Ok);
        for name in ["no-such-program", "/etc/passwd", "/etc", ""] {
            let f = program(Path::new(name), "some-package", Level::Warn);
            assert_eq!(f.level, Level::Warn, "{f}");
            assert_eq!(f.mend.as_deref(), Some("sudo apt-get install some-package"));
        }
    }
}

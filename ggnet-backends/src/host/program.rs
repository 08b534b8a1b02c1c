//! Whether a program is installed.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{Finding, Level};

/// The folders of programs, independent of our own `PATH` (a user's `PATH` often lacks the `sbin` folders).
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The executable file of `program`: a path, or a name that is looked up in the system's folders.
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

/// Whether `program` is installed; otherwise `missing`, with the command that installs Debian's `package`.
#[must_use]
pub fn program(program: &Path, package: &str, missing: Level) -> Finding {
    let what = format!("program {}", program.display());
    match find_program(program) {
        Some(file) => Finding::ok(what, format!("Found at {}", file.display())),
        None => Finding::bad(missing, what, "It is not installed", format!("sudo apt-get install {package}")),
    }
}

/// Whether the programs that start all other programs are installed: they set limits and make the child end with us.
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

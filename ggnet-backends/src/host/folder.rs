//! Checks whether a folder exists and is writable.

use std::path::Path;

use rustix::fs::{Access, access};

use super::{Finding, Level};

/// Whether `dir` is a folder that our user can write to; otherwise `missing`, with the command that creates it.
#[must_use]
pub fn writable_folder(dir: &Path, missing: Level) -> Finding {
    let shown = dir.display();
    let what = format!("folder {shown}");
    let mend = format!("sudo install -d -o ggnet {shown}    # or another user, if the server runs as one");
    if !dir.is_dir() {
        return Finding::bad(missing, what, "It does not exist", mend);
    }
    match access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(what, "It is writable"),
        Err(e) => Finding::bad(missing, what, format!("It is not writable: {e}"), mend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable_folder(dir.path(), Level::Fail).level, Level::Ok);
        let missing = writable_folder(&dir.path().join("x"), Level::Warn);
        assert_eq!(missing.level, Level::Warn);
        assert!(missing.mend.is_some_and(|m| m.contains("install -d")));
    }
}

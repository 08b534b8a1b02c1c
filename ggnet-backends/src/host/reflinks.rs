//! Checks whether image versions can be reflinked into the folder of the writebacks.

use std::{io, path::Path};

use super::{Finding, Level, space::nearest};
use crate::cloning;

/// Whether a file in the folder `images` can be reflinked into the folder `disks` (or their nearest existing parents); otherwise `missing`.
/// Tries it with unnamed files, so nothing is left behind.
#[must_use]
pub fn reflinks(images: &Path, disks: &Path, missing: Level) -> Finding {
    let what = format!("reflinks to {}", disks.display());
    let tried = nearest(images).and_then(|from| Ok((from, nearest(disks)?))).and_then(|(from, to)| {
        let possible = cloning::possible(&from, &to)?;
        Ok((possible, cloning::file_system(&from), cloning::file_system(&to)))
    });
    let why = match tried {
        Ok((true, _, on)) => return Finding::ok(what, format!("{on} supports them")),
        Ok((false, of, on)) if of == on => {
            format!("{on} does not support them, or the folders are on two file systems")
        }
        Ok((false, of, on)) => {
            format!("The images are on {of}, the writebacks on {on}: both must be on the same file system")
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Finding::unknown(what, &e),
        Err(e) => e.to_string(),
    };
    Finding::bad(
        missing,
        what,
        why,
        "Put the data folder on XFS (mkfs.xfs) or btrfs; or set copy = \"full\" in [writeback]: each session then starts with a full copy",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_makes_none_and_the_mend_says_where() {
        let f = reflinks(Path::new("/dev/shm/not/there"), Path::new("/dev/shm"), Level::Fail);
        assert_eq!(f.level, Level::Fail, "{f}");
        assert!(f.why.contains("tmpfs") && f.mend.unwrap().contains("mkfs.xfs"), "{}", f.why);
    }
}

//! Checks whether the space that is reserved for the database is reliable on its file system.
//!
//! The store keeps a file next to the database and truncates it when the disk is full. On file systems that write in place, the freed space
//! can be used again, and allocated space stays allocated. If every write goes to a new place (btrfs, ZFS, bcachefs), or if another host
//! decides (NFS, FUSE …), the file system may need more than was freed, or give it to another program.

use std::path::Path;

use super::{Finding, Level, space::nearest};

/// Whether space that is reserved in `dir` is certainly available when the disk is full; a warning if not.
#[must_use]
pub fn kept_space(dir: &Path) -> Finding {
    let what = format!("reserve for the database in {}", dir.display());
    let kind = nearest(dir).and_then(|there| Ok(rustix::fs::statfs(&there)?.f_type));
    match kind {
        // The kernel's type is signed on some machines; the numbers have 32 bits.
        Ok(kind) => judge(what, u32::try_from(kind & 0xffff_ffff).unwrap_or(0)),
        Err(e) => Finding::unknown(what, &e),
    }
}

fn judge(what: String, kind: u32) -> Finding {
    // statfs(2)
    let name = match kind {
        0xef53 => return Finding::ok(what, "ext4 keeps what is allocated"),
        0x5846_5342 => return Finding::ok(what, "XFS keeps what is allocated"),
        0x0102_1994 => return Finding::ok(what, "tmpfs keeps what is allocated"),
        0x9123_683e => "btrfs writes every change to a new place".to_owned(),
        0x2fc1_2fc1 => "ZFS writes every change to a new place".to_owned(),
        0xca45_1a4e => "bcachefs writes every change to a new place".to_owned(),
        0x6969 => "NFS: another host decides".to_owned(),
        other => format!("A file system of type {other:#x}, which GGnet does not know"),
    };
    let why = format!("{name}: if the disk is full, stopping sessions and deleting images may fail");
    let mend = "Put the data folder on ext4 or XFS, or set store.path to a file there; otherwise never let this disk fill up";
    Finding::bad(Level::Warn, what, why, mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_writes_elsewhere_is_warned_of_and_one_that_writes_in_place_is_not() {
        assert_eq!(judge("x".into(), 0xef53).level, Level::Ok);
        assert_eq!(judge("x".into(), 0x5846_5342).level, Level::Ok);
        for (kind, name) in
            [(0x9123_683e, "btrfs"), (0x2fc1_2fc1, "ZFS"), (0x6969, "NFS"), (0x1234, "0x1234")]
        {
            let found = judge("x".into(), kind);
            assert!(found.level == Level::Warn && found.why.contains(name), "{found}");
            assert!(found.mend.unwrap().contains("ext4 or XFS"));
        }
    }

    #[test]
    fn this_hosts_memory_is_known() {
        assert!(kept_space(Path::new("/dev/shm/no/such")).why.contains("tmpfs"));
    }
}

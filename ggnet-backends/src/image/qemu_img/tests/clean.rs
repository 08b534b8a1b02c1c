//! Temporary files that a killed process left are removed, and nothing else.

use std::{fs, path::Path};

use ggnet_core::ports::ImageConverter as _;

use super::{MIB, converter};
use crate::image::qemu_img::temp::TempFile;

fn touch(path: &Path) {
    fs::File::create(path).unwrap();
}

#[tokio::test]
async fn only_what_nobody_holds_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let held = TempFile::create(&at("held.raw"), MIB).await.unwrap();
    let held_path = dir.path().join(held.temp_name());
    touch(&at(".a.raw.partial-0123456789abcdef"));
    touch(&at(".b.raw.partial-fedcba9876543210"));
    let ours = [".a.raw.partial-0123456789abcdef", ".b.raw.partial-fedcba9876543210"].map(at);
    let foreign = [
        "a.raw",
        "a.raw.partial-0123456789abcdef",
        ".a.raw.partial-",
        ".a.raw.partial-0123456789abcdeX",
        ".a.raw.partial-0123456789ABCDEF",
        ".a.raw.partial-0123456789abcdef0",
        ".hidden",
    ]
    .map(at);
    foreign.iter().for_each(|p| touch(p));
    std::os::unix::fs::symlink("a.raw", at(".c.partial-0123456789abcdef")).unwrap();
    fs::create_dir(at(".d.partial-0123456789abcdef")).unwrap();

    converter().clean(dir.path()).await.unwrap();
    assert!(ours.iter().all(|p| !p.exists()));
    assert!(held_path.exists() && foreign.iter().all(|p| p.exists()));
    assert!(at(".c.partial-0123456789abcdef").is_symlink() && at(".d.partial-0123456789abcdef").is_dir());

    drop(held);
    assert!(!held_path.exists(), "dropped is removed");
    converter().clean(&at("no-such-folder")).await.unwrap();
}

#[tokio::test]
async fn a_published_file_is_no_longer_ours_to_remove() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let temp = TempFile::create(&path, MIB).await.unwrap();
    temp.publish().await.unwrap();
    converter().clean(dir.path()).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let opened = fs::File::open(&path).unwrap();
    rustix::fs::flock(&opened, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .expect("our lock is gone");
}

//! The writeback store "reflink" where it cannot work, on a full disk, and when it is killed.

use std::{
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ggnet_backends::writeback::reflink::{CopyMode, Reflink, ReflinkConfig};
use ggnet_core::{
    block::Disk,
    error::ErrorKind,
    nouns::{ImageFormat, ImageVersionId},
    ports::{Completeness, Health, Hold, OpenImage, Removal, WritebackSpec, WritebackStore as _},
    testkit::{suite::instance, tier::rounds},
};

use crate::{
    killed::{done, run_and_kill, setup},
    sandbox::{Mounted, btrfs, ext4, xfs},
};

const VERSION: &str = "01920000-0000-7000-8000-000000000001";

fn config(dir: &Path, copy: CopyMode) -> ReflinkConfig {
    ReflinkConfig { dir: dir.join("disks"), images: Some(dir.to_owned()), instance: instance(), copy }
}

/// A version with `data` bytes at the start and a total of `size`, with a pattern that depends on the offset.
fn base(dir: &Path, data: usize, size: u64) -> OpenImage {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join("base.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&bytes(data), 0).unwrap();
    file.sync_all().unwrap();
    opened(path, size)
}

/// The version, opened as the image store does.
fn opened(path: PathBuf, size_bytes: u64) -> OpenImage {
    let disk = Disk::File { path, format: ImageFormat::Raw };
    OpenImage { id: VERSION.parse().unwrap(), size_bytes, disk, hold: Hold::nothing() }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len / 8).flat_map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

fn spec(id: &str, base: &OpenImage) -> WritebackSpec {
    WritebackSpec { id: id.parse().unwrap(), version: base.id, size_bytes: base.size_bytes }
}

fn path(disk: Disk) -> PathBuf {
    let Disk::File { path, format: ImageFormat::Raw } = disk else { panic!("not a raw file: {disk:?}") };
    path
}

/// Bytes that are free on a file system.
fn free(dir: &Path) -> u64 {
    // Written data uses space only when it reaches the disk.
    rustix::fs::syncfs(std::fs::File::open(dir).unwrap()).unwrap();
    let stat = rustix::fs::statvfs(dir).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// The names in a folder that is there, or none.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_session_takes_no_space_until_it_writes() {
    const DATA: usize = 16 << 20;
    let expected = bytes(DATA);
    for (name, mounted) in [("xfs", xfs()), ("btrfs", btrfs())] {
        let dir = mounted.path().join("space");
        let base = base(&dir, DATA, 32 << 20);
        let store = Reflink::open(config(&dir, CopyMode::Reflink)).unwrap();
        let before = free(&dir);
        let mut disks = Vec::new();
        for n in 0..8 {
            disks.push(path(store.ensure(&spec(&format!("pc-{n}"), &base), &base).await.unwrap()));
        }
        let taken = before.saturating_sub(free(&dir));
        assert!(taken < DATA as u64, "{name}: eight disks of 16 MiB took {taken} bytes");
        for disk in &disks {
            assert!(disk.is_absolute());
            assert_eq!(disk.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
            assert!(std::fs::read(disk).unwrap()[..DATA] == expected, "{name}");
        }
        let listed = store.list().await.unwrap();
        assert_eq!(listed.len(), 8);
        for l in listed {
            assert!((DATA as u64..(DATA as u64) * 5 / 4).contains(&l.bytes), "{name}: {} counted", l.bytes);
            store.remove(&l.id, Removal::IfIdle).await.unwrap();
        }
        assert_eq!(names(&dir.join("disks")), [""; 0], "{name}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[tokio::test]
async fn without_reflinks_it_says_what_to_do_or_copies_what_is_no_hole() {
    let memory = Mounted::memory(64 << 20);
    for (name, mounted) in [("ext4", ext4()), ("tmpfs", &memory)] {
        let dir = mounted.path().join("full");
        let base = base(&dir, 3 << 20, 1 << 30);
        let e = Reflink::open(config(&dir, CopyMode::Reflink)).err().unwrap();
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
        assert!(e.message().contains(name) && e.message().contains(dir.to_str().unwrap()), "{}", e.report());
        let hint = e.hint().unwrap();
        assert!(hint.contains("mkfs.xfs") && hint.contains("copy = \"full\""), "{hint}");

        let store = Reflink::open(config(&dir, CopyMode::Full)).unwrap();
        let disk = path(store.ensure(&spec("pc", &base), &base).await.unwrap());
        let meta = disk.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 8 << 20, "{name}: the hole takes {} blocks", meta.blocks());
        let mut start = vec![0; 4 << 20];
        std::fs::File::open(&disk).unwrap().read_exact_at(&mut start, 0).unwrap();
        assert!(start[..3 << 20] == bytes(3 << 20) && start[3 << 20..].iter().all(|b| *b == 0), "{name}");
        store.remove(&"pc".parse().unwrap(), Removal::Force).await.unwrap();
        drop(store);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[tokio::test]
async fn a_version_on_another_file_system_is_refused_naming_both() {
    let (here, there) = (xfs().path().join("apart"), ext4().path().join("apart"));
    let base = base(&there, 1 << 20, 1 << 20);
    std::fs::create_dir_all(&here).unwrap();
    let mut config = config(&here, CopyMode::Reflink);
    config.images = Some(there.clone());
    let e = Reflink::open(config.clone()).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
    // If the folder of the versions is not known at start, at the first session.
    config.images = None;
    let store = Reflink::open(config).unwrap();
    let e = store.ensure(&spec("pc", &base), &base).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
    for word in [here.to_str().unwrap(), there.to_str().unwrap(), "XFS", "ext4"] {
        assert!(e.message().contains(word), "{word}: {}", e.report());
    }
    assert_eq!(names(&here.join("disks")), [""; 0], "nothing is left");
    for dir in [here, there] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_leaves_nothing() {
    let memory = Mounted::memory(8 << 20);
    let dir = memory.path();
    let base = base(&dir, 5 << 20, 5 << 20);
    let store = Reflink::open(config(&dir, CopyMode::Full)).unwrap();
    let e = store.ensure(&spec("pc", &base), &base).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Full, "{}", e.report());
    assert!(e.message().contains(path(base.disk).to_str().unwrap()), "{}", e.report());
    assert_eq!(names(&dir.join("disks")), [""; 0]);
    assert_eq!(store.list().await.unwrap(), []);
    let Health::Degraded(why) = store.health().await else { panic!("little is free") };
    assert!(why.contains("free some space"), "{why}");
}

#[tokio::test]
async fn what_does_not_belong_there_is_named_and_not_removed() {
    let dir = xfs().path().join("strange");
    let base = base(&dir, 1 << 20, 1 << 20);
    let store = Reflink::open(config(&dir, CopyMode::Reflink)).unwrap();
    let disk = path(store.ensure(&spec("pc", &base), &base).await.unwrap());
    let other = disk.with_file_name("notes.txt");
    std::fs::write(&other, b"x").unwrap();
    let e = store.ensure(&spec("pc", &base), &base).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{}", e.report());
    assert!(e.message().contains("notes.txt"), "{}", e.report());
    assert_eq!(store.list().await.unwrap()[0].completeness, Completeness::Partial);
    std::fs::remove_file(other).unwrap();
    store.ensure(&spec("pc", &base), &base).await.unwrap();

    let wrong = OpenImage { size_bytes: 2 << 20, ..base.clone() };
    let e = store.ensure(&spec("new", &wrong), &wrong).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{}", e.report());
    let wrong = OpenImage { id: ImageVersionId::generate(), ..base };
    assert_eq!(store.ensure(&spec("pc", &wrong), &wrong).await.unwrap_err().kind(), ErrorKind::Busy);
    let gone = opened(dir.join("gone.raw"), 1 << 20);
    assert_eq!(store.ensure(&spec("new", &gone), &gone).await.unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::remove_dir_all(dir).unwrap();
}

/// In a new folder in `dir`: a child creates and removes disks and is killed; every existing disk must be complete.
async fn is_whole_whenever_killed(test: &str, dir: &Path, copy: CopyMode, rounds: u64) {
    let data = 4 << 20;
    let base = base(dir, data, 6 << 20);
    for round in 0..rounds {
        run_and_kill(test, dir, Duration::from_micros(round * 900));
        let store = Reflink::open(config(dir, copy)).unwrap();
        for listed in store.list().await.unwrap() {
            assert_eq!(listed.id.as_str(), "pc", "round {round}");
            if listed.completeness == Completeness::Partial {
                continue;
            }
            assert_eq!(listed.digest, Some(spec("pc", &base).digest()), "round {round}");
        }
        let disk = path(store.ensure(&spec("pc", &base), &base).await.unwrap());
        let have = std::fs::read(&disk).unwrap();
        assert!(
            have.len() == 6 << 20 && have[..data] == bytes(data),
            "round {round}: half a copy was taken for whole"
        );
        assert_eq!(names(disk.parent().unwrap()).len(), 1, "round {round}: something is left");
        if round % 2 == 0 {
            store.remove(&"pc".parse().unwrap(), Removal::Force).await.unwrap();
            assert_eq!(names(&dir.join("disks")), [""; 0], "round {round}");
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// The child's work: endless.
async fn make_and_remove(dir: &Path, copy: CopyMode) {
    let base = opened(dir.join("base.raw"), 6 << 20);
    let store = Reflink::open(config(dir, copy)).unwrap();
    loop {
        store.ensure(&spec("pc", &base), &base).await.unwrap();
        done();
        store.remove(&"pc".parse().unwrap(), Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn a_reflink_is_whole_whenever_the_server_is_killed() {
    if let Some(dir) = setup() {
        return make_and_remove(&dir, CopyMode::Reflink).await;
    }
    let dir = xfs().path().join("killed");
    let test = "reflink::a_reflink_is_whole_whenever_the_server_is_killed";
    is_whole_whenever_killed(test, &dir, CopyMode::Reflink, rounds(20, 200)).await;
}

#[tokio::test]
async fn a_full_copy_is_whole_whenever_the_server_is_killed() {
    if let Some(dir) = setup() {
        return make_and_remove(&dir, CopyMode::Full).await;
    }
    let dir = ext4().path().join("killed");
    let test = "reflink::a_full_copy_is_whole_whenever_the_server_is_killed";
    is_whole_whenever_killed(test, &dir, CopyMode::Full, rounds(30, 300)).await;
}

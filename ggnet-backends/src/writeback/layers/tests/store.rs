//! The port's contract on real files: idempotence, Busy, list, removal, boot ids, damage; and on the simulated disk: every `ensure` and
//! `remove` interrupted at every step.

use std::os::unix::fs::PermissionsExt as _;

use ggnet_core::{
    error::ErrorKind,
    ports::{Completeness, Health, Removal, WritebackListed, WritebackStore as _},
};

use super::*;
use crate::{
    files::sim::Sim,
    layers::format::{DATA, DURABLE, FAILED_MARK, HOT},
};

#[tokio::test]
async fn ensure_twice_is_the_same_disk_and_a_dropped_one_keeps_what_was_written() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    let spec = room.spec("a.1");
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    let again = blocks(store.ensure(&spec, &room.base).await.unwrap());
    assert!(Arc::ptr_eq(&disk, &again));
    disk.write_at(&[7; 512], 1024).unwrap();
    drop((disk, again));
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    assert_eq!(read(&*disk, 1024, 512), [7; 512]);
    assert_eq!(read(&*disk, 0, 1024), numbered(2, 1));
    assert_eq!(disk.info().size_bytes, 64 * 512);
    assert!(!disk.info().read_only);
    // A second store on the same folder, as after our death.
    drop(disk);
    drop(store);
    let disk = blocks(room.store().ensure(&spec, &room.base).await.unwrap());
    assert_eq!(read(&*disk, 1024, 512), [7; 512]);
    assert_eq!(std::fs::read(room.base_file()).unwrap(), numbered(64, 1), "the base is never written");
}

#[tokio::test]
async fn calls_at_once_for_one_id_get_one_disk() {
    let room = Room::new(&numbered(8, 1));
    let store = room.store();
    let spec = room.spec("a");
    let all = futures_util::future::join_all((0..16).map(|_| store.ensure(&spec, &room.base))).await;
    let disks: Vec<_> = all.into_iter().map(|d| blocks(d.unwrap())).collect();
    assert!(disks.iter().all(|d| Arc::ptr_eq(d, &disks[0])));
}

#[tokio::test]
async fn another_base_is_busy_and_a_wrong_one_leaves_nothing() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    let spec = room.spec("a");
    let disk = store.ensure(&spec, &room.base).await.unwrap();
    let other_base = OpenImage { id: ImageVersionId::generate(), ..room.base.clone() };
    let other = super::spec("a", &other_base);
    assert_eq!(store.ensure(&other, &other_base).await.unwrap_err().kind(), ErrorKind::Busy);
    drop(disk);
    let e = store.ensure(&other, &other_base).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    assert_eq!(e.backend(), Some("layers"));

    // Another base than the spec has, or another size of it.
    for wrong in [other_base, OpenImage { size_bytes: room.base.size_bytes + 512, ..room.base.clone() }] {
        let e = store.ensure(&room.spec("b"), &wrong).await.unwrap_err();
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("base")), "{e}");
    }
    let odd = OpenImage { size_bytes: room.base.size_bytes + 1, ..room.base.clone() };
    assert_eq!(store.ensure(&super::spec("c", &odd), &odd).await.unwrap_err().kind(), ErrorKind::Invalid);
    let file = Disk::File { path: room.base_file(), format: ggnet_core::nouns::ImageFormat::Raw };
    let file = OpenImage { disk: file, ..room.base.clone() };
    let e = store.ensure(&room.spec("d"), &file).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
    assert_eq!(store.list().await.unwrap().len(), 1);
}

/// A version of 4-KiB sectors, as another image store may have them.
struct LargeSectors(Arc<dyn BlockDevice>);

impl BlockDevice for LargeSectors {
    fn info(&self) -> ggnet_core::block::BlockInfo {
        ggnet_core::block::BlockInfo { logical_block: 4096, ..self.0.info() }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_at(buf, offset)
    }

    fn flush(&self) -> std::io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.discard(offset, len)
    }
}

#[tokio::test]
async fn a_version_with_larger_sectors_than_the_disk_is_unsupported() {
    let room = Room::new(&numbered(64, 1));
    let disk = Disk::Blocks(Arc::new(LargeSectors(blocks(room.base.disk.clone()))));
    let base = OpenImage { disk, ..room.base.clone() };
    let store = room.store();
    let e = store.ensure(&room.spec("a"), &base).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("4096"), "{e}");
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_disk_keeps_its_version_open() {
    let mut room = Room::new(&numbered(64, 1));
    let held = Arc::new(());
    room.base.hold = ggnet_core::ports::Hold::of(Arc::clone(&held));
    let disk = room.store().ensure(&room.spec("a"), &room.base).await.unwrap();
    drop(room);
    assert_eq!(Arc::strong_count(&held), 2);
    drop(disk);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test]
async fn list_tells_base_digest_and_bytes_without_a_database() {
    let room = Room::new(&vec![1; 8 << 20]);
    let spec = room.spec("a.1");
    let store = room.store();
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    store.ensure(&room.spec("t-b"), &room.base).await.unwrap();
    // Files of another GGnet, and files without an owner.
    let other = LayersConfig { dir: room.dir(), instance: InstanceId::generate() };
    Layers::open(other).unwrap().ensure(&room.spec("c"), &room.base).await.unwrap();
    std::fs::create_dir(room.dir().join("lost+found")).unwrap();

    let of = |list: &[WritebackListed], name: &str| list.iter().find(|l| l.id == id(name)).unwrap().clone();
    let list = room.store().list().await.unwrap();
    assert_eq!(list.len(), 2, "{list:?}");
    let a = of(&list, "a.1");
    assert_eq!(a.base, Some(room.base.id));
    assert_eq!(a.digest, Some(spec.digest()));
    assert_eq!(a.completeness, Completeness::Whole);
    disk.write_at(&vec![5; 1 << 20], 0).unwrap();
    disk.flush().unwrap();
    let after = of(&store.list().await.unwrap(), "a.1").bytes;
    assert!(after >= a.bytes + (1 << 20), "{after} after {}", a.bytes);
    disk.discard(0, 1 << 20).unwrap();
    disk.flush().unwrap();
    let discarded = of(&store.list().await.unwrap(), "a.1").bytes;
    assert!(discarded <= after - (1 << 20), "{discarded} after {after}: the space is the host's again");
    assert_eq!(read(&*disk, 0, 1 << 20), vec![0; 1 << 20]);
}

/// An operator moved a large disk to another file system, and put a link in its place.
#[tokio::test]
async fn what_a_link_points_at_is_served_and_never_removed() {
    let room = Room::new(&numbered(64, 1));
    let spec = room.spec("a");
    {
        let store = room.store();
        blocks(store.ensure(&spec, &room.base).await.unwrap()).write_at(&[9; 512], 0).unwrap();
        store.shutdown().await;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("moved");
    std::fs::rename(room.home("a"), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, room.home("a")).unwrap();
    let before = std::fs::read_dir(&moved).unwrap().count();
    let store = room.store();
    assert_eq!(store.get(&spec.id).await.unwrap().unwrap().base, Some(room.base.id));
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    assert_eq!(read(&*disk, 0, 512), [9; 512]);
    drop(disk);
    store.remove(&spec.id, Removal::Force).await.unwrap();
    assert_eq!(std::fs::read_dir(&moved).unwrap().count(), before);
    assert_eq!(std::fs::read_dir(room.dir()).unwrap().count(), 0, "the link is gone");
}

#[tokio::test]
async fn a_file_in_a_disks_place_hides_no_other_disk_and_can_be_removed() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    store.ensure(&room.spec("a"), &room.base).await.unwrap();
    std::fs::File::create(room.home("b")).unwrap();
    let list = store.list().await.unwrap();
    let odd = list.iter().find(|l| l.id == id("b")).unwrap();
    assert_eq!((list.len(), odd.completeness), (2, Completeness::Partial), "{list:?}");
    store.remove(&id("b"), Removal::IfIdle).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn removal_of_a_held_disk_is_busy_or_kills_it() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    let spec = room.spec("a");
    store.remove(&spec.id, Removal::IfIdle).await.unwrap();
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    disk.write_at(&[9; 512], 0).unwrap();
    assert_eq!(store.remove(&spec.id, Removal::IfIdle).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(read(&*disk, 0, 512), [9; 512]);
    store.remove(&spec.id, Removal::Force).await.unwrap();
    assert!(disk.read_at(&mut [0; 512], 0).is_err());
    assert!(disk.write_at(&[0; 512], 0).is_err());
    assert!(disk.flush().is_err());
    assert!(disk.discard(0, 512).is_err());
    assert!(store.list().await.unwrap().is_empty());
    let fresh = blocks(store.ensure(&spec, &room.base).await.unwrap());
    assert_eq!(read(&*fresh, 0, 512), numbered(1, 1), "a new one is empty");
    assert!(disk.read_at(&mut [0; 512], 0).is_err(), "the old one stays dead");
    drop((disk, fresh));
    store.remove(&spec.id, Removal::IfIdle).await.unwrap();
    assert_eq!(std::fs::read_dir(room.dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn nobody_else_may_read_a_guests_disk() {
    let room = Room::new(&numbered(64, 1));
    let disk = blocks(room.store().ensure(&room.spec("a"), &room.base).await.unwrap());
    disk.write_at(&[9; 512], 0).unwrap();
    disk.flush().unwrap();
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(room.dir()), 0o700);
    assert_eq!(mode(room.home("a")), 0o700);
    for name in [DATA, HOT, DURABLE] {
        assert_eq!(mode(room.home("a").join(name)), 0o600, "{name}");
    }
}

#[test]
fn under_the_same_kernel_the_hot_map_holds_and_under_another_the_durable_one() {
    let room = Room::new(&numbered(64, 1));
    let open = |boot: &str| room.layer_folder(boot).ensure(&id("a"), &room.base).unwrap();
    let disk = open("boot-1");
    disk.write_at(&[1; 512], 0).unwrap();
    disk.flush().unwrap();
    disk.write_at(&[2; 512], 4096).unwrap();
    drop(disk);
    let disk = open("boot-1");
    assert_eq!(read(&*disk, 0, 512), [1; 512]);
    assert_eq!(read(&*disk, 4096, 512), [2; 512]);
    drop(disk);
    let disk = open("boot-2");
    assert_eq!(read(&*disk, 0, 512), [1; 512]);
    assert_eq!(read(&*disk, 4096, 512), numbered(64, 1)[4096..4608], "it was never flushed");
    disk.write_at(&[3; 512], 4608).unwrap();
    assert_eq!(
        read(&*disk, 4096, 512),
        numbered(64, 1)[4096..4608],
        "what lay in the file under an absent block is not trusted"
    );
    drop(disk);
    assert_eq!(read(&*open("boot-2"), 4608, 512), [3; 512]);
    // Never flushed at all: empty again.
    let fresh = || room.layer_folder("boot-3").ensure(&id("b"), &room.base).unwrap();
    fresh().write_at(&[4; 512], 0).unwrap();
    assert_eq!(read(&*fresh(), 0, 512), [4; 512]);
    let disk = room.layer_folder("boot-4").ensure(&id("b"), &room.base).unwrap();
    assert_eq!(read(&*disk, 0, 512), numbered(1, 1));
}

#[tokio::test]
async fn damage_is_told_and_never_served() {
    let room = Room::new(&numbered(64, 1));
    let prepare = |name: &str| {
        let disk = room.layer_folder("boot").ensure(&id(name), &room.base).unwrap();
        disk.write_at(&[1; 4096], 0).unwrap();
        disk.flush().unwrap();
        room.home(name)
    };
    let ensure = |name: &str| room.layer_folder("boot").ensure(&id(name), &room.base).map(|_| ());
    let poke = |path: PathBuf, at: u64, bytes: &[u8]| {
        OsFiles.open(&path, Open::Write).unwrap().write_at(&mut [IoSlice::new(bytes)], at).unwrap();
    };
    let corrupt = |name: &str| assert_eq!(ensure(name).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");

    poke(prepare("header").join(DURABLE), 30, b"x");
    corrupt("header");
    poke(prepare("state").join(HOT), 4096, &[3]);
    corrupt("state");
    poke(prepare("failed").join(HOT), 512, FAILED_MARK);
    corrupt("failed");
    std::fs::remove_file(prepare("data").join(DATA)).unwrap();
    corrupt("data");
    OsFiles.open(&prepare("short").join(DATA), Open::Write).unwrap().set_size(512).unwrap();
    corrupt("short");
    let home = prepare("moved");
    std::fs::rename(home, room.home("other")).unwrap();
    corrupt("other");
    // A lost hot map is treated like a power cut.
    std::fs::remove_file(prepare("hot").join(HOT)).unwrap();
    ensure("hot").unwrap();

    let store = room.store();
    for listed in store.list().await.unwrap() {
        let partial = ["header", "data", "short", "other"].map(id).contains(&listed.id);
        assert_eq!(listed.completeness == Completeness::Partial, partial, "{listed:?}");
        store.remove(&listed.id, Removal::IfIdle).await.unwrap();
    }
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn shutdown_flushes_and_ends_the_store() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    let disk = blocks(store.ensure(&room.spec("a"), &room.base).await.unwrap());
    disk.write_at(&[1; 512], 0).unwrap();
    store.shutdown().await;
    assert_eq!(store.ensure(&room.spec("b"), &room.base).await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(disk);
    let disk = room.layer_folder("another boot").ensure(&id("a"), &room.base).unwrap();
    assert_eq!(read(&*disk, 0, 512), [1; 512]);
}

#[tokio::test]
async fn health_names_the_folder_when_it_is_gone_and_the_disk_when_it_failed() {
    let sim = Sim::new(1);
    let base = sim.base(64, 1);
    let config = LayersConfig { dir: "/w".into(), instance: InstanceId::generate() };
    let store = Layers::open_over(Arc::new(sim.clone()), config, "boot").unwrap();
    assert_eq!(store.health().await, Health::Up);
    let spec = super::spec("a", &base);
    let disk = blocks(store.ensure(&spec, &base).await.unwrap());
    disk.write_at(&[1; 512], 0).unwrap();
    sim.fail_next_sync(DATA, rustix::io::Errno::NOSPC);
    assert!(disk.flush().is_err());
    assert!(matches!(store.health().await, Health::Degraded(why) if why.contains('a')));
    assert_eq!(store.ensure(&spec, &base).await.unwrap_err().kind(), ErrorKind::Corrupt);
    sim.set_free(100 << 20);
    assert!(matches!(store.health().await, Health::Degraded(why) if why.contains("100 MiB")));

    let sim = Sim::new(1);
    let config = LayersConfig { dir: "/w".into(), instance: InstanceId::generate() };
    let store = Layers::open_over(Arc::new(sim.clone()), config, "boot").unwrap();
    sim.set_free_files(Some(499));
    assert!(matches!(store.health().await, Health::Degraded(why) if why.contains("499 free")));
    // The probe file still gets one inode; a machine's folder with its files does not.
    sim.set_free_files(Some(1));
    assert!(
        matches!(store.health().await, Health::Blocked(why) if why.contains("almost no inodes left (1 free)"))
    );
    sim.set_free_files(None);
    assert_eq!(store.health().await, Health::Up, "btrfs counts none");

    let room = Room::new(&numbered(8, 1));
    let store = room.store();
    std::fs::remove_dir_all(room.dir()).unwrap();
    assert!(matches!(store.health().await, Health::Down(why) if why.contains("writebacks")));
    // Not `NotFound`, which means that the version's bytes are missing.
    let e = store.ensure(&room.spec("a"), &room.base).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unavailable && e.hint().is_some(), "{}", e.report());
}

/// Runs `call` and kills it after each number of file operations, until it survives; then runs `check` on the result.
fn cut_at_every_step(
    prepare: impl Fn(&LayerFolder, &OpenImage),
    call: impl Fn(&LayerFolder, &OpenImage) -> bool,
    check: impl Fn(&LayerFolder, &OpenImage, &str),
) {
    for power in [false, true] {
        let mut steps = 0;
        loop {
            let sim = Sim::new(steps);
            let base = sim.base(64, 1);
            let layer_folder = |boot: &str| {
                LayerFolder::open(
                    Arc::new(sim.clone()),
                    "/w".into(),
                    "0123abcd".parse().unwrap(),
                    boot.into(),
                )
                .unwrap()
            };
            let first = layer_folder("boot-1");
            prepare(&first, &base);
            sim.die_after(steps);
            let lived = call(&first, &base);
            let boot = if power { "boot-2" } else { "boot-1" };
            if power {
                sim.cut();
            } else {
                sim.restart();
            }
            check(&layer_folder(boot), &base, &format!("died after {steps} steps, power cut: {power}"));
            if lived {
                assert!(steps > 2, "an ensure or remove has steps");
                break;
            }
            steps += 1;
        }
    }
}

fn end_well(layer_folder: &LayerFolder, base: &OpenImage, when: &str) {
    let list = layer_folder.list().unwrap();
    assert!(list.len() <= 1, "{when}: {list:?}");
    if let Some(listed) = list.first() {
        assert_eq!(listed.id, id("a"), "{when}");
        assert!(listed.base.is_some() || listed.completeness == Completeness::Partial, "{when}: {listed:?}");
    }
    let disk = layer_folder.ensure(&id("a"), base).unwrap();
    assert!(!layer_folder.list().unwrap().is_empty(), "{when}");
    assert_eq!(layer_folder.list().unwrap()[0].completeness, Completeness::Whole, "{when}");
    read(&*disk, 0, 64 * 512);
    drop(disk);
    layer_folder.remove(&id("a")).unwrap();
    assert!(layer_folder.list().unwrap().is_empty(), "{when}");
}

#[test]
fn an_ensure_cut_short_anywhere_is_completed_or_removed() {
    cut_at_every_step(|_, _| (), |layer_folder, base| layer_folder.ensure(&id("a"), base).is_ok(), end_well);
    cut_at_every_step(
        |_, _| (),
        |layer_folder, base| layer_folder.ensure(&id("a"), base).is_ok(),
        |layer_folder, _, when| {
            layer_folder.remove(&id("a")).unwrap();
            assert!(layer_folder.list().unwrap().is_empty(), "{when}");
        },
    );
}

#[test]
fn a_remove_cut_short_anywhere_is_ended_by_the_next_call() {
    let prepare = |layer_folder: &LayerFolder, base: &OpenImage| {
        let disk = layer_folder.ensure(&id("a"), base).unwrap();
        disk.write_at(&[1; 512], 0).unwrap();
        disk.flush().unwrap();
    };
    cut_at_every_step(prepare, |layer_folder, _| layer_folder.remove(&id("a")).is_ok(), end_well);
    cut_at_every_step(
        prepare,
        |layer_folder, _| layer_folder.remove(&id("a")).is_ok(),
        |layer_folder, _, when| {
            layer_folder.remove(&id("a")).unwrap();
            assert!(layer_folder.list().unwrap().is_empty(), "{when}");
        },
    );
}

#[test]
fn a_removed_disk_does_not_come_back_under_the_name_of_a_new_one() {
    for seed in 0..50 {
        let sim = Sim::new(seed);
        let base = sim.base(64, 1);
        let layer_folder = |boot: &str| {
            LayerFolder::open(Arc::new(sim.clone()), "/w".into(), "0123abcd".parse().unwrap(), boot.into())
                .unwrap()
        };
        let first = layer_folder("boot-1");
        let disk = first.ensure(&id("a"), &base).unwrap();
        disk.write_at(&[1; 512], 0).unwrap();
        disk.flush().unwrap();
        drop(disk);
        first.remove(&id("a")).unwrap();
        drop(first.ensure(&id("a"), &base).unwrap());
        sim.cut();
        let disk = layer_folder("boot-2").ensure(&id("a"), &base).unwrap();
        assert_eq!(read(&*disk, 0, 512), numbered(1, 1), "seed {seed}");
    }
}

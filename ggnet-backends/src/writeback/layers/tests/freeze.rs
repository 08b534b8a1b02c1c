//! The end of a disk's writes: all acknowledged writes are in the frozen layer, even after a power cut; the layer does not change while
//! frozen; and a freeze that ends, or is interrupted at any step, leaves the writeback as it was.

use ggnet_core::{
    error::ErrorKind,
    ports::{Completeness, Removal, WritebackStore as _},
};

use super::*;
use crate::{files::sim::Sim, layers::FAMILY};

#[tokio::test]
async fn a_frozen_disk_is_busy_until_the_freeze_ends_and_loses_nothing() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    let spec = room.spec("a");
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    disk.write_at(&[7; 512], 1024).unwrap();
    let e = store.freeze(&spec.id).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Busy && e.hint().is_some(), "{e}");
    drop(disk);

    let frozen = store.freeze(&spec.id).await.unwrap();
    assert_eq!((&frozen.writeback, frozen.base, frozen.size_bytes), (&spec.id, room.base.id, 64 * 512));
    assert!(!frozen.whole, "a layer needs what is below it");
    assert_eq!(frozen.native.family, FAMILY);
    assert_eq!(Path::new(&frozen.native.locator), room.home("a"));
    assert_eq!(store.capabilities().freezes.as_deref(), Some(FAMILY));
    let again = frozen.clone();
    drop(frozen);
    assert_eq!(store.freeze(&spec.id).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(store.ensure(&spec, &room.base).await.unwrap_err().kind(), ErrorKind::Busy);
    for how in [Removal::IfIdle, Removal::Force] {
        assert_eq!(store.remove(&spec.id, how).await.unwrap_err().kind(), ErrorKind::Busy);
    }
    // Removing another writeback forgets state that is not needed, but not that this one is frozen.
    store.remove(&id("other"), Removal::Force).await.unwrap();
    assert_eq!(store.ensure(&spec, &room.base).await.unwrap_err().kind(), ErrorKind::Busy);
    let listed = store.get(&spec.id).await.unwrap().unwrap();
    assert_eq!((listed.completeness, listed.base), (Completeness::Whole, Some(room.base.id)));

    drop(again);
    let disk = blocks(store.ensure(&spec, &room.base).await.unwrap());
    assert_eq!(read(&*disk, 1024, 512), [7; 512]);
    disk.write_at(&[8; 512], 1024).unwrap();
    assert_eq!(read(&*disk, 1024, 512), [8; 512]);
}

#[tokio::test]
async fn nothing_is_frozen_where_nothing_is() {
    let room = Room::new(&numbered(64, 1));
    let store = room.store();
    assert_eq!(store.freeze(&id("a")).await.unwrap_err().kind(), ErrorKind::NotFound);
    // What an interrupted `ensure` leaves.
    std::fs::create_dir(room.home("b")).unwrap();
    assert_eq!(store.freeze(&id("b")).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.remove(&id("b"), Removal::IfIdle).await.unwrap();
    store.shutdown().await;
    assert_eq!(store.freeze(&id("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// The disk's bytes after the writes of [`written`].
fn expected() -> Vec<u8> {
    let mut all = numbered(64, 1);
    all[4096..8192].fill(5);
    all[8192..12288].fill(0);
    all[512..1024].fill(6);
    all
}

/// A disk with flushed writes and others.
fn written(layer_folder: &LayerFolder, base: &OpenImage) {
    let disk = layer_folder.ensure(&id("a"), base).unwrap();
    disk.write_at(&[5; 4096], 4096).unwrap();
    disk.flush().unwrap();
    disk.discard(8192, 4096).unwrap();
    disk.write_at(&[6; 512], 512).unwrap();
}

#[test]
fn a_frozen_layer_has_all_that_was_acknowledged_and_survives_a_power_cut() {
    for seed in 0..50 {
        let sim = Sim::new(seed);
        let base = sim.base(64, 1);
        let open = |boot: &str| {
            LayerFolder::open(Arc::new(sim.clone()), "/w".into(), "0123abcd".parse().unwrap(), boot.into())
                .unwrap()
        };
        let layer_folder = open("boot-1");
        written(&layer_folder, &base);
        let home = layer_folder.freeze(&id("a")).unwrap().home;
        sim.cut();
        let version = blocks(over(&sim, &base, &[home]).unwrap().disk);
        assert_eq!(read(&*version, 0, 64 * 512), expected(), "seed {seed}: as a layer");
        let disk = open("boot-2").ensure(&id("a"), &base).unwrap();
        assert_eq!(read(&*disk, 0, 64 * 512), expected(), "seed {seed}: as a writeback");
    }
}

#[test]
fn a_freeze_cut_short_anywhere_loses_nothing() {
    let mut steps = 0;
    loop {
        let sim = Sim::new(steps);
        let base = sim.base(64, 1);
        let open = || {
            LayerFolder::open(Arc::new(sim.clone()), "/w".into(), "0123abcd".parse().unwrap(), "boot".into())
                .unwrap()
        };
        let layer_folder = open();
        written(&layer_folder, &base);
        sim.die_after(steps);
        let lived = layer_folder.freeze(&id("a")).is_ok();
        sim.restart();
        let disk = open().ensure(&id("a"), &base).unwrap();
        assert_eq!(read(&*disk, 0, 64 * 512), expected(), "killed after {steps} steps");
        drop(disk);
        open().freeze(&id("a")).unwrap();
        if lived {
            assert!(steps > 2, "a freeze has steps");
            break;
        }
        steps += 1;
    }
}

#[test]
fn a_disk_that_failed_a_sync_is_not_frozen() {
    let sim = Sim::new(3);
    let base = sim.base(64, 1);
    let layer_folder =
        LayerFolder::open(Arc::new(sim.clone()), "/w".into(), "0123abcd".parse().unwrap(), "boot".into())
            .unwrap();
    written(&layer_folder, &base);
    sim.fail_next_sync("data", rustix::io::Errno::IO);
    assert!(layer_folder.freeze(&id("a")).is_err());
    let e = layer_folder.freeze(&id("a")).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
}

//! The suite of [`WritebackStore`]: see [`crate::writeback_behaviour`].

mod bases;
mod freeze;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;

use super::{
    Fixture,
    common::{Declarative, Specs, assert_whole, common_cases, fresh, id, listed, reopen},
    files::{Numbers, blocking, checksum, image, read, read_now, write, write_file, write_now},
};
use crate::{
    block::{BlockDevice, Disk, DiskForm},
    error::{ErrorKind, Result},
    nouns::{ImageFormat, ImageVersionId, ResourceId},
    ports::{Completeness, Hold, Listed, OpenImage, Removal, SpecDigest, WritebackSpec, WritebackStore},
    testkit::disk::{self, FileDisk},
};

pub use bases::{
    a_base_that_is_not_the_specs_is_invalid, a_missing_base_is_not_found,
    another_base_is_busy_and_changes_nothing,
};
pub use freeze::{
    a_freeze_ends_with_our_process, a_frozen_disk_is_busy_and_loses_nothing, a_held_disk_is_not_frozen,
    freezing_is_as_declared,
};

/// Not a whole number of 4-KiB blocks: the last block is where such code goes wrong.
const SIZE: usize = (1 << 20) + 512;

/// Runs the behaviour suite of [`WritebackStore`] on the store of a
/// [`WritebackFixture`](crate::testkit::suite::WritebackFixture).
///
/// ```text
/// ggnet_core::writeback_behaviour!(my_writebacks, MyFixture::new());
/// ```
/// `not_run: […]` as for [`target_behaviour`](crate::target_behaviour).
#[macro_export]
macro_rules! writeback_behaviour {
    ($module:ident, $fixture:expr) => { $crate::writeback_behaviour!(@ $module, $fixture, None); };
    ($module:ident, $fixture:expr, not_run: [$($case:ident),* $(,)?]) => {
        $crate::writeback_behaviour!(@ $module, $fixture, Some(&[$(stringify!($case)),*]));
    };
    (@ $module:ident, $fixture:expr, $expected:expr) => {
        $crate::__behaviour!($module, $fixture, writeback, $expected, [
            an_empty_backend_lists_nothing,
            ensure_twice_equals_once,
            list_shows_exactly_what_was_ensured,
            get_shows_what_list_shows,
            remove_of_nothing_is_success,
            what_was_removed_can_be_made_again,
            a_changed_spec_converges_or_is_busy,
            fifty_ensures_at_once_of_different_names,
            fifty_ensures_at_once_of_one_name,
            ensures_and_removes_at_once_of_one_name,
            a_dropped_ensure_is_completed_by_the_next,
            a_dropped_ensure_is_undone_by_remove,
            a_dropped_remove_is_completed_by_the_next,
            a_dropped_change_is_completed_by_the_next,
            what_exists_is_adopted_after_a_crash,
            a_crash_within_a_call_is_mended,
            what_is_not_ours_is_left_alone,
            the_disk_is_of_the_declared_form,
            the_disk_is_as_large_as_its_base,
            a_new_disk_reads_as_its_base,
            the_list_names_the_base,
            a_second_ensure_hands_out_what_was_written,
            random_writes_and_discards_read_back,
            writes_at_once_to_one_block_are_all_there,
            writes_survive_a_crash,
            discarded_blocks_are_zeros_after_a_crash,
            the_base_is_never_changed,
            two_disks_over_one_base_are_apart,
            another_base_is_busy_and_changes_nothing,
            a_removed_disk_is_clean_when_made_again,
            a_missing_base_is_not_found,
            a_base_that_is_not_the_specs_is_invalid,
            what_lies_outside_the_disk_is_invalid,
            a_held_disk_is_busy_under_if_idle,
            a_held_disk_fails_after_force,
            shutdown_loses_nothing,
            freezing_is_as_declared,
            a_held_disk_is_not_frozen,
            a_frozen_disk_is_busy_and_loses_nothing,
            a_freeze_ends_with_our_process,
        ]);
    };
}

/// Creates writeback stores and returns the folder for base images.
#[async_trait]
pub trait WritebackFixture: Fixture<dyn WritebackStore> {
    /// An existing folder for base images, not shared with another case; on the file system on which the store expects them (a
    /// store that reflinks: its own). The suite writes raw files into it, and opens them as the store's `capabilities().base` asks: as a disk
    /// of our process, or the file itself.
    fn folder(&self) -> PathBuf;
}

/// A writeback over a raw file.
#[derive(Clone, Debug)]
pub struct Over {
    id: ResourceId,
    version: ImageVersionId,
    size_bytes: u64,
    path: PathBuf,
}

impl Over {
    fn spec(&self) -> WritebackSpec {
        WritebackSpec { id: self.id.clone(), version: self.version, size_bytes: self.size_bytes }
    }

    /// The version below, opened in the form that the store needs.
    async fn base(&self, store: &dyn WritebackStore) -> OpenImage {
        let (path, form) = (self.path.clone(), store.capabilities().base);
        let disk = match form {
            DiskForm::Blocks => {
                let open = move || FileDisk::open(&path, true).expect("the base that the suite wrote");
                Disk::Blocks(Arc::new(blocking(open).await))
            }
            DiskForm::File => Disk::File { path, format: ImageFormat::Raw },
            DiskForm::Device => panic!("the suite has no block devices of the kernel for bases"),
        };
        OpenImage { id: self.version, size_bytes: self.size_bytes, disk, hold: Hold::nothing() }
    }

    async fn ensure(&self, store: &dyn WritebackStore) -> Result<Disk> {
        store.ensure(&self.spec(), &self.base(store).await).await
    }
}

/// The marker of this port.
pub struct Writebacks;

#[async_trait]
impl Declarative for Writebacks {
    type Port = dyn WritebackStore;
    type Spec = Over;

    fn attach(_: &dyn WritebackStore) {}

    fn digest(spec: &Over) -> SpecDigest {
        spec.spec().digest()
    }

    fn id(spec: &Over) -> ResourceId {
        spec.id.clone()
    }

    fn survives(port: &dyn WritebackStore) -> bool {
        port.capabilities().kill_safe
    }

    async fn ensure(port: &dyn WritebackStore, spec: &Over) -> Result<String> {
        spec.ensure(port).await.map(|disk| match disk {
            Disk::File { path, .. } | Disk::Device { path } => path.display().to_string(),
            Disk::Blocks(device) => format!("{:?}", device.info()),
        })
    }

    async fn remove(port: &dyn WritebackStore, id: &ResourceId, how: Removal) -> Result<()> {
        port.remove(id, how).await
    }

    async fn get(port: &dyn WritebackStore, id: &ResourceId) -> Result<Option<Listed>> {
        Ok(port.get(id).await?.map(plain))
    }

    async fn list(port: &dyn WritebackStore) -> Result<Vec<Listed>> {
        let list = port.list().await?;
        let whole = list.iter().filter(|l| l.completeness == Completeness::Whole);
        for writeback in whole {
            assert!(writeback.base.is_some(), "a whole writeback names its base: {writeback:?}");
        }
        Ok(list.into_iter().map(plain).collect())
    }
}

/// What every port's list has.
fn plain(listed: crate::ports::WritebackListed) -> Listed {
    let crate::ports::WritebackListed { id, digest, completeness, .. } = listed;
    Listed { id, digest, completeness }
}

/// A writeback of this name over a new version with these bytes.
async fn over(f: &impl WritebackFixture, id: ResourceId, bytes: Vec<u8>) -> Over {
    let version = ImageVersionId::generate();
    let path = f.folder().join(format!("{}.raw", version.simple()));
    let size_bytes = bytes.len() as u64;
    write_file(&path, bytes).await;
    Over { id, version, size_bytes, path }
}

#[async_trait]
impl<F: WritebackFixture> Specs<Writebacks> for F {
    async fn spec(&self, id: &ResourceId, _: u8) -> Over {
        // A new version each time, so that every variant differs; small, because there are many.
        over(self, id.clone(), image(1, 64 << 10)).await
    }
}

/// Why a case cannot run on this fixture's store; `None`: it can.
pub async fn not_run(f: &impl WritebackFixture, case: &str) -> Option<String> {
    let can = f.fresh().await.capabilities();
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    let blocks = || lacks(can.provides == DiskForm::Blocks, "it hands out no disk of our process");
    match case {
        "what_is_not_ours_is_left_alone" => lacks(f.has_foreign(), "the fixture makes no foreign object"),
        "writes_survive_a_crash" | "discarded_blocks_are_zeros_after_a_crash" => {
            lacks(can.kill_safe, "writes do not survive the death of our process")
        }
        "a_missing_base_is_not_found" => {
            lacks(can.base != DiskForm::Blocks, "the disk that it is given as its base stays open")
        }
        "a_held_disk_is_not_frozen"
        | "a_frozen_disk_is_busy_and_loses_nothing"
        | "a_freeze_ends_with_our_process" => {
            let held = case == "a_held_disk_is_not_frozen";
            lacks(can.freezes.is_some(), "it does not freeze").or_else(|| held.then(blocks).flatten())
        }
        "what_lies_outside_the_disk_is_invalid"
        | "a_held_disk_is_busy_under_if_idle"
        | "a_held_disk_fails_after_force" => blocks(),
        _ => None,
    }
}

common_cases!(Writebacks, WritebackFixture:
    /// Nothing is listed at first.
    an_empty_backend_lists_nothing,
    /// The same `ensure` again changes nothing and answers the same.
    ensure_twice_equals_once,
    /// `list` is what was ensured and not removed.
    list_shows_exactly_what_was_ensured,
    /// `get` is `list` for one name.
    get_shows_what_list_shows,
    /// Removing an absent object succeeds, for every `how`.
    remove_of_nothing_is_success,
    /// A name can be used again, over another base.
    what_was_removed_can_be_made_again,
    /// A changed spec is refused, and nothing changes.
    a_changed_spec_converges_or_is_busy,
    /// Concurrent calls for different names.
    fifty_ensures_at_once_of_different_names,
    /// The same call from many callers at once.
    fifty_ensures_at_once_of_one_name,
    /// Concurrent creation and removal of one object.
    ensures_and_removes_at_once_of_one_name,
    /// `ensure` dropped at every place, then again.
    a_dropped_ensure_is_completed_by_the_next,
    /// `ensure` dropped at every place, then removed.
    a_dropped_ensure_is_undone_by_remove,
    /// `remove` dropped at every place, then again.
    a_dropped_remove_is_completed_by_the_next,
    /// `ensure` of a changed spec dropped at every place, then again.
    a_dropped_change_is_completed_by_the_next,
    /// A new process finds, opens and removes the objects of the old one.
    what_exists_is_adopted_after_a_crash,
    /// A process that dies within a call leaves nothing that the next one cannot repair.
    a_crash_within_a_call_is_mended,
    /// Files of others are not listed and not touched.
    what_is_not_ours_is_left_alone,
);

type Store = Arc<dyn WritebackStore>;
type Device = Arc<dyn BlockDevice>;

async fn open(store: &Store, spec: &Over) -> Device {
    let disk =
        spec.ensure(store.as_ref()).await.unwrap_or_else(|e| panic!("ensure {}: {}", spec.id, e.report()));
    blocking(move || disk::open(&disk, false).unwrap_or_else(|e| panic!("open {disk:?}: {e}"))).await
}

async fn flush(device: &Device) {
    let device = Arc::clone(device);
    blocking(move || device.flush().expect("flush")).await;
}

async fn discard(device: &Device, offset: u64, len: u64) {
    let device = Arc::clone(device);
    blocking(move || {
        device.discard(offset, len).unwrap_or_else(|e| panic!("discard {len} at {offset}: {e}"));
    })
    .await;
}

/// A store with one writeback over a patterned base of an awkward size.
async fn one(f: &impl WritebackFixture) -> (Store, Over, Vec<u8>) {
    let store = fresh::<Writebacks>(f).await;
    let bytes = image(42, SIZE);
    let spec = over(f, id(), bytes.clone()).await;
    (store, spec, bytes)
}

/// Wiring relies on this.
pub async fn the_disk_is_of_the_declared_form(f: &impl WritebackFixture) {
    let (store, spec, _) = one(f).await;
    let disk = spec.ensure(store.as_ref()).await.expect("ensure");
    assert_eq!(disk.form(), store.capabilities().provides);
}

/// To the byte, also when the size is no whole number of blocks.
pub async fn the_disk_is_as_large_as_its_base(f: &impl WritebackFixture) {
    let store = fresh::<Writebacks>(f).await;
    for size in [512, 4096, 4096 + 512, 1 << 20, SIZE] {
        let spec = over(f, id(), image(3, size)).await;
        let info = open(&store, &spec).await.info();
        assert_eq!(info.size_bytes, size as u64);
        assert!(matches!(info.logical_block, 512 | 4096), "{info:?}");
        assert!(!info.read_only, "{info:?}");
    }
}

/// Every byte, however it is read.
pub async fn a_new_disk_reads_as_its_base(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == bytes, "in one piece");
    for at in (0..SIZE).step_by(512 * 37) {
        assert!(read(&device, at as u64, 512).await == bytes[at..at + 512], "the sector at {at}");
    }
}

/// A version with a writeback on it cannot be deleted: the list says which.
pub async fn the_list_names_the_base(f: &impl WritebackFixture) {
    let (store, spec, _) = one(f).await;
    open(&store, &spec).await;
    let store = reopen::<Writebacks>(f, store).await;
    let kept = store.capabilities().kill_safe;
    if !kept {
        open(&store, &spec).await;
    }
    let list = store.list().await.expect("list");
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0].base, Some(spec.version));
    assert_eq!(
        store.get(&spec.id).await.expect("get").as_ref(),
        list.first(),
        "`get` and `list` say the same"
    );
    assert_eq!(store.get(&"nobody".parse().expect("an id")).await.expect("get"), None);
}

/// The same disk, in one process.
pub async fn a_second_ensure_hands_out_what_was_written(f: &impl WritebackFixture) {
    let (store, spec, mut bytes) = one(f).await;
    let device = open(&store, &spec).await;
    write(&device, 4096, vec![0xaa; 512]).await;
    bytes[4096..4096 + 512].fill(0xaa);
    let again = open(&store, &spec).await;
    assert!(read(&again, 0, SIZE).await == bytes, "what was written through the first");
    write(&again, 0, vec![0xbb; 512]).await;
    bytes[..512].fill(0xbb);
    assert!(read(&device, 0, SIZE).await == bytes, "what was written through the second");
    drop((device, again));
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == bytes, "what was written when nobody held it any more");
}

/// Many operations of every alignment on the device and on a model in memory; both must agree.
fn torture(device: &dyn BlockDevice, model: &mut [u8], seed: u64, steps: usize) {
    let mut numbers = Numbers::from(seed);
    let unit = u64::from(device.info().logical_block);
    let sectors = model.len() as u64 / unit;
    for step in 0..steps {
        let first = numbers.below(sectors);
        let longest = if numbers.below(8) == 0 { 300 } else { 20 };
        let count = 1 + numbers.below(longest.min(sectors - first));
        let (at, len) = (first * unit, count * unit);
        let range = usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small");
        match numbers.below(10) {
            0..5 => {
                let bytes = numbers.bytes(range.len());
                write_now(device, at, &bytes)
                    .unwrap_or_else(|e| panic!("step {step}: write {len} at {at}: {e}"));
                model[range].copy_from_slice(&bytes);
            }
            5..7 => {
                device.discard(at, len).unwrap_or_else(|e| panic!("step {step}: discard {len} at {at}: {e}"));
                model[range].fill(0);
            }
            7 => device.flush().unwrap_or_else(|e| panic!("step {step}: flush: {e}")),
            _ => {
                let have = read_now(device, at, range.len())
                    .unwrap_or_else(|e| panic!("step {step}: read {len} at {at}: {e}"));
                assert!(have == model[range], "step {step}: {len} bytes at {at} are not what they should be");
            }
        }
    }
}

async fn tortured(device: &Device, mut model: Vec<u8>, seed: u64) -> Vec<u8> {
    let device = Arc::clone(device);
    blocking(move || {
        torture(device.as_ref(), &mut model, seed, 600);
        model
    })
    .await
}

/// Against a model in memory.
pub async fn random_writes_and_discards_read_back(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let model = tortured(&device, bytes, 7).await;
    assert!(read(&device, 0, SIZE).await == model, "the whole disk");
}

/// Two first writes to parts of one block: both copy the rest from below, and none may undo the other.
pub async fn writes_at_once_to_one_block_are_all_there(f: &impl WritebackFixture) {
    let (store, spec, mut bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let unit = usize::try_from(device.info().logical_block).expect("small");
    let mut writers = Vec::new();
    for lane in 0..4 {
        let device = Arc::clone(&device);
        writers.push(tokio::task::spawn_blocking(move || {
            for at in (lane * unit..SIZE / unit * unit).step_by(4 * unit) {
                let fill = u8::try_from(lane + 1).expect("small");
                write_now(device.as_ref(), at as u64, &vec![fill; unit.min(SIZE - at)]).expect("write");
            }
        }));
    }
    for writer in writers {
        writer.await.expect("every write succeeds");
    }
    for (n, sector) in bytes.chunks_mut(unit).enumerate() {
        sector.fill(u8::try_from(n % 4 + 1).expect("small"));
    }
    assert!(read(&device, 0, SIZE).await == bytes, "every sector has its writer's bytes");
}

/// Acknowledged is kept, flushed or not.
pub async fn writes_survive_a_crash(f: &impl WritebackFixture) {
    let (mut store, spec, mut model) = one(f).await;
    for round in 0..3 {
        let device = open(&store, &spec).await;
        assert!(read(&device, 0, SIZE).await == model, "before round {round}");
        model = tortured(&device, model, 100 + round).await;
        if round == 1 {
            flush(&device).await;
        }
        drop(device);
        store = reopen::<Writebacks>(f, store).await;
    }
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == model, "every acknowledged write is there");
}

/// A discarded block does not turn into the base's again.
pub async fn discarded_blocks_are_zeros_after_a_crash(f: &impl WritebackFixture) {
    let (store, spec, mut bytes) = one(f).await;
    let device = open(&store, &spec).await;
    write(&device, 8192, vec![0xcc; 8192]).await;
    bytes[8192..16384].fill(0xcc);
    // Over what was written, over the base, in part of a block, and the whole of the last one.
    for (at, len) in [(8192, 4096), (40960, 12288), (61440 + 512, 1024), (1 << 20, 512)] {
        discard(&device, at as u64, len as u64).await;
        bytes[at..at + len].fill(0);
    }
    assert!(read(&device, 0, SIZE).await == bytes, "zeros at once");
    drop(device);
    let store = reopen::<Writebacks>(f, store).await;
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == bytes, "zeros in the next process");
}

/// Whatever is done to the disks over it.
pub async fn the_base_is_never_changed(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let before = checksum(&spec.path).await;
    let device = open(&store, &spec).await;
    tortured(&device, bytes, 9).await;
    flush(&device).await;
    drop(device);
    store.remove(&spec.id, Removal::Force).await.expect("remove");
    assert_eq!(checksum(&spec.path).await, before, "the base image changed");
}

/// One machine's writes are not another's.
pub async fn two_disks_over_one_base_are_apart(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let other = Over { id: id(), ..spec.clone() };
    let (a, b) = (open(&store, &spec).await, open(&store, &other).await);
    let model = tortured(&a, bytes.clone(), 11).await;
    assert!(read(&b, 0, SIZE).await == bytes, "the other reads as the base");
    let other_model = tortured(&b, bytes, 12).await;
    assert!(read(&a, 0, SIZE).await == model, "the first is as it was");
    drop((a, b));
    store.remove(&spec.id, Removal::Force).await.expect("remove");
    let b = open(&store, &other).await;
    assert!(read(&b, 0, SIZE).await == other_model, "the other outlives the first");
}

/// A reboot under `discard` relies on this.
pub async fn a_removed_disk_is_clean_when_made_again(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    for how in [Removal::IfIdle, Removal::Force] {
        let device = open(&store, &spec).await;
        assert!(read(&device, 0, SIZE).await == bytes, "it reads as its base");
        tortured(&device, bytes.clone(), 14).await;
        drop(device);
        store.remove(&spec.id, how).await.expect("nobody holds it");
        assert!(listed::<Writebacks>(store.as_ref()).await.is_empty());
    }
    let store = reopen::<Writebacks>(f, store).await;
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == bytes, "in the next process too");
}

/// Refused, and nothing happens.
pub async fn what_lies_outside_the_disk_is_invalid(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let probe = Arc::clone(&device);
    blocking(move || {
        let end = SIZE as u64;
        let bad =
            [(end, 512), (end - 512, 1024), (u64::MAX - 511, 512), (100, 512), (0, 100), (end - 512, 513)];
        for (at, len) in bad {
            let is_invalid = |what: &str, result: std::io::Result<()>| {
                let e = result.expect_err("it is not a range of the disk");
                assert_eq!(e.kind(), std::io::ErrorKind::InvalidInput, "{what} {len} bytes at {at}: {e}");
            };
            is_invalid("read", probe.read_at(&mut vec![0; len], at));
            is_invalid("write", probe.write_at(&vec![0xdd; len], at));
            is_invalid("discard", probe.discard(at, len as u64));
        }
    })
    .await;
    assert!(read(&device, 0, SIZE).await == bytes, "nothing happened");
}

/// A disk that a target serves is not deleted under it.
pub async fn a_held_disk_is_busy_under_if_idle(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let model = tortured(&device, bytes, 15).await;
    let e = store.remove(&spec.id, Removal::IfIdle).await.expect_err("the disk is held");
    assert_eq!(e.kind(), ErrorKind::Busy, "{}", e.report());
    assert_whole::<Writebacks>(store.as_ref(), std::slice::from_ref(&spec)).await;
    assert!(read(&device, 0, SIZE).await == model, "nothing changed");
    drop(device);
    store.remove(&spec.id, Removal::IfIdle).await.expect("nobody holds it");
    assert!(listed::<Writebacks>(store.as_ref()).await.is_empty());
}

/// It never reads another writeback's bytes, nor writes into one.
pub async fn a_held_disk_fails_after_force(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let held = open(&store, &spec).await;
    write(&held, 0, vec![0xee; 4096]).await;
    store.remove(&spec.id, Removal::Force).await.expect("force");
    assert!(listed::<Writebacks>(store.as_ref()).await.is_empty());
    let again = open(&store, &spec).await;
    blocking(move || {
        held.read_at(&mut [0; 512], 0).expect_err("the writeback was removed");
        held.write_at(&[1; 512], 0).expect_err("the writeback was removed");
        held.discard(0, 512).expect_err("the writeback was removed");
    })
    .await;
    assert!(read(&again, 0, SIZE).await == bytes, "the new one is clean and stays so");
}

/// A clean end loses nothing.
pub async fn shutdown_loses_nothing(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let model = tortured(&device, bytes, 16).await;
    store.shutdown().await;
    drop(device);
    let store = reopen::<Writebacks>(f, store).await;
    assert_whole::<Writebacks>(store.as_ref(), std::slice::from_ref(&spec)).await;
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == model, "every write is there");
}

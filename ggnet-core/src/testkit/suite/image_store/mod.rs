//! The suite of [`ImageStore`]: see [`crate::image_store_behaviour`].

mod adopt;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{
    Fixture,
    cut::{Cut, timed},
    files::{blocking, image, read, write, write_file},
};
use crate::{
    block::{BlockDevice, Disk, DiskForm},
    error::ErrorKind,
    nouns::ImageVersionId,
    ports::{Completeness, ImageListed, ImageSpec, ImageStore, OpenImage, Removal, Sink, WritebackStore},
    testkit::disk,
};

pub use adopt::{
    a_crash_around_an_adoption_leaves_the_disk_in_one_place, a_dropped_adoption_leaves_the_disk_in_one_place,
    a_version_below_another_is_busy, adopted_twice_equals_once, adopting_over_a_lost_version_is_not_found,
    an_adopted_writeback_is_a_version, what_it_cannot_take_over_is_unsupported,
};

/// Not a whole number of 4-KiB blocks: the last block is where such code goes wrong.
const SIZE: usize = (1 << 20) + 512;

/// Runs the behaviour suite of [`ImageStore`] on the store of an
/// [`ImageStoreFixture`](crate::testkit::suite::ImageStoreFixture).
///
/// ```text
/// ggnet_core::image_store_behaviour!(my_images, MyFixture::new());
/// ```
/// `not_run: […]` as for [`target_behaviour`](crate::target_behaviour).
#[macro_export]
macro_rules! image_store_behaviour {
    ($module:ident, $fixture:expr) => { $crate::image_store_behaviour!(@ $module, $fixture, None); };
    ($module:ident, $fixture:expr, not_run: [$($case:ident),* $(,)?]) => {
        $crate::image_store_behaviour!(@ $module, $fixture, Some(&[$(stringify!($case)),*]));
    };
    (@ $module:ident, $fixture:expr, $expected:expr) => {
        $crate::__behaviour!($module, $fixture, image_store, $expected, [
            an_empty_store_lists_nothing,
            a_draft_is_partial_until_it_is_sealed,
            a_draft_asked_for_twice_is_one,
            a_sealed_version_reads_as_it_was_written_in_every_form,
            what_was_not_written_reads_as_zeros,
            sealed_twice_equals_once,
            a_sealed_version_has_no_draft,
            sealing_without_a_draft_is_not_found,
            what_is_of_another_size_is_corrupt_and_stays_partial,
            what_is_not_there_is_not_found,
            a_form_that_it_does_not_open_is_unsupported,
            what_is_removed_is_gone_and_can_be_made_again,
            an_open_version_is_busy_under_if_idle,
            versions_survive_a_crash_and_drafts_are_partial,
            fifty_versions_at_once_do_not_mix,
            a_call_dropped_at_any_place_is_completed_by_the_next,
            a_dropped_remove_is_completed_by_the_next,
            what_is_not_ours_is_left_alone,
            shutdown_loses_nothing,
            what_it_cannot_take_over_is_unsupported,
            an_adopted_writeback_is_a_version,
            adopted_twice_equals_once,
            a_version_below_another_is_busy,
            adopting_over_a_lost_version_is_not_found,
            a_dropped_adoption_leaves_the_disk_in_one_place,
            a_crash_around_an_adoption_leaves_the_disk_in_one_place,
        ]);
    };
}

/// Makes image stores.
#[async_trait]
pub trait ImageStoreFixture: Fixture<dyn ImageStore> {
    /// A writeback store in the place of the last `fresh` or `reopen`, whose frozen disks the store adopts. `None`: those cases are not
    /// run.
    async fn writebacks(&self) -> Option<Arc<dyn WritebackStore>> {
        None
    }

    /// Whether [`writebacks`](ImageStoreFixture::writebacks) gives one.
    fn has_writebacks(&self) -> bool {
        false
    }
}

/// Why a case cannot run on this fixture's store; `None`: it can.
pub async fn not_run(f: &impl ImageStoreFixture, case: &str) -> Option<String> {
    let can = f.fresh().await.capabilities();
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    match case {
        "what_is_not_ours_is_left_alone" => lacks(f.has_foreign(), "the fixture makes no foreign object"),
        "a_form_that_it_does_not_open_is_unsupported" => {
            lacks(can.opens.len() < FORMS.len(), "it opens versions in every form")
        }
        "an_adopted_writeback_is_a_version"
        | "adopted_twice_equals_once"
        | "a_version_below_another_is_busy"
        | "adopting_over_a_lost_version_is_not_found"
        | "a_dropped_adoption_leaves_the_disk_in_one_place"
        | "a_crash_around_an_adoption_leaves_the_disk_in_one_place" => {
            lacks(!can.adopts.is_empty(), "it adopts nothing").or_else(|| {
                lacks(f.has_writebacks(), "the fixture has no writeback store that it adopts from")
            })
        }
        _ => None,
    }
}

const FORMS: [DiskForm; 3] = [DiskForm::Blocks, DiskForm::File, DiskForm::Device];

type Store = Arc<dyn ImageStore>;
type Device = Arc<dyn BlockDevice>;

fn spec(size: usize) -> ImageSpec {
    ImageSpec::new(ImageVersionId::generate(), size as u64)
}

/// What is listed, by id and in its order; `get` must say the same.
async fn listed(store: &Store) -> Vec<ImageListed> {
    let mut list = store.list().await.expect("list");
    list.sort_by_key(|v| v.id);
    for found in &list {
        assert_eq!(store.get(found.id).await.expect("get").as_ref(), Some(found), "`get` and `list` differ");
    }
    let mut ids: Vec<_> = list.iter().map(|v| v.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), list.len(), "a version is listed twice: {list:?}");
    list
}

/// Asserts that exactly this is listed.
async fn assert_listed(store: &Store, what: &[(ImageVersionId, Completeness)]) {
    let mut want = what.to_vec();
    want.sort_by_key(|(id, _)| *id);
    let have: Vec<_> = listed(store).await.into_iter().map(|v| (v.id, v.completeness)).collect();
    assert_eq!(have, want, "exactly what was made is listed");
}

async fn draft(store: &Store, spec: &ImageSpec) -> Sink {
    let sink = store.draft(spec).await;
    let sink = sink.unwrap_or_else(|e| panic!("draft {}: {}", spec.id, e.report()));
    assert_eq!(sink.form(), store.capabilities().sink, "the sink is of the declared form");
    sink
}

/// Writes a disk as a converter does: what is zeros is left out.
async fn fill(sink: &Sink, bytes: &[u8]) {
    match sink {
        Sink::File(path) => write_file(path, bytes.to_vec()).await,
        Sink::Blocks(device) => {
            for (n, chunk) in bytes.chunks(64 << 10).enumerate() {
                if chunk.iter().any(|b| *b != 0) {
                    write(device, (n * (64 << 10)) as u64, chunk.to_vec()).await;
                }
            }
            let device = Arc::clone(device);
            blocking(move || device.flush().expect("flush")).await;
        }
    }
}

async fn seal(store: &Store, spec: &ImageSpec) -> ImageListed {
    store.seal(spec).await.unwrap_or_else(|e| panic!("seal {}: {}", spec.id, e.report()))
}

/// A sealed version with these bytes.
async fn version(store: &Store, bytes: &[u8]) -> ImageSpec {
    let spec = spec(bytes.len());
    fill(&draft(store, &spec).await, bytes).await;
    let sealed = seal(store, &spec).await;
    assert_eq!((sealed.id, sealed.size_bytes), (spec.id, spec.size_bytes));
    assert_eq!((sealed.completeness, sealed.parent), (Completeness::Whole, None));
    spec
}

/// Opens a version; its device as long as it is held.
async fn open(store: &Store, id: ImageVersionId, form: DiskForm) -> (OpenImage, Device) {
    let opened = store.open(id, form).await;
    let opened = opened.unwrap_or_else(|e| panic!("open {id} as {form:?}: {}", e.report()));
    assert_eq!((opened.id, opened.disk.form()), (id, form));
    let disk: Disk = opened.disk.clone();
    let device = blocking(move || disk::open(&disk, true).unwrap_or_else(|e| panic!("open {disk:?}: {e}")));
    (opened, device.await)
}

/// The bytes of a version.
async fn bytes_of(store: &Store, id: ImageVersionId) -> Vec<u8> {
    let (opened, device) = open(store, id, DiskForm::Blocks).await;
    let size = usize::try_from(opened.size_bytes).expect("small");
    assert_eq!(device.info().size_bytes, opened.size_bytes);
    read(&device, 0, size).await
}

fn is(kind: ErrorKind, e: &crate::Error) {
    assert_eq!(e.kind(), kind, "{}", e.report());
}

/// Nothing is listed at first.
pub async fn an_empty_store_lists_nothing(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    assert!(listed(&store).await.is_empty());
    assert!(store.capabilities().opens.contains(&DiskForm::Blocks), "every store opens blocks");
}

/// So that no machine boots half an image.
pub async fn a_draft_is_partial_until_it_is_sealed(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let (spec, bytes) = (spec(SIZE), image(1, SIZE));
    let sink = draft(&store, &spec).await;
    assert_listed(&store, &[(spec.id, Completeness::Partial)]).await;
    is(ErrorKind::NotFound, &store.open(spec.id, DiskForm::Blocks).await.expect_err("it is a draft"));
    fill(&sink, &bytes).await;
    assert_listed(&store, &[(spec.id, Completeness::Partial)]).await;
    seal(&store, &spec).await;
    assert_listed(&store, &[(spec.id, Completeness::Whole)]).await;
    assert!(bytes_of(&store, spec.id).await == bytes, "the bytes differ");
}

/// A caller that lost the response asks again.
pub async fn a_draft_asked_for_twice_is_one(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let (spec, bytes) = (spec(SIZE), image(2, SIZE));
    let first = draft(&store, &spec).await;
    let second = draft(&store, &spec).await;
    if let (Sink::File(first), Sink::File(second)) = (&first, &second) {
        assert_eq!(first, second, "the same file");
    }
    fill(&first, &bytes).await;
    draft(&store, &spec).await;
    assert_listed(&store, &[(spec.id, Completeness::Partial)]).await;
    seal(&store, &spec).await;
    assert!(bytes_of(&store, spec.id).await == bytes, "what was written through the first");
}

/// To the byte, also when the size is not a whole number of blocks; and it cannot be written to.
pub async fn a_sealed_version_reads_as_it_was_written_in_every_form(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    for size in [512, 4096, 4096 + 512, 1 << 20, SIZE] {
        let bytes = image(3, size);
        let spec = version(&store, &bytes).await;
        for form in store.capabilities().opens {
            let (opened, device) = open(&store, spec.id, form).await;
            assert_eq!(opened.size_bytes, size as u64, "{form:?}");
            assert!(read(&device, 0, size).await == bytes, "{form:?}: {size} bytes differ");
            for at in (0..size).step_by(512 * 37) {
                assert!(read(&device, at as u64, 512).await == bytes[at..at + 512], "the sector at {at}");
            }
            if form == DiskForm::Blocks {
                assert!(device.info().read_only, "{:?}", device.info());
                let refused = blocking(move || device.write_at(&[1; 512], 0)).await;
                refused.expect_err("a version is never written to");
            }
        }
        assert!(bytes_of(&store, spec.id).await == bytes, "it is as it was");
    }
}

/// A converter leaves out what is zeros.
pub async fn what_was_not_written_reads_as_zeros(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let spec = spec(SIZE);
    let mut bytes = vec![0; SIZE];
    bytes[8192..8192 + 512].fill(7);
    match draft(&store, &spec).await {
        Sink::File(path) => {
            blocking(move || {
                use std::os::unix::fs::FileExt as _;
                let file = std::fs::File::create(&path).expect("create the sink");
                file.set_len(SIZE as u64).expect("its length");
                file.write_all_at(&[7; 512], 8192).expect("write");
            })
            .await;
        }
        Sink::Blocks(device) => write(&device, 8192, vec![7; 512]).await,
    }
    seal(&store, &spec).await;
    assert!(bytes_of(&store, spec.id).await == bytes, "the bytes differ");
}

/// The response to the first may have been lost.
pub async fn sealed_twice_equals_once(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bytes = image(4, SIZE);
    let spec = version(&store, &bytes).await;
    let first = store.get(spec.id).await.expect("get");
    assert_eq!(Some(seal(&store, &spec).await), first);
    assert!(bytes_of(&store, spec.id).await == bytes, "it is as it was");
}

/// A version is never written over.
pub async fn a_sealed_version_has_no_draft(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bytes = image(5, SIZE);
    let spec = version(&store, &bytes).await;
    is(ErrorKind::Conflict, &store.draft(&spec).await.expect_err("it is sealed"));
    assert!(bytes_of(&store, spec.id).await == bytes, "it is as it was");
}

/// Nothing can be sealed without a draft.
pub async fn sealing_without_a_draft_is_not_found(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    is(ErrorKind::NotFound, &store.seal(&spec(SIZE)).await.expect_err("there is no draft"));
    assert!(listed(&store).await.is_empty());
}

/// A version that is shorter than its disk would fail machines one by one.
pub async fn what_is_of_another_size_is_corrupt_and_stays_partial(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let spec = spec(SIZE);
    fill(&draft(&store, &spec).await, &image(6, SIZE)).await;
    for size in [SIZE - 512, SIZE + 512] {
        let other = ImageSpec::new(spec.id, size as u64);
        is(ErrorKind::Corrupt, &store.seal(&other).await.expect_err("it is not so large"));
        assert_listed(&store, &[(spec.id, Completeness::Partial)]).await;
    }
    store.remove(spec.id, Removal::Force).await.expect("remove the draft");
    assert!(listed(&store).await.is_empty());
}

/// And nothing of it exists.
pub async fn what_is_not_there_is_not_found(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let id = ImageVersionId::generate();
    for form in store.capabilities().opens {
        is(ErrorKind::NotFound, &store.open(id, form).await.expect_err("there is no such version"));
    }
    assert_eq!(store.get(id).await.expect("get"), None);
}

/// Wiring should have refused the pair.
pub async fn a_form_that_it_does_not_open_is_unsupported(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let spec = version(&store, &image(7, SIZE)).await;
    let opens = store.capabilities().opens;
    for form in FORMS.into_iter().filter(|form| !opens.contains(form)) {
        is(ErrorKind::Unsupported, &store.open(spec.id, form).await.expect_err("it does not open so"));
    }
}

/// Drafts and versions alike, and what never was.
pub async fn what_is_removed_is_gone_and_can_be_made_again(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    for how in [Removal::IfIdle, Removal::Force] {
        store.remove(ImageVersionId::generate(), how).await.expect("remove of what never was");
        let a_draft = spec(SIZE);
        fill(&draft(&store, &a_draft).await, &image(8, SIZE)).await;
        let whole = version(&store, &image(9, SIZE)).await;
        for spec in [&a_draft, &whole] {
            store.remove(spec.id, how).await.unwrap_or_else(|e| panic!("remove: {}", e.report()));
            is(ErrorKind::NotFound, &store.open(spec.id, DiskForm::Blocks).await.expect_err("it is gone"));
            store.remove(spec.id, how).await.expect("remove of what was removed");
        }
        assert!(listed(&store).await.is_empty());
        let bytes = image(10, SIZE);
        fill(&draft(&store, &whole).await, &bytes).await;
        seal(&store, &whole).await;
        assert!(bytes_of(&store, whole.id).await == bytes, "the bytes of the second");
        store.remove(whole.id, Removal::Force).await.expect("remove");
    }
}

/// A version that a machine reads is not deleted under it.
pub async fn an_open_version_is_busy_under_if_idle(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bytes = image(11, SIZE);
    let spec = version(&store, &bytes).await;
    let (opened, device) = open(&store, spec.id, DiskForm::Blocks).await;
    let clone = opened.clone();
    drop(opened);
    is(ErrorKind::Busy, &store.remove(spec.id, Removal::IfIdle).await.expect_err("it is open"));
    assert!(read(&device, 0, SIZE).await == bytes, "nothing changed");
    drop((clone, device));
    store.remove(spec.id, Removal::IfIdle).await.expect("nobody has it open");
    assert!(listed(&store).await.is_empty());
}

/// Sealed versions exist; a draft does not count as a version.
pub async fn versions_survive_a_crash_and_drafts_are_partial(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bytes = image(12, SIZE);
    let whole = version(&store, &bytes).await;
    let begun = spec(SIZE);
    fill(&draft(&store, &begun).await, &image(13, SIZE)).await;
    drop(store);
    let store = f.reopen().await;
    assert_listed(&store, &[(whole.id, Completeness::Whole), (begun.id, Completeness::Partial)]).await;
    assert!(bytes_of(&store, whole.id).await == bytes, "the bytes differ");
    let again = image(14, SIZE);
    fill(&draft(&store, &begun).await, &again).await;
    // What an earlier converter wrote stays where this one wrote nothing; the image has zeros in the same place.
    seal(&store, &begun).await;
    assert!(bytes_of(&store, begun.id).await == again, "the bytes of the second");
}

/// Each has its own bytes.
pub async fn fifty_versions_at_once_do_not_mix(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let make = |seed: u64| {
        let store = Arc::clone(&store);
        async move { (version(&store, &image(seed, 64 << 10)).await, seed) }
    };
    let callers = u64::try_from(f.effort().callers()).expect("few");
    let made = join_all((0..callers).map(|n| tokio::spawn(make(100 + n)))).await;
    let made: Vec<_> = made.into_iter().map(|made| made.expect("every call succeeds")).collect();
    let want: Vec<_> = made.iter().map(|(spec, _)| (spec.id, Completeness::Whole)).collect();
    assert_listed(&store, &want).await;
    for (spec, seed) in &made {
        assert!(bytes_of(&store, spec.id).await == image(*seed, 64 << 10), "version {seed}");
    }
    let remove = |spec: ImageSpec| {
        let store = Arc::clone(&store);
        async move { store.remove(spec.id, Removal::IfIdle).await.expect("remove") }
    };
    for removed in join_all(made.into_iter().map(|(spec, _)| tokio::spawn(remove(spec)))).await {
        removed.expect("every call succeeds");
    }
    assert!(listed(&store).await.is_empty());
}

/// `draft` and `seal`, dropped and made again.
pub async fn a_call_dropped_at_any_place_is_completed_by_the_next(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bystander = version(&store, &image(15, 64 << 10)).await;
    let bytes = image(16, 64 << 10);
    let (usual, _) = timed(version(&store, &bytes)).await;
    let probe = listed(&store).await.into_iter().find(|v| v.id != bystander.id).expect("the probe");
    store.remove(probe.id, Removal::Force).await.expect("remove");
    for cut in f.effort().cuts(usual) {
        let spec = spec(bytes.len());
        // Its result does not matter: this tests the drop.
        let _ = cut.apply(store.draft(&spec)).await;
        let at_most_a_draft = |list: Vec<ImageListed>| {
            let others: Vec<_> = list.into_iter().filter(|v| v.id != bystander.id).collect();
            let partial = others.iter().all(|v| v.id == spec.id && v.completeness == Completeness::Partial);
            assert!(partial, "{cut:?}: {others:?}");
        };
        at_most_a_draft(listed(&store).await);
        fill(&draft(&store, &spec).await, &bytes).await;
        let _ = cut.apply(store.seal(&spec)).await;
        seal(&store, &spec).await;
        let whole = [bystander.id, spec.id].map(|id| (id, Completeness::Whole));
        assert_listed(&store, &whole).await;
        assert!(bytes_of(&store, spec.id).await == bytes, "{cut:?}: the bytes differ");
        store.remove(spec.id, Removal::Force).await.expect("remove");
    }
}

/// Whole, partial or gone, and then gone.
pub async fn a_dropped_remove_is_completed_by_the_next(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bystander = version(&store, &image(17, 64 << 10)).await;
    let bytes = image(18, 64 << 10);
    let probe = version(&store, &bytes).await;
    let (usual, _) = timed(store.remove(probe.id, Removal::Force)).await;
    for cut in f.effort().cuts(usual) {
        let spec = version(&store, &bytes).await;
        let _ = cut.apply(store.remove(spec.id, Removal::Force)).await;
        // Behind the limits of a port it may go on meanwhile.
        if let Ok(opened) = store.open(spec.id, DiskForm::Blocks).await {
            let device =
                blocking(move || disk::open(&opened.disk, true).map(|device| (opened, device))).await;
            let (_opened, device) = device.expect("open the disk");
            assert!(read(&device, 0, bytes.len()).await == bytes, "{cut:?}: open, and other bytes");
        }
        store.remove(spec.id, Removal::Force).await.expect("remove");
        assert_listed(&store, &[(bystander.id, Completeness::Whole)]).await;
    }
}

/// Not listed, not touched.
pub async fn what_is_not_ours_is_left_alone(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let foreign = f.foreign().await.expect("has_foreign() promised one");
    assert!(listed(&store).await.is_empty(), "what is not ours is not listed");
    let spec = version(&store, &image(19, SIZE)).await;
    assert_listed(&store, &[(spec.id, Completeness::Whole)]).await;
    drop(store);
    let store = f.reopen().await;
    store.remove(spec.id, Removal::Force).await.expect("remove");
    assert!(listed(&store).await.is_empty());
    foreign.check().await.expect("what is not ours is as it was");
}

/// A clean end loses nothing.
pub async fn shutdown_loses_nothing(f: &impl ImageStoreFixture) {
    let store = f.fresh().await;
    let bytes = image(20, SIZE);
    let spec = version(&store, &bytes).await;
    let held = open(&store, spec.id, DiskForm::Blocks).await;
    store.shutdown().await;
    drop((held, store));
    let store = f.reopen().await;
    assert_listed(&store, &[(spec.id, Completeness::Whole)]).await;
    assert!(bytes_of(&store, spec.id).await == bytes, "the bytes differ");
}

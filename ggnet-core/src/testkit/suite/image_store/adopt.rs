//! The cases of [`ImageStore::adopt`](crate::ports::ImageStore::adopt): a frozen writeback becomes a version.

use std::{sync::Arc, time::Duration};

use super::{Cut, ImageStoreFixture, SIZE, Store, assert_listed, bytes_of, is, listed, spec, timed, version};
use crate::{
    error::ErrorKind,
    nouns::{ImageVersionId, ResourceId},
    ports::{
        Completeness, Frozen, Hold, ImageListed, ImageSpec, Native, Removal, WritebackListed, WritebackSpec,
        WritebackStore,
    },
    testkit::{
        disk,
        suite::{
            common::id,
            files::{blocking, image, write},
        },
    },
};

type Writebacks = Arc<dyn WritebackStore>;

/// A version, and a writeback over it that was written to.
struct Written {
    images: Store,
    writebacks: Writebacks,
    base: ImageSpec,
    id: ResourceId,
    /// What the disk should read as.
    bytes: Vec<u8>,
}

/// Writes to a writeback of this name over `base`, and lets go of it; what its disk reads as.
async fn written(
    images: &Store,
    writebacks: &Writebacks,
    base: &ImageSpec,
    id: &ResourceId,
    fill: u8,
) -> Vec<u8> {
    let mut bytes = bytes_of(images, base.id).await;
    let opened = images.open(base.id, writebacks.capabilities().base).await.expect("open the base");
    let spec = WritebackSpec { id: id.clone(), version: base.id, size_bytes: base.size_bytes };
    let disk = writebacks.ensure(&spec, &opened).await;
    let disk = disk.unwrap_or_else(|e| panic!("ensure {id}: {}", e.report()));
    let device = blocking(move || disk::open(&disk, false).expect("open the disk")).await;
    // A whole block, part of one, and the end of the disk.
    for (at, len) in [(4096, 4096), (16384 + 512, 512), (bytes.len() - 512, 512)] {
        write(&device, at as u64, vec![fill; len]).await;
        bytes[at..at + len].fill(fill);
    }
    bytes
}

async fn one(f: &impl ImageStoreFixture) -> Written {
    let images = f.fresh().await;
    let writebacks = f.writebacks().await.expect("has_writebacks() promised one");
    let base = version(&images, &image(50, SIZE)).await;
    let id = id();
    let bytes = written(&images, &writebacks, &base, &id, 0xa1).await;
    Written { images, writebacks, base, id, bytes }
}

impl Written {
    async fn freeze(&self) -> Frozen {
        let frozen = self.writebacks.freeze(&self.id).await;
        frozen.unwrap_or_else(|e| panic!("freeze {}: {}", self.id, e.report()))
    }

    async fn adopt(&self, spec: &ImageSpec, frozen: &Frozen) -> ImageListed {
        let adopted = self.images.adopt(spec, frozen).await;
        adopted.unwrap_or_else(|e| panic!("adopt {}: {}", self.id, e.report()))
    }

    /// What each of the two stores has of the disk. A call that was dropped may still be running, even after the call that followed it;
    /// until it has ended, remains of the writeback can still be listed.
    async fn places(&self, spec: &ImageSpec) -> (Option<ImageListed>, Option<WritebackListed>) {
        loop {
            let version = self.images.get(spec.id).await.expect("get");
            let writeback = self.writebacks.get(&self.id).await.expect("get");
            let is_left = |w: &WritebackListed| w.completeness == Completeness::Partial;
            if version.is_none() || !writeback.as_ref().is_some_and(is_left) {
                return (version, writeback);
            }
            // A case has a time limit: one that never ends fails.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The writeback is as it was, or it is this version, whole.
    async fn is_in_one_place(&self, spec: &ImageSpec, when: &str) {
        match self.places(spec).await {
            (Some(version), None) => {
                assert_eq!(version.completeness, Completeness::Whole, "{when}");
                assert!(bytes_of(&self.images, spec.id).await == self.bytes, "{when}: the bytes differ");
            }
            (None, Some(writeback)) => {
                assert_eq!(writeback.completeness, Completeness::Whole, "{when}");
                // To be adopted as it is, or to be written to.
                drop(self.freeze().await);
            }
            places => panic!("{when}: the disk is in no place, or in two: {places:?}"),
        }
    }
}

/// A pair that does not work together is rejected, and nothing changes.
pub async fn what_it_cannot_take_over_is_unsupported(f: &impl ImageStoreFixture) {
    let images = f.fresh().await;
    let base = version(&images, &image(51, SIZE)).await;
    let frozen = Frozen {
        writeback: id(),
        base: base.id,
        size_bytes: base.size_bytes,
        whole: false,
        native: Native { family: "of no store".to_owned(), locator: "/nowhere".to_owned() },
        hold: Hold::nothing(),
    };
    is(ErrorKind::Unsupported, &images.adopt(&spec(SIZE), &frozen).await.expect_err("of another family"));
    assert_listed(&images, &[(base.id, Completeness::Whole)]).await;
}

/// With what was written and what was not, in this process and in the next.
pub async fn an_adopted_writeback_is_a_version(f: &impl ImageStoreFixture) {
    let w = one(f).await;
    let (spec, frozen) = (spec(SIZE), w.freeze().await);
    let adopted = w.adopt(&spec, &frozen).await;
    assert_eq!((adopted.id, adopted.size_bytes), (spec.id, spec.size_bytes));
    assert_eq!(adopted.completeness, Completeness::Whole);
    assert_eq!(adopted.parent, (!frozen.whole).then_some(w.base.id));
    drop(frozen);
    assert_listed(&w.images, &[w.base.id, spec.id].map(|id| (id, Completeness::Whole))).await;
    assert_eq!(w.writebacks.get(&w.id).await.expect("get"), None, "it is no writeback any more");
    w.is_in_one_place(&spec, "adopted").await;
    // The name is free for another.
    written(&w.images, &w.writebacks, &w.base, &w.id, 0xb2).await;
    assert!(bytes_of(&w.images, spec.id).await == w.bytes, "a version is never written to");
    // And a writeback can be based on it as on any other.
    let other = id();
    let over = written(&w.images, &w.writebacks, &spec, &other, 0xc3).await;
    let again = ImageSpec::new(ImageVersionId::generate(), spec.size_bytes);
    let frozen = w.writebacks.freeze(&other).await.expect("freeze");
    w.adopt(&again, &frozen).await;
    drop(frozen);
    assert!(bytes_of(&w.images, again.id).await == over, "a version on a version");
    let Written { images, bytes, .. } = w;
    drop(images);
    let images = f.reopen().await;
    assert!(bytes_of(&images, spec.id).await == bytes, "the bytes differ in the next process");
    assert!(bytes_of(&images, again.id).await == over, "the bytes differ in the next process");
}

/// The response to the first may have been lost.
pub async fn adopted_twice_equals_once(f: &impl ImageStoreFixture) {
    let w = one(f).await;
    let (spec, frozen) = (spec(SIZE), w.freeze().await);
    let first = w.adopt(&spec, &frozen).await;
    assert_eq!(w.adopt(&spec, &frozen).await, first);
    assert!(bytes_of(&w.images, spec.id).await == w.bytes, "the bytes differ");
    // What has other bytes is not written over.
    drop(frozen);
    let other = id();
    written(&w.images, &w.writebacks, &w.base, &other, 0xd4).await;
    let frozen = w.writebacks.freeze(&other).await.expect("freeze");
    is(ErrorKind::Conflict, &w.images.adopt(&spec, &frozen).await.expect_err("it is there already"));
    drop(frozen);
    assert!(bytes_of(&w.images, spec.id).await == w.bytes, "it is as it was");
    assert!(w.writebacks.get(&other).await.expect("get").is_some(), "and the other is a writeback still");
}

/// A version is invalid without the version below it.
pub async fn a_version_below_another_is_busy(f: &impl ImageStoreFixture) {
    let w = one(f).await;
    let (spec, frozen) = (spec(SIZE), w.freeze().await);
    w.adopt(&spec, &frozen).await;
    if !frozen.whole {
        for how in [Removal::IfIdle, Removal::Force] {
            let e = w.images.remove(w.base.id, how).await.expect_err("a version stands on it");
            is(ErrorKind::Busy, &e);
        }
        assert!(bytes_of(&w.images, spec.id).await == w.bytes, "nothing changed");
    }
    drop(frozen);
    for id in [spec.id, w.base.id] {
        w.images.remove(id, Removal::IfIdle).await.unwrap_or_else(|e| panic!("remove: {}", e.report()));
    }
    assert!(listed(&w.images).await.is_empty());
}

/// And the written data still exists.
pub async fn adopting_over_a_lost_version_is_not_found(f: &impl ImageStoreFixture) {
    let w = one(f).await;
    let (spec, frozen) = (spec(SIZE), w.freeze().await);
    if frozen.whole {
        // It needs nothing below it.
        return;
    }
    w.images.remove(w.base.id, Removal::Force).await.expect("remove the version below");
    is(ErrorKind::NotFound, &w.images.adopt(&spec, &frozen).await.expect_err("nothing is below it"));
    drop(frozen);
    assert!(listed(&w.images).await.is_empty());
    assert!(w.writebacks.get(&w.id).await.expect("get").is_some(), "it is a writeback still");
}

/// At every place.
pub async fn a_dropped_adoption_leaves_the_disk_in_one_place(f: &impl ImageStoreFixture) {
    let probe = one(f).await;
    let frozen = probe.freeze().await;
    let (usual, _) = timed(probe.adopt(&spec(SIZE), &frozen)).await;
    drop((frozen, probe));
    let mut w = one(f).await;
    for cut in f.effort().cuts(usual) {
        w.id = id();
        w.bytes = written(&w.images, &w.writebacks, &w.base, &w.id, 0xe5).await;
        let (spec, frozen) = (spec(SIZE), w.freeze().await);
        let _ = cut.apply(w.images.adopt(&spec, &frozen)).await;
        // Behind the limits of a port, or on a thread of its own, the dropped call may have to end first: the next one waits for it.
        w.adopt(&spec, &frozen).await;
        drop(frozen);
        w.is_in_one_place(&spec, &format!("{cut:?}, and made again")).await;
        w.images.remove(spec.id, Removal::Force).await.expect("remove");
    }
}

/// Killed within an adoption.
pub async fn a_crash_around_an_adoption_leaves_the_disk_in_one_place(f: &impl ImageStoreFixture) {
    for cut in (0..6).map(Cut::Polls) {
        let mut w = one(f).await;
        let (spec, frozen) = (spec(SIZE), w.freeze().await);
        let _ = cut.apply(w.images.adopt(&spec, &frozen)).await;
        // The crash: both stores begin again over what is there.
        let Written { images, writebacks, .. } = w;
        drop((frozen, images, writebacks));
        w = Written {
            images: f.reopen().await,
            writebacks: f.writebacks().await.expect("has_writebacks() promised one"),
            base: w.base,
            id: w.id,
            bytes: w.bytes,
        };
        w.is_in_one_place(&spec, &format!("{cut:?}")).await;
        if w.writebacks.get(&w.id).await.expect("get").is_some() {
            let frozen = w.freeze().await;
            w.adopt(&spec, &frozen).await;
        }
        w.is_in_one_place(&spec, &format!("{cut:?}, and made again")).await;
    }
}

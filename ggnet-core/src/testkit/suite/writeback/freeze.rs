//! The cases of [`WritebackStore::freeze`](crate::ports::WritebackStore::freeze).

use super::{SIZE, Store, WritebackFixture, Writebacks, one, open, tortured};
use crate::{
    Error, ErrorKind,
    nouns::ResourceId,
    ports::{Frozen, Removal},
    testkit::suite::{
        common::{assert_whole, id, reopen},
        files::read,
    },
};

async fn freeze(store: &Store, id: &ResourceId) -> Frozen {
    store.freeze(id).await.unwrap_or_else(|e| panic!("freeze {id}: {}", e.report()))
}

/// What was written survives, whatever comes of the freeze; and of what is not there nothing can be frozen.
pub async fn freezing_is_as_declared(f: &impl WritebackFixture) {
    let (store, spec, _) = one(f).await;
    drop(open(&store, &spec).await);
    let Some(family) = store.capabilities().freezes else {
        let e = store.freeze(&spec.id).await.expect_err("it does not freeze");
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
        return;
    };
    let e = store.freeze(&id()).await.expect_err("there is no such writeback");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    let frozen = freeze(&store, &spec.id).await;
    assert_eq!((&frozen.writeback, frozen.size_bytes), (&spec.id, spec.size_bytes));
    assert_eq!((frozen.base, frozen.native.family), (spec.version, family));
}

/// A disk that may still be written to cannot be frozen.
pub async fn a_held_disk_is_not_frozen(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let e = store.freeze(&spec.id).await.expect_err("the disk is held");
    assert_eq!(e.kind(), ErrorKind::Busy, "{}", e.report());
    let model = tortured(&device, bytes, 17).await;
    assert!(read(&device, 0, SIZE).await == model, "it is as it was");
    drop(device);
    drop(freeze(&store, &spec.id).await);
}

/// It is neither written to nor removed; afterwards it is unchanged.
pub async fn a_frozen_disk_is_busy_and_loses_nothing(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let model = tortured(&device, bytes, 18).await;
    drop(device);
    for round in 0..2 {
        let frozen = freeze(&store, &spec.id).await;
        let busy = |what: &str, e: Error| {
            assert_eq!(e.kind(), ErrorKind::Busy, "round {round}: {what}: {}", e.report());
        };
        busy("ensure", spec.ensure(store.as_ref()).await.expect_err("it is frozen"));
        busy("freeze", store.freeze(&spec.id).await.expect_err("it is frozen already"));
        for how in [Removal::IfIdle, Removal::Force] {
            busy("remove", store.remove(&spec.id, how).await.expect_err("it is frozen"));
        }
        assert_whole::<Writebacks>(store.as_ref(), std::slice::from_ref(&spec)).await;
        // A clone keeps it frozen.
        let again = frozen.clone();
        drop(frozen);
        busy("ensure", spec.ensure(store.as_ref()).await.expect_err("it is frozen"));
        drop(again);
        let device = open(&store, &spec).await;
        assert!(read(&device, 0, SIZE).await == model, "round {round}: nothing changed");
    }
    store.remove(&spec.id, Removal::IfIdle).await.expect("it is a writeback like any other");
}

/// A crash in the middle of an adoption that did not come to be leaves a writeback.
pub async fn a_freeze_ends_with_our_process(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let model = tortured(&device, bytes, 19).await;
    drop(device);
    let frozen = freeze(&store, &spec.id).await;
    let survives = store.capabilities().kill_safe;
    let store = reopen::<Writebacks>(f, store).await;
    drop(frozen);
    if survives {
        let device = open(&store, &spec).await;
        assert!(read(&device, 0, SIZE).await == model, "every write is there");
    }
}

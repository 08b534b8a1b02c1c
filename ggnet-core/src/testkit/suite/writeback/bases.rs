//! The cases about the version below a writeback.

use super::{SIZE, WritebackFixture, Writebacks, one, open, over, tortured};
use crate::{
    ErrorKind,
    nouns::ImageVersionId,
    ports::{Completeness, Removal, WritebackSpec},
    testkit::suite::{
        common::{assert_whole, fresh, id, listed},
        files::{blocking, image, read},
    },
};

/// The contents of a writeback are invalid over another base.
pub async fn another_base_is_busy_and_changes_nothing(f: &impl WritebackFixture) {
    let (store, spec, bytes) = one(f).await;
    let device = open(&store, &spec).await;
    let model = tortured(&device, bytes, 13).await;
    drop(device);
    let same_size = over(f, spec.id.clone(), image(77, SIZE)).await;
    let larger = over(f, spec.id.clone(), image(78, SIZE * 2)).await;
    for other in [same_size, larger] {
        let e = other.ensure(store.as_ref()).await.expect_err("it stands on another base");
        assert_eq!(e.kind(), ErrorKind::Busy, "{}", e.report());
        assert_whole::<Writebacks>(store.as_ref(), std::slice::from_ref(&spec)).await;
    }
    let device = open(&store, &spec).await;
    assert!(read(&device, 0, SIZE).await == model, "nothing changed");
}

/// And nothing is left that could be taken for a writeback.
pub async fn a_missing_base_is_not_found(f: &impl WritebackFixture) {
    let store = fresh::<Writebacks>(f).await;
    let spec = over(f, id(), image(4, 64 << 10)).await;
    let path = spec.path.clone();
    blocking(move || std::fs::remove_file(&path).expect("remove the base")).await;
    let e = spec.ensure(store.as_ref()).await.expect_err("there is no such file");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    let list = listed::<Writebacks>(store.as_ref()).await;
    assert!(list.values().all(|l| l.completeness == Completeness::Partial), "{list:?}");
    store.remove(&spec.id, Removal::IfIdle).await.expect("remove");
    assert!(listed::<Writebacks>(store.as_ref()).await.is_empty());
}

/// Bytes of one version under the name of another, or of another size, would be another version's disk.
pub async fn a_base_that_is_not_the_specs_is_invalid(f: &impl WritebackFixture) {
    let (store, over, _) = one(f).await;
    let base = over.base(store.as_ref()).await;
    let other = WritebackSpec { version: ImageVersionId::generate(), ..over.spec() };
    let larger = WritebackSpec { size_bytes: over.size_bytes + 512, ..over.spec() };
    for spec in [other, larger] {
        let e = store.ensure(&spec, &base).await.expect_err("another base was opened");
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("base")), "{}", e.report());
    }
    assert!(listed::<Writebacks>(store.as_ref()).await.is_empty());
}

//! Helpers of the cases: writes, refusals, and a store with an image and a machine in it.

use super::records::{image, machine, version};
use crate::{
    error::{Error, ErrorKind},
    nouns::{Image, ImageVersion, Machine, Session},
    ports::{Batch, PageRequest, Store, Write},
};

pub(super) fn put(s: &Session) -> Write {
    Write::Session(Box::new(s.clone()))
}

pub(super) async fn write(store: &dyn Store, writes: impl IntoIterator<Item = Write>) {
    let batch = Batch { writes: writes.into_iter().collect(), ..Batch::default() };
    store.commit(batch).await.unwrap();
}

pub(super) async fn refused(store: &dyn Store, kind: ErrorKind, write: Write) -> Error {
    let what = format!("{write:?}");
    let error = store.commit(Batch::new().write(write)).await.expect_err(&what);
    assert_eq!(error.kind(), kind, "{what}: {error}");
    error
}

pub(super) fn says(error: &Error, words: &[&str]) {
    for word in words {
        assert!(error.message().contains(word), "{:?} does not name {word:?}", error.message());
    }
}

pub(super) const ALL: PageRequest = PageRequest { page: 1, per_page: 1000 };

/// An image with one ready version, which is current, and a machine assigned to it.
pub(super) struct Room {
    pub(super) image: Image,
    pub(super) version: ImageVersion,
    pub(super) machine: Machine,
}

pub(super) async fn room(store: &dyn Store) -> Room {
    let (mut i, mut m) = (image("win11"), machine(1));
    let v = version(i.id, 1);
    write(store, [Write::Image(i.clone()), Write::Version(v.clone())]).await;
    (i.revision, i.current) = (1, Some(v.id));
    m.image = Some(i.id);
    write(store, [Write::Image(i.clone()), Write::Machine(m.clone())]).await;
    i.revision = 2;
    m.revision = 1;
    Room { image: i, version: v, machine: m }
}

//! The port's contract on real files: drafts, seals, opening, chains, adoption from both writeback stores, removal, and files that are not
//! ours.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ggnet_core::{
    ErrorKind,
    nouns::{ImageFormat, InstanceId},
    ports::{Completeness, Frozen, Health, Removal, Sink},
};

use super::*;
use crate::{
    files::sim::numbered,
    layers::format::{DATA, DURABLE, Header, Kind},
    writeback::{
        layers::{Layers, LayersConfig},
        reflink::{CopyMode, Reflink, ReflinkConfig},
    },
};

/// A data folder.
struct Room {
    tmp: tempfile::TempDir,
    images: ImageFiles,
}

impl Room {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let images = ImageFiles::open(&ImageFilesConfig { dir: tmp.path().join("images") }).unwrap();
        Self { tmp, images }
    }

    /// The same folder, opened as by the next process.
    fn reopened(&self) -> ImageFiles {
        ImageFiles::open(&ImageFilesConfig { dir: self.dir() }).unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.tmp.path().join("images")
    }

    fn raw(&self, id: ImageVersionId) -> PathBuf {
        self.dir().join(format!("{id}.raw"))
    }

    /// A version in the current format of the data folder.
    fn imported(&self, salt: u64) -> ImageVersionId {
        let id = ImageVersionId::generate();
        put(&self.raw(id), &numbered(SECTORS, salt));
        id
    }

    fn layers(&self) -> Layers {
        let config =
            LayersConfig { dir: self.tmp.path().join("writebacks"), instance: InstanceId::generate() };
        Layers::open(config).unwrap()
    }

    fn reflink(&self) -> Reflink {
        let (dir, images) = (self.tmp.path().join("disks"), Some(self.dir()));
        let instance = InstanceId::generate();
        Reflink::open(ReflinkConfig { dir, images, instance, copy: CopyMode::Full }).unwrap()
    }

    async fn base(&self, id: ImageVersionId) -> OpenImage {
        self.images.open(id, DiskForm::Blocks).await.unwrap()
    }

    /// A version that is a layer with one write over `base`.
    async fn adopted(&self, base: ImageVersionId) -> ImageVersionId {
        let (store, spec) = (self.layers(), image());
        written(&store, &self.base(base).await).await;
        let frozen = store.freeze(&id("a")).await.unwrap();
        self.images.adopt(&spec, &frozen).await.unwrap();
        spec.id
    }

    async fn kind(&self, id: ImageVersionId) -> ErrorKind {
        self.images.open(id, DiskForm::Blocks).await.unwrap_err().kind()
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn put(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all_at(bytes, 0).unwrap();
}

fn path(sink: Sink) -> PathBuf {
    match sink {
        Sink::File(path) => path,
        other => panic!("no file but {other:?}"),
    }
}

#[tokio::test]
async fn a_draft_is_partial_until_it_is_sealed_and_never_written_again() {
    let room = Room::new();
    let spec = image();
    assert_eq!(room.images.seal(&spec).await.unwrap_err().kind(), ErrorKind::NotFound);
    let sink = path(room.images.draft(&spec).await.unwrap());
    assert_eq!(sink, path(room.images.draft(&spec).await.unwrap()));
    assert_eq!(sink.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(room.dir().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let listed = room.reopened().list().await.unwrap();
    assert_eq!((listed.len(), listed[0].completeness), (1, Completeness::Partial));
    assert_eq!(room.kind(spec.id).await, ErrorKind::NotFound);

    put(&sink, &numbered(SECTORS - 1, 4));
    let e = room.images.seal(&spec).await.unwrap_err();
    assert_eq!((e.kind(), e.backend()), (ErrorKind::Corrupt, Some("files")), "{}", e.report());
    assert_eq!(room.images.get(spec.id).await.unwrap().unwrap().completeness, Completeness::Partial);
    put(&sink, &numbered(SECTORS, 4));
    let listed = room.images.seal(&spec).await.unwrap();
    assert_eq!((listed.completeness, listed.size_bytes, listed.parent), (Completeness::Whole, SIZE, None));
    assert_eq!(room.images.seal(&spec).await.unwrap(), listed);
    assert_eq!(room.reopened().list().await.unwrap(), [listed]);
    assert_eq!(bytes(&room.images, spec.id).await, numbered(SECTORS, 4));
    assert_eq!(room.names(), [format!("{}.raw", spec.id)]);

    assert_eq!(room.images.draft(&spec).await.unwrap_err().kind(), ErrorKind::Conflict);
    let other = ImageSpec::new(spec.id, SIZE + 512);
    assert_eq!(room.images.seal(&other).await.unwrap_err().kind(), ErrorKind::Conflict);
    for size in [0, 511, SIZE + 1] {
        let odd = ImageSpec::new(ImageVersionId::generate(), size);
        assert_eq!(room.images.draft(&odd).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[tokio::test]
async fn a_draft_that_is_a_link_or_no_file_is_not_sealed() {
    let room = Room::new();
    let spec = image();
    let sink = path(room.images.draft(&spec).await.unwrap());
    let elsewhere = room.tmp.path().join("elsewhere");
    put(&elsewhere, &numbered(SECTORS, 1));
    std::fs::remove_file(&sink).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &sink).unwrap();
    assert_eq!(room.images.seal(&spec).await.unwrap_err().kind(), ErrorKind::Corrupt);
    room.images.remove(spec.id, Removal::Force).await.unwrap();
    assert_eq!(std::fs::read(&elsewhere).unwrap(), numbered(SECTORS, 1), "only the link is removed");
}

#[tokio::test]
async fn a_data_folder_of_today_opens_and_a_version_is_one_open_file() {
    let room = Room::new();
    let id = room.imported(1);
    let (a, b) = (room.base(id).await, room.base(id).await);
    assert!(Arc::ptr_eq(&blocks(a.disk.clone()), &blocks(b.disk)));
    assert_eq!((a.id, a.size_bytes), (id, SIZE));
    let device = blocks(a.disk);
    assert!(device.info().read_only);
    assert_eq!(all(&*device), numbered(SECTORS, 1));
    assert!(device.try_read_at(&mut [0; 512], 0).unwrap(), "it is in the page cache now");
    let file = room.images.open(id, DiskForm::File).await.unwrap();
    let Disk::File { path, format: ImageFormat::Raw } = file.disk else { panic!("no raw file") };
    assert_eq!(path, room.raw(id));
    assert!(path.is_absolute());
    let e = room.images.open(id, DiskForm::Device).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
}

#[tokio::test]
async fn what_somebody_removed_or_cut_short_is_not_opened_also_while_it_is_open() {
    let room = Room::new();
    assert_eq!(room.kind(ImageVersionId::generate()).await, ErrorKind::NotFound);
    let id = room.imported(1);
    let held = room.base(id).await;
    File::options().write(true).open(room.raw(id)).unwrap().set_len(SIZE / 2).unwrap();
    assert_eq!(room.kind(id).await, ErrorKind::Corrupt);
    drop(held);
    File::options().write(true).open(room.raw(id)).unwrap().set_len(100).unwrap();
    assert_eq!(room.kind(id).await, ErrorKind::Corrupt, "no whole sectors");
    assert_eq!(room.images.get(id).await.unwrap().unwrap().completeness, Completeness::Partial);
    std::fs::remove_file(room.raw(id)).unwrap();
    assert_eq!(room.kind(id).await, ErrorKind::NotFound);
    assert_eq!(room.images.get(id).await.unwrap(), None);
    std::fs::create_dir(room.raw(id)).unwrap();
    assert_eq!(room.kind(id).await, ErrorKind::Corrupt, "a folder");
    assert_eq!(room.images.list().await.unwrap().len(), 1);
}

/// An operator moved a large image to another disk, and put a link in its place.
#[tokio::test]
async fn what_a_link_points_at_is_served_and_never_removed() {
    let room = Room::new();
    let (id, moved) = (room.imported(1), room.tmp.path().join("moved.raw"));
    std::fs::rename(room.raw(id), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, room.raw(id)).unwrap();
    assert_eq!(bytes(&room.images, id).await, numbered(SECTORS, 1));
    room.images.remove(id, Removal::IfIdle).await.unwrap();
    assert!(room.names().is_empty());
    assert_eq!(std::fs::read(&moved).unwrap(), numbered(SECTORS, 1));
}

#[tokio::test]
async fn what_is_not_ours_is_neither_listed_nor_removed_and_what_older_ones_left_is() {
    let room = Room::new();
    let id = room.imported(1);
    for name in ["notes.txt", "win11.raw", ".hidden", "lost+found"] {
        put(&room.dir().join(name), b"x");
    }
    let left = ImageVersionId::generate();
    for of in [id, left] {
        put(&room.dir().join(format!(".{of}.raw.partial-0123456789abcdef")), b"half");
    }
    let mut listed = room.images.list().await.unwrap();
    listed.sort_by_key(|listed| listed.id);
    let expected = [(id, Completeness::Whole), (left, Completeness::Partial)];
    assert_eq!(listed.iter().map(|l| (l.id, l.completeness)).collect::<Vec<_>>(), expected);
    for of in [id, left] {
        room.images.remove(of, Removal::IfIdle).await.unwrap();
    }
    assert_eq!(room.names(), [".hidden", "lost+found", "notes.txt", "win11.raw"]);
}

#[tokio::test]
async fn a_layer_becomes_a_version_without_a_copy_and_chains_are_read_from_the_top() {
    let room = Room::new();
    let lower = room.imported(1);
    let (store, spec) = (room.layers(), image());
    written(&store, &room.base(lower).await).await;
    let frozen = store.freeze(&id("a")).await.unwrap();
    let data = std::fs::metadata(Path::new(&frozen.native.locator).join(DATA)).unwrap();
    let listed = room.images.adopt(&spec, &frozen).await.unwrap();
    assert_eq!((listed.id, listed.size_bytes, listed.parent), (spec.id, SIZE, Some(lower)));
    let here = room.dir().join(spec.id.to_string());
    let same = std::os::unix::fs::MetadataExt::ino;
    assert_eq!(same(&std::fs::metadata(here.join(DATA)).unwrap()), same(&data));
    let mut names: Vec<_> = std::fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [DATA, DURABLE], "what only a mutable layer has is gone");
    drop(frozen);
    assert!(store.list().await.unwrap().is_empty(), "it is no writeback any more");

    // One more layer over it, and a writeback over that.
    let top = room.adopted(spec.id).await;
    assert_eq!(room.images.get(top).await.unwrap().unwrap().parent, Some(spec.id));
    let base = room.reopened().open(top, DiskForm::Blocks).await.unwrap();
    let disk = blocks(store.ensure(&over("b", &base), &base).await.unwrap());
    assert_eq!(all(&*disk), with_write(numbered(SECTORS, 1)));
    disk.write_at(&[9; 512], 0).unwrap();
    assert_eq!(all(&*blocks(base.disk)), with_write(numbered(SECTORS, 1)), "a version never changes");

    let e = room.images.open(top, DiskForm::File).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Unsupported && e.hint().is_some(), "{}", e.report());
    // All disks over a version share the layers below them.
    let (a, b) = (room.base(lower).await, room.base(lower).await);
    assert!(Arc::ptr_eq(&blocks(a.disk), &blocks(b.disk)));
}

#[tokio::test]
async fn a_reflinked_file_becomes_a_version_of_its_own() {
    let room = Room::new();
    let below = room.imported(1);
    let store = room.reflink();
    let base = room.images.open(below, DiskForm::File).await.unwrap();
    let Disk::File { path, .. } = store.ensure(&over("a", &base), &base).await.unwrap() else {
        panic!("no file")
    };
    File::options().write(true).open(&path).unwrap().write_all_at(&[7; 512], 1024).unwrap();

    let frozen = store.freeze(&id("a")).await.unwrap();
    assert!(frozen.whole && store.capabilities().freezes == Some(frozen.native.family.clone()));
    assert_eq!(store.freeze(&id("a")).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(store.ensure(&over("a", &base), &base).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(store.remove(&id("a"), Removal::Force).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(store.freeze(&id("none")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let spec = image();
    let listed = room.images.adopt(&spec, &frozen).await.unwrap();
    assert_eq!((listed.parent, listed.size_bytes), (None, SIZE));
    assert_eq!(room.images.adopt(&spec, &frozen).await.unwrap(), listed);
    assert!(!path.exists());
    drop(frozen);
    assert!(store.list().await.unwrap().is_empty(), "it is no writeback any more");
    room.images.remove(below, Removal::Force).await.unwrap();
    assert_eq!(bytes(&room.images, spec.id).await, with_write(numbered(SECTORS, 1)));

    // A freeze that ends without an adoption changes nothing.
    let base = room.images.open(spec.id, DiskForm::File).await.unwrap();
    store.ensure(&over("b", &base), &base).await.unwrap();
    drop(store.freeze(&id("b")).await.unwrap());
    assert_eq!(store.get(&id("b")).await.unwrap().unwrap().completeness, Completeness::Whole);
    store.ensure(&over("b", &base), &base).await.unwrap();
}

#[tokio::test]
async fn an_adoption_that_does_not_fit_changes_nothing() {
    let room = Room::new();
    let (below, taken) = (room.imported(1), room.imported(2));
    let store = room.layers();
    written(&store, &room.base(below).await).await;
    let frozen = store.freeze(&id("a")).await.unwrap();
    let adopt = async |spec: ImageSpec, from: &Frozen| room.images.adopt(&spec, from).await.unwrap_err();
    let with = |change: &dyn Fn(&mut Frozen)| {
        let mut other = frozen.clone();
        change(&mut other);
        other
    };
    assert_eq!(adopt(ImageSpec::new(taken, SIZE), &frozen).await.kind(), ErrorKind::Conflict);
    assert_eq!(
        adopt(ImageSpec::new(ImageVersionId::generate(), 512), &frozen).await.kind(),
        ErrorKind::Invalid
    );
    assert_eq!(adopt(ImageSpec::new(below, SIZE), &frozen).await.kind(), ErrorKind::Invalid);
    let unknown = with(&|from: &mut Frozen| from.native.family = "rbd".to_owned());
    let e = adopt(image(), &unknown).await;
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("rbd"), "{e}");
    let orphan = with(&|from: &mut Frozen| from.base = ImageVersionId::generate());
    assert_eq!(adopt(image(), &orphan).await.kind(), ErrorKind::NotFound, "the version below is not here");
    let other_base = with(&|from: &mut Frozen| from.base = taken);
    assert_eq!(adopt(image(), &other_base).await.kind(), ErrorKind::Corrupt);
    let nowhere = with(&|from: &mut Frozen| from.native.locator.push('x'));
    assert_eq!(adopt(image(), &nowhere).await.kind(), ErrorKind::NotFound);
    let link = room.tmp.path().join("link");
    std::os::unix::fs::symlink(&frozen.native.locator, &link).unwrap();
    let linked = with(&|from: &mut Frozen| from.native.locator = link.to_str().unwrap().to_owned());
    assert_eq!(adopt(image(), &linked).await.kind(), ErrorKind::Unsupported);
    drop((unknown, orphan, other_base, nowhere, linked, frozen));

    assert_eq!(room.images.list().await.unwrap().len(), 2);
    let base = room.base(below).await;
    let disk = blocks(store.ensure(&over("a", &base), &base).await.unwrap());
    assert_eq!(all(&*disk), with_write(numbered(SECTORS, 1)));
}

#[tokio::test]
async fn a_version_stays_while_another_stands_on_it_or_it_is_in_use() {
    let room = Room::new();
    let lower = room.imported(1);
    let upper = room.adopted(lower).await;
    for how in [Removal::IfIdle, Removal::Force] {
        let e = room.images.remove(lower, how).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Busy && e.message().contains(&upper.to_string()), "{e}");
    }
    let held = room.base(upper).await;
    assert_eq!(room.images.remove(upper, Removal::IfIdle).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(bytes(&room.images, upper).await, with_write(numbered(SECTORS, 1)));
    room.images.remove(upper, Removal::Force).await.unwrap();
    assert_eq!(room.kind(upper).await, ErrorKind::NotFound);
    assert_eq!(room.images.remove(lower, Removal::IfIdle).await.unwrap_err().kind(), ErrorKind::Busy);
    drop(held);
    room.images.remove(lower, Removal::IfIdle).await.unwrap();
    room.images.remove(lower, Removal::IfIdle).await.unwrap();
    assert!(room.names().is_empty());
}

#[tokio::test]
async fn a_file_keeps_its_version_open_too() {
    let room = Room::new();
    let id = room.imported(1);
    let held = room.images.open(id, DiskForm::File).await.unwrap();
    assert_eq!(room.images.remove(id, Removal::IfIdle).await.unwrap_err().kind(), ErrorKind::Busy);
    drop(held);
    room.images.remove(id, Removal::IfIdle).await.unwrap();
}

/// A layer's folder without any writes.
fn layer(home: &Path, base: ImageVersionId) {
    std::fs::create_dir(home).unwrap();
    let header = Header {
        kind: Kind::Durable,
        size: SIZE,
        instance: InstanceId::generate(),
        base,
        id: id("a"),
        boot: String::new(),
    };
    put(&home.join(DURABLE), &[&header.encode()[..], &[0; 4096]].concat());
    File::create(home.join(DATA)).unwrap().set_len(SIZE).unwrap();
}

#[tokio::test]
async fn a_broken_chain_is_named_and_never_served() {
    let room = Room::new();
    let (a, b) = (ImageVersionId::generate(), ImageVersionId::generate());
    layer(&room.dir().join(a.to_string()), b);
    let e = room.images.open(a, DiskForm::Blocks).await.unwrap_err();
    assert!(e.kind() == ErrorKind::NotFound && e.message().contains(&b.to_string()), "{}", e.report());
    // Two layers over each other: no call waits forever.
    layer(&room.dir().join(b.to_string()), a);
    for id in [a, b] {
        assert_eq!(room.kind(id).await, ErrorKind::Corrupt);
    }
    put(&room.dir().join(b.to_string()).join(DURABLE), b"half a header");
    assert_eq!(room.images.get(b).await.unwrap().unwrap().completeness, Completeness::Partial);
    assert_eq!(room.kind(b).await, ErrorKind::Corrupt);
    let small = room.imported(1);
    File::options().write(true).open(room.raw(small)).unwrap().set_len(512).unwrap();
    let over_small = ImageVersionId::generate();
    layer(&room.dir().join(over_small.to_string()), small);
    assert_eq!(room.kind(over_small).await, ErrorKind::Corrupt, "another size than what is below it");
}

#[tokio::test]
async fn the_end_lets_nothing_begin_and_health_names_the_folder() {
    let room = Room::new();
    let id = room.imported(1);
    assert!(matches!(room.images.health().await, Health::Up | Health::Degraded(_)));
    std::fs::remove_dir_all(room.dir()).unwrap();
    assert!(matches!(room.images.health().await, Health::Down(why) if why.contains("images")));
    assert!(room.images.list().await.is_err(), "unknown is not empty");
    room.images.shutdown().await;
    assert_eq!(room.kind(id).await, ErrorKind::Unavailable);
    assert_eq!(room.images.list().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

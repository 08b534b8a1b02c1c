//! The writeback store "external" with the example `infra/examples/external/copies.py` as its program: the whole suite, on XFS, where it
//! shares blocks, and on ext4, where it copies.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use ggnet_backends::external::ExternalWritebacks;
use ggnet_core::{
    ErrorKind, Result,
    block::{Disk, DiskForm},
    nouns::{ImageFormat, ImageVersionId, InstanceId},
    ports::{Hold, OpenImage, WritebackSpec, WritebackStore},
    testkit::suite::{Fixture, Foreign, WritebackFixture, instance},
};

use crate::{
    external::{example, opened},
    external_programs::World,
    layers::{Others, files},
    process::Process,
    sandbox,
};

/// A folder on its own file system.
struct On {
    dir: PathBuf,
    process: Mutex<Option<Process>>,
}

impl On {
    fn new(mounted: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = mounted.join(format!("external-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        for folder in ["images", "copies"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        Self { dir, process: Mutex::default() }
    }

    fn open(&self, instance: InstanceId) -> impl Future<Output = Result<ExternalWritebacks>> + Send + use<> {
        ExternalWritebacks::open(example("copies.py", "root", &self.dir.join("copies")), instance)
    }
}

impl Drop for On {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A new version, in the form that a program gets.
fn base(path: PathBuf, size_bytes: u64) -> OpenImage {
    let disk = Disk::File { path, format: ImageFormat::Raw };
    OpenImage { id: ImageVersionId::generate(), size_bytes, disk, hold: Hold::nothing() }
}

#[async_trait]
impl Fixture<dyn WritebackStore> for On {
    async fn fresh(&self) -> Arc<dyn WritebackStore> {
        self.reopen().await
    }

    /// The program ends with the process that started it.
    async fn reopen(&self) -> Arc<dyn WritebackStore> {
        opened(&self.process, self.open(instance())).await
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let other = self.open("ffffffff".parse().unwrap()).await.unwrap();
        let path = self.dir.join("images/other.raw");
        let size_bytes = 64 << 10;
        std::fs::File::create_new(&path).unwrap().set_len(size_bytes).unwrap();
        let base = base(path, size_bytes);
        let spec = WritebackSpec { id: "other-pc".parse().unwrap(), version: base.id, size_bytes };
        let Disk::File { path, .. } = other.ensure(&spec, &base).await.unwrap() else { panic!("not a file") };
        let disk = std::fs::File::options().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&disk, &[7; 4096], 8192).unwrap();
        let dir = self.dir.join("copies");
        Some(Box::new(Others { files: files(&dir), dir }))
    }
}

impl WritebackFixture for On {
    fn folder(&self) -> PathBuf {
        self.dir.join("images")
    }
}

ggnet_core::writeback_behaviour!(on_xfs, On::new(&sandbox::xfs().path()), not_run: [
    what_lies_outside_the_disk_is_invalid,
    a_held_disk_is_busy_under_if_idle,
    a_held_disk_fails_after_force,
    a_held_disk_is_not_frozen,
    a_frozen_disk_is_busy_and_loses_nothing,
    a_freeze_ends_with_our_process,
]);
ggnet_core::writeback_behaviour!(on_ext4, On::new(&sandbox::ext4().path()), not_run: [
    what_lies_outside_the_disk_is_invalid,
    a_held_disk_is_busy_under_if_idle,
    a_held_disk_fails_after_force,
    a_held_disk_is_not_frozen,
    a_frozen_disk_is_busy_and_loses_nothing,
    a_freeze_ends_with_our_process,
]);

#[tokio::test]
async fn a_disk_that_is_not_what_was_promised_is_not_handed_out() {
    let base = base("/x".into(), 512);
    let spec = WritebackSpec { id: "pc-1".parse().unwrap(), version: base.id, size_bytes: 512 };
    for (provides, place, words) in [
        ("file", "{'device': {'path': '/dev/vg/pc-1'}}", "provides a File, but returned Device"),
        ("device", "{'file': {'path': '/x', 'format': 'raw'}}", "provides a Device, but returned File"),
        ("file", "{'file': {'path': 'x', 'format': 'raw'}}", "is not absolute"),
        ("file", "None", "response to ensure is invalid"),
    ] {
        let script = format!(
            "hello(port='writeback', capabilities={{'provides': '{provides}', 'kill_safe': True, 'power_safe': True, \
             'discard': True}})\nsay(id=hear()['id'], result={place})\nserve()"
        );
        let world = World::new(&script);
        let store = ExternalWritebacks::open(world.config.clone(), instance()).await.unwrap();
        let e = store.ensure(&spec, &base).await.unwrap_err();
        assert_eq!((e.kind(), e.backend()), (ErrorKind::Internal, Some("external")), "{}", e.report());
        assert!(e.message().contains(words), "{e}");
    }
    // A version that is not open as a file is never passed to a program, so the program's answer about its base does not matter.
    let world = World::new(
        "hello(port='writeback', capabilities={'provides': 'file', 'kill_safe': True, 'power_safe': True, \
         'discard': True})\nserve()",
    );
    let store = ExternalWritebacks::open(world.config.clone(), instance()).await.unwrap();
    assert_eq!((store.capabilities().base, store.capabilities().freezes), (DiskForm::File, None));
    let device = OpenImage { disk: Disk::Device { path: "/dev/x".into() }, ..base.clone() };
    let e = store.ensure(&spec, &device).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
    let other = OpenImage { size_bytes: 1024, ..base };
    assert_eq!(store.ensure(&spec, &other).await.unwrap_err().field(), Some("base"));
    let blocks = "hello(port='writeback', capabilities={'provides': 'blocks', 'kill_safe': True, 'power_safe': True, \
                  'discard': True})\nserve()";
    let world = World::new(blocks);
    let e = ExternalWritebacks::open(world.config.clone(), instance()).await.err().unwrap();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
}

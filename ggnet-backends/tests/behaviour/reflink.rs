//! The writeback store "reflink": on XFS and btrfs, and with full copies on ext4 and tmpfs.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use ggnet_backends::writeback::reflink::{CopyMode, Reflink, ReflinkConfig};
use ggnet_core::{
    block::Disk,
    nouns::{ImageFormat, ImageVersionId, InstanceId},
    ports::{Hold, OpenImage, WritebackSpec, WritebackStore},
    testkit::suite::{Fixture, Foreign, WritebackFixture, instance},
};

use crate::{
    layers::{InProcess, Others, files},
    process::Process,
    sandbox,
};

/// A folder on its own file system.
struct On {
    dir: PathBuf,
    copy: CopyMode,
    process: Mutex<Option<Process>>,
}

impl On {
    fn new(mounted: &Path, copy: CopyMode) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = mounted.join(format!("case-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(dir.join("images")).unwrap();
        Self { dir, copy, process: Mutex::default() }
    }

    fn store(&self, instance: InstanceId) -> Reflink {
        let images = Some(self.dir.join("images"));
        Reflink::open(ReflinkConfig { dir: self.dir.join("disks"), images, instance, copy: self.copy })
            .unwrap()
    }

    fn open(&self) -> Arc<dyn WritebackStore> {
        let process = Process::start();
        let store = InProcess { store: self.store(instance()), process: process.handle() };
        *self.process.lock().unwrap() = Some(process);
        Arc::new(store)
    }
}

impl Drop for On {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[async_trait]
impl Fixture<dyn WritebackStore> for On {
    async fn fresh(&self) -> Arc<dyn WritebackStore> {
        self.open()
    }

    async fn reopen(&self) -> Arc<dyn WritebackStore> {
        let old = self.process.lock().unwrap().take();
        old.expect("fresh() came before").kill().await;
        self.open()
    }

    fn has_foreign(&self) -> bool {
        true
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let other = self.store("ffffffff".parse().unwrap());
        let path = self.dir.join("images/other.raw");
        let size_bytes = 64 << 10;
        std::fs::File::create_new(&path).unwrap().set_len(size_bytes).unwrap();
        let disk = Disk::File { path, format: ImageFormat::Raw };
        let base = OpenImage { id: ImageVersionId::generate(), size_bytes, disk, hold: Hold::nothing() };
        let spec = WritebackSpec { id: "other-pc".parse().unwrap(), version: base.id, size_bytes };
        let Disk::File { path, .. } = other.ensure(&spec, &base).await.unwrap() else { panic!("not a file") };
        std::os::unix::fs::FileExt::write_all_at(
            &std::fs::File::options().write(true).open(path).unwrap(),
            &[7; 4096],
            8192,
        )
        .unwrap();
        let dir = self.dir.join("disks");
        Some(Box::new(Others { files: files(&dir), dir }))
    }
}

impl WritebackFixture for On {
    fn folder(&self) -> PathBuf {
        self.dir.join("images")
    }
}

ggnet_core::writeback_behaviour!(on_xfs, On::new(&sandbox::xfs().path(), CopyMode::Reflink), not_run: [
    what_lies_outside_the_disk_is_invalid,
    a_held_disk_is_busy_under_if_idle,
    a_held_disk_fails_after_force,
    a_held_disk_is_not_frozen,
]);
ggnet_core::writeback_behaviour!(on_btrfs, On::new(&sandbox::btrfs().path(), CopyMode::Reflink), not_run: [
    what_lies_outside_the_disk_is_invalid,
    a_held_disk_is_busy_under_if_idle,
    a_held_disk_fails_after_force,
    a_held_disk_is_not_frozen,
]);
ggnet_core::writeback_behaviour!(in_full_on_ext4, On::new(&sandbox::ext4().path(), CopyMode::Full), not_run: [
    what_lies_outside_the_disk_is_invalid,
    a_held_disk_is_busy_under_if_idle,
    a_held_disk_fails_after_force,
    a_held_disk_is_not_frozen,
]);

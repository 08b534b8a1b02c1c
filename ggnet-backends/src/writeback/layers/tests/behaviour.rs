//! The behaviour suite of the port, on real files.

use std::{
    sync::{Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use ggnet_core::{
    ports::WritebackStore,
    testkit::suite::{self, Fixture, Foreign, WritebackFixture},
};

use super::{super::Inner, *};

struct Writebacks {
    tmp: tempfile::TempDir,
    now: Mutex<(PathBuf, Weak<Inner>)>,
}

impl Writebacks {
    fn new() -> Self {
        Self { tmp: tempfile::tempdir().unwrap(), now: Mutex::default() }
    }
}

#[async_trait]
impl Fixture<dyn WritebackStore> for Writebacks {
    async fn fresh(&self) -> Arc<dyn WritebackStore> {
        let name = ImageVersionId::generate().simple();
        *self.now.lock().unwrap() = (self.tmp.path().join(name), Weak::new());
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn WritebackStore> {
        let (dir, last) = self.now.lock().unwrap().clone();
        // File operations that a crash would have ended complete here; the store does not have to support two processes on one folder.
        while last.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let store = Layers::open(LayersConfig { dir, instance: suite::instance() }).unwrap();
        self.now.lock().unwrap().1 = Arc::downgrade(&store.inner);
        Arc::new(store)
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let dir = self.now.lock().unwrap().0.clone();
        let base = suite_base(self.tmp.path());
        let store =
            Layers::open(LayersConfig { dir: dir.clone(), instance: "0123abcd".parse().unwrap() }).unwrap();
        let disk = blocks(store.ensure(&spec("not-ours", &base), &base).await.unwrap());
        disk.write_at(&[0x77; 512], 1024).unwrap();
        Some(Box::new(NotOurs { dir, base }))
    }

    fn has_foreign(&self) -> bool {
        true
    }
}

fn suite_base(dir: &Path) -> OpenImage {
    let path = dir.join("not-ours.raw");
    std::fs::File::create(&path).unwrap().write_all(&numbered(64, 3)).unwrap();
    open_raw(ImageVersionId::generate(), &path).unwrap()
}

/// Another GGnet's writeback in the same folder.
struct NotOurs {
    dir: PathBuf,
    base: OpenImage,
}

#[async_trait]
impl Foreign for NotOurs {
    async fn check(&self) -> Result<(), String> {
        let config = LayersConfig { dir: self.dir.clone(), instance: "0123abcd".parse().unwrap() };
        let store = Layers::open(config).map_err(|e| e.report())?;
        if store.list().await.map_err(|e| e.report())?.len() != 1 {
            return Err("it is not listed any more".to_owned());
        }
        let spec = spec("not-ours", &self.base);
        let disk = blocks(store.ensure(&spec, &self.base).await.map_err(|e| e.report())?);
        let mut expected = numbered(64, 3);
        expected[1024..1536].fill(0x77);
        if read(&*disk, 0, 64 * 512) == expected { Ok(()) } else { Err("its bytes changed".to_owned()) }
    }
}

impl WritebackFixture for Writebacks {
    fn folder(&self) -> PathBuf {
        self.tmp.path().to_owned()
    }
}

ggnet_core::writeback_behaviour!(suite_on_real_files, Writebacks::new(), not_run: [a_missing_base_is_not_found]);

//! The image store "files": the bytes of each version in a folder of its own, on a local file system.
//!
//! An imported version is a sparse raw file. A version made from a machine's writes is what the writeback store had, adopted by a rename: a
//! layer over the version that it was written on, or a raw file. Nothing is copied, and a version is never written to again.
//!
//! ```text
//!   (nothing) ── draft ──▶ .draft-<id>.raw ── seal ──▶ <id>.raw
//!   <writebacks>/<instance>-<writeback>/ ── adopt ──▶ <id>/          the same folder, under another name
//! ```
//! Levels: `mod` → `versions` → `names`, [`crate::layers`] (reading through a chain of layers) → `files`.
//!
//! A link in the place of a version is served, like one in the place of a writeback, because an operator may have moved a large image to
//! another disk. The target of the link is never removed. A draft that is a link is rejected.
//!
//! Invariants: all file operations run on blocking threads and complete even if the caller's future is dropped; see `versions` for the
//! rest.

mod descriptor;
mod names;
#[cfg(test)]
#[cfg(all(feature = "writeback-layers", feature = "writeback-reflink"))]
mod tests;
mod versions;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use ggnet_core::{
    block::DiskForm,
    error::{Error, ErrorKind, Result},
    nouns::ImageVersionId,
    ports::{
        Frozen, Health, ImageCapabilities, ImageListed, ImageSpec, ImageStore, OpenImage, Removal, Sink,
        SinkForm,
    },
};

pub use self::descriptor::descriptor;
use self::versions::Versions;
use crate::{
    files::{Files, OsFiles, RAW_FILE, absolute, make_folder},
    layers::FAMILY,
    slots,
};

/// The store's name in the configuration and in errors.
pub const NAME: &str = "files";

/// The settings of the store.
#[derive(Clone, Debug)]
pub struct ImageFilesConfig {
    /// Its folder; created with mode 0700 if it does not exist. Only writebacks on the same file system can be adopted.
    pub dir: PathBuf,
}

/// The image store "files". See the module. Cheap to clone; all clones share one store.
#[derive(Clone)]
pub struct ImageFiles {
    inner: Arc<Inner>,
}

struct Inner {
    versions: Versions,
    closed: AtomicBool,
}

impl ImageFiles {
    /// Opens the store. Writes a little, so it must not run on a runtime thread if the disk may be slow.
    ///
    /// # Errors
    /// Those of the operating system for the folder.
    pub fn open(config: &ImageFilesConfig) -> Result<Self> {
        // Targets outside this process open the files, so paths must not depend on our working folder.
        let dir = absolute(&config.dir).and_then(|dir| make_folder(&dir).map(|()| dir));
        let in_context = |e: Error| e.with_backend(NAME).with_operation("open");
        let images = Self::open_over(Arc::new(OsFiles), dir.map_err(in_context)?);
        images.inner.versions.settle_names().map_err(in_context)?;
        Ok(images)
    }

    /// Like [`ImageFiles::open`], with any implementation of files.
    fn open_over(files: Arc<dyn Files>, dir: PathBuf) -> Self {
        let versions = Versions::new(files, dir);
        Self { inner: Arc::new(Inner { versions, closed: AtomicBool::new(false) }) }
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(
                Error::new(ErrorKind::Unavailable, format!("Backend {NAME} is shut down")).with_backend(NAME)
            );
        }
        Ok(())
    }

    /// Runs a file operation on a blocking thread. It completes even if this future is dropped.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        subject: &str,
        work: impl FnOnce(&Versions) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        slots::blocking(NAME, operation, subject, move || work(&inner.versions)).await
    }

    /// Like [`blocking`](Self::blocking), for one version, and not after the shutdown.
    async fn on<T: Send + 'static>(
        &self,
        operation: &'static str,
        id: ImageVersionId,
        work: impl FnOnce(&Versions) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        self.blocking(operation, &id.to_string(), work).await
    }
}

#[async_trait]
impl ImageStore for ImageFiles {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> ImageCapabilities {
        let mut capabilities = ImageCapabilities::new(SinkForm::File);
        capabilities.opens = vec![DiskForm::Blocks, DiskForm::File];
        capabilities.adopts = vec![FAMILY.to_owned(), RAW_FILE.to_owned()];
        capabilities
    }

    async fn draft(&self, spec: &ImageSpec) -> Result<Sink> {
        let wanted = spec.clone();
        self.on("draft", spec.id, move |versions| versions.draft(&wanted)).await
    }

    async fn seal(&self, spec: &ImageSpec) -> Result<ImageListed> {
        let wanted = spec.clone();
        self.on("seal", spec.id, move |versions| versions.seal(&wanted)).await
    }

    /// If the future is dropped, the file operations still complete, and keep the writeback frozen until then.
    async fn adopt(&self, spec: &ImageSpec, from: &Frozen) -> Result<ImageListed> {
        let (wanted, from) = (spec.clone(), from.clone());
        self.on("adopt", spec.id, move |versions| versions.adopt(&wanted, &from)).await
    }

    async fn open(&self, id: ImageVersionId, form: DiskForm) -> Result<OpenImage> {
        self.on("open", id, move |versions| versions.open(id, form)).await
    }

    async fn get(&self, id: ImageVersionId) -> Result<Option<ImageListed>> {
        self.on("get", id, move |versions| versions.get(id)).await
    }

    async fn list(&self) -> Result<Vec<ImageListed>> {
        self.check_open()?;
        self.blocking("list", "", Versions::list).await
    }

    async fn remove(&self, id: ImageVersionId, how: Removal) -> Result<()> {
        self.on("remove", id, move |versions| versions.remove(id, how)).await
    }

    async fn health(&self) -> Health {
        self.blocking("health", "", |versions| Ok(versions.health()))
            .await
            .unwrap_or_else(|e| Health::Down(e.to_string()))
    }

    /// Waits for calls in flight. An open version stays open until its holder closes it.
    async fn shutdown(&self) {
        self.inner.closed.store(true, Ordering::Release);
        let waited = self.blocking("shutdown", "", |versions| {
            versions.wait_for_calls();
            Ok(())
        });
        if let Err(e) = waited.await {
            tracing::error!(error = %e.report(), "shutdown did not wait for all calls in flight");
        }
    }
}

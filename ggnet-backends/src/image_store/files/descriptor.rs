//! The descriptor of the image store "files".

use std::{path::PathBuf, sync::Arc};

use ggnet_core::{
    Result,
    ports::ImageStore,
    registry::{Descriptor, Finding, Level, Settings, Wiring},
};

use super::{ImageFiles, ImageFilesConfig, NAME};
use crate::{files::opened, host};

/// The minimum free space for an import, in bytes.
const WANTED: u64 = 10 << 30;

/// The image store "files".
#[must_use]
pub fn descriptor() -> Descriptor<dyn ImageStore> {
    Descriptor::new(NAME, make)
        .summary("A file for each image version, or a layer over another version")
        .keys(&[])
        .check(check)
}

/// Always in the data folder, which is locked: the names of versions do not contain an instance, so two servers on one folder would remove
/// each other's versions.
fn dir(wiring: &Wiring) -> PathBuf {
    wiring.data_dir.join("images")
}

async fn make(wiring: Wiring, _: Settings) -> Result<Arc<dyn ImageStore>> {
    let config = ImageFilesConfig { dir: dir(&wiring) };
    Ok(Arc::new(opened(move || ImageFiles::open(&config)).await?))
}

async fn check(wiring: Wiring, _: Settings) -> Result<Vec<Finding>> {
    let dir = dir(&wiring);
    host::look(move || {
        let mut findings = vec![host::free_space(&dir, WANTED)];
        // A missing folder is created at start.
        if dir.exists() {
            findings.push(host::writable_folder(&dir, Level::Fail));
        }
        findings
    })
    .await
}

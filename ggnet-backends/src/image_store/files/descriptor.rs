//! What the image store "files" registers.

use std::{path::PathBuf, sync::Arc};

use ggnet_core::{
    Result,
    ports::ImageStore,
    registry::{Descriptor, Finding, Level, Settings, Wiring, settings},
};

use super::{ImageFiles, ImageFilesConfig, NAME};
use crate::{files::opened, host};

/// What an import needs at the least, in bytes.
const WANTED: u64 = 10 << 30;

/// The image store "files".
#[must_use]
pub fn descriptor() -> Descriptor<dyn ImageStore> {
    Descriptor::new(NAME, make)
        .summary("A file for each image version, or a layer over another version")
        .keys(&[("dir", "Where the versions stand; left out: images in the data folder")])
        .check(check)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// Where the versions stand.
    dir: Option<PathBuf>,
}

fn read(wiring: &Wiring, table: Settings) -> Result<ImageFilesConfig> {
    let table: Table = settings(NAME, table)?;
    Ok(ImageFilesConfig { dir: table.dir.unwrap_or_else(|| wiring.data_dir.join("images")) })
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn ImageStore>> {
    let config = read(&wiring, table)?;
    let images = opened(move || {
        let images = ImageFiles::open(&config)?;
        images.claim(&wiring.instance)?;
        Ok(images)
    });
    Ok(Arc::new(images.await?))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let dir = read(&wiring, table)?.dir;
    host::look(move || {
        let mut findings = vec![host::free_space(&dir, WANTED)];
        // One that is not there yet is made at the start.
        if dir.exists() {
            findings.push(host::writable_folder(&dir, Level::Fail));
        }
        findings
    })
    .await
}

//! The descriptor of the writeback store "reflink".

use std::{path::PathBuf, sync::Arc};

use ggnet_core::{
    Result,
    ports::WritebackStore,
    registry::{Descriptor, Finding, Level, Settings, Wiring, settings},
};

use super::{CopyMode, NAME, Reflink, ReflinkConfig};
use crate::{files::opened, host};

/// The writeback store "reflink".
#[must_use]
pub fn descriptor() -> Descriptor<dyn WritebackStore> {
    Descriptor::new(NAME, make)
        .summary("A private raw file for each session, for a target that takes files")
        .keys(&[
            ("dir", "The folder for the files; default: disks in the data folder"),
            ("copy", "\"reflink\", or \"full\": copy the image if its blocks cannot be shared; default: \"reflink\""),
        ])
        .check(check)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// The folder of the raw files.
    dir: Option<PathBuf>,
    /// What to do if the file system cannot share blocks.
    #[serde(default)]
    copy: CopyMode,
}

fn read(wiring: &Wiring, table: Settings) -> Result<(PathBuf, CopyMode)> {
    let table: Table = settings(NAME, table)?;
    Ok((table.dir.unwrap_or_else(|| wiring.data_dir.join("disks")), table.copy))
}

async fn make(wiring: Wiring, table: Settings) -> Result<Arc<dyn WritebackStore>> {
    let (dir, copy) = read(&wiring, table)?;
    let images = Some(wiring.data_dir.join("images"));
    let config = ReflinkConfig { dir, images, instance: wiring.instance, copy };
    Ok(Arc::new(opened(move || Reflink::open(config)).await?))
}

async fn check(wiring: Wiring, table: Settings) -> Result<Vec<Finding>> {
    let (disks, copy) = read(&wiring, table)?;
    let missing = if copy == CopyMode::Full { Level::Warn } else { Level::Fail };
    host::look(move || vec![host::reflinks(&wiring.data_dir.join("images"), &disks, missing)]).await
}

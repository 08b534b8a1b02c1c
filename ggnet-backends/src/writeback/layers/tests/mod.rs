//! Tests of the layers: `behaviour` runs the port's suite, `store` tests what the suite does not cover, `disk` compares the device with a
//! plain array and uses many threads, `power` tests power cuts on a simulated disk, `kill` kills a real process, `freeze` tests the end of
//! a disk's writes.

mod behaviour;
mod disk;
mod freeze;
mod kill;
mod power;
mod store;

use std::{
    io::{IoSlice, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::{
    block::{BlockDevice, Disk},
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{OpenImage, WritebackSpec},
};

use super::{Layers, LayersConfig, layer_folder::LayerFolder};
use crate::{
    files::{Files, Open, OsFiles, sim::numbered},
    layers::{chain::FrozenLayer, open_raw, raw::bytes_of},
};

/// A folder with a base image in it.
struct Room {
    tmp: tempfile::TempDir,
    instance: InstanceId,
    base: OpenImage,
}

impl Room {
    /// With a base of these bytes.
    fn new(bytes: &[u8]) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("base.raw");
        std::fs::File::create_new(&path).unwrap().write_all(bytes).unwrap();
        let base = open_raw(ImageVersionId::generate(), &path).unwrap();
        Self { tmp, instance: InstanceId::generate(), base }
    }

    /// The base's file.
    fn base_file(&self) -> PathBuf {
        self.tmp.path().join("base.raw")
    }

    fn dir(&self) -> PathBuf {
        self.tmp.path().join("writebacks")
    }

    fn config(&self) -> LayersConfig {
        LayersConfig { dir: self.dir(), instance: self.instance.clone() }
    }

    fn store(&self) -> Layers {
        Layers::open(self.config()).unwrap()
    }

    /// The layer folder as a kernel with that boot id sees it.
    fn layer_folder(&self, boot: &str) -> LayerFolder {
        OsFiles.create_dir(&self.dir()).unwrap();
        LayerFolder::open(Arc::new(OsFiles), self.dir(), self.instance.clone(), boot.to_owned()).unwrap()
    }

    fn spec(&self, id: &str) -> WritebackSpec {
        spec(id, &self.base)
    }

    fn home(&self, id: &str) -> PathBuf {
        self.dir().join(format!("{}-{id}", self.instance))
    }
}

fn spec(id: &str, base: &OpenImage) -> WritebackSpec {
    WritebackSpec { id: id.parse().unwrap(), version: base.id, size_bytes: base.size_bytes }
}

/// A version with these layers over it, from the topmost down. It keeps its id, because the name of a version does not concern a layer.
fn over(files: &dyn Files, base: &OpenImage, frozen: &[PathBuf]) -> std::io::Result<OpenImage> {
    let mut disk = bytes_of(base).unwrap();
    for dir in frozen.iter().rev() {
        disk = Arc::new(FrozenLayer::open(files, dir, disk)?);
    }
    Ok(OpenImage { disk: Disk::Blocks(disk), ..base.clone() })
}

fn id(name: &str) -> ResourceId {
    name.parse().unwrap()
}

fn blocks(disk: Disk) -> Arc<dyn BlockDevice> {
    match disk {
        Disk::Blocks(device) => device,
        other => panic!("layers hand out blocks, not {other:?}"),
    }
}

fn read(device: &dyn BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    // Not zeros, so that a read that does not fill a byte is visible.
    let mut buf = vec![0xEE; len];
    device.read_at(&mut buf, offset).unwrap();
    buf
}

//! Tests of the layers, by what they prove: `behaviour` the port's suite, `store` what the suite does not ask, `disk` the device against a plain array and under many
//! threads, `power` power cuts over a simulated disk, `kill` the death of a real process, `sim` the simulated disk itself.

mod behaviour;
mod disk;
mod kill;
mod power;
mod sim;
mod store;

use std::{
    io::{IoSlice, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ggnet_core::{
    block::{BlockDevice, Disk},
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{BaseImage, WritebackSpec},
};

use super::{
    Layers, LayersConfig,
    files::{Files, Open, OsFiles},
    shelf::Shelf,
};

/// A folder of its own with a base image in it.
struct Room {
    tmp: tempfile::TempDir,
    instance: InstanceId,
    base: BaseImage,
}

impl Room {
    /// With a base of these bytes.
    fn new(bytes: &[u8]) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("base.raw");
        std::fs::File::create_new(&path).unwrap().write_all(bytes).unwrap();
        let base = BaseImage { version: ImageVersionId::generate(), path, size_bytes: bytes.len() as u64 };
        Self { tmp, instance: InstanceId::generate(), base }
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

    /// The shelf as a kernel of that boot id sees it.
    fn shelf(&self, boot: &str) -> Shelf {
        OsFiles.create_dir(&self.dir()).unwrap();
        Shelf::open(Arc::new(OsFiles), self.dir(), self.instance.clone(), boot.to_owned()).unwrap()
    }

    fn spec(&self, id: &str) -> WritebackSpec {
        WritebackSpec { id: id.parse().unwrap(), base: self.base.clone() }
    }

    fn home(&self, id: &str) -> PathBuf {
        self.dir().join(format!("{}-{id}", self.instance))
    }
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
    // Not zeros: a read that leaves a byte alone must show.
    let mut buf = vec![0xEE; len];
    device.read_at(&mut buf, offset).unwrap();
    buf
}

/// Bytes that name their sector, so that a misplaced one shows.
fn numbered(sectors: u64, salt: u64) -> Vec<u8> {
    (0..sectors).map(|i| (salt << 32 | (i + 1)).to_le_bytes().repeat(64)).collect::<Vec<_>>().concat()
}

//! Tests of the image store: `store` tests the port's contract on real files, `cut` kills and power cuts at every step of sealing and
//! adoption, on the simulated disk.

mod cut;
mod store;

use std::sync::Arc;

use ggnet_core::{
    block::{BlockDevice, Disk, DiskForm},
    nouns::{ImageVersionId, ResourceId},
    ports::{ImageSpec, ImageStore as _, OpenImage, WritebackSpec, WritebackStore},
};

use super::{ImageFiles, ImageFilesConfig};

const SECTORS: u64 = 64;
const SIZE: u64 = SECTORS * 512;

fn id(name: &str) -> ResourceId {
    name.parse().unwrap()
}

/// A new version of the tests' size.
fn image() -> ImageSpec {
    ImageSpec::new(ImageVersionId::generate(), SIZE)
}

fn blocks(disk: Disk) -> Arc<dyn BlockDevice> {
    match disk {
        Disk::Blocks(device) => device,
        other => panic!("no blocks but {other:?}"),
    }
}

/// All bytes of a device.
fn all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut buf = vec![0xEE; usize::try_from(device.info().size_bytes).unwrap()];
    device.read_at(&mut buf, 0).unwrap();
    buf
}

/// All bytes of a version.
async fn bytes(images: &ImageFiles, version: ImageVersionId) -> Vec<u8> {
    all(&*blocks(images.open(version, DiskForm::Blocks).await.unwrap().disk))
}

fn over(name: &str, base: &OpenImage) -> WritebackSpec {
    WritebackSpec { id: id(name), version: base.id, size_bytes: base.size_bytes }
}

/// A writeback `a` over `base` with a sector of 7 at 1024; its disk is not held.
async fn written(store: &dyn WritebackStore, base: &OpenImage) {
    let disk = blocks(store.ensure(&over("a", base), base).await.unwrap());
    disk.write_at(&[7; 512], 1024).unwrap();
}

/// The expected content over these bytes.
fn with_write(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[1024..1536].fill(7);
    bytes
}

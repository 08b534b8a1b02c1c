//! A layer over an empty base as a disk of the iSCSI target: what machines get, for tests.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ggnet_backends::layers::open_raw;
use ggnet_backends::writeback::layers::{Layers, LayersConfig};
use ggnet_core::block::{self, Disk};
use ggnet_core::nouns::{ImageVersionId, InstanceId};
use ggnet_core::ports::{WritebackSpec, WritebackStore as _};
use ggnet_iscsi::{BlockDevice, BlockInfo, BlockRun};

/// A layer, addressed in logical blocks of this length.
pub struct LayerDisk {
    device: Arc<dyn block::BlockDevice>,
    /// Keeps the folder locked.
    _store: Layers,
    logical_block: u32,
}

impl LayerDisk {
    /// A new layer over a base of `size` zeros, all of it in `dir`.
    pub async fn new(dir: &Path, size: u64, logical_block: u32) -> Self {
        let path = dir.join("base.raw");
        std::fs::File::create_new(&path).unwrap().set_len(size).unwrap();
        let store =
            Layers::open(LayersConfig { dir: dir.join("writebacks"), instance: InstanceId::generate() })
                .unwrap();
        let base = open_raw(ImageVersionId::generate(), &path).unwrap();
        let spec = WritebackSpec { id: "disk.1".parse().unwrap(), version: base.id, size_bytes: size };
        let Disk::Blocks(device) = store.ensure(&spec, &base).await.unwrap() else {
            panic!("layers are blocks")
        };
        Self { device, _store: store, logical_block }
    }
}

impl BlockDevice for LayerDisk {
    fn info(&self) -> BlockInfo {
        let info = self.device.info();
        BlockInfo {
            size_bytes: info.size_bytes,
            logical_block: self.logical_block,
            physical_block: info.physical_block,
            read_only: info.read_only,
            volatile_cache: true,
            discard: info.discard,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.device.try_read_at(buf, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.device.read_at(buf, offset)
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.device.try_write_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.device.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let runs = self.device.block_status(offset, len, 1)?;
        Ok(runs.first().map_or(BlockRun { len, mapped: true }, |r| BlockRun { len: r.len, mapped: r.mapped }))
    }
}

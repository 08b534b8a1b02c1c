//! A core block device as the iscsi module's own: one call handed through for one, and trouble told to the observer.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ggnet_core::{
    block,
    nouns::ResourceId,
    ports::{Observation, Observer},
};

use crate::iscsi::{BlockDevice, BlockInfo, BlockRun};

/// A disk that is served, and whose errors an operator hears of.
pub(super) struct Served {
    device: Arc<dyn block::BlockDevice>,
    target: ResourceId,
    observer: Arc<dyn Observer>,
    /// Whether the last call failed: a disk in trouble is told once, not for every request, and again after it had recovered.
    trouble: AtomicBool,
}

impl Served {
    pub(super) fn new(
        device: Arc<dyn block::BlockDevice>,
        target: ResourceId,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self { device, target, observer, trouble: AtomicBool::new(false) }
    }

    fn told<T>(&self, doing: &str, result: io::Result<T>) -> io::Result<T> {
        match &result {
            // A plain load on the way that every request takes.
            Ok(_) if self.trouble.load(Ordering::Relaxed) => self.trouble.store(false, Ordering::Relaxed),
            Ok(_) => {}
            Err(e) => {
                if !self.trouble.swap(true, Ordering::Relaxed) {
                    let what = match e.kind() {
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                            "the server's disk is full; free some space, and the machine goes on".to_owned()
                        }
                        _ => e.to_string(),
                    };
                    let message = format!("{doing}: {what}");
                    tracing::error!(target = %self.target, %message, "disk trouble");
                    self.observer.observe(Observation::DiskTrouble { target: self.target.clone(), message });
                }
            }
        }
        result
    }
}

impl BlockDevice for Served {
    fn info(&self) -> BlockInfo {
        let info = self.device.info();
        BlockInfo {
            size_bytes: info.size_bytes,
            logical_block: info.logical_block,
            physical_block: info.physical_block,
            read_only: info.read_only,
            volatile_cache: !info.read_only,
            discard: info.discard,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.told("reading", self.device.try_read_at(buf, offset))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.told("reading", self.device.read_at(buf, offset))
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.told("writing", self.device.try_write_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.told("writing", self.device.write_at(buf, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.told("flushing", self.device.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.told("discarding", self.device.discard(offset, len))
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let runs = self.told("asking for block status", self.device.block_status(offset, len, 1))?;
        let first = runs
            .first()
            .map_or(BlockRun { len, mapped: true }, |r| BlockRun { len: r.len, mapped: r.mapped });
        Ok(first)
    }
}

//! [`Layer`]: the files of a mutable layer, its map in memory, and whether the disk still works.
//!
//! Invariant: after a failed fsync or a removal, [`Layer::alive`] always returns an error.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use ggnet_core::nouns::ResourceId;

use super::{
    format::{FAILED_MARK, FAILED_OFFSET},
    map::BlockMap,
};
use crate::files::RawFile;

/// Whether a disk still works; shared with the store, so that its health can be read without holding the disk.
#[derive(Debug, Default)]
pub(crate) struct Status(AtomicU8);

impl Status {
    const FAILED: u8 = 1;
    const REMOVED: u8 = 2;

    /// Whether an fsync failed.
    pub(crate) fn failed(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::FAILED
    }

    /// Makes every later call fail.
    pub(crate) fn remove(&self) {
        self.0.store(Self::REMOVED, Ordering::Release);
    }

    fn fail(&self) {
        // A removed disk stays removed.
        let _ = self.0.compare_exchange(0, Self::FAILED, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// See the module.
pub(crate) struct Layer {
    pub(crate) id: ResourceId,
    pub(crate) data: Arc<dyn RawFile>,
    pub(crate) hot: Arc<dyn RawFile>,
    pub(crate) map: BlockMap,
    pub(crate) status: Arc<Status>,
    /// Whether there are changes that no flush has made durable yet; set before a request is acknowledged.
    pub(crate) unsynced: AtomicBool,
}

impl Layer {
    pub(crate) fn new(id: ResourceId, data: Arc<dyn RawFile>, hot: Arc<dyn RawFile>, map: BlockMap) -> Self {
        // Data that an earlier process of ours acknowledged may not be on disk yet.
        Self { id, data, hot, map, status: Arc::default(), unsynced: AtomicBool::new(true) }
    }

    /// An error if the disk failed or was removed.
    pub(crate) fn alive(&self) -> io::Result<()> {
        match self.status.0.load(Ordering::Acquire) {
            0 => Ok(()),
            Status::FAILED => Err(io::Error::other(format!(
                "Writeback {} could not be written to its disk once, so it is not used any more",
                self.id
            ))),
            _ => Err(io::Error::other(format!("Writeback {} was removed", self.id))),
        }
    }

    /// Makes it fail permanently, also for the next process of ours under this kernel.
    pub(crate) fn fail(&self) {
        self.status.fail();
        let marked = self.hot.write_at(&mut [IoSlice::new(FAILED_MARK)], FAILED_OFFSET);
        tracing::error!(writeback = %self.id, ?marked, "fsync failed: from now on the disk reports medium errors");
    }
}

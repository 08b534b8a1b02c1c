//! Adapts a core block device to `ggnet-iscsi`: passes each call through, and reports errors to the observer.
//!
//! The size is read from the device each time, so that the target follows its growth without a notification.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ggnet_core::{
    block,
    nouns::ResourceId,
    ports::{Observation, Observer},
};
use ggnet_iscsi::{BlockDevice, BlockInfo, BlockRun};

/// How often a busy disk is reported: its initiator retries many times per second.
const BUSY_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// A served disk whose errors are reported to the operator.
pub(super) struct ObservedDevice {
    device: Arc<dyn block::BlockDevice>,
    target: ResourceId,
    observer: Arc<dyn Observer>,
    /// Whether the last call failed: a failing disk is reported once, not for every request, and again after it had recovered.
    trouble: AtomicBool,
    /// When it was last reported that the disk is busy.
    busy_reported: Mutex<Option<Instant>>,
}

impl ObservedDevice {
    pub(super) fn new(
        device: Arc<dyn block::BlockDevice>,
        target: ResourceId,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self { device, target, observer, trouble: AtomicBool::new(false), busy_reported: Mutex::default() }
    }

    fn report_failure<T>(&self, doing: &str, result: io::Result<T>) -> io::Result<T> {
        match &result {
            // A plain load, because every request passes here.
            Ok(_) if self.trouble.load(Ordering::Relaxed) => self.trouble.store(false, Ordering::Relaxed),
            Ok(_) => {}
            // Not a disk error: a success in between does not clear it, and it does not hide a later disk error.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => self.busy(doing, e),
            Err(e) => {
                if !self.trouble.swap(true, Ordering::Relaxed) {
                    let what = match e.kind() {
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                            "the server's disk is full; free some space, then the machine continues"
                                .to_owned()
                        }
                        _ => e.to_string(),
                    };
                    let message = format!("{doing}: {what}");
                    tracing::error!(target = %self.target, %message, "disk error");
                    self.observer.observe(Observation::DiskTrouble { target: self.target.clone(), message });
                }
            }
        }
        result
    }

    fn busy(&self, doing: &str, e: &io::Error) {
        let mut last = self.busy_reported.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < BUSY_REPORT_INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        let message = format!("{doing}: not possible now ({e}); the machine will retry");
        tracing::warn!(target = %self.target, %message, "disk busy");
        self.observer.observe(Observation::DiskTrouble { target: self.target.clone(), message });
    }
}

impl BlockDevice for ObservedDevice {
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
        self.report_failure("reading", self.device.try_read_at(buf, offset))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.report_failure("reading", self.device.read_at(buf, offset))
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        self.report_failure("writing", self.device.try_write_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.report_failure("writing", self.device.write_at(buf, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.report_failure("flushing", self.device.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.report_failure("discarding", self.device.discard(offset, len))
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        let runs = self.report_failure("reading block status", self.device.block_status(offset, len, 1))?;
        let first = runs
            .first()
            .map_or(BlockRun { len, mapped: true }, |r| BlockRun { len: r.len, mapped: r.mapped });
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use ggnet_core::testkit::memory::RamDisk;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn observe(&self, observation: Observation) {
            if let Observation::DiskTrouble { message, .. } = observation {
                self.0.lock().unwrap().push(message);
            }
        }
    }

    fn served(disk: &Arc<RamDisk>) -> (ObservedDevice, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        let device: Arc<dyn block::BlockDevice> = disk.clone();
        (ObservedDevice::new(device, "pc-1".parse().unwrap(), heard.clone()), heard)
    }

    #[test]
    fn a_busy_disk_is_told_of_once_and_its_error_is_handed_on() {
        let disk = Arc::new(RamDisk::zeros(4096));
        let (served, heard) = served(&disk);
        for _ in 0..3 {
            disk.be_busy(1);
            let e = served.write_at(&[1; 512], 0).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::ResourceBusy);
            served.write_at(&[1; 512], 0).unwrap();
        }
        // Other errors are still reported.
        assert!(served.read_at(&mut [0; 512], 4096).is_err());
        let heard = heard.0.lock().unwrap();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains("the machine will retry"), "{heard:?}");
    }

    #[test]
    fn growth_of_the_disk_is_growth_of_what_is_served() {
        let disk = Arc::new(RamDisk::zeros(4096));
        let (served, _) = served(&disk);
        assert_eq!(served.info().size_bytes, 4096);
        disk.grow(8192);
        assert_eq!(served.info().size_bytes, 8192);
    }
}

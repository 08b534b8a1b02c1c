//! A disk in memory that can be made to wait, to fail, to ask for another try and to grow.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, RwLock};

use ggnet_iscsi::{BlockDevice, BlockInfo, BlockRun};

/// A disk in memory.
pub struct MemDisk {
    /// What is on it. Its length is the disk's; the target notices when it grows.
    pub data: RwLock<Vec<u8>>,
    block: u32,
    /// Decline every `try_` call, so that everything runs as a job.
    pub decline: AtomicBool,
    /// Jobs wait until this is false.
    held: Mutex<bool>,
    released: Condvar,
    /// Jobs that wait now.
    pub waiting: AtomicU32,
    pub full: AtomicBool,
    pub broken: AtomicBool,
    /// Device calls that still succeed, and how many after them say `ResourceBusy`.
    busy: Mutex<(u32, u32)>,
    pub flushes: AtomicUsize,
    /// Device calls that write, ever.
    pub writes: AtomicUsize,
    /// Device calls that read and may block, ever.
    pub reads: AtomicUsize,
}

impl MemDisk {
    pub fn new(bytes: usize, block: u32) -> Arc<Self> {
        Arc::new(Self {
            data: RwLock::new(vec![0; bytes]),
            block,
            decline: AtomicBool::new(false),
            held: Mutex::new(false),
            released: Condvar::new(),
            waiting: AtomicU32::new(0),
            full: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            busy: Mutex::default(),
            flushes: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        })
    }

    pub fn hold(&self, on: bool) {
        *self.held.lock().unwrap() = on;
        self.released.notify_all();
    }

    /// After `after` more device calls that touch the medium, `calls` of them are not possible now.
    pub fn be_busy(&self, after: u32, calls: u32) {
        *self.busy.lock().unwrap() = (after, calls);
    }

    /// Whether calls are still to be told so.
    pub fn is_busy(&self) -> bool {
        self.busy.lock().unwrap().1 > 0
    }

    fn not_busy(&self) -> io::Result<()> {
        match &mut *self.busy.lock().unwrap() {
            (_, 0) => Ok(()),
            (0, calls) => {
                *calls -= 1;
                Err(io::ErrorKind::ResourceBusy.into())
            }
            (after, _) => {
                *after -= 1;
                Ok(())
            }
        }
    }

    fn wait(&self) {
        let mut held = self.held.lock().unwrap();
        self.waiting.fetch_add(1, SeqCst);
        while *held {
            held = self.released.wait(held).unwrap();
        }
        self.waiting.fetch_sub(1, SeqCst);
    }

    fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
        let offset = usize::try_from(offset).unwrap();
        offset..offset + len
    }

    fn get(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.not_busy()?;
        if self.broken.load(SeqCst) {
            return Err(io::Error::other("broken"));
        }
        buf.copy_from_slice(&self.data.read().unwrap()[Self::range(offset, buf.len())]);
        Ok(())
    }

    fn put(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!(
            (offset % u64::from(self.block), buf.len() % self.block as usize),
            (0, 0),
            "unaligned write"
        );
        self.not_busy()?;
        if self.full.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.broken.load(SeqCst) {
            return Err(io::Error::other("broken"));
        }
        self.writes.fetch_add(1, SeqCst);
        self.data.write().unwrap()[Self::range(offset, buf.len())].copy_from_slice(buf);
        Ok(())
    }
}

impl BlockDevice for MemDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            size_bytes: self.data.read().unwrap().len() as u64,
            logical_block: self.block,
            physical_block: self.block,
            read_only: false,
            volatile_cache: true,
            discard: true,
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        if self.decline.load(SeqCst) {
            // The contract leaves the buffer undefined: make that visible.
            buf.fill(0xee);
            return Ok(false);
        }
        self.get(buf, offset).map(|()| true)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, SeqCst);
        self.wait();
        self.get(buf, offset)
    }

    fn try_write_at(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        if self.decline.load(SeqCst) {
            return Ok(false);
        }
        self.put(buf, offset).map(|()| true)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.wait();
        self.put(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.not_busy()?;
        if self.broken.load(SeqCst) {
            return Err(io::Error::other("broken"));
        }
        self.flushes.fetch_add(1, SeqCst);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.not_busy()?;
        self.data.write().unwrap()[Self::range(offset, usize::try_from(len).unwrap())].fill(0);
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> io::Result<BlockRun> {
        self.not_busy()?;
        let block = self.block as usize;
        let data = self.data.read().unwrap();
        let rest = &data[Self::range(offset, usize::try_from(len).unwrap())];
        let empty = |b: &[u8]| b.iter().all(|x| *x == 0);
        let mapped = !empty(&rest[..block]);
        let run = rest.chunks(block).take_while(|b| empty(b) != mapped).count() * block;
        Ok(BlockRun { len: run as u64, mapped })
    }
}

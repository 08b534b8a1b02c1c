//! A logical unit: a block device, its identifiers, and the state that sessions share.
//!
//! Invariants:
//! * the hot path reads only atomics and the device's `info`: unit attentions per nexus, the reserved flag, the mode bits, the size;
//! * every write to the device holds `gate` shared; COMPARE AND WRITE and ORWRITE hold it exclusively, so that they are atomic to all other
//!   writes of this unit. After `gate` was taken exclusively, all earlier writes have ended;
//! * identifiers depend only on the configuration, and on nothing that changes with a boot;
//! * the size only grows. It is checked when a command or a session starts, because an initiator gets a unit attention with its next
//!   command and not before: a notification by the owner would have to do the same, and could be forgotten.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::super::block::{BlockDevice, BlockInfo};
use super::super::{Identity, Lun};
use super::nexus::{Attention, Nexus};
use super::reservations::Reservations;

/// A logical unit of one target.
pub(crate) struct LogicalUnit {
    /// Its number.
    pub(crate) number: u16,
    /// The disk.
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Its identifiers.
    pub(crate) identity: Identity,
    /// The target's name, for the port designators.
    pub(crate) target: Arc<str>,
    read_only: bool,
    shift: u32,
    blocks: AtomicU64,
    /// Makes COMPARE AND WRITE and ORWRITE atomic: see the header of this file.
    pub(crate) gate: RwLock<()>,
    /// D_SENSE: descriptor format sense.
    pub(crate) d_sense: AtomicBool,
    /// SWP: software write protect.
    pub(crate) software_protect: AtomicBool,
    /// WCE: acknowledged writes may be volatile until a flush. Off: every write is flushed.
    pub(crate) write_cache: AtomicBool,
    /// A removable medium.
    pub(crate) removable: bool,
    /// The medium was ejected.
    pub(crate) ejected: AtomicBool,
    reserved: AtomicBool,
    reservations: Mutex<Reservations>,
    nexuses: Mutex<Vec<Arc<Nexus>>>,
}

impl LogicalUnit {
    pub(crate) fn new(lun: Lun, target: Arc<str>) -> Self {
        let info = lun.device.info();
        let shift = info.logical_block.trailing_zeros();
        Self {
            number: lun.number,
            identity: lun.identity,
            target,
            read_only: lun.read_only || info.read_only,
            shift,
            blocks: AtomicU64::new(info.size_bytes >> shift),
            gate: RwLock::new(()),
            d_sense: AtomicBool::new(false),
            software_protect: AtomicBool::new(false),
            write_cache: AtomicBool::new(info.volatile_cache),
            removable: lun.removable,
            ejected: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            reservations: Mutex::default(),
            nexuses: Mutex::default(),
            device: lun.device,
        }
    }

    pub(crate) fn info(&self) -> BlockInfo {
        self.device.info()
    }

    /// Its number of logical blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Log2 of the logical block's length.
    pub(crate) fn shift(&self) -> u32 {
        self.shift
    }

    /// Bytes of a logical block.
    pub(crate) fn block_len(&self) -> usize {
        1 << self.shift
    }

    /// Read-only by configuration or by the device, or protected by MODE SELECT.
    pub(crate) fn write_protected(&self) -> bool {
        self.read_only || self.software_protect.load(Ordering::Relaxed)
    }

    /// Read-only, whatever MODE SELECT sets.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a write must be flushed before it is acknowledged.
    pub(crate) fn write_through(&self) -> bool {
        !self.write_cache.load(Ordering::Relaxed)
    }

    /// Checks the device's size. If it has grown, the new size is used, and every nexus gets a unit attention (SBC-4: CAPACITY DATA HAS
    /// CHANGED).
    pub(crate) fn notice_growth(&self) {
        let now = self.info().size_bytes >> self.shift;
        // Most often a plain load. One of several that see the growth at once is the one that raises.
        if now > self.blocks() && self.blocks.fetch_max(now, Ordering::AcqRel) < now {
            self.raise_all(Attention::CapacityChanged);
        }
    }

    /// A session begins; it gets the current size and no unit attention for earlier growth.
    pub(crate) fn attach(&self, nexus: &Arc<Nexus>) {
        self.notice_growth();
        lock(&self.nexuses).push(Arc::clone(nexus));
    }

    /// A session has ended: its RESERVE ends with it, its registration stays.
    pub(crate) fn detach(&self, nexus: &Arc<Nexus>) {
        lock(&self.nexuses).retain(|n| !Arc::ptr_eq(n, nexus));
        self.with_reservations(|r| r.release_simple(&nexus.port));
    }

    pub(crate) fn raise_all(&self, what: Attention) {
        for nexus in lock(&self.nexuses).iter() {
            nexus.raise(what);
        }
    }

    /// Raises a unit attention at every nexus for which `who` is true.
    pub(crate) fn raise_where(&self, what: Attention, who: impl Fn(&Nexus) -> bool) {
        for nexus in lock(&self.nexuses).iter().filter(|n| who(n)) {
            nexus.raise(what);
        }
    }

    /// Whether any initiator prevents medium removal.
    pub(crate) fn removal_prevented(&self) -> bool {
        lock(&self.nexuses).iter().any(|n| n.prevents.load(Ordering::Relaxed))
    }

    /// A reset as defined by SAM: simple reservations and changed modes end, persistent reservations stay, every nexus gets a unit
    /// attention.
    pub(crate) fn reset(&self, what: Attention) {
        self.with_reservations(Reservations::reset);
        self.d_sense.store(false, Ordering::Relaxed);
        self.software_protect.store(false, Ordering::Relaxed);
        self.write_cache.store(self.info().volatile_cache, Ordering::Relaxed);
        lock(&self.nexuses).iter().for_each(|n| n.prevents.store(false, Ordering::Relaxed));
        self.raise_all(what);
    }

    /// Whether there is any reservation; read by the hot path.
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.load(Ordering::Acquire)
    }

    /// Reads or changes the reservations, and updates the flag of the hot path.
    pub(crate) fn with_reservations<T>(&self, f: impl FnOnce(&mut Reservations) -> T) -> T {
        let mut r = lock(&self.reservations);
        let out = f(&mut r);
        self.reserved.store(r.any(), Ordering::Release);
        out
    }
}

/// Locks; a poisoned lock means that another task panicked, and the data here is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

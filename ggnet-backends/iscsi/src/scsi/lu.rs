//! A logical unit: a block device, what it is called, and the state that sessions share.
//!
//! Invariants:
//! * the hot path reads atomics and the device's `info` only: attention per nexus, the reserved flag, the mode bits, the size;
//! * every write to the device holds `gate` shared, COMPARE AND WRITE and ORWRITE hold it alone, so that they are atomic
//!   to all other writes of this unit; whoever takes it alone afterwards knows that earlier writes have ended;
//! * identifiers depend on what the owner configured and on nothing that changes with a boot;
//! * the size only grows. It is looked at when a command or a session comes, because an initiator hears of an attention with its
//!   next command and not before: a notification by the owner would have to reach the same place, and could be forgotten.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::super::block::{BlockDevice, BlockInfo};
use super::super::{Identity, Lun};
use super::copy::CopyResults;
use super::reserve::Reservations;
use super::sense::Sense;

/// An initiator port: who reserves and registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// The initiator's name.
    pub(crate) name: Arc<str>,
    /// Its session id.
    pub(crate) isid: [u8; 6],
}

/// Conditions that a nexus has to be told of, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Attention {
    /// TARGET COLD RESET.
    PowerOn = 1,
    /// LOGICAL UNIT RESET or TARGET WARM RESET.
    Reset = 1 << 1,
    /// Tasks were ended by another initiator.
    CommandsCleared = 1 << 2,
    /// PERSISTENT RESERVE OUT with PREEMPT took the registration.
    RegistrationsPreempted = 1 << 3,
    /// ... with CLEAR took everything.
    ReservationsPreempted = 1 << 4,
    /// ... released a reservation this nexus had a part in.
    ReservationsReleased = 1 << 5,
    /// MODE SELECT by another initiator.
    ModeChanged = 1 << 6,
    /// The size has grown.
    CapacityChanged = 1 << 7,
    /// The medium was taken out and put back.
    MediumChanged = 1 << 8,
}

const ATTENTIONS: [(Attention, Sense); 9] = [
    (Attention::PowerOn, Sense::attention(0x29, 0x01)),
    (Attention::Reset, Sense::attention(0x29, 0x03)),
    (Attention::CommandsCleared, Sense::attention(0x2f, 0x00)),
    (Attention::RegistrationsPreempted, Sense::attention(0x2a, 0x05)),
    (Attention::ReservationsPreempted, Sense::attention(0x2a, 0x03)),
    (Attention::ReservationsReleased, Sense::attention(0x2a, 0x04)),
    (Attention::ModeChanged, Sense::attention(0x2a, 0x01)),
    (Attention::CapacityChanged, Sense::attention(0x2a, 0x09)),
    (Attention::MediumChanged, Sense::attention(0x28, 0x00)),
];

/// One session's relation to one logical unit (an I_T_L nexus).
#[derive(Debug)]
pub(crate) struct Nexus {
    /// Who it is.
    pub(crate) port: Port,
    pending: AtomicU32,
    /// Wants the medium kept in (PREVENT ALLOW MEDIUM REMOVAL).
    pub(crate) prevents: AtomicBool,
    /// Results of finished copies that were not fetched yet.
    pub(crate) copies: Mutex<CopyResults>,
}

impl Nexus {
    pub(crate) fn new(port: Port) -> Self {
        Self { port, pending: AtomicU32::new(0), prevents: AtomicBool::new(false), copies: Mutex::default() }
    }

    pub(crate) fn raise(&self, what: Attention) {
        self.pending.fetch_or(what as u32, Ordering::AcqRel);
    }

    /// Whether anything is pending: the hot path's question.
    pub(crate) fn has_attention(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// Takes the most important pending condition.
    pub(crate) fn take_attention(&self) -> Option<Sense> {
        let pending = self.pending.load(Ordering::Acquire);
        let (what, sense) = ATTENTIONS.iter().find(|(a, _)| pending & *a as u32 != 0)?;
        self.pending.fetch_and(!(*what as u32), Ordering::AcqRel);
        Some(*sense)
    }
}

/// A logical unit of one target.
pub(crate) struct LogicalUnit {
    /// Its number.
    pub(crate) number: u16,
    /// What it stands on.
    pub(crate) device: Arc<dyn BlockDevice>,
    /// What it is called.
    pub(crate) identity: Identity,
    /// The target's name, for the port designators.
    pub(crate) target: Arc<str>,
    read_only: bool,
    shift: u32,
    blocks: AtomicU64,
    /// See the module's words.
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

    /// Logical blocks it has.
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

    /// Configured or made read-only, or protected by MODE SELECT.
    pub(crate) fn write_protected(&self) -> bool {
        self.read_only || self.software_protect.load(Ordering::Relaxed)
    }

    /// Never writable, whatever MODE SELECT says.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a write must be flushed before it is acknowledged.
    pub(crate) fn write_through(&self) -> bool {
        !self.write_cache.load(Ordering::Relaxed)
    }

    /// Looks at the device's size. Once it has grown the new size counts, and every nexus is to hear of it (SBC-4: CAPACITY DATA
    /// HAS CHANGED).
    pub(crate) fn notice_growth(&self) {
        let now = self.info().size_bytes >> self.shift;
        // Most often a plain load. One of several that see the growth at once is the one that raises.
        if now > self.blocks() && self.blocks.fetch_max(now, Ordering::AcqRel) < now {
            self.raise_all(Attention::CapacityChanged);
        }
    }

    /// A session begins: to it the size has always been what it is now.
    pub(crate) fn attach(&self, nexus: &Arc<Nexus>) {
        self.notice_growth();
        lock(&self.nexuses).push(Arc::clone(nexus));
    }

    /// The session has ended: its RESERVE is gone with it, its registration stays.
    pub(crate) fn detach(&self, nexus: &Arc<Nexus>) {
        lock(&self.nexuses).retain(|n| !Arc::ptr_eq(n, nexus));
        self.with_reservations(|r| r.nexus_lost(nexus));
    }

    pub(crate) fn raise_all(&self, what: Attention) {
        for nexus in lock(&self.nexuses).iter() {
            nexus.raise(what);
        }
    }

    /// Raises at every nexus for which `who` holds.
    pub(crate) fn raise_where(&self, what: Attention, who: impl Fn(&Nexus) -> bool) {
        for nexus in lock(&self.nexuses).iter().filter(|n| who(n)) {
            nexus.raise(what);
        }
    }

    /// Whether any initiator wants the medium kept in.
    pub(crate) fn removal_prevented(&self) -> bool {
        lock(&self.nexuses).iter().any(|n| n.prevents.load(Ordering::Relaxed))
    }

    /// A reset as SAM means it: simple reservations and changed modes go, persistent ones stay, everybody is told.
    pub(crate) fn reset(&self, what: Attention) {
        self.with_reservations(Reservations::reset);
        self.d_sense.store(false, Ordering::Relaxed);
        self.software_protect.store(false, Ordering::Relaxed);
        self.write_cache.store(self.info().volatile_cache, Ordering::Relaxed);
        lock(&self.nexuses).iter().for_each(|n| n.prevents.store(false, Ordering::Relaxed));
        self.raise_all(what);
    }

    /// Whether any reservation stands: the hot path's question.
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.load(Ordering::Acquire)
    }

    /// Looks at or changes the reservations; keeps the hot path's flag true.
    pub(crate) fn with_reservations<T>(&self, f: impl FnOnce(&mut Reservations) -> T) -> T {
        let mut r = lock(&self.reservations);
        let out = f(&mut r);
        self.reserved.store(r.any(), Ordering::Release);
        out
    }
}

/// Locks; a poisoned lock means a panic elsewhere, and the data here is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A session's relation to one logical unit (an I_T_L nexus), and the conditions that must be reported to it.
//!
//! Invariants: conditions are reported one at a time, the most important first (unit attention, SAM-5); results of copies are kept until
//! they are fetched once, and only for a few lists.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sense::Sense;

/// An initiator port, which reserves and registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// The initiator's name.
    pub(crate) name: Arc<str>,
    /// Its session id.
    pub(crate) isid: [u8; 6],
}

/// Conditions that must be reported to a nexus, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Attention {
    /// TARGET COLD RESET.
    PowerOn = 1,
    /// LOGICAL UNIT RESET or TARGET WARM RESET.
    Reset = 1 << 1,
    /// Another initiator aborted tasks.
    CommandsCleared = 1 << 2,
    /// PERSISTENT RESERVE OUT with PREEMPT removed the registration.
    RegistrationsPreempted = 1 << 3,
    /// ... with CLEAR removed everything.
    ReservationsPreempted = 1 << 4,
    /// ... released a reservation in which this nexus had a part.
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

/// One session's relation to one logical unit.
#[derive(Debug)]
pub(crate) struct Nexus {
    /// Its initiator port.
    pub(crate) port: Port,
    pending: AtomicU32,
    /// Whether it prevents medium removal (PREVENT ALLOW MEDIUM REMOVAL).
    pub(crate) prevents: AtomicBool,
    copies: Mutex<CopyResults>,
}

impl Nexus {
    pub(crate) fn new(port: Port) -> Self {
        Self { port, pending: AtomicU32::new(0), prevents: AtomicBool::new(false), copies: Mutex::default() }
    }

    pub(crate) fn raise(&self, what: Attention) {
        self.pending.fetch_or(what as u32, Ordering::AcqRel);
    }

    /// Whether any condition is pending; read by the hot path.
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

    /// Results of finished copies that were not fetched yet.
    pub(crate) fn copies(&self) -> MutexGuard<'_, CopyResults> {
        // Every step under it leaves a valid list.
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyResult {
    /// The list's identifier.
    pub(crate) list: u8,
    pub(crate) failed: bool,
    /// Segments that were copied.
    pub(crate) segments: u16,
    pub(crate) bytes: u64,
}

/// Results that were not fetched yet.
#[derive(Debug, Default)]
pub(crate) struct CopyResults(Vec<CopyResult>);

/// Maximum number of results; the oldest is dropped first.
const MAX_RESULTS: usize = 16;

impl CopyResults {
    pub(crate) fn take(&mut self, list: u8) -> Option<CopyResult> {
        let at = self.0.iter().position(|r| r.list == list)?;
        Some(self.0.remove(at))
    }

    pub(crate) fn keep(&mut self, result: CopyResult) {
        self.take(result.list);
        if self.0.len() == MAX_RESULTS {
            self.0.remove(0);
        }
        self.0.push(result);
    }
}

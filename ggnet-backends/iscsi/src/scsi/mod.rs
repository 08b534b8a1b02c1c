//! The SCSI device: commands against a logical unit (SPC-4, SBC-3).
//!
//! ```text
//!  CDB ── decode ──▶ Reply          answered at once
//!                    Read           data straight from the device into the socket's buffer
//!                    Write          data straight from the socket's buffer into the device
//!                    Out(action)    wait for all data, then run the action
//!                    Run(action)    run the action
//! ```
//!
//! Invariants: `decode` never blocks and never accesses the medium; an [`Action`] may do both and therefore runs on the blocking pool
//! unless [`Action::quick`]; neither panics on any CDB or parameter list. A command that ends with BUSY can be sent again and then has the
//! effect that it would have had.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use self::lu::LogicalUnit;
use self::nexus::Nexus;
use self::opcodes::{Command, Opcode};
use self::sense::{Sense, status};
use super::bytes::{be16, be32, index, u8at};
use super::workers::Cancel;

pub(crate) mod capacity;
pub(crate) mod copy;
pub(crate) mod inquiry;
pub(crate) mod lu;
pub(crate) mod mode;
pub(crate) mod nexus;
pub(crate) mod opcodes;
pub(crate) mod provision;
pub(crate) mod read_write;
pub(crate) mod removable;
pub(crate) mod reservations;
pub(crate) mod reserve;
pub(crate) mod sense;
pub(crate) mod supported;
pub(crate) mod vpd;

/// The result of a command: status, sense data if it failed, data if it has any.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u8,
    pub(crate) sense: Option<Sense>,
    pub(crate) data: Vec<u8>,
}

impl Reply {
    pub(crate) fn good() -> Self {
        Self { status: status::GOOD, sense: None, data: Vec::new() }
    }

    /// Parameter data, cut to the allocation length.
    pub(crate) fn data(mut data: Vec<u8>, allocation: usize) -> Self {
        data.truncate(allocation);
        Self { data, ..Self::good() }
    }

    pub(crate) fn check(sense: Sense) -> Self {
        Self { status: status::CHECK_CONDITION, sense: Some(sense), data: Vec::new() }
    }

    pub(crate) fn conflict() -> Self {
        Self { status: status::RESERVATION_CONFLICT, sense: None, data: Vec::new() }
    }

    pub(crate) fn task_set_full() -> Self {
        Self { status: status::TASK_SET_FULL, sense: None, data: Vec::new() }
    }

    /// The device cannot do it now: the initiator should send the command again (SAM-5 section 5.3.1).
    fn busy() -> Self {
        Self { status: status::BUSY, sense: None, data: Vec::new() }
    }

    /// The reply to a failed read.
    pub(crate) fn read_failed(error: &io::Error) -> Self {
        if is_busy(error) { Self::busy() } else { Self::check(Sense::UNRECOVERED_READ) }
    }

    /// The reply to a failed write, flush or discard.
    pub(crate) fn write_failed(error: &io::Error) -> Self {
        if is_busy(error) { Self::busy() } else { Self::check(Sense::from_write(error)) }
    }
}

/// Whether the device asks for another attempt.
pub(crate) fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

impl From<Sense> for Reply {
    fn from(sense: Sense) -> Self {
        Self::check(sense)
    }
}

/// What a CDB requests.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Answer now.
    Reply(Reply),
    /// Send this range of the device; offset and length in bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Write the data here; offset and length in bytes.
    Write {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Flush before the status.
        flush: bool,
    },
    /// Collect `len` bytes, then run the action on them.
    Out {
        /// Bytes of the parameter list or of the data.
        len: usize,
        /// What to do with them.
        action: Action,
    },
    /// Run the action.
    Run(Action),
}

/// Work that needs data, or the medium, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Flush,
    Unmap,
    WriteSame { lba: u64, count: u64, unmap: bool, zeros: bool },
    CompareAndWrite { lba: u64, count: u64, flush: bool },
    OrWrite { lba: u64, count: u64, flush: bool },
    Verify { lba: u64, count: u64, one_block: bool },
    LbaStatus { lba: u64, allocation: usize },
    ModeSelect { ten: bool, page_format: bool },
    PersistentReserve { action: u8, kind: u8 },
    ExtendedCopy,
}

impl Action {
    /// Whether it accesses neither the medium nor anything that waits, so that it can run at once.
    pub(crate) fn quick(self) -> bool {
        match self {
            Self::ModeSelect { .. } => true,
            Self::PersistentReserve { action, .. } => action != 5,
            _ => false,
        }
    }

    /// Whether the initiator must announce exactly the length that the CDB requests: with another length, the two contradict each other.
    pub(crate) fn exact(self) -> bool {
        matches!(self, Self::WriteSame { .. } | Self::CompareAndWrite { .. } | Self::OrWrite { .. })
    }

    /// Executes it. `units` are all logical units of the target, for copies between them. A command over many blocks ends early if it is
    /// cancelled.
    pub(crate) fn run(
        self,
        lu: &LogicalUnit,
        nexus: &Nexus,
        units: &Units,
        data: &[u8],
        cancel: &Cancel,
    ) -> Reply {
        match self {
            Self::Flush => read_write::flush(lu),
            Self::Unmap => provision::unmap(lu, data, cancel),
            Self::WriteSame { lba, count, unmap, zeros } => {
                let same = provision::Same { lba, count, unmap, zeros };
                provision::write_same(lu, &same, data, cancel)
            }
            Self::CompareAndWrite { lba, count, flush } => {
                read_write::compare_and_write(lu, lba, count, flush, data)
            }
            Self::OrWrite { lba, count, flush } => read_write::or_write(lu, lba, count, flush, data),
            Self::Verify { lba, count, one_block } => {
                read_write::verify(lu, lba, count, one_block, data, cancel)
            }
            Self::LbaStatus { lba, allocation } => capacity::lba_status(lu, lba, allocation),
            Self::ModeSelect { ten, page_format } => mode::select(lu, nexus, ten, page_format, data),
            Self::PersistentReserve { action, kind } => reserve::write(lu, nexus, action, kind, data),
            Self::ExtendedCopy => copy::extended_copy(nexus, units, data, cancel),
        }
    }
}

/// The logical units of a target by number.
#[derive(Clone, Default)]
pub(crate) struct Units(Arc<[Option<Arc<LogicalUnit>>]>);

impl Units {
    /// Collects them. Numbers are below 256 (checked by the caller).
    pub(crate) fn new(units: Vec<LogicalUnit>) -> Self {
        let len = units.iter().map(|u| usize::from(u.number) + 1).max().unwrap_or(0);
        let mut slots: Vec<Option<Arc<LogicalUnit>>> = vec![None; len];
        for unit in units {
            let number = usize::from(unit.number);
            slots[number] = Some(Arc::new(unit));
        }
        Self(slots.into())
    }

    /// All units, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<LogicalUnit>> {
        self.0.iter().flatten()
    }

    /// The unit with this number.
    pub(crate) fn get(&self, number: usize) -> Option<&Arc<LogicalUnit>> {
        self.0.get(number)?.as_ref()
    }

    /// One past the highest number.
    pub(crate) fn slots(&self) -> usize {
        self.0.len()
    }
}

/// The number in a LUN field, if it is in a supported format (SAM-5 section 4.7: peripheral or flat addressing).
pub(crate) fn lun_number(lun: &[u8; 8]) -> Option<usize> {
    if lun[2..] != [0; 6] {
        return None;
    }
    match lun[0] >> 6 {
        0 if lun[0] == 0 => Some(usize::from(lun[1])),
        1 => Some(usize::from(lun[0] & 0x3f) << 8 | usize::from(lun[1])),
        _ => None,
    }
}

/// Answers a command to a unit that does not exist (SPC-4 sections 6.6.1 and 6.33).
pub(crate) fn no_unit(units: &Units, cdb: &[u8; 16]) -> Reply {
    match opcodes::find(cdb).0.command {
        Command::Inquiry => inquiry::no_unit(cdb),
        Command::ReportLuns => capacity::report_luns(units, cdb),
        Command::RequestSense => request_sense(cdb, Sense::LUN_NOT_SUPPORTED),
        _ => Reply::check(Sense::LUN_NOT_SUPPORTED),
    }
}

/// Determines what a CDB requests of this unit. Unit attentions and reservations are checked first.
pub(crate) fn decode(lu: &LogicalUnit, nexus: &Nexus, units: &Units, cdb: &[u8; 16]) -> Plan {
    let (opcode, refused) = opcodes::find(cdb);
    lu.notice_growth();
    if nexus.has_attention()
        && !opcode.before_attention
        && let Some(sense) = nexus.take_attention()
    {
        return Plan::Reply(Reply::check(sense));
    }
    if lu.is_reserved() && lu.with_reservations(|r| r.conflicts(&nexus.port, opcode.access(cdb))) {
        return Plan::Reply(Reply::conflict());
    }
    if lu.ejected.load(Relaxed) && opcode.medium {
        return Plan::Reply(Reply::check(Sense::NO_MEDIUM));
    }
    if let Some(sense) = refused {
        return Plan::Reply(Reply::check(sense));
    }
    match opcode.command {
        Command::Read => read_write::decode_read(lu, opcode, cdb),
        Command::Write | Command::WriteAndVerify => read_write::decode_write(lu, opcode, cdb),
        Command::SynchronizeCache => read_write::decode_flush(lu, opcode, cdb),
        _ => decode_rest(lu, nexus, units, opcode, cdb).unwrap_or_else(Plan::Reply),
    }
}

fn decode_rest(
    lu: &LogicalUnit,
    nexus: &Nexus,
    units: &Units,
    opcode: &Opcode,
    cdb: &[u8; 16],
) -> Result<Plan, Reply> {
    if !opcode.offered(lu) {
        return Err(Reply::check(Sense::INVALID_OPCODE));
    }
    let len = opcode.cdb_len();
    Ok(match opcode.command {
        Command::TestUnitReady => Plan::Reply(Reply::good()),
        Command::RequestSense => {
            Plan::Reply(request_sense(cdb, nexus.take_attention().unwrap_or(Sense::NONE)))
        }
        Command::Inquiry => Plan::Reply(inquiry::inquiry(lu, cdb)?),
        Command::ModeSelect => mode::decode_select(cdb, len == 10)?,
        Command::ModeSense => Plan::Reply(mode::sense(lu, cdb, len == 10)?),
        Command::Reserve => Plan::Reply(reserve::reserve(lu, nexus)),
        Command::Release => Plan::Reply(reserve::release(lu, nexus)),
        Command::PersistentReserveIn => Plan::Reply(reserve::read(lu, nexus, cdb)),
        Command::PersistentReserveOut => reserve::decode_out(lu, nexus, cdb),
        Command::StartStop => removable::start_stop(lu, nexus, cdb)?,
        Command::PreventAllow => Plan::Reply(removable::prevent_allow(nexus, cdb)?),
        Command::ReadDefectData => Plan::Reply(capacity::read_defect_data(cdb, len == 12)),
        Command::ReadCapacity10 => Plan::Reply(capacity::read_capacity_10(lu, cdb)?),
        Command::ReadCapacity16 => Plan::Reply(capacity::read_capacity_16(lu, cdb)),
        Command::LbaStatus => capacity::decode_lba_status(lu, cdb)?,
        Command::Verify => read_write::decode_verify(lu, opcode, cdb)?,
        Command::Prefetch => Plan::Reply(read_write::prefetch(lu, opcode, cdb)?),
        Command::CompareAndWrite => read_write::decode_compare_and_write(lu, cdb)?,
        Command::OrWrite => read_write::decode_or_write(lu, opcode, cdb)?,
        Command::WriteSame => provision::decode_write_same(lu, cdb, len == 16)?,
        Command::Unmap => provision::decode_unmap(lu, cdb)?,
        Command::ExtendedCopy => copy::decode(cdb)?,
        Command::ReceiveCopyResults => Plan::Reply(copy::receive(nexus, cdb)?),
        Command::ReportLuns => Plan::Reply(capacity::report_luns(units, cdb)),
        Command::ReportTargetPortGroups => Plan::Reply(inquiry::report_target_port_groups(cdb)),
        Command::ReportOpcodes => Plan::Reply(supported::report(lu, cdb)?),
        Command::ReportTaskManagement => Plan::Reply(supported::report_task_management(cdb)),
        // Decoded before, or refused.
        Command::Read
        | Command::Write
        | Command::WriteAndVerify
        | Command::SynchronizeCache
        | Command::Unknown => return Err(Reply::check(Sense::INVALID_OPCODE)),
    })
}

/// REQUEST SENSE with the given condition.
fn request_sense(cdb: &[u8; 16], sense: Sense) -> Reply {
    Reply::data(sense.encode(u8at(cdb, 1) & 1 != 0), usize::from(cdb[4]))
}

/// The allocation length of the 12- and 16-byte CDBs that have it at `at`.
fn allocation32(cdb: &[u8; 16], at: usize) -> usize {
    index(u64::from(be32(cdb, at)))
}

/// The allocation length of the 10-byte CDBs.
fn allocation16(cdb: &[u8; 16]) -> usize {
    usize::from(be16(cdb, 7))
}

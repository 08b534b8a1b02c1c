//! The one table of all SCSI commands: operation code, service action, length of the CDB, its relation to reservations and to the medium,
//! and what REPORT SUPPORTED OPERATION CODES reports.
//!
//! Invariants: a command is executed exactly if it is in this table; the usage bits are those that its decoder reads, and there is one byte
//! of them for each byte of the CDB; everything else that depends on an operation code uses this table.

use super::lu::LogicalUnit;
use super::reservations::Access;
use super::sense::Sense;

use self::Command::*;

/// The command to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    TestUnitReady,
    RequestSense,
    Read,
    Write,
    WriteAndVerify,
    OrWrite,
    CompareAndWrite,
    Verify,
    Prefetch,
    SynchronizeCache,
    WriteSame,
    Unmap,
    Inquiry,
    ModeSelect,
    ModeSense,
    Reserve,
    Release,
    PersistentReserveIn,
    PersistentReserveOut,
    StartStop,
    PreventAllow,
    ReadCapacity10,
    ReadCapacity16,
    LbaStatus,
    ReadDefectData,
    ExtendedCopy,
    ReceiveCopyResults,
    ReportLuns,
    ReportTargetPortGroups,
    ReportOpcodes,
    ReportTaskManagement,
    /// Not a supported command.
    Unknown,
}

/// How a command conflicts with reservations (SPC-4 table 63, SBC-3 table 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conflict {
    /// The same for every CDB of the command.
    As(Access),
    /// START STOP UNIT: a start without a power condition does not conflict.
    Starts,
    /// PREVENT ALLOW MEDIUM REMOVAL: allowing does not conflict.
    Allows,
}

const FREE: Conflict = Conflict::As(Access::Free);
const QUERY: Conflict = Conflict::As(Access::Query);
const READ: Conflict = Conflict::As(Access::Read);
const WRITE: Conflict = Conflict::As(Access::Write);

/// Which units support a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    All,
    /// Units whose device can discard.
    Discarding,
    /// Units with a removable medium.
    Removable,
}

/// A command.
#[derive(Debug)]
pub(crate) struct Opcode {
    /// Operation code.
    pub(crate) op: u8,
    /// Service action, if the command has one.
    pub(crate) action: Option<u8>,
    pub(crate) command: Command,
    /// Whether it concerns the medium and not only the unit: it fails if the medium was ejected.
    pub(crate) medium: bool,
    /// Whether it is executed although a unit attention is pending (SAM-5).
    pub(crate) before_attention: bool,
    /// The bits of its CDB that are used, one byte for each byte of the CDB.
    pub(crate) usage: &'static [u8],
    conflict: Conflict,
    only: Only,
}

impl Opcode {
    /// How this CDB of the command conflicts with reservations.
    pub(crate) fn access(&self, cdb: &[u8; 16]) -> Access {
        match self.conflict {
            Conflict::As(access) => access,
            Conflict::Starts if cdb[4] & 1 == 1 && cdb[4] >> 4 == 0 => Access::Query,
            Conflict::Allows if cdb[4] & 3 == 0 => Access::Query,
            Conflict::Starts | Conflict::Allows => Access::Write,
        }
    }

    /// Whether this unit supports it.
    pub(crate) fn offered(&self, lu: &LogicalUnit) -> bool {
        match self.only {
            Only::All => true,
            Only::Discarding => lu.info().discard,
            Only::Removable => lu.removable,
        }
    }

    /// Length of the CDB.
    pub(crate) fn cdb_len(&self) -> usize {
        self.usage.len()
    }

    const fn action(mut self, action: u8) -> Self {
        self.action = Some(action);
        self
    }

    const fn before_attention(mut self) -> Self {
        self.before_attention = true;
        self
    }

    const fn only(mut self, only: Only) -> Self {
        self.only = only;
        self
    }
}

/// A command that concerns the medium.
const fn medium(command: Command, conflict: Conflict, usage: &'static [u8]) -> Opcode {
    let (op, action, only) = (usage[0], None, Only::All);
    Opcode { op, action, command, medium: true, before_attention: false, usage, conflict, only }
}

/// A command that concerns the unit.
const fn unit(command: Command, conflict: Conflict, usage: &'static [u8]) -> Opcode {
    let (op, action, only) = (usage[0], None, Only::All);
    Opcode { op, action, command, medium: false, before_attention: false, usage, conflict, only }
}

/// The usage bits of CDBs of 10, 12 and 16 bytes with flags, an address and a count.
const fn cdb10(op: u8, flags: u8) -> [u8; 10] {
    [op, flags, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]
}

const fn cdb12(op: u8, flags: u8) -> [u8; 12] {
    [op, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

const fn cdb16(op: u8, flags: u8) -> [u8; 16] {
    [op, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

const PR_IN: &[u8] = &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
const PR_OUT: &[u8] = &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
const COPY: &[u8] = &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const COPY_RESULTS: &[u8] = &[0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const COMPARE: &[u8] = &[0x89, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0];
const CAPACITY_16: &[u8] = &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const PORT_GROUPS: &[u8] = &[0xa3, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const OPCODES: &[u8] = &[0xa3, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
const TASK_MANAGEMENT: &[u8] = &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];

/// Sorted by operation code and service action.
static TABLE: &[Opcode] = &[
    medium(TestUnitReady, QUERY, &[0x00, 0, 0, 0, 0, 0]),
    unit(RequestSense, FREE, &[0x03, 0x01, 0, 0, 0xff, 0]).before_attention(),
    medium(Read, READ, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    medium(Write, WRITE, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    unit(Inquiry, FREE, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]).before_attention(),
    unit(ModeSelect, WRITE, &[0x15, 0x11, 0, 0, 0xff, 0]),
    unit(Reserve, FREE, &[0x16, 0, 0, 0, 0, 0]),
    unit(Release, FREE, &[0x17, 0, 0, 0, 0, 0]),
    unit(ModeSense, READ, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    unit(StartStop, Conflict::Starts, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
    unit(PreventAllow, Conflict::Allows, &[0x1e, 0, 0, 0, 0x03, 0]).only(Only::Removable),
    medium(ReadCapacity10, QUERY, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    medium(Read, READ, &cdb10(0x28, 0xf8)),
    medium(Write, WRITE, &cdb10(0x2a, 0xf8)),
    medium(WriteAndVerify, WRITE, &cdb10(0x2e, 0xf6)),
    medium(Verify, READ, &cdb10(0x2f, 0xf6)),
    medium(Prefetch, READ, &cdb10(0x34, 0x02)),
    medium(SynchronizeCache, WRITE, &cdb10(0x35, 0x02)),
    medium(ReadDefectData, READ, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0]),
    medium(WriteSame, WRITE, &cdb10(0x41, 0xf8)),
    medium(Unmap, WRITE, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]).only(Only::Discarding),
    unit(ModeSelect, WRITE, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    unit(Reserve, FREE, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    unit(Release, FREE, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    unit(ModeSense, READ, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    unit(PersistentReserveIn, FREE, PR_IN).action(0),
    unit(PersistentReserveIn, FREE, PR_IN).action(1),
    unit(PersistentReserveIn, FREE, PR_IN).action(2),
    unit(PersistentReserveIn, FREE, PR_IN).action(3),
    unit(PersistentReserveOut, FREE, PR_OUT).action(0),
    unit(PersistentReserveOut, FREE, PR_OUT).action(1),
    unit(PersistentReserveOut, FREE, PR_OUT).action(2),
    unit(PersistentReserveOut, FREE, PR_OUT).action(3),
    unit(PersistentReserveOut, FREE, PR_OUT).action(4),
    unit(PersistentReserveOut, FREE, PR_OUT).action(5),
    unit(PersistentReserveOut, FREE, PR_OUT).action(6),
    medium(ExtendedCopy, WRITE, COPY).action(0),
    unit(ReceiveCopyResults, READ, COPY_RESULTS).action(0),
    unit(ReceiveCopyResults, READ, COPY_RESULTS).action(3),
    unit(ReceiveCopyResults, READ, COPY_RESULTS).action(4),
    medium(Read, READ, &cdb16(0x88, 0xf8)),
    medium(CompareAndWrite, WRITE, COMPARE),
    medium(Write, WRITE, &cdb16(0x8a, 0xf8)),
    medium(OrWrite, WRITE, &cdb16(0x8b, 0xf8)),
    medium(WriteAndVerify, WRITE, &cdb16(0x8e, 0xf6)),
    medium(Verify, READ, &cdb16(0x8f, 0xf6)),
    medium(Prefetch, READ, &cdb16(0x90, 0x02)),
    medium(SynchronizeCache, WRITE, &cdb16(0x91, 0x02)),
    medium(WriteSame, WRITE, &cdb16(0x93, 0xf9)),
    medium(ReadCapacity16, QUERY, CAPACITY_16).action(0x10),
    medium(LbaStatus, READ, &cdb16(0x9e, 0x1f)).action(0x12),
    unit(ReportLuns, FREE, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]).before_attention(),
    unit(ReportTargetPortGroups, QUERY, PORT_GROUPS).action(0x0a),
    unit(ReportOpcodes, QUERY, OPCODES).action(0x0c),
    unit(ReportTaskManagement, QUERY, TASK_MANAGEMENT).action(0x0d),
    medium(Read, READ, &cdb12(0xa8, 0xf8)),
    medium(Write, WRITE, &cdb12(0xaa, 0xf8)),
    medium(WriteAndVerify, WRITE, &cdb12(0xae, 0xf6)),
    medium(Verify, READ, &cdb12(0xaf, 0xf6)),
    medium(ReadDefectData, READ, &[0xb7, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// A command that is not in the table counts as the one with the most conflicts.
static UNKNOWN: Opcode = medium(Unknown, WRITE, &[0; 6]);

/// The first command of each operation code, so that a read or a write is found without a search.
static FIRST: [Option<&Opcode>; 256] = {
    let mut first = [None; 256];
    let mut at = TABLE.len();
    while at > 0 {
        at -= 1;
        first[TABLE[at].op as usize] = Some(&TABLE[at]);
    }
    first
};

/// The command of a CDB. If it is not supported: the sense data that says why, and the entry whose rules apply all the same (for an unknown
/// service action that of the first one).
pub(crate) fn find(cdb: &[u8; 16]) -> (&'static Opcode, Option<Sense>) {
    let Some(first) = FIRST[usize::from(cdb[0])] else { return (&UNKNOWN, Some(Sense::INVALID_OPCODE)) };
    if first.action.is_none() {
        return (first, None);
    }
    let action = cdb[1] & 0x1f;
    match TABLE.iter().find(|o| o.op == first.op && o.action == Some(action)) {
        Some(found) => (found, None),
        None => (first, Some(Sense::cdb_bit(1, 4))),
    }
}

/// The commands that this unit supports.
pub(crate) fn all(lu: &LogicalUnit) -> impl Iterator<Item = &'static Opcode> {
    TABLE.iter().filter(move |o| o.offered(lu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_names_no_command_twice_and_every_cdb_has_its_groups_length() {
        assert!(TABLE.is_sorted_by_key(|o| (o.op, o.action)));
        for pair in TABLE.windows(2) {
            assert!((pair[0].op, pair[0].action) != (pair[1].op, pair[1].action), "{:02x} twice", pair[0].op);
            assert!(
                pair[0].op != pair[1].op || (pair[0].action.is_some() && pair[1].action.is_some()),
                "{:02x} with and without a service action",
                pair[0].op
            );
        }
        for o in TABLE {
            // SPC-4 section 4.2.5.1: the group code is in the upper three bits.
            let len = [6, 10, 10, 0, 16, 12, 0, 0][usize::from(o.op >> 5)];
            assert_eq!(o.cdb_len(), len, "{:02x}", o.op);
            assert_eq!(o.usage[0], o.op);
            assert!(
                o.action.is_none() || o.usage[1] & 0x1f == 0x1f,
                "{:02x} ignores its service action",
                o.op
            );
        }
    }

    #[test]
    fn every_command_is_found_and_nothing_else_is() {
        let mut known = 0;
        for op in 0..=u8::MAX {
            for action in 0..32 {
                let mut cdb = [0; 16];
                (cdb[0], cdb[1]) = (op, action);
                let here = TABLE.iter().find(|o| o.op == op && o.action.is_none_or(|a| a == action));
                let (found, refused) = find(&cdb);
                match here {
                    Some(here) => assert!(std::ptr::eq(here, found) && refused.is_none()),
                    None if TABLE.iter().any(|o| o.op == op) => {
                        assert_eq!((found.op, refused), (op, Some(Sense::cdb_bit(1, 4))));
                    }
                    None => assert_eq!((found.command, refused), (Unknown, Some(Sense::INVALID_OPCODE))),
                }
                known += usize::from(here.is_some_and(|o| o.action.is_some() || action == 0));
            }
        }
        assert_eq!(known, TABLE.len());
    }
}

//! READ, WRITE, VERIFY, SYNCHRONIZE CACHE, COMPARE AND WRITE, ORWRITE and PRE-FETCH (SBC-3 chapter 5).
//!
//! Invariants: a range is checked against the unit's size before anything is read or written; GOOD for a flush, or for
//! a write with FUA, is only given after the device's own flush has succeeded; protection information is not supported,
//! so every PROTECT field but zero is an illegal field.

use std::io;
use std::sync::PoisonError;

use super::super::bytes::{be16, be24, be32, be64, first_difference, index, or_into};
use super::super::workers::Cancel;
use super::lu::LogicalUnit;
use super::opcodes::{Command, Opcode};
use super::sense::Sense;
use super::{Action, Plan, Reply, is_busy};

/// Most blocks of one command, as page B0 says. READ(10) and WRITE(10) can name one less: some firmware does, whatever the page says
/// (EDK2's disk driver cuts its requests at 65,535 blocks).
pub(crate) const MAX_TRANSFER_BLOCKS: u32 = 1 << 16;
/// Largest transfer of the commands that collect their data first, in bytes.
pub(crate) const MAX_COLLECTED: u64 = 16 << 20;
/// Bytes of an ORWRITE that are read, changed and written at once.
const OR_STEP: usize = 1 << 20;
/// Most blocks of a COMPARE AND WRITE.
pub(crate) const MAX_COMPARE_BLOCKS: u8 = 128;

/// Address and count of the block commands.
struct Extent {
    lba: u64,
    count: u64,
}

impl Extent {
    fn parse(opcode: &Opcode, cdb: &[u8; 16]) -> Self {
        match opcode.cdb_len() {
            6 => {
                let count = u64::from(cdb[4]);
                Self { lba: u64::from(be24(cdb, 1) & 0x1f_ffff), count: if count == 0 { 256 } else { count } }
            }
            10 => Self { lba: u64::from(be32(cdb, 2)), count: u64::from(be16(cdb, 7)) },
            12 => Self { lba: u64::from(be32(cdb, 2)), count: u64::from(be32(cdb, 6)) },
            _ => Self { lba: be64(cdb, 2), count: u64::from(be32(cdb, 10)) },
        }
    }

    /// No longer than page B0 allows (SBC-3 section 6.5.3); else the field of the CDB that holds the count.
    fn check_length(&self, opcode: &Opcode) -> Result<(), Sense> {
        let field = if opcode.cdb_len() == 12 { 6 } else { 10 };
        if self.count > u64::from(MAX_TRANSFER_BLOCKS) { Err(Sense::cdb(field)) } else { Ok(()) }
    }

    /// Inside the unit. An address equal to the size is an error even when nothing is transferred.
    fn check(&self, lu: &LogicalUnit) -> Result<(), Sense> {
        check_range(lu, self.lba, self.count)
    }
}

/// Whether the blocks are inside the unit.
pub(crate) fn check_range(lu: &LogicalUnit, lba: u64, count: u64) -> Result<(), Sense> {
    let blocks = lu.blocks();
    if lba > blocks || count > blocks - lba {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    Ok(())
}

/// READ(6), (10), (12), (16).
pub(crate) fn decode_read(lu: &LogicalUnit, opcode: &Opcode, cdb: &[u8; 16]) -> Plan {
    if opcode.cdb_len() != 6 && cdb[1] >> 5 != 0 {
        return Plan::Reply(Reply::check(Sense::cdb_bit(1, 7)));
    }
    let extent = Extent::parse(opcode, cdb);
    match extent.check(lu).and_then(|()| extent.check_length(opcode)) {
        Ok(()) => Plan::Read { offset: extent.lba << lu.shift(), len: extent.count << lu.shift() },
        Err(sense) => Plan::Reply(Reply::check(sense)),
    }
}

/// WRITE(6), (10), (12), (16) and WRITE AND VERIFY(10), (12), (16).
///
/// WRITE AND VERIFY is a write that is flushed: that is as near to the medium as a look at it through the page cache
/// would come, and stronger than a compare with what was just cached.
pub(crate) fn decode_write(lu: &LogicalUnit, opcode: &Opcode, cdb: &[u8; 16]) -> Plan {
    let (verify, has_flags) = (opcode.command == Command::WriteAndVerify, opcode.cdb_len() != 6);
    if has_flags && cdb[1] >> 5 != 0 {
        return Plan::Reply(Reply::check(Sense::cdb_bit(1, 7)));
    }
    let extent = Extent::parse(opcode, cdb);
    if let Err(sense) = extent.check(lu) {
        return Plan::Reply(Reply::check(sense));
    }
    if lu.write_protected() {
        return Plan::Reply(Reply::check(Sense::WRITE_PROTECTED));
    }
    if let Err(sense) = extent.check_length(opcode) {
        return Plan::Reply(Reply::check(sense));
    }
    let fua = has_flags && !verify && cdb[1] & 0x08 != 0;
    let flush = fua || verify || lu.write_through();
    Plan::Write { offset: extent.lba << lu.shift(), len: extent.count << lu.shift(), flush }
}

/// SYNCHRONIZE CACHE(10), (16).
pub(crate) fn decode_flush(lu: &LogicalUnit, opcode: &Opcode, cdb: &[u8; 16]) -> Plan {
    match Extent::parse(opcode, cdb).check(lu) {
        // The whole device is flushed whatever the range: never less than asked. IMMED is not used to answer early.
        Ok(()) => Plan::Run(Action::Flush),
        Err(sense) => Plan::Reply(Reply::check(sense)),
    }
}

/// Executes a flush.
pub(crate) fn flush(lu: &LogicalUnit) -> Reply {
    match lu.device.flush() {
        Ok(()) => Reply::good(),
        Err(e) => Reply::write_failed(&e),
    }
}

/// PRE-FETCH(10), (16): the page cache knows better what to keep; a valid range is enough.
pub(crate) fn prefetch(lu: &LogicalUnit, opcode: &Opcode, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    Extent::parse(opcode, cdb).check(lu)?;
    Ok(Reply::good())
}

/// VERIFY(10), (12), (16).
pub(crate) fn decode_verify(lu: &LogicalUnit, opcode: &Opcode, cdb: &[u8; 16]) -> Result<Plan, Reply> {
    if cdb[1] >> 5 != 0 {
        return Err(Sense::cdb_bit(1, 7).into());
    }
    let extent = Extent::parse(opcode, cdb);
    extent.check(lu)?;
    let bytes = extent.count << lu.shift();
    match cdb[1] >> 1 & 3 {
        // The medium itself is not read: errors surface when it is.
        0 => Ok(Plan::Reply(Reply::good())),
        1 if bytes > MAX_COLLECTED => Err(Sense::cdb(10).into()),
        1 => {
            let action = Action::Verify { lba: extent.lba, count: extent.count, one_block: false };
            Ok(Plan::Out { len: index(bytes), action })
        }
        3 => {
            let action = Action::Verify { lba: extent.lba, count: extent.count, one_block: true };
            Ok(Plan::Out { len: if extent.count == 0 { 0 } else { lu.block_len() }, action })
        }
        _ => Err(Sense::cdb_bit(1, 2).into()),
    }
}

/// Compares the medium with the data.
pub(crate) fn verify(
    lu: &LogicalUnit,
    lba: u64,
    count: u64,
    one_block: bool,
    data: &[u8],
    cancel: &Cancel,
) -> Reply {
    let block = lu.block_len();
    let per_step = (1 << 20) / block;
    let mut buf = vec![0; per_step.min(index(count)) * block];
    let mut done = 0;
    while done < count {
        if cancel.is_cancelled() {
            return Reply::check(Sense::COMMAND_ABORTED);
        }
        let blocks = index(count - done).min(per_step);
        let part = &mut buf[..blocks * block];
        if let Err(e) = lu.device.read_at(part, (lba + done) << lu.shift()) {
            return Reply::read_failed(&e);
        }
        for (i, got) in part.chunks_exact(block).enumerate() {
            let at = if one_block { 0 } else { (index(done) + i) * block };
            let Some(want) = data.get(at..at + block) else {
                return Reply::check(Sense::PARAMETER_LIST_LENGTH);
            };
            if let Some(offset) = first_difference(got, want) {
                return Reply::check(Sense::miscompare((at + offset) as u64));
            }
        }
        done += blocks as u64;
    }
    Reply::good()
}

/// COMPARE AND WRITE.
pub(crate) fn decode_compare_and_write(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Plan, Reply> {
    if cdb[1] >> 5 != 0 {
        return Err(Sense::cdb_bit(1, 7).into());
    }
    let (lba, count) = (be64(cdb, 2), u64::from(cdb[13]));
    check_range(lu, lba, count)?;
    if lu.write_protected() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    if count > u64::from(MAX_COMPARE_BLOCKS) {
        return Err(Sense::cdb(13).into());
    }
    let flush = cdb[1] & 0x08 != 0 || lu.write_through();
    Ok(Plan::Out {
        len: index(count << lu.shift()) * 2,
        action: Action::CompareAndWrite { lba, count, flush },
    })
}

/// Executes COMPARE AND WRITE, atomic to every other write of the unit.
pub(crate) fn compare_and_write(lu: &LogicalUnit, lba: u64, count: u64, flush: bool, data: &[u8]) -> Reply {
    let len = index(count << lu.shift());
    if data.len() < len * 2 {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    }
    let (compare, write) = (&data[..len], &data[len..len * 2]);
    let _alone = lu.gate.write().unwrap_or_else(PoisonError::into_inner);
    let offset = lba << lu.shift();
    let mut current = vec![0; len];
    if let Err(e) = lu.device.read_at(&mut current, offset) {
        return Reply::read_failed(&e);
    }
    if let Some(at) = first_difference(&current, compare) {
        return Reply::check(Sense::miscompare(at as u64));
    }
    match lu.device.write_at(write, offset).and_then(|()| flushed(lu, flush)) {
        Ok(()) => Reply::good(),
        // It will be sent again, and must then find what it compared with.
        Err(e) if is_busy(&e) && lu.device.write_at(&current, offset).is_err() => {
            Reply::check(Sense::WRITE_ERROR)
        }
        Err(e) => Reply::write_failed(&e),
    }
}

/// ORWRITE(16).
pub(crate) fn decode_or_write(lu: &LogicalUnit, opcode: &Opcode, cdb: &[u8; 16]) -> Result<Plan, Reply> {
    if cdb[1] >> 5 != 0 {
        return Err(Sense::cdb_bit(1, 7).into());
    }
    let extent = Extent::parse(opcode, cdb);
    extent.check(lu)?;
    if lu.write_protected() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    let bytes = extent.count << lu.shift();
    if bytes > MAX_COLLECTED {
        return Err(Sense::cdb(10).into());
    }
    let flush = cdb[1] & 0x08 != 0 || lu.write_through();
    Ok(Plan::Out {
        len: index(bytes),
        action: Action::OrWrite { lba: extent.lba, count: extent.count, flush },
    })
}

/// Executes ORWRITE, atomic to every other write of the unit. When the device fails in the middle, what was changed stays.
pub(crate) fn or_write(lu: &LogicalUnit, lba: u64, count: u64, flush: bool, data: &[u8]) -> Reply {
    let len = index(count << lu.shift());
    if data.len() < len {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    }
    let _alone = lu.gate.write().unwrap_or_else(PoisonError::into_inner);
    let mut offset = lba << lu.shift();
    let mut current = vec![0; len.min(OR_STEP)];
    for piece in data[..len].chunks(OR_STEP) {
        let current = &mut current[..piece.len()];
        if let Err(e) = lu.device.read_at(current, offset) {
            return Reply::read_failed(&e);
        }
        or_into(current, piece);
        if let Err(e) = lu.device.write_at(current, offset) {
            return Reply::write_failed(&e);
        }
        offset += piece.len() as u64;
    }
    flushed(lu, flush).map_or_else(|e| Reply::write_failed(&e), |()| Reply::good())
}

/// Flushes where that is asked for.
fn flushed(lu: &LogicalUnit, flush: bool) -> io::Result<()> {
    if flush { lu.device.flush() } else { Ok(()) }
}

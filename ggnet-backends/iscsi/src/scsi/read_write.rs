//! READ, WRITE, VERIFY, SYNCHRONIZE CACHE, COMPARE AND WRITE, ORWRITE and PRE-FETCH (SBC-3 chapter 5).
//!
//! Invariants: a range is checked against the unit's size before anything is read or written; GOOD for a flush, or for a write with FUA, is
//! returned only after the device's own flush has succeeded; protection information is not supported, so every value of a PROTECT field but
//! zero is an illegal field.

use std::io;
use std::sync::PoisonError;

use super::super::bytes::{be16, be24, be32, be64, first_difference, index, or_into};
use super::super::workers::Cancel;
use super::lu::LogicalUnit;
use super::opcodes::{Command, Opcode};
use super::sense::Sense;
use super::{Action, Plan, Reply, is_busy};

/// Maximum number of blocks of one command, as in page B0. READ(10) and WRITE(10) can name one less: some firmware ignores the page and
/// uses that maximum (EDK2's disk driver splits its requests at 65,535 blocks).
pub(crate) const MAX_TRANSFER_BLOCKS: u32 = 1 << 16;
/// Maximum length of commands that collect their data first, in bytes.
pub(crate) const MAX_COLLECTED: u64 = 16 << 20;
/// Bytes of an ORWRITE that are read, changed and written in one step.
const OR_STEP: usize = 1 << 20;
/// Maximum number of blocks of a COMPARE AND WRITE.
pub(crate) const MAX_COMPARE_BLOCKS: u8 = 128;

/// Address and count of block commands.
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

    /// Checks that it is not longer than page B0 allows (SBC-3 section 6.5.3); if it is, the sense data names the field of the count in the
    /// CDB.
    fn check_length(&self, opcode: &Opcode) -> Result<(), Sense> {
        let field = if opcode.cdb_len() == 12 { 6 } else { 10 };
        if self.count > u64::from(MAX_TRANSFER_BLOCKS) { Err(Sense::cdb(field)) } else { Ok(()) }
    }

    /// Checks that it is inside the unit. An address equal to the size is an error even if nothing is transferred.
    fn check(&self, lu: &LogicalUnit) -> Result<(), Sense> {
        check_range(lu, self.lba, self.count)
    }
}

/// Checks that the blocks are inside the unit.
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
/// WRITE AND VERIFY is a write that is flushed: a comparison through the page cache would not reach the medium either, and the flush
/// guarantees more than a comparison with cached data.
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

/// PRE-FETCH(10), (16): only the range is checked, because the page cache decides better what to keep.
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

/// Executes COMPARE AND WRITE, atomically to every other write of the unit.
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

/// Executes ORWRITE, atomically to every other write of the unit. If the device fails in the middle, what was changed stays changed.
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

/// Flushes if that is requested.
fn flushed(lu: &LogicalUnit, flush: bool) -> io::Result<()> {
    if flush { lu.device.flush() } else { Ok(()) }
}

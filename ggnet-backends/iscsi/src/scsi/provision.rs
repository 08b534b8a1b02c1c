//! UNMAP and WRITE SAME (SBC-3 sections 5.28, 5.42, 5.43).
//!
//! Invariants: unmapped blocks read as zeros (LBPRZ); the whole parameter list is checked before the first block is changed; space is freed
//! only by the device's discard.

use std::io;
use std::sync::PoisonError;

use super::super::block::BlockDevice;
use super::super::bytes::{be16, be32, be64, index};
use super::super::workers::Cancel;
use super::lu::LogicalUnit;
use super::read_write::check_range;
use super::sense::Sense;
use super::{Action, Plan, Reply};

/// Maximum number of blocks of one UNMAP.
pub(crate) const MAX_UNMAP_BLOCKS: u32 = 0x0010_0000;
/// Maximum number of descriptors of one UNMAP.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u32 = 256;
/// Maximum number of blocks of one WRITE SAME.
pub(crate) const MAX_SAME_BLOCKS: u64 = 0x0010_0000;

/// UNMAP's CDB.
pub(crate) fn decode_unmap(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Plan, Reply> {
    if cdb[1] & 1 != 0 {
        // ANCHOR: there are no anchored blocks.
        return Err(Sense::cdb_bit(1, 0).into());
    }
    if lu.write_protected() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    match usize::from(be16(cdb, 7)) {
        0 => Ok(Plan::Reply(Reply::good())),
        len if len < 8 => Err(Sense::PARAMETER_LIST_LENGTH.into()),
        len => Ok(Plan::Out { len, action: Action::Unmap }),
    }
}

/// Executes UNMAP.
pub(crate) fn unmap(lu: &LogicalUnit, data: &[u8], cancel: &Cancel) -> Reply {
    if data.len() < 8 {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    }
    let wanted = usize::from(be16(data, 2));
    let list = &data[8..data.len().min(8 + wanted)];
    let mut ranges = Vec::new();
    let mut total = 0u64;
    for descriptor in list.chunks_exact(16) {
        let (lba, count) = (be64(descriptor, 0), u64::from(be32(descriptor, 8)));
        if let Err(sense) = check_range(lu, lba, count) {
            return Reply::check(sense);
        }
        total += count;
        ranges.push((lba, count));
    }
    if ranges.len() > index(u64::from(MAX_UNMAP_DESCRIPTORS)) || total > u64::from(MAX_UNMAP_BLOCKS) {
        return Reply::check(Sense::parameter(2));
    }
    let _writer = lu.gate.read().unwrap_or_else(PoisonError::into_inner);
    for (lba, count) in ranges.into_iter().filter(|(_, count)| *count > 0) {
        if cancel.is_cancelled() {
            return Reply::check(Sense::COMMAND_ABORTED);
        }
        if let Err(e) = lu.device.discard(lba << lu.shift(), count << lu.shift()) {
            return Reply::write_failed(&e);
        }
    }
    Reply::good()
}

/// The CDB of WRITE SAME(10) or (16).
pub(crate) fn decode_write_same(lu: &LogicalUnit, cdb: &[u8; 16], sixteen: bool) -> Result<Plan, Reply> {
    let flags = cdb[1];
    if flags >> 5 != 0 {
        return Err(Sense::cdb_bit(1, 7).into());
    }
    let (anchor, unmap) = (flags & 0x10 != 0, flags & 0x08 != 0);
    // PBDATA and LBDATA are obsolete and were never wise.
    if flags & 0x06 != 0 {
        return Err(Sense::cdb_bit(1, 2).into());
    }
    if anchor {
        return Err(Sense::cdb_bit(1, 4).into());
    }
    if unmap && !lu.info().discard {
        return Err(Sense::cdb_bit(1, 3).into());
    }
    let zeros = sixteen && flags & 1 != 0;
    let (lba, count) = if sixteen {
        (be64(cdb, 2), u64::from(be32(cdb, 10)))
    } else {
        (u64::from(be32(cdb, 2)), u64::from(be16(cdb, 7)))
    };
    check_range(lu, lba, count)?;
    // WSNZ: zero blocks ("to the end") are not taken.
    if count == 0 || count > MAX_SAME_BLOCKS {
        return Err(Sense::cdb(if sixteen { 10 } else { 7 }).into());
    }
    if lu.write_protected() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    let action = Action::WriteSame { lba, count, unmap, zeros };
    Ok(if zeros { Plan::Run(action) } else { Plan::Out { len: lu.block_len(), action } })
}

/// The pattern and range of a WRITE SAME.
pub(crate) struct Same {
    pub(crate) lba: u64,
    pub(crate) count: u64,
    pub(crate) unmap: bool,
    pub(crate) zeros: bool,
}

/// Executes WRITE SAME.
pub(crate) fn write_same(lu: &LogicalUnit, same: &Same, data: &[u8], cancel: &Cancel) -> Reply {
    let Same { lba, count, unmap, zeros } = *same;
    let block = lu.block_len();
    let zero = vec![0; block];
    let pattern = if zeros { &zero } else { data };
    if pattern.len() < block {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    }
    let pattern = &pattern[..block];
    let _writer = lu.gate.read().unwrap_or_else(PoisonError::into_inner);
    let (offset, len) = (lba << lu.shift(), count << lu.shift());
    // Unmapping is right only where the pattern is what unmapped blocks read as.
    let discard = unmap && pattern.iter().all(|b| *b == 0);
    let done = if discard {
        lu.device.discard(offset, len)
    } else {
        fill(&*lu.device, offset, len, pattern, cancel)
    };
    if cancel.is_cancelled() {
        return Reply::check(Sense::COMMAND_ABORTED);
    }
    let done = done.and_then(|()| if lu.write_through() { lu.device.flush() } else { Ok(()) });
    done.map_or_else(|e| Reply::write_failed(&e), |()| Reply::good())
}

/// Writes the pattern over a range, 1 MiB at a time, until it is cancelled.
fn fill(device: &dyn BlockDevice, offset: u64, len: u64, pattern: &[u8], cancel: &Cancel) -> io::Result<()> {
    let step = len.min(1 << 20);
    let buf = pattern.repeat(index(step) / pattern.len());
    let mut at = 0;
    while at < len && !cancel.is_cancelled() {
        let part = index(step.min(len - at));
        device.write_at(&buf[..part], offset + at)?;
        at += part as u64;
    }
    Ok(())
}

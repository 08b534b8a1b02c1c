//! READ CAPACITY, REPORT LUNS and GET LBA STATUS.
//!
//! Invariant: every answer is built whole and then cut to the allocation length; its length fields tell the whole.

use super::super::bytes::{be32, be64, index, sat32};
use super::lu::LogicalUnit;
use super::read_write::check_range;
use super::sense::Sense;
use super::{Action, Plan, Reply, Units, allocation16, allocation32};

/// READ CAPACITY(10).
pub(crate) fn read_capacity_10(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    if cdb[8] & 1 == 0 && be32(cdb, 2) != 0 {
        return Err(Sense::cdb(2).into());
    }
    let last = u32::try_from(lu.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    let mut out = last.to_be_bytes().to_vec();
    out.extend(sat32(lu.block_len()).to_be_bytes());
    Ok(Reply::data(out, 8))
}

/// READ CAPACITY(16).
pub(crate) fn read_capacity_16(lu: &LogicalUnit, cdb: &[u8; 16]) -> Reply {
    let info = lu.info();
    let mut out = vec![0; 32];
    out[..8].copy_from_slice(&lu.blocks().saturating_sub(1).to_be_bytes());
    out[8..12].copy_from_slice(&sat32(lu.block_len()).to_be_bytes());
    // Logical blocks per physical block, as a power of two.
    out[13] = u8::try_from((info.physical_block >> lu.shift()).max(1).trailing_zeros() & 15).unwrap_or(0);
    if info.discard {
        // LBPME and LBPRZ: thin provisioned, and what is unmapped reads as zeros.
        out[14] = 0xc0;
    }
    Reply::data(out, allocation32(cdb, 10))
}

/// REPORT LUNS.
pub(crate) fn report_luns(units: &Units, cdb: &[u8; 16]) -> Reply {
    let numbers: Vec<u16> = match cdb[2] {
        0 | 2 => units.iter().map(|u| u.number).collect(),
        // There are no well-known units.
        1 => Vec::new(),
        _ => return Reply::check(Sense::cdb(2)),
    };
    let mut out = sat32(numbers.len() * 8).to_be_bytes().to_vec();
    out.extend([0; 4]);
    for number in numbers {
        let [high, low] = number.to_be_bytes();
        // Peripheral addressing below 256, flat above.
        out.extend([if high == 0 { 0 } else { 0x40 | high }, low, 0, 0, 0, 0, 0, 0]);
    }
    Reply::data(out, allocation32(cdb, 6))
}

/// READ DEFECT DATA(10), (12): a file has no defects to list; the list asked for is there and empty.
pub(crate) fn read_defect_data(cdb: &[u8; 16], twelve: bool) -> Reply {
    let (asked, allocation) =
        if twelve { (cdb[1], allocation32(cdb, 6)) } else { (cdb[2], allocation16(cdb)) };
    // REQ_PLIST, REQ_GLIST and the format of the list, as asked.
    let mut out = vec![0, asked & 0x1f, 0, 0];
    if twelve {
        out.extend([0; 4]);
    }
    Reply::data(out, allocation)
}

/// GET LBA STATUS.
pub(crate) fn decode_lba_status(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Plan, Reply> {
    let lba = be64(cdb, 2);
    if lba >= lu.blocks() {
        return Err(Sense::LBA_OUT_OF_RANGE.into());
    }
    check_range(lu, lba, 1)?;
    Ok(Plan::Run(Action::LbaStatus { lba, allocation: allocation32(cdb, 10) }))
}

/// Most descriptors in one answer.
const MAX_DESCRIPTORS: usize = 256;

/// Executes GET LBA STATUS.
pub(crate) fn lba_status(lu: &LogicalUnit, lba: u64, allocation: usize) -> Reply {
    let room = (allocation.saturating_sub(8) / 16).clamp(1, MAX_DESCRIPTORS);
    let end = lu.blocks();
    let mut at = lba;
    let mut runs: Vec<(u64, u32, bool)> = Vec::new();
    while at < end {
        let status = match lu.device.block_status(at << lu.shift(), (end - at) << lu.shift()) {
            Ok(status) => status,
            Err(e) => return Reply::check(Sense::from_read(&e)),
        };
        let blocks = (status.len >> lu.shift()).clamp(1, end - at);
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        let full = runs.len() == room;
        match runs.last_mut() {
            Some((_, c, mapped)) if *mapped == status.mapped && c.checked_add(count).is_some() => *c += count,
            _ if full => break,
            _ => runs.push((at, count, status.mapped)),
        }
        at += u64::from(count);
    }
    let mut out = sat32(4 + runs.len() * 16).to_be_bytes().to_vec();
    out.extend([0; 4]);
    for (lba, count, mapped) in runs {
        out.extend(lba.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend([if mapped { 0 } else { 1 }, 0, 0, 0]);
    }
    Reply::data(out, index(allocation as u64))
}

//! READ CAPACITY, REPORT LUNS and GET LBA STATUS.
//!
//! Invariant: every answer is built completely and then cut to the allocation length; its length fields describe the complete answer.

use std::io;

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

/// READ DEFECT DATA(10), (12): a file has no defects, so the requested list is returned empty.
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

/// Maximum number of descriptors in one answer.
const MAX_DESCRIPTORS: usize = 256;
/// How often the device is asked for one answer. QEMU asks before it reads, and its next request continues where the answer ends; adjacent
/// descriptors may be of the same kind (SBC-3, 5.5.2). Without a limit, one answer on a disk of scattered blocks took 200 ms.
const MAX_LOOKS: usize = 256;

/// Executes GET LBA STATUS.
pub(crate) fn lba_status(lu: &LogicalUnit, lba: u64, allocation: usize) -> Reply {
    let room = (allocation.saturating_sub(8) / 16).clamp(1, MAX_DESCRIPTORS);
    let look = |at: u64, blocks: u64| {
        let run = lu.device.block_status(at << lu.shift(), blocks << lu.shift())?;
        Ok((run.len >> lu.shift(), run.mapped))
    };
    let runs = match status_runs(lba, lu.blocks(), room, look) {
        Ok(runs) => runs,
        Err(e) => return Reply::read_failed(&e),
    };
    let mut out = sat32(4 + runs.len() * 16).to_be_bytes().to_vec();
    out.extend([0; 4]);
    for (lba, count, mapped) in runs {
        out.extend(lba.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend([if mapped { 0 } else { 1 }, 0, 0, 0]);
    }
    Reply::data(out, index(allocation as u64))
}

/// The runs of blocks of the same kind (first, count, mapped) from `at` to `end`, at most `room` of them. `look` returns for a position and
/// a number of blocks how many of them are of the same kind, or fewer.
fn status_runs(
    mut at: u64,
    end: u64,
    room: usize,
    mut look: impl FnMut(u64, u64) -> io::Result<(u64, bool)>,
) -> io::Result<Vec<(u64, u32, bool)>> {
    let mut runs: Vec<(u64, u32, bool)> = Vec::new();
    for _ in 0..MAX_LOOKS {
        if at == end {
            break;
        }
        let (blocks, mapped) = look(at, end - at)?;
        let count = u32::try_from(blocks.clamp(1, end - at)).unwrap_or(u32::MAX);
        let full = runs.len() == room;
        match runs.last_mut() {
            Some((_, c, m)) if *m == mapped && c.checked_add(count).is_some() => *c += count,
            _ if full => break,
            _ => runs.push((at, count, mapped)),
        }
        at += u64::from(count);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_takes_a_limited_number_of_looks_and_the_next_goes_on() {
        // Every block is a run of its own to the device, and all are alike, but for the last.
        let end = 1000;
        let (mut at, mut looks, mut all) = (0, 0, Vec::new());
        while at < end {
            let before = looks;
            let look = |at: u64, _: u64| {
                looks += 1;
                Ok((1, at != end - 1))
            };
            let runs = status_runs(at, end, 1, look).unwrap();
            assert!(looks - before <= MAX_LOOKS && runs.len() == 1, "{runs:?}");
            at += u64::from(runs[0].1);
            all.extend(runs);
        }
        assert_eq!(
            all,
            [(0, 256, true), (256, 256, true), (512, 256, true), (768, 231, true), (999, 1, false)]
        );
    }
}

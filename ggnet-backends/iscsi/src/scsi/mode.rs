//! MODE SENSE and MODE SELECT, 6 and 10: pages 01 (read-write error recovery), 08 (caching), 0A (control) and 1C
//! (informational exceptions).
//!
//! Invariants: WCE is correct (if it is set, acknowledged writes may be volatile until a flush), and clearing it makes every write flush; a
//! MODE SELECT is checked completely before anything changes; every other nexus gets a unit attention for a change.

use std::sync::atomic::Ordering::Relaxed;

use super::super::bytes::{be16, be24, put, sat8, sat16, sat32, u8at};
use super::lu::LogicalUnit;
use super::nexus::{Attention, Nexus};
use super::sense::Sense;
use super::{Action, Plan, Reply, allocation16};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const WCE: u8 = 0x04;
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// Which values MODE SENSE requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

/// One page, with its current, changeable or default values.
fn page(lu: &LogicalUnit, code: u8, values: Values) -> Option<Vec<u8>> {
    let mut out = match code {
        0x01 => vec![0x01, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        CACHING => vec![CACHING, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        CONTROL => vec![CONTROL, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        0x1c => vec![0x1c, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        _ => return None,
    };
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    match (code, values) {
        (CACHING, Values::Current) => out[2] = flag(lu.write_cache.load(Relaxed), WCE),
        (CACHING, Values::Default) => out[2] = flag(lu.info().volatile_cache, WCE),
        // A device without a volatile cache has nothing to switch.
        (CACHING, Values::Changeable) => out[2] = flag(lu.info().volatile_cache, WCE),
        (CONTROL, Values::Current) => {
            out[2] = flag(lu.d_sense.load(Relaxed), D_SENSE);
            out[3] = 0x10;
            out[4] = flag(lu.software_protect.load(Relaxed), SWP);
            put(&mut out, 8, &[0xff, 0xff]);
        }
        (CONTROL, Values::Default) => {
            out[3] = 0x10;
            put(&mut out, 8, &[0xff, 0xff]);
        }
        (CONTROL, Values::Changeable) => {
            out[2] = D_SENSE;
            out[4] = SWP;
        }
        _ => {}
    }
    Some(out)
}

/// MODE SENSE.
pub(crate) fn sense(lu: &LogicalUnit, cdb: &[u8; 16], ten: bool) -> Result<Reply, Reply> {
    let (no_descriptor, long, code, subpage) =
        (cdb[1] & 0x08 != 0, ten && cdb[1] & 0x10 != 0, cdb[2] & 0x3f, cdb[3]);
    let values = match cdb[2] >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::SAVING_NOT_SUPPORTED.into()),
    };
    let pages = match (code, subpage) {
        (0x3f, 0 | 0xff) => {
            [0x01, CACHING, CONTROL, 0x1c].iter().filter_map(|c| page(lu, *c, values)).flatten().collect()
        }
        (_, 0) => page(lu, code, values).ok_or_else(|| Reply::check(Sense::cdb_bit(2, 5)))?,
        (_, 0xff) => page(lu, code, values).ok_or_else(|| Reply::check(Sense::cdb_bit(2, 5)))?,
        _ => return Err(Sense::cdb(3).into()),
    };
    let descriptor = if no_descriptor { Vec::new() } else { block_descriptor(lu, long) };
    // WP and DPOFUA.
    let device = if lu.write_protected() { 0x80 } else { 0 } | 0x10;
    let body = descriptor.len() + pages.len();
    let (mut out, allocation) = if ten {
        let [high, low] = sat16(body + 6).to_be_bytes();
        let [dh, dl] = sat16(descriptor.len()).to_be_bytes();
        (vec![high, low, 0, device, u8::from(long), 0, dh, dl], allocation16(cdb))
    } else {
        (vec![sat8(body + 3), 0, device, sat8(descriptor.len())], usize::from(cdb[4]))
    };
    out.extend(descriptor);
    out.extend(pages);
    Ok(Reply::data(out, allocation))
}

fn block_descriptor(lu: &LogicalUnit, long: bool) -> Vec<u8> {
    let block = sat32(lu.block_len()).to_be_bytes();
    if long {
        let mut out = lu.blocks().to_be_bytes().to_vec();
        out.extend([0; 4]);
        out.extend(block);
        out
    } else {
        let mut out = u32::try_from(lu.blocks()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        out.extend([0, block[1], block[2], block[3]]);
        out
    }
}

/// MODE SELECT's CDB.
pub(crate) fn decode_select(cdb: &[u8; 16], ten: bool) -> Result<Plan, Reply> {
    if cdb[1] & 1 != 0 {
        // SP: pages are not saved.
        return Err(Sense::cdb_bit(1, 0).into());
    }
    let len = if ten { usize::from(be16(cdb, 7)) } else { usize::from(cdb[4]) };
    if len == 0 {
        return Ok(Plan::Reply(Reply::good()));
    }
    Ok(Plan::Out { len, action: Action::ModeSelect { ten, page_format: cdb[1] & 0x10 != 0 } })
}

/// Executes MODE SELECT.
pub(crate) fn select(lu: &LogicalUnit, nexus: &Nexus, ten: bool, page_format: bool, data: &[u8]) -> Reply {
    if !page_format {
        return Reply::check(Sense::cdb_bit(1, 4));
    }
    let (header, descriptor) =
        if ten { (8, usize::from(be16(data, 6))) } else { (4, usize::from(u8at(data, 3))) };
    let Some(mut rest) = data.get(header + descriptor..) else {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    };
    if descriptor != 0 {
        // The block length cannot be changed; the count is taken as it is.
        let at = if descriptor == 16 { header + 13 } else { header + 5 };
        if be24(data, at) != sat32(lu.block_len()) || !matches!(descriptor, 8 | 16) {
            return Reply::check(Sense::parameter(sat16(at)));
        }
    }
    let mut changes = Vec::new();
    while !rest.is_empty() {
        let (code, len) = (rest[0] & 0x3f, usize::from(u8at(rest, 1)) + 2);
        let offset = sat16(data.len() - rest.len());
        let (Some(new), Some(current), Some(mask)) =
            (rest.get(..len), page(lu, code, Values::Current), page(lu, code, Values::Changeable))
        else {
            return Reply::check(Sense::parameter(offset));
        };
        if rest[0] & 0x40 != 0 || len != current.len() {
            return Reply::check(Sense::parameter(offset));
        }
        for i in 2..len {
            if (new[i] ^ current[i]) & !mask[i] != 0 {
                return Reply::check(Sense::parameter(offset.saturating_add(sat16(i))));
            }
        }
        if new[2..] != current[2..] {
            changes.push((code, new.to_vec()));
        }
        rest = &rest[len..];
    }
    for (code, new) in &changes {
        match *code {
            CACHING => lu.write_cache.store(new[2] & WCE != 0, Relaxed),
            CONTROL => {
                lu.d_sense.store(new[2] & D_SENSE != 0, Relaxed);
                lu.software_protect.store(new[4] & SWP != 0, Relaxed);
            }
            _ => {}
        }
    }
    if !changes.is_empty() {
        lu.raise_where(Attention::ModeChanged, |n| !std::ptr::eq(n, nexus));
    }
    Reply::good()
}

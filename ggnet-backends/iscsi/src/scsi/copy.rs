//! EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 sections 6.3 and 6.17): block to block, between units of a target.
//!
//! Invariants: the whole parameter list is checked before the first block is copied; a copy runs to its end within the command, so that no
//! list is ever "in progress". Its result is kept per nexus until it is fetched once, and only for a few lists. BUSY is returned only if
//! the whole list can be copied again with the same result.

use std::sync::{Arc, PoisonError};

use super::super::bytes::{be16, be32, be64, index, put, sat32, u8at};
use super::super::workers::Cancel;
use super::lu::LogicalUnit;
use super::nexus::{CopyResult, Nexus};
use super::read_write::check_range;
use super::reservations::Access;
use super::sense::{Sense, status};
use super::{Action, Plan, Reply, Units, allocation32};

const MAX_TARGETS: u16 = 2;
/// Together with `MAX_SEGMENT_BYTES` the limit of one command: 64 MiB.
const MAX_SEGMENTS: u16 = 4;
const MAX_LIST: usize = TARGET_LEN * 2 + SEGMENT_LEN * 4;
const MAX_SEGMENT_BYTES: u32 = 16 << 20;
/// Bytes that are copied in one step.
const STEP: u64 = 1 << 20;
const TARGET_LEN: usize = 32;
const SEGMENT_LEN: usize = 28;

/// EXTENDED COPY's CDB.
pub(crate) fn decode(cdb: &[u8; 16]) -> Result<Plan, Reply> {
    match allocation32(cdb, 10) {
        0 => Ok(Plan::Reply(Reply::good())),
        len if len < 16 => Err(Sense::PARAMETER_LIST_LENGTH.into()),
        len => Ok(Plan::Out { len: len.min(65_536), action: Action::ExtendedCopy }),
    }
}

/// RECEIVE COPY RESULTS.
pub(crate) fn receive(nexus: &Nexus, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    match cdb[1] & 0x1f {
        3 => Ok(Reply::data(operating_parameters(), allocation32(cdb, 10))),
        0 => {
            let result = nexus.copies().take(cdb[2]).ok_or_else(|| Reply::check(Sense::cdb(2)))?;
            Ok(Reply::data(copy_status(result), allocation32(cdb, 10)))
        }
        // FAILED SEGMENT DETAILS: the command itself says them. The table of commands knows no other.
        _ => Err(Sense::cdb(2).into()),
    }
}

fn operating_parameters() -> Vec<u8> {
    let codes = [0x02, 0xe4];
    let mut out = vec![0; 44];
    // SNLID: a list may be without an identifier.
    out[4] = 1;
    put(&mut out, 8, &MAX_TARGETS.to_be_bytes());
    put(&mut out, 10, &MAX_SEGMENTS.to_be_bytes());
    put(&mut out, 12, &sat32(MAX_LIST).to_be_bytes());
    put(&mut out, 16, &MAX_SEGMENT_BYTES.to_be_bytes());
    // One copy at a time per command; granularity 2^9.
    put(&mut out, 34, &[0, 1, 1, 9]);
    out[43] = 2;
    out.extend(codes);
    let len = sat32(out.len() - 4);
    put(&mut out, 0, &len.to_be_bytes());
    out
}

/// A block-to-block segment that was checked.
struct Segment {
    from: Arc<LogicalUnit>,
    to: Arc<LogicalUnit>,
    from_lba: u64,
    to_lba: u64,
    bytes: u64,
}

/// The parameter data of COPY STATUS.
fn copy_status(result: CopyResult) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 8, if result.failed { 2 } else { 1 }];
    out.extend(result.segments.to_be_bytes());
    // Counted in KiB.
    out.push(1);
    out.extend(sat32(index(result.bytes >> 10)).to_be_bytes());
    out
}

/// Executes EXTENDED COPY.
pub(crate) fn extended_copy(nexus: &Nexus, units: &Units, data: &[u8], cancel: &Cancel) -> Reply {
    let segments = match parse(nexus, units, data) {
        Ok(segments) => segments,
        Err(reply) => return reply,
    };
    let mut result = CopyResult { list: u8at(data, 0), failed: false, segments: 0, bytes: 0 };
    let mut reply = Reply::good();
    let mut written = false;
    for segment in &segments {
        if let Err(why) = run(segment, cancel, &mut written) {
            result.failed = true;
            reply = why;
            break;
        }
        result.segments += 1;
        result.bytes += segment.bytes;
    }
    if reply.status == status::BUSY {
        if !written || repeatable(&segments) {
            // As if it had not come: the initiator sends it again, and asks for that one's result.
            return reply;
        }
        reply = Reply::check(Sense::COPY_ABORTED);
    }
    // LIST ID USAGE 1xb: the initiator does not want to ask.
    if u8at(data, 1) >> 4 & 1 == 0 {
        nexus.copies().keep(result);
    }
    reply
}

fn parse(nexus: &Nexus, units: &Units, data: &[u8]) -> Result<Vec<Segment>, Reply> {
    if data.len() < 16 {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    }
    let (targets_len, segments_len) = (usize::from(be16(data, 2)), index(u64::from(be32(data, 8))));
    let inline = be32(data, 12);
    // LIST ID USAGE 11b wants the identifier zero, 10b asks to hold data.
    if u8at(data, 1) >> 3 & 3 == 3 && u8at(data, 0) != 0 {
        return Err(Sense::parameter(0).into());
    }
    if targets_len.saturating_add(segments_len) > MAX_LIST {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    }
    if targets_len / TARGET_LEN > usize::from(MAX_TARGETS) {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS.into());
    }
    if segments_len / SEGMENT_LEN > usize::from(MAX_SEGMENTS) {
        return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS.into());
    }
    if inline > 0 {
        return Err(Sense::parameter(12).into());
    }
    let list = targets_len.checked_add(segments_len).and_then(|n| n.checked_add(16));
    let Some(list) = list.and_then(|n| data.get(16..n)) else {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    };
    let (targets, segments) = list.split_at(targets_len);
    if targets_len % TARGET_LEN != 0 {
        return Err(Sense::parameter(2).into());
    }
    let targets =
        targets.chunks_exact(TARGET_LEN).map(|t| find_target(t, units)).collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::new();
    let mut rest = segments;
    while !rest.is_empty() {
        if rest[0] != 0x02 {
            return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR.into());
        }
        if rest.len() < SEGMENT_LEN || usize::from(be16(rest, 2)) != SEGMENT_LEN - 4 {
            return Err(Sense::parameter(16).into());
        }
        let pick = |at| targets.get(usize::from(be16(rest, at))).cloned();
        let (Some(from), Some(to)) = (pick(4), pick(6)) else {
            return Err(Sense::COPY_TARGET_UNREACHABLE.into());
        };
        // DC: the count is of the destination's blocks, else of the source's.
        let counted = if u8at(rest, 1) & 2 != 0 { &to } else { &from };
        let bytes = u64::from(be16(rest, 10)) << counted.shift();
        let segment = Segment { from_lba: be64(rest, 12), to_lba: be64(rest, 20), bytes, from, to };
        check(&segment, nexus)?;
        out.push(segment);
        rest = &rest[SEGMENT_LEN..];
    }
    Ok(out)
}

/// The logical unit that an identification descriptor (E4h) names: a unit of this target.
fn find_target(t: &[u8], units: &Units) -> Result<Arc<LogicalUnit>, Reply> {
    if t[0] != 0xe4 {
        return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR.into());
    }
    // LU ID TYPE is obsolete since SPC-4: what counts are the designators of page 83.
    let len = usize::from(t[7]).min(20);
    let same = |unit: &&Arc<LogicalUnit>| {
        let page = super::vpd::page(unit, 0x83).unwrap_or_default();
        let mut rest = page.get(4..).unwrap_or(&[]);
        while let Some(id) = rest.get(4..4 + usize::from(u8at(rest, 3))).filter(|_| !rest.is_empty()) {
            let association = rest[1] & 0x30;
            let comparable = id.len().min(20) == len && association == 0;
            if comparable
                && rest[0] & 0x0f == t[4] & 0x0f
                && rest[1] & 0x0f == t[5] & 0x0f
                && id[..len] == t[8..8 + len]
            {
                return true;
            }
            rest = &rest[4 + id.len()..];
        }
        false
    };
    let found = units.iter().find(same).cloned().ok_or(Sense::COPY_TARGET_UNREACHABLE)?;
    // The command came to another unit, maybe.
    found.notice_growth();
    Ok(found)
}

fn check(s: &Segment, nexus: &Nexus) -> Result<(), Reply> {
    let conflict = |unit: &LogicalUnit, access| unit.with_reservations(|r| r.conflicts(&nexus.port, access));
    if conflict(&s.from, Access::Read) || conflict(&s.to, Access::Write) {
        return Err(Reply::conflict());
    }
    if s.to.write_protected() {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    check_range(&s.from, s.from_lba, s.bytes >> s.from.shift()).map_err(|_| Sense::COPY_ABORTED)?;
    check_range(&s.to, s.to_lba, s.bytes >> s.to.shift()).map_err(|_| Sense::COPY_ABORTED)?;
    // Counted in the blocks of one unit, they need not be whole blocks of the other.
    let whole = |unit: &LogicalUnit| s.bytes.is_multiple_of(unit.block_len() as u64);
    if !whole(&s.from) || !whole(&s.to) || s.bytes > u64::from(MAX_SEGMENT_BYTES) {
        return Err(Sense::parameter(16).into());
    }
    Ok(())
}

/// Whether the list gives the same result if a part of it was copied before: no range that it reads overlaps one that it writes.
fn repeatable(segments: &[Segment]) -> bool {
    let overlap = |to: &Segment, from: &Segment| {
        let (write, read) = (to.to_lba << to.to.shift(), from.from_lba << from.from.shift());
        Arc::ptr_eq(&to.to, &from.from) && write < read + from.bytes && read < write + to.bytes
    };
    !segments.iter().any(|to| segments.iter().any(|from| overlap(to, from)))
}

/// Copies a segment; `written` is set before the first write.
fn run(s: &Segment, cancel: &Cancel, written: &mut bool) -> Result<(), Reply> {
    let mut buf = vec![0; index(s.bytes.min(STEP))];
    let (from, to) = (s.from_lba << s.from.shift(), s.to_lba << s.to.shift());
    let steps = s.bytes.div_ceil(STEP);
    // From the end where the destination lies behind the source, so that a step never overwrites what is still to be read.
    let backwards = Arc::ptr_eq(&s.from, &s.to) && to > from;
    for n in 0..steps {
        if cancel.is_cancelled() {
            return Err(Sense::COMMAND_ABORTED.into());
        }
        let at = if backwards { steps - 1 - n } else { n } * STEP;
        let part = &mut buf[..index((s.bytes - at).min(STEP))];
        s.from.device.read_at(part, from + at).map_err(|e| Reply::read_failed(&e))?;
        let _writer = s.to.gate.read().unwrap_or_else(PoisonError::into_inner);
        *written = true;
        s.to.device.write_at(part, to + at).map_err(|e| Reply::write_failed(&e))?;
    }
    if s.to.write_through() {
        s.to.device.flush().map_err(|e| Reply::write_failed(&e))?;
    }
    Ok(())
}

//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4).
//!
//! Invariant: it reports exactly the commands that the table of commands has for this unit.

use super::super::bytes::{be16, sat16, sat32};
use super::lu::LogicalUnit;
use super::opcodes::{self, Opcode};
use super::sense::Sense;
use super::{Reply, allocation32};

/// The timeouts descriptor: no timeout is specified.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// REPORT SUPPORTED OPERATION CODES.
pub(crate) fn report(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    let (timeouts, options, op, action) = (cdb[2] & 0x80 != 0, cdb[2] & 7, cdb[3], be16(cdb, 4));
    let with_action = |o: &Opcode| o.action.map(u16::from);
    let mut of_code = opcodes::all(lu).filter(|o| o.op == op);
    let out = match options {
        0 => all(lu, timeouts),
        // A command with service actions cannot be asked for without one, and none without them with one.
        1 | 2 if opcodes::all(lu).any(|o| o.op == op && o.action.is_some() == (options == 1)) => {
            return Err(Sense::cdb_bit(2, 2).into());
        }
        1 => one(of_code.next(), timeouts),
        2 => one(of_code.find(|o| with_action(o) == Some(action)), timeouts),
        3 => one(of_code.find(|o| with_action(o).unwrap_or(0) == action), timeouts),
        _ => return Err(Sense::cdb_bit(2, 2).into()),
    };
    Ok(Reply::data(out, allocation32(cdb, 6)))
}

fn all(lu: &LogicalUnit, timeouts: bool) -> Vec<u8> {
    let mut body = Vec::new();
    for o in opcodes::all(lu) {
        let [lh, ll] = sat16(o.cdb_len()).to_be_bytes();
        let flags = u8::from(o.action.is_some()) | if timeouts { 2 } else { 0 };
        body.extend([o.op, 0, 0, o.action.unwrap_or(0), 0, flags, lh, ll]);
        if timeouts {
            body.extend(TIMEOUTS);
        }
    }
    let mut out = sat32(body.len()).to_be_bytes().to_vec();
    out.extend(body);
    out
}

fn one(command: Option<&Opcode>, timeouts: bool) -> Vec<u8> {
    let Some(o) = command else { return vec![0, 1, 0, 0] };
    let [high, low] = sat16(o.cdb_len()).to_be_bytes();
    let mut out = vec![0, 3 | if timeouts { 0x80 } else { 0 }, high, low];
    out.extend_from_slice(o.usage);
    if timeouts {
        out.extend(TIMEOUTS);
    }
    out
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: abort task, abort task set, clear task set, LUN reset, target reset.
pub(crate) fn report_task_management(cdb: &[u8; 16]) -> Reply {
    let repd = cdb[2] & 0x80 != 0;
    let mut out = vec![0xda, 0, 0, 0];
    if repd {
        out[3] = 12;
        out.extend([0; 12]);
    }
    Reply::data(out, allocation32(cdb, 6))
}

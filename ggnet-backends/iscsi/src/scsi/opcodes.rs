//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, from one table of all commands.
//!
//! Invariant: a command stands in the table exactly when `decode` executes it; the usage bits are those that it looks at.

use super::super::bytes::{be16, sat16, sat32};
use super::lu::LogicalUnit;
use super::sense::Sense;
use super::{Reply, allocation32};

/// A command: operation code, service action where it has one, and the bits of its CDB that mean something.
struct Command {
    op: u8,
    action: Option<u16>,
    usage: &'static [u8],
}

const fn plain(op: u8, usage: &'static [u8]) -> Command {
    Command { op, action: None, usage }
}

const fn with_action(op: u8, action: u16, usage: &'static [u8]) -> Command {
    Command { op, action: Some(action), usage }
}

const CDB10_LBA: [u8; 10] = [0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0];
const fn cdb10(op: u8, flags: u8) -> [u8; 10] {
    let mut u = CDB10_LBA;
    u[0] = op;
    u[1] = flags;
    u
}

const fn cdb12(op: u8, flags: u8) -> [u8; 12] {
    [op, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

const fn cdb16(op: u8, flags: u8) -> [u8; 16] {
    [op, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

const RECEIVE_COPY: [u8; 16] = [0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const PR_IN: [u8; 10] = [0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
const PR_OUT: [u8; 10] = [0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
const MAINTENANCE: [u8; 12] = [0xa3, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
const CAPACITY_16: [u8; 16] = [0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const LBA_STATUS: [u8; 16] =
    [0x9e, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];

static COMMANDS: &[Command] = &[
    plain(0x00, &[0x00, 0, 0, 0, 0, 0]),
    plain(0x03, &[0x03, 0x01, 0, 0, 0xff, 0]),
    plain(0x08, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(0x0a, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(0x12, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    plain(0x15, &[0x15, 0x11, 0, 0, 0xff, 0]),
    plain(0x16, &[0x16, 0, 0, 0, 0, 0]),
    plain(0x17, &[0x17, 0, 0, 0, 0, 0]),
    plain(0x1a, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    plain(0x1b, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0]),
    plain(0x1e, &[0x1e, 0, 0, 0, 0x03, 0]),
    plain(0x25, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(0x28, &cdb10(0x28, 0xf8)),
    plain(0x2a, &cdb10(0x2a, 0xf8)),
    plain(0x2e, &cdb10(0x2e, 0xf6)),
    plain(0x2f, &cdb10(0x2f, 0xf6)),
    plain(0x34, &cdb10(0x34, 0x02)),
    plain(0x35, &cdb10(0x35, 0x02)),
    plain(0x37, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(0x41, &cdb10(0x41, 0xf8)),
    plain(0x42, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(0x55, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(0x56, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(0x57, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(0x5a, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    with_action(0x5e, 0, &PR_IN),
    with_action(0x5e, 1, &PR_IN),
    with_action(0x5e, 2, &PR_IN),
    with_action(0x5e, 3, &PR_IN),
    with_action(0x5f, 0, &PR_OUT),
    with_action(0x5f, 1, &PR_OUT),
    with_action(0x5f, 2, &PR_OUT),
    with_action(0x5f, 3, &PR_OUT),
    with_action(0x5f, 4, &PR_OUT),
    with_action(0x5f, 5, &PR_OUT),
    with_action(0x5f, 6, &PR_OUT),
    with_action(0x83, 0, &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    with_action(0x84, 0, &RECEIVE_COPY),
    with_action(0x84, 3, &RECEIVE_COPY),
    with_action(0x84, 4, &RECEIVE_COPY),
    plain(0x88, &cdb16(0x88, 0xf8)),
    plain(0x89, &[0x89, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0]),
    plain(0x8a, &cdb16(0x8a, 0xf8)),
    plain(0x8b, &cdb16(0x8b, 0xf8)),
    plain(0x8e, &cdb16(0x8e, 0xf6)),
    plain(0x8f, &cdb16(0x8f, 0xf6)),
    plain(0x90, &cdb16(0x90, 0x02)),
    plain(0x91, &cdb16(0x91, 0x02)),
    plain(0x93, &cdb16(0x93, 0xf9)),
    with_action(0x9e, 0x10, &CAPACITY_16),
    with_action(0x9e, 0x12, &LBA_STATUS),
    plain(0xa0, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    with_action(0xa3, 0x0a, &[0xa3, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    with_action(0xa3, 0x0c, &MAINTENANCE),
    with_action(0xa3, 0x0d, &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(0xa8, &cdb12(0xa8, 0xf8)),
    plain(0xaa, &cdb12(0xaa, 0xf8)),
    plain(0xae, &cdb12(0xae, 0xf6)),
    plain(0xaf, &cdb12(0xaf, 0xf6)),
    plain(0xb7, &[0xb7, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// The commands of this unit: UNMAP only where the device can discard, PREVENT ALLOW where there is something to prevent.
fn commands(lu: &LogicalUnit) -> impl Iterator<Item = &'static Command> {
    let (discard, removable) = (lu.info().discard, lu.removable);
    COMMANDS.iter().filter(move |c| (discard || c.op != 0x42) && (removable || c.op != 0x1e))
}

/// The timeouts descriptor: nothing promised.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// REPORT SUPPORTED OPERATION CODES.
pub(crate) fn report(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    let (timeouts, options, op, action) = (cdb[2] & 0x80 != 0, cdb[2] & 7, cdb[3], be16(cdb, 4));
    let out = match options {
        0 => all(lu, timeouts),
        1 => {
            // A command with service actions cannot be asked for without one.
            if commands(lu).any(|c| c.op == op && c.action.is_some()) {
                return Err(Sense::cdb_bit(2, 2).into());
            }
            one(commands(lu).find(|c| c.op == op), timeouts)
        }
        2 => {
            if commands(lu).any(|c| c.op == op && c.action.is_none()) {
                return Err(Sense::cdb_bit(2, 2).into());
            }
            one(commands(lu).find(|c| c.op == op && c.action == Some(action)), timeouts)
        }
        3 => one(commands(lu).find(|c| c.op == op && c.action.unwrap_or(0) == action), timeouts),
        _ => return Err(Sense::cdb_bit(2, 2).into()),
    };
    Ok(Reply::data(out, allocation32(cdb, 6)))
}

fn all(lu: &LogicalUnit, timeouts: bool) -> Vec<u8> {
    let mut body = Vec::new();
    for c in commands(lu) {
        let [ah, al] = c.action.unwrap_or(0).to_be_bytes();
        let [lh, ll] = sat16(c.usage.len()).to_be_bytes();
        let flags = u8::from(c.action.is_some()) | if timeouts { 2 } else { 0 };
        body.extend([c.op, 0, ah, al, 0, flags, lh, ll]);
        if timeouts {
            body.extend(TIMEOUTS);
        }
    }
    let mut out = sat32(body.len()).to_be_bytes().to_vec();
    out.extend(body);
    out
}

fn one(command: Option<&Command>, timeouts: bool) -> Vec<u8> {
    let Some(c) = command else { return vec![0, 1, 0, 0] };
    let [high, low] = sat16(c.usage.len()).to_be_bytes();
    let mut out = vec![0, 3 | if timeouts { 0x80 } else { 0 }, high, low];
    out.extend_from_slice(c.usage);
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

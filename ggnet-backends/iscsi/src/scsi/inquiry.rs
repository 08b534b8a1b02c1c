//! INQUIRY's standard data and REPORT TARGET PORT GROUPS.
//!
//! Invariant: strings are padded with spaces and contain printable ASCII only, whatever was configured.

use super::super::bytes::{ascii, be16, put};
use super::lu::LogicalUnit;
use super::sense::Sense;
use super::{Reply, allocation32, vpd};

/// Length of the standard data that is returned: up to the last version descriptor.
const STANDARD_LEN: u8 = 96;

/// INQUIRY.
pub(crate) fn inquiry(lu: &LogicalUnit, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    let allocation = usize::from(be16(cdb, 3));
    match (cdb[1] & 3, cdb[2]) {
        (0, 0) => Ok(Reply::data(standard(lu), allocation)),
        (1, page) => {
            vpd::page(lu, page).map(|out| Reply::data(out, allocation)).ok_or_else(|| Sense::cdb(2).into())
        }
        // CMDDT is obsolete, and a page without EVPD has no meaning.
        (0, _) => Err(Sense::cdb(2).into()),
        _ => Err(Sense::cdb_bit(1, 1).into()),
    }
}

fn standard(lu: &LogicalUnit) -> Vec<u8> {
    let id = &lu.identity;
    let mut out = vec![0; usize::from(STANDARD_LEN)];
    out[1] = if lu.removable { 0x80 } else { 0 };
    // SPC-4; HISUP and response data format 2.
    out[2] = 6;
    out[3] = 0x12;
    out[4] = STANDARD_LEN - 5;
    // 3PC: EXTENDED COPY. No implicit or explicit ALUA.
    out[5] = 0x08;
    // CMDQUE.
    out[7] = 0x02;
    out[8..16].copy_from_slice(&ascii::<8>(&id.vendor));
    out[16..32].copy_from_slice(&ascii::<16>(&id.product));
    out[32..36].copy_from_slice(&ascii::<4>(&id.revision));
    // SAM-5, SPC-4, SBC-3, iSCSI: no version claimed.
    for (i, descriptor) in [0x00a0u16, 0x0460, 0x04c0, 0x0960].iter().enumerate() {
        put(&mut out, 58 + i * 2, &descriptor.to_be_bytes());
    }
    out
}

/// INQUIRY to a unit that does not exist: qualifier 3, no device type.
pub(crate) fn no_unit(cdb: &[u8; 16]) -> Reply {
    if cdb[1] & 3 != 0 || cdb[2] != 0 {
        return Reply::check(Sense::LUN_NOT_SUPPORTED);
    }
    let mut out = vec![0; 36];
    out[0] = 0x7f;
    out[2] = 6;
    out[3] = 2;
    out[4] = 31;
    Reply::data(out, usize::from(be16(cdb, 3)))
}

/// REPORT TARGET PORT GROUPS: one group, one port, always active.
pub(crate) fn report_target_port_groups(cdb: &[u8; 16]) -> Reply {
    let out = vec![0, 0, 0, 12, 0, 0x01, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
    Reply::data(out, allocation32(cdb, 6))
}

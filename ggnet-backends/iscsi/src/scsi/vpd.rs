//! Vital product data: pages 00, 80, 83, 86, B0, B1, B2.
//!
//! Invariant: pages 80 and 83 contain only what was configured, so that an operating system recognises its disk after every boot.

use super::super::bytes::{ascii, index, put, sat8, sat16, sat32};
use super::lu::LogicalUnit;
use super::provision::{MAX_SAME_BLOCKS, MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS};
use super::read_write::{MAX_COMPARE_BLOCKS, MAX_TRANSFER_BLOCKS};

const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// A page with its header, or `None` if the page is not supported.
pub(crate) fn page(lu: &LogicalUnit, code: u8) -> Option<Vec<u8>> {
    let body = match code {
        0x00 => PAGES.to_vec(),
        0x80 => serial(lu),
        0x83 => identification(lu),
        0x86 => extended(),
        0xb0 => block_limits(lu),
        0xb1 => characteristics(),
        0xb2 => provisioning(lu),
        _ => return None,
    };
    let mut out = vec![0, code];
    out.extend(sat16(body.len()).to_be_bytes());
    out.extend(body);
    Some(out)
}

fn serial(lu: &LogicalUnit) -> Vec<u8> {
    lu.identity.serial.bytes().map(|b| if (0x20..0x7f).contains(&b) { b } else { b'?' }).take(252).collect()
}

fn identification(lu: &LogicalUnit) -> Vec<u8> {
    let mut out = Vec::new();
    // The unit: NAA locally assigned, binary.
    let naa = lu.identity.naa & 0x0fff_ffff_ffff_ffff | 0x3000_0000_0000_0000;
    designator(&mut out, 0x01, 0x03, &naa.to_be_bytes());
    // The unit: T10 vendor identification and serial, ASCII.
    let mut t10 = ascii::<8>(&lu.identity.vendor).to_vec();
    t10.extend(serial(lu));
    designator(&mut out, 0x02, 0x01, &t10);
    // The port: relative port 1, target port group 1, its name (protocol iSCSI).
    designator(&mut out, 0x51, 0x94, &[0, 0, 0, 1]);
    designator(&mut out, 0x51, 0x95, &[0, 0, 0, 1]);
    let name = |suffix: &str| {
        let mut name = format!("{}{suffix}", lu.target).into_bytes();
        name.push(0);
        name.resize(name.len().next_multiple_of(4), 0);
        name
    };
    designator(&mut out, 0x53, 0x98, &name(",t,0x0001"));
    // The target device's name.
    designator(&mut out, 0x53, 0xa8, &name(""));
    out
}

fn designator(out: &mut Vec<u8>, code_set: u8, kind: u8, id: &[u8]) {
    let id = &id[..id.len().min(255)];
    out.extend([code_set, kind, 0, sat8(id.len())]);
    out.extend(id);
}

fn extended() -> Vec<u8> {
    let mut out = vec![0; 60];
    // SIMPSUP: simple tasks; the others are taken as such.
    out[1] = 0x01;
    // V_SUP: there is a volatile cache (SYNCHRONIZE CACHE matters).
    out[2] = 0x01;
    out
}

fn block_limits(lu: &LogicalUnit) -> Vec<u8> {
    let info = lu.info();
    let blocks = |bytes: u64| sat32(index(bytes >> lu.shift()));
    let grain = info.physical_block.max(info.logical_block) >> lu.shift();
    // Offsets are those of the page, four bytes of header included.
    let mut out = vec![0; 64];
    // WSNZ: WRITE SAME needs a count.
    out[4] = 1;
    out[5] = MAX_COMPARE_BLOCKS;
    put(&mut out, 6, &u16::try_from(grain).unwrap_or(1).to_be_bytes());
    put(&mut out, 8, &MAX_TRANSFER_BLOCKS.to_be_bytes());
    put(&mut out, 12, &blocks(1 << 20).to_be_bytes());
    if info.discard {
        put(&mut out, 20, &MAX_UNMAP_BLOCKS.to_be_bytes());
        put(&mut out, 24, &MAX_UNMAP_DESCRIPTORS.to_be_bytes());
        put(&mut out, 28, &grain.to_be_bytes());
        // UGAVALID with alignment zero.
        put(&mut out, 32, &0x8000_0000u32.to_be_bytes());
    }
    put(&mut out, 36, &MAX_SAME_BLOCKS.to_be_bytes());
    out.split_off(4)
}

fn characteristics() -> Vec<u8> {
    let mut out = vec![0; 60];
    // Medium rotation rate 1: does not rotate.
    out[1] = 1;
    out
}

fn provisioning(lu: &LogicalUnit) -> Vec<u8> {
    if lu.info().discard {
        // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
        vec![0, 0xe4, 0x02, 0]
    } else {
        vec![0; 4]
    }
}

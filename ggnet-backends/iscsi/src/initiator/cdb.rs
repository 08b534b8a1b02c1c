//! The command descriptor blocks that an initiator of a disk needs (SBC-3, SPC-4).

/// READ(10), or READ(16) if a field is too small (SBC-3 sections 5.11 and 5.13).
#[must_use]
pub fn read(lba: u64, blocks: u32) -> Vec<u8> {
    short_or_long(0x28, 0x88, lba, blocks)
}

/// WRITE(10), or WRITE(16) if a field is too small (SBC-3 sections 5.33 and 5.35).
#[must_use]
pub fn write(lba: u64, blocks: u32) -> Vec<u8> {
    short_or_long(0x2a, 0x8a, lba, blocks)
}

fn short_or_long(short: u8, long: u8, lba: u64, blocks: u32) -> Vec<u8> {
    match (u32::try_from(lba), u16::try_from(blocks)) {
        (Ok(lba), Ok(blocks)) => ten(short, 0, lba, blocks).to_vec(),
        _ => sixteen(long, 0, lba, blocks).to_vec(),
    }
}

/// A CDB of ten bytes: the operation code, its flags, an address and a count of blocks.
#[must_use]
pub fn ten(op: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let ([a, b, c, d], [high, low]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [op, flags, a, b, c, d, 0, high, low, 0]
}

/// A CDB of sixteen bytes with an address and a count of blocks.
#[must_use]
pub fn sixteen(op: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (op, flags);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// SYNCHRONIZE CACHE(10) of the whole unit (SBC-3 section 5.22).
pub const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// TEST UNIT READY (SPC-4 section 6.47).
pub const TEST_UNIT_READY: [u8; 6] = [0; 6];
/// READ CAPACITY(10), whose answer has [`CAPACITY_LEN`] bytes (SBC-3 section 5.15).
pub const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Length of the answer to [`READ_CAPACITY`]: the last block's address, and the length of a block.
pub const CAPACITY_LEN: usize = 8;

/// UNMAP of one range: the CDB and its parameter list (SBC-3 section 5.28).
#[must_use]
pub fn unmap(lba: u64, blocks: u32) -> ([u8; 10], [u8; 24]) {
    let mut list = [0; 24];
    // The bytes that follow the first field, and the bytes of descriptors.
    (list[1], list[3]) = (22, 16);
    list[8..16].copy_from_slice(&lba.to_be_bytes());
    list[16..20].copy_from_slice(&blocks.to_be_bytes());
    ([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], list)
}

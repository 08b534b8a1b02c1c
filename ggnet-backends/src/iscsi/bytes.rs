//! Big-endian fields of wire structures.
//!
//! Invariant: nothing here panics. A read outside the slice yields zero and a write outside is dropped, so that a
//! length check forgotten elsewhere is a wrong answer to one initiator and never the end of a room.

/// The 16-bit field at `at`.
pub(crate) fn be16(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).and_then(|s| s.try_into().ok()).map_or(0, u16::from_be_bytes)
}

/// The 24-bit field at `at`.
pub(crate) fn be24(b: &[u8], at: usize) -> u32 {
    match b.get(at..at + 3) {
        Some(&[x, y, z]) => u32::from_be_bytes([0, x, y, z]),
        _ => 0,
    }
}

/// The 32-bit field at `at`.
pub(crate) fn be32(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|s| s.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The 64-bit field at `at`.
pub(crate) fn be64(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|s| s.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The byte at `at`.
pub(crate) fn u8at(b: &[u8], at: usize) -> u8 {
    b.get(at).copied().unwrap_or(0)
}

/// Copies `value` to `at`.
pub(crate) fn put(b: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = b.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

/// A length as a 32-bit field, saturating.
pub(crate) fn sat32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A length as a 16-bit field, saturating.
pub(crate) fn sat16(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// A length as an 8-bit field, saturating.
pub(crate) fn sat8(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

/// A byte count as an index, saturating (exact on 64-bit machines).
pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_inside_and_ignores_outside() {
        let mut b = [0u8; 8];
        put(&mut b, 2, &0x0102_0304u32.to_be_bytes());
        assert_eq!(be32(&b, 2), 0x0102_0304);
        assert_eq!(be24(&b, 3), 0x0002_0304);
        assert_eq!(be16(&b, 2), 0x0102);
        assert_eq!(be64(&b, 0), 0x0000_0102_0304_0000);
        put(&mut b, 6, &[9; 4]);
        assert_eq!(b, [0, 0, 1, 2, 3, 4, 0, 0]);
        assert_eq!((be16(&b, 7), be24(&b, 6), be32(&b, 5), be64(&b, 1), u8at(&b, 8)), (0, 0, 0, 0, 0));
    }
}

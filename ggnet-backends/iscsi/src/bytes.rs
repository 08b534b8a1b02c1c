//! Fields of wire structures, big-endian numbers and text, and comparing and joining blocks.
//!
//! Invariant: nothing here panics. A read outside the slice returns zero and a write outside it is ignored, so a missing length check
//! elsewhere causes a wrong answer to one initiator and never the end of the server.

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

/// Text in a fixed field, as SPC-4 section 4.3.1 requires: printable ASCII, padded with spaces.
pub(crate) fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
    out
}

/// The position of the first difference, within the length of the shorter slice.
pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    // A slice at once is one memcmp; only the one that differs is looked at byte by byte.
    const PIECE: usize = 512;
    let at = a
        .chunks(PIECE)
        .zip(b.chunks(PIECE))
        .position(|(a, b)| a[..a.len().min(b.len())] != b[..b.len().min(a.len())])?;
    let at = at * PIECE;
    a[at..].iter().zip(&b[at..]).position(|(a, b)| a != b).map(|n| at + n)
}

/// Sets in `to` every bit that is set in `from`, within the length of the shorter slice.
pub(crate) fn or_into(to: &mut [u8], from: &[u8]) {
    let both = to.len().min(from.len());
    let ((words, rest), (from_words, from_rest)) =
        (to[..both].as_chunks_mut::<8>(), from[..both].as_chunks::<8>());
    for (word, from) in words.iter_mut().zip(from_words) {
        *word = (u64::from_ne_bytes(*word) | u64::from_ne_bytes(*from)).to_ne_bytes();
    }
    rest.iter_mut().zip(from_rest).for_each(|(byte, from)| *byte |= from);
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

    #[test]
    fn text_fills_a_fixed_field() {
        assert_eq!(&ascii::<6>("ab"), b"ab    ");
        assert_eq!(&ascii::<4>("abcdefg"), b"abcd");
        assert_eq!(&ascii::<4>("a\nb"), b"a?b ");
    }

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        let a: Vec<u8> = (0..2000_u32).map(|n| n.to_le_bytes()[0]).collect();
        assert_eq!(first_difference(&a, &a), None);
        for at in [0, 1, 511, 512, 513, 1024, 1999] {
            let mut b = a.clone();
            b[at] ^= 1;
            b[1999] ^= 2;
            assert_eq!(first_difference(&a, &b), Some(at));
            assert_eq!(first_difference(&a[..at], &b), None);
        }
        assert_eq!(first_difference(&a, &a[..700]), None);
    }

    #[test]
    fn every_bit_is_joined() {
        for len in [0, 1, 7, 8, 9, 515] {
            let from: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[0]).collect();
            let mut to = vec![0x50; from.len()];
            or_into(&mut to, &from);
            assert!(to.iter().zip(&from).all(|(to, from)| *to == 0x50 | from), "{to:x?}");
        }
    }
}

//! The data of a transfer: a file's bytes or their netascii form (RFC 764), produced one block at a time from the file.
//!
//! Invariant: the same block from the same [`Place`] has the same bytes, so a retransmission repeats what was sent.

use bytes::Bytes;

use super::packet::Mode;

/// The bytes of a file and their transfer mode.
#[derive(Clone, Debug)]
pub(super) struct Content {
    bytes: Bytes,
    mode: Mode,
}

/// The start of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The offset in the file.
    at: usize,
    /// The byte at `at` is sent as two bytes, and the previous block ended with the first of them.
    second_half: bool,
}

impl Content {
    /// A file in transfer mode `mode`.
    pub(super) const fn new(bytes: Bytes, mode: Mode) -> Self {
        Self { bytes, mode }
    }

    /// The number of bytes to send, if it is known without reading the file.
    pub(super) fn size(&self) -> Option<u64> {
        match self.mode {
            Mode::Octet => Some(self.bytes.len() as u64),
            Mode::Netascii => None,
        }
    }

    /// Appends the block that starts at `from`: `size` bytes, or fewer at the end of the file. Returns the start of the next block.
    pub(super) fn append_block(&self, from: Place, size: u16, out: &mut Vec<u8>) -> Place {
        match self.mode {
            Mode::Octet => {
                let block = self.rest(from, usize::from(size));
                out.extend_from_slice(block);
                Place { at: from.at + block.len(), second_half: false }
            }
            Mode::Netascii => self.append_netascii(from, usize::from(size), out),
        }
    }

    /// LF becomes CR LF, a bare CR becomes CR NUL.
    fn append_netascii(&self, mut place: Place, size: usize, out: &mut Vec<u8>) -> Place {
        let end = out.len() + size;
        while out.len() < end {
            let rest = self.rest(place, end - out.len());
            let plain = rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
            if plain > 0 {
                out.extend_from_slice(&rest[..plain]);
                place.at += plain;
                continue;
            }
            match rest.first() {
                None => break,
                Some(_) if !place.second_half => {
                    out.push(b'\r');
                    place.second_half = true;
                }
                Some(byte) => {
                    out.push(if *byte == b'\n' { b'\n' } else { 0 });
                    place = Place { at: place.at + 1, second_half: false };
                }
            }
        }
        place
    }

    /// At most `most` bytes of the file, starting at `place`.
    fn rest(&self, place: Place, most: usize) -> &[u8] {
        let start = place.at.min(self.bytes.len());
        &self.bytes[start..start.saturating_add(most).min(self.bytes.len())]
    }
}

/// All blocks of a file.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn blocks(content: &Content, size: u16) -> Vec<Vec<u8>> {
    let (mut all, mut place) = (Vec::new(), Place::default());
    loop {
        let mut block = Vec::new();
        place = content.append_block(place, size, &mut block);
        let last = block.len() < usize::from(size);
        all.push(block);
        if last {
            return all;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn netascii(file: &[u8], size: u16) -> Vec<Vec<u8>> {
        blocks(&Content::new(Bytes::copy_from_slice(file), Mode::Netascii), size)
    }

    #[test]
    fn netascii_ends_lines_as_the_rfc_says_also_where_a_block_ends_between_the_two() {
        let file = b"a\nb\rc\r\n";
        assert_eq!(netascii(file, 512), [b"a\r\nb\r\0c\r\0\r\n"]);
        assert_eq!(netascii(file, 2), [&b"a\r"[..], b"\nb", b"\r\0", b"c\r", b"\0\r", b"\n"]);
        assert_eq!(netascii(b"\n", 2), [&b"\r\n"[..], b""], "an exact multiple ends with an empty block");
        assert_eq!(netascii(b"", 8), [b""]);
    }

    proptest! {
        #[test]
        fn blocks_of_any_size_are_the_whole_form_cut_up(
            file in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()], 0..300), size in 1u16..40,
        ) {
            let whole: Vec<u8> = file.iter().flat_map(|b| match b {
                b'\n' => vec![b'\r', b'\n'],
                b'\r' => vec![b'\r', 0],
                other => vec![*other],
            }).collect();
            let blocks = netascii(&file, size);
            prop_assert!(blocks[..blocks.len() - 1].iter().all(|b| b.len() == usize::from(size)));
            prop_assert_eq!(blocks.concat(), whole);
        }
    }
}

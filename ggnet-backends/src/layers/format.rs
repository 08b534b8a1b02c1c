//! The names of a layer's files, the headers of its two map files, and their layout.
//!
//! ```text
//!   offset  size  header (one 512-byte sector, so never torn)      both map files:
//!        0     8  magic "GGnetLyr"                                      0..512    header
//!        8     4  version, 1                                          512..520    hot only: the mark of a failed disk
//!       12     4  kind: 1 hot, 2 durable                             4096..       the map: one 64-bit word for 32 blocks,
//!       16     4  flags, 0; a reader refuses one it does not know                 block b in bits 2(b mod 32) of word b / 32
//!       20     4  block size, 4096
//!       24     8  size of the disk in bytes
//!       32     8  instance id
//!       40    32  image version id below, hexadecimal
//!       72    64  resource id, padded with zeros
//!      136    36  hot only: the kernel's boot id
//!      508     4  CRC-32C of bytes 0..508
//! ```
//! All numbers are little-endian. Invariants: a header is written once and never changed; it contains everything that `list()` needs, so no
//! database is used; a map file with an invalid header is treated as missing.

use std::io;

use ggnet_core::nouns::{ImageVersionId, InstanceId, ResourceId};

/// The data file's name.
pub(crate) const DATA: &str = "data";
/// The hot map file's name.
pub(crate) const HOT: &str = "hot";
/// The durable map file's name.
pub(crate) const DURABLE: &str = "durable";
/// The first durable map's name until it is synced.
pub(crate) const DURABLE_NEW: &str = "durable.new";

/// Bytes in a block: the unit of the map.
pub(crate) const BLOCK: u64 = 4096;
/// Offset of the map in a map file.
pub(crate) const MAP_OFFSET: u64 = 4096;
/// Length of a header.
pub(crate) const HEADER_LEN: usize = 512;
/// Offset of [`FAILED_MARK`] in the hot map file.
pub(crate) const FAILED_OFFSET: u64 = 512;
/// Written to the hot map file after an fsync failed: as long as this kernel runs, the page cache of this disk must not be used.
pub(crate) const FAILED_MARK: &[u8; 8] = b"FSYNCERR";

const MAGIC: &[u8; 8] = b"GGnetLyr";
const VERSION: u32 = 1;
const CHECKED: usize = HEADER_LEN - 4;

/// Which of the two map files this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Follows every acknowledged write; valid while the kernel that wrote it runs.
    Hot,
    /// Follows every flush; valid after a power cut.
    Durable,
}

/// The header of a map file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) instance: InstanceId,
    pub(crate) base: ImageVersionId,
    pub(crate) id: ResourceId,
    /// Empty in a durable map.
    pub(crate) boot: String,
}

impl Header {
    /// Encodes it.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0_u8; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8], room: usize| {
            let n = bytes.len().min(room);
            out[at..at + n].copy_from_slice(&bytes[..n]);
        };
        let kind: u32 = match self.kind {
            Kind::Hot => 1,
            Kind::Durable => 2,
        };
        put(0, MAGIC, 8);
        put(8, &VERSION.to_le_bytes(), 4);
        put(12, &kind.to_le_bytes(), 4);
        put(20, &4096_u32.to_le_bytes(), 4);
        put(24, &self.size.to_le_bytes(), 8);
        put(32, self.instance.as_str().as_bytes(), 8);
        put(40, self.base.simple().as_bytes(), 32);
        put(72, self.id.as_str().as_bytes(), 64);
        put(136, self.boot.as_bytes(), 36);
        let sum = crc32c::crc32c(&out[..CHECKED]);
        out[CHECKED..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes a header; `InvalidData` describes the problem.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> io::Result<Self> {
        let number = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(four)
        };
        let text = |at: usize, room: usize| {
            let field = &bytes[at..at + room];
            let end = field.iter().position(|b| *b == 0).unwrap_or(room);
            std::str::from_utf8(&field[..end]).map_err(|_| bad("a name that is not UTF-8"))
        };
        if bytes[..8] != *MAGIC {
            return Err(bad("a wrong magic number"));
        }
        if number(CHECKED) != crc32c::crc32c(&bytes[..CHECKED]) {
            return Err(bad("a wrong checksum"));
        }
        if number(8) != VERSION || number(16) != 0 || number(20) != 4096 {
            return Err(bad("a format that this version of GGnet does not support"));
        }
        let kind = match number(12) {
            1 => Kind::Hot,
            2 => Kind::Durable,
            _ => return Err(bad("an unknown kind")),
        };
        let mut size = [0; 8];
        size.copy_from_slice(&bytes[24..32]);
        Ok(Self {
            kind,
            size: u64::from_le_bytes(size),
            instance: text(32, 8)?.parse().map_err(|_| bad("no instance id"))?,
            base: text(40, 32)?.parse().map_err(|_| bad("no image version id"))?,
            id: text(72, 64)?.parse().map_err(|_| bad("no resource id"))?,
            boot: text(136, 36)?.to_owned(),
        })
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the header has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_no_flipped_bit_passes() {
        let header = Header {
            kind: Kind::Hot,
            size: 1 << 40,
            instance: InstanceId::generate(),
            base: ImageVersionId::generate(),
            id: "t-0123.7".parse().unwrap(),
            boot: "0f3a9c9e-0000-4000-8000-000000000000".to_owned(),
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        for bit in 0..HEADER_LEN * 8 {
            let mut torn = bytes;
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&torn).is_err(), "bit {bit}");
        }
        assert!(Header::decode(&[0; HEADER_LEN]).is_err());
    }
}

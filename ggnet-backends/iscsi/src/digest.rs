//! Header and data digests: CRC32C as in RFC 7143 section 13.1, stored with the least significant byte first.
//!
//! Invariant: both sides digest the padded segment, including the pad bytes.

/// Length of a digest in bytes.
pub(crate) const DIGEST_LEN: usize = 4;

/// The digest of `bytes` in its wire form.
pub(crate) fn digest(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    crc32c::crc32c(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7143 appendix A.4.
    #[test]
    fn matches_the_examples_of_the_rfc() {
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&up), [0x4e, 0x79, 0xdd, 0x46]);
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(digest(&down), [0x5c, 0xdb, 0x3f, 0x11]);
    }
}

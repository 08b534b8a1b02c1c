//! Protocol data units: the 48-byte basic header segment and the framing of a PDU in a byte stream (RFC 7143 chapter 11).
//!
//! ```text
//!  BHS (48) | AHS (0..=1020) | header digest (0|4) | data (0..=limit) | pad (0..=3) | data digest (0|4)
//! ```
//!
//! Invariants: [`frame`] reads nothing outside the given bytes, allocates nothing and never panics; it returns ranges of the caller's
//! buffer, so that data is parsed without being copied. The fields of a header are used only after its digest was checked.

use std::ops::Range;

use super::bytes::{be24, be32, put, sat32};
use super::digest::{DIGEST_LEN, digest};

/// Length of the basic header segment.
pub(crate) const BHS_LEN: usize = 48;
/// "No tag": the reserved initiator or target task tag.
pub const NO_TAG: u32 = 0xffff_ffff;
/// A bit of the first byte: immediate delivery, outside the command window.
pub const IMMEDIATE: u8 = 0x40;
/// Final (or transit) bit of the flags byte.
pub const FINAL: u8 = 0x80;

/// Operation codes (RFC 7143 section 11.2.1.2).
pub mod opcode {
    /// A ping from the initiator, or its answer to one (section 11.18).
    pub const NOP_OUT: u8 = 0x00;
    /// A SCSI command (section 11.3).
    pub const SCSI_COMMAND: u8 = 0x01;
    /// A task management function request (section 11.5).
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// A login request (section 11.12).
    pub const LOGIN: u8 = 0x03;
    /// A text request (section 11.10).
    pub const TEXT: u8 = 0x04;
    /// Data for the target (section 11.7).
    pub const DATA_OUT: u8 = 0x05;
    /// A logout request (section 11.14).
    pub const LOGOUT: u8 = 0x06;
    /// A request to send lost PDUs again (section 11.16).
    pub const SNACK: u8 = 0x10;
    /// A ping from the target, or its answer to one (section 11.19).
    pub const NOP_IN: u8 = 0x20;
    /// The status of a SCSI command (section 11.4).
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// The result of a task management function (section 11.6).
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// The answer to a login request (section 11.13).
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// The answer to a text request (section 11.11).
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// Data for the initiator (section 11.7).
    pub const DATA_IN: u8 = 0x25;
    /// The answer to a logout request (section 11.15).
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// The target is ready for data (section 11.8).
    pub const R2T: u8 = 0x31;
    /// An asynchronous message from the target (section 11.9).
    #[cfg(feature = "initiator")]
    pub const ASYNC_MESSAGE: u8 = 0x32;
    /// A PDU was refused (section 11.17).
    pub const REJECT: u8 = 0x3f;
}

/// Why a PDU is rejected (RFC 7143 section 11.17.1).
pub(crate) mod reject {
    pub(crate) const DATA_DIGEST: u8 = 0x02;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x04;
    pub(crate) const NOT_SUPPORTED: u8 = 0x05;
    pub(crate) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(crate) const INVALID_PDU_FIELD: u8 = 0x09;
}

/// A basic header segment (RFC 7143 section 11.2.1): its bytes, with access to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_LEN]);

impl Bhs {
    /// An empty header with its opcode and flags.
    pub fn new(op: u8, flags: u8) -> Self {
        let mut b = [0; BHS_LEN];
        b[0] = op;
        b[1] = flags;
        Self(b)
    }

    /// The operation code, without the immediate bit.
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// Whether it is marked for immediate delivery.
    pub fn immediate(&self) -> bool {
        self.0[0] & IMMEDIATE != 0
    }

    /// The opcode's flags.
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// The final bit.
    pub fn is_final(&self) -> bool {
        self.0[1] & FINAL != 0
    }

    /// Bytes of additional header segments.
    pub fn ahs_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes in the data segment, without padding.
    pub fn data_len(&self) -> usize {
        be24(&self.0, 5) as usize
    }

    /// The 32-bit word at `at`.
    pub fn word(&self, at: usize) -> u32 {
        be32(&self.0, at)
    }

    /// The logical unit number in the format of SAM.
    pub fn lun(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[8..16]);
        lun
    }

    /// Initiator task tag.
    pub fn itt(&self) -> u32 {
        self.word(16)
    }

    /// Target transfer tag, if the opcode has one.
    pub fn ttt(&self) -> u32 {
        self.word(20)
    }

    /// Command sequence number of a request.
    pub fn cmd_sn(&self) -> u32 {
        self.word(24)
    }

    /// The command descriptor block of a SCSI command.
    pub fn cdb(&self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&self.0[32..48]);
        cdb
    }

    /// Sets the 32-bit word at `at`.
    pub fn set_word(&mut self, at: usize, value: u32) {
        put(&mut self.0, at, &value.to_be_bytes());
    }

    /// Copies bytes to `at`.
    pub fn set(&mut self, at: usize, value: &[u8]) {
        put(&mut self.0, at, value);
    }

    /// Sets the length of the data segment.
    pub fn set_data_len(&mut self, len: usize) {
        put(&mut self.0, 5, &sat32(len).to_be_bytes()[1..]);
    }
}

/// Which digests a connection uses; the same in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C after the headers.
    pub header: bool,
    /// CRC32C after the data.
    pub data: bool,
}

/// The data segment's length with its padding.
pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A complete PDU found in a buffer; ranges are indexes into that buffer.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The header.
    pub(crate) bhs: Bhs,
    /// The data segment without padding.
    pub(crate) data: Range<usize>,
    /// Length of the whole PDU in bytes.
    pub(crate) total: usize,
}

/// The result of [`frame`].
#[derive(Debug)]
pub(crate) enum Framing {
    /// The PDU is not complete yet: call again when the buffer has this number of bytes; even then it may need more.
    Need(usize),
    /// A complete PDU.
    Pdu(Frame),
}

/// An error after which the stream cannot be read any further: at error recovery level 0 each of these ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The header digest is wrong, so the lengths in the header cannot be used.
    #[error("header digest mismatch")]
    HeaderDigest,
    /// The data digest is wrong.
    #[error("data digest mismatch")]
    DataDigest(Bhs),
    /// The data segment is longer than the declared maximum.
    #[error("data segment of {0} bytes is longer than declared")]
    TooLong(usize),
}

/// Finds the PDU at the start of `buf`.
pub(crate) fn frame(buf: &[u8], digests: Digests, max_data: usize) -> Result<Framing, FrameError> {
    let Some(head) = buf.first_chunk::<BHS_LEN>() else { return Ok(Framing::Need(BHS_LEN)) };
    let bhs = Bhs(*head);
    let headers = BHS_LEN + bhs.ahs_len();
    let mut at = headers;
    if digests.header {
        at += DIGEST_LEN;
        let Some(all) = buf.get(..at) else { return Ok(Framing::Need(at)) };
        let (covered, wire) = all.split_at(headers);
        if digest(covered) != *wire {
            return Err(FrameError::HeaderDigest);
        }
    }
    let len = bhs.data_len();
    if len > max_data {
        return Err(FrameError::TooLong(len));
    }
    let data = at..at + len;
    at += padded(len);
    let with_digest = digests.data && len > 0;
    let total = if with_digest { at + DIGEST_LEN } else { at };
    if buf.len() < total {
        return Ok(Framing::Need(total));
    }
    if with_digest && digest(&buf[data.start..at]) != buf[at..total] {
        return Err(FrameError::DataDigest(bhs));
    }
    Ok(Framing::Pdu(Frame { bhs, data, total }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_scsi_read_10_as_it_stands_on_the_wire() {
        let mut b = Bhs::new(opcode::SCSI_COMMAND, 0xc1);
        b.set_word(16, 7);
        b.set_word(20, 4096);
        b.set_word(24, 3);
        b.set_word(28, 9);
        b.set(32, &[0x28, 0, 0, 0, 0, 100, 0, 0, 8, 0]);
        let wire = b"\x01\xc1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\x10\0\0\0\0\x03\0\0\0\x09\x28\0\0\0\0\x64\0\0\x08\0\0\0\0\0\0\0";
        assert_eq!(&b.0, wire);
        assert_eq!((b.opcode(), b.immediate(), b.is_final(), b.itt(), b.cmd_sn()), (1, false, true, 7, 3));
        assert_eq!(b.cdb()[5], 100);
    }

    #[test]
    fn frames_data_with_padding_and_digests() {
        let mut b = Bhs::new(opcode::NOP_OUT | 0x40, FINAL);
        b.set_data_len(5);
        let mut wire = b.0.to_vec();
        wire.extend(digest(&b.0));
        wire.extend(b"hello\0\0\0");
        wire.extend(digest(b"hello\0\0\0"));
        let both = Digests { header: true, data: true };
        for short in 0..wire.len() {
            assert!(matches!(frame(&wire[..short], both, 8192), Ok(Framing::Need(n)) if n > short));
        }
        let Ok(Framing::Pdu(f)) = frame(&wire, both, 8192) else { panic!("whole") };
        assert_eq!((&wire[f.data], f.total), (&b"hello"[..], wire.len()));
        assert_eq!(frame(&wire, both, 4).unwrap_err(), FrameError::TooLong(5));
        wire[53] ^= 1;
        assert!(matches!(frame(&wire, both, 8192), Err(FrameError::DataDigest(_))));
        wire[0] ^= 1;
        assert_eq!(frame(&wire, both, 8192).unwrap_err(), FrameError::HeaderDigest);
    }

    proptest! {
        #[test]
        fn framing_never_panics_and_never_reaches_outside(buf in proptest::collection::vec(any::<u8>(), 0..300),
                                                          header in any::<bool>(), data in any::<bool>()) {
            match frame(&buf, Digests { header, data }, 200) {
                Ok(Framing::Need(n)) => prop_assert!(n > buf.len()),
                Ok(Framing::Pdu(f)) => {
                    prop_assert!(f.total <= buf.len() && f.data.end <= f.total && f.data.start >= BHS_LEN);
                }
                Err(_) => {}
            }
        }
    }
}

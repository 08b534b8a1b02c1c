//! Statuses and sense data (SPC-4 sections 4.5 and 5.13; SAM-5 section 5.3).
//!
//! Invariants: every CHECK CONDITION carries sense data; its format (fixed or descriptor) follows the D_SENSE bit of the control mode page
//! at the moment when it is sent, not when the error occurred.

use std::io;

use super::super::bytes::put;

/// SCSI status codes.
pub(crate) mod status {
    pub(crate) const GOOD: u8 = 0x00;
    pub(crate) const CHECK_CONDITION: u8 = 0x02;
    pub(crate) const BUSY: u8 = 0x08;
    pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;
    pub(crate) const TASK_SET_FULL: u8 = 0x28;
}

const NOT_READY: u8 = 0x2;
const MEDIUM_ERROR: u8 = 0x3;
const ILLEGAL_REQUEST: u8 = 0x5;
const UNIT_ATTENTION: u8 = 0x6;
const DATA_PROTECT: u8 = 0x7;
const COPY_ABORTED: u8 = 0xa;
const ABORTED_COMMAND: u8 = 0xb;
const MISCOMPARE: u8 = 0xe;

/// The position of an illegal field in the CDB or in the parameter list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    in_cdb: bool,
    byte: u16,
    bit: Option<u8>,
}

/// Sense data: what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sense {
    key: u8,
    asc: u8,
    ascq: u8,
    information: Option<u64>,
    field: Option<Field>,
}

impl Sense {
    pub(crate) const NONE: Self = Self::new(0, 0, 0);
    pub(crate) const NO_MEDIUM: Self = Self::new(NOT_READY, 0x3a, 0x00);
    pub(crate) const REMOVAL_PREVENTED: Self = Self::new(ILLEGAL_REQUEST, 0x53, 0x02);
    pub(crate) const UNRECOVERED_READ: Self = Self::new(MEDIUM_ERROR, 0x11, 0x00);
    pub(crate) const WRITE_ERROR: Self = Self::new(MEDIUM_ERROR, 0x0c, 0x00);
    pub(crate) const PARAMETER_LIST_LENGTH: Self = Self::new(ILLEGAL_REQUEST, 0x1a, 0x00);
    pub(crate) const INVALID_OPCODE: Self = Self::new(ILLEGAL_REQUEST, 0x20, 0x00);
    pub(crate) const LBA_OUT_OF_RANGE: Self = Self::new(ILLEGAL_REQUEST, 0x21, 0x00);
    pub(crate) const LUN_NOT_SUPPORTED: Self = Self::new(ILLEGAL_REQUEST, 0x25, 0x00);
    pub(crate) const INVALID_RELEASE: Self = Self::new(ILLEGAL_REQUEST, 0x26, 0x04);
    pub(crate) const SAVING_NOT_SUPPORTED: Self = Self::new(ILLEGAL_REQUEST, 0x39, 0x00);
    pub(crate) const WRITE_PROTECTED: Self = Self::new(DATA_PROTECT, 0x27, 0x00);
    pub(crate) const SPACE_ALLOCATION_FAILED: Self = Self::new(DATA_PROTECT, 0x27, 0x07);
    pub(crate) const INSUFFICIENT_REGISTRATIONS: Self = Self::new(ILLEGAL_REQUEST, 0x55, 0x04);
    pub(crate) const TOO_MANY_TARGET_DESCRIPTORS: Self = Self::new(ILLEGAL_REQUEST, 0x26, 0x06);
    pub(crate) const UNSUPPORTED_TARGET_DESCRIPTOR: Self = Self::new(ILLEGAL_REQUEST, 0x26, 0x07);
    pub(crate) const TOO_MANY_SEGMENT_DESCRIPTORS: Self = Self::new(ILLEGAL_REQUEST, 0x26, 0x08);
    pub(crate) const UNSUPPORTED_SEGMENT_DESCRIPTOR: Self = Self::new(ILLEGAL_REQUEST, 0x26, 0x09);
    pub(crate) const COPY_TARGET_UNREACHABLE: Self = Self::new(COPY_ABORTED, 0x0d, 0x02);
    pub(crate) const COPY_ABORTED: Self = Self::new(COPY_ABORTED, 0x00, 0x00);
    /// The command was aborted.
    pub(crate) const COMMAND_ABORTED: Self = Self::new(ABORTED_COMMAND, 0x00, 0x00);
    pub(crate) const PROTOCOL_CRC: Self = Self::new(ABORTED_COMMAND, 0x47, 0x05);

    const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None }
    }

    /// INVALID FIELD IN CDB, pointing at the byte.
    pub(crate) const fn cdb(byte: u16) -> Self {
        let field = Some(Field { in_cdb: true, byte, bit: None });
        Self { field, ..Self::new(ILLEGAL_REQUEST, 0x24, 0x00) }
    }

    /// INVALID FIELD IN CDB, pointing at the highest bit of the field.
    pub(crate) const fn cdb_bit(byte: u16, bit: u8) -> Self {
        let field = Some(Field { in_cdb: true, byte, bit: Some(bit) });
        Self { field, ..Self::new(ILLEGAL_REQUEST, 0x24, 0x00) }
    }

    /// INVALID FIELD IN PARAMETER LIST, pointing at the byte.
    pub(crate) const fn parameter(byte: u16) -> Self {
        let field = Some(Field { in_cdb: false, byte, bit: None });
        Self { field, ..Self::new(ILLEGAL_REQUEST, 0x26, 0x00) }
    }

    /// MISCOMPARE at this byte offset.
    pub(crate) const fn miscompare(offset: u64) -> Self {
        Self { information: Some(offset), ..Self::new(MISCOMPARE, 0x1d, 0x00) }
    }

    /// UNIT ATTENTION.
    pub(crate) const fn attention(asc: u8, ascq: u8) -> Self {
        Self::new(UNIT_ATTENTION, asc, ascq)
    }

    /// The sense data of a failed write, flush or discard. For errors that ask for another attempt see
    /// [`Reply::write_failed`](super::Reply::write_failed).
    pub(super) fn from_write(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::SPACE_ALLOCATION_FAILED,
            io::ErrorKind::ReadOnlyFilesystem => Self::WRITE_PROTECTED,
            _ => Self::WRITE_ERROR,
        }
    }

    /// Whether the device itself failed, as opposed to a request that was refused.
    pub(crate) fn is_device_error(self) -> bool {
        self.key == MEDIUM_ERROR || self == Self::SPACE_ALLOCATION_FAILED
    }

    /// The sense data's bytes.
    pub(crate) fn encode(self, descriptor: bool) -> Vec<u8> {
        if descriptor { self.encode_descriptor() } else { self.encode_fixed() }
    }

    fn encode_fixed(self) -> Vec<u8> {
        let mut b = vec![0; 18];
        b[0] = 0x70;
        b[2] = self.key;
        b[7] = 10;
        b[12] = self.asc;
        b[13] = self.ascq;
        if let Some(information) = self.information.and_then(|i| u32::try_from(i).ok()) {
            b[0] |= 0x80;
            put(&mut b, 3, &information.to_be_bytes());
        }
        if let Some(field) = self.field {
            put(&mut b, 15, &field.encode());
        }
        b
    }

    fn encode_descriptor(self) -> Vec<u8> {
        let mut b = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            b.extend([0x00, 0x0a, 0x80, 0]);
            b.extend(information.to_be_bytes());
        }
        if let Some(field) = self.field {
            b.extend([0x02, 0x06, 0, 0]);
            b.extend(field.encode());
            b.push(0);
        }
        b[7] = u8::try_from(b.len() - 8).unwrap_or(0);
        b
    }
}

impl Field {
    /// The sense-key-specific bytes (SPC-4 section 4.5.2.4.2).
    fn encode(self) -> [u8; 3] {
        let cdb = if self.in_cdb { 0x40 } else { 0 };
        let bit = self.bit.map_or(0, |b| 0x08 | b & 7);
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | cdb | bit, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let s = Sense::cdb_bit(1, 4);
        assert_eq!(s.encode(false), [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcc, 0, 1]);
        assert_eq!(s.encode(true), [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xcc, 0, 1, 0]);
        let m = Sense::miscompare(512);
        assert_eq!(m.encode(false)[..7], [0xf0, 0, 0xe, 0, 0, 2, 0]);
        assert_eq!(
            m.encode(true),
            [0x72, 0xe, 0x1d, 0, 0, 0, 0, 12, 0, 0xa, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0]
        );
    }

    #[test]
    fn a_full_disk_is_not_a_broken_one() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Sense::from_write(&full), Sense::SPACE_ALLOCATION_FAILED);
        assert_eq!(Sense::from_write(&io::Error::other("dead")), Sense::WRITE_ERROR);
    }
}

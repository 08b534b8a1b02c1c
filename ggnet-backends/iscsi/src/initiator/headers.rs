//! The headers that an initiator sends, and the sequence numbers in them; without input and output.

use std::ops::Range;

use super::error::Error;
use crate::bytes::sat32;
use crate::negotiate::Params;
use crate::pdu::{Bhs, FINAL, IMMEDIATE, NO_TAG, opcode};

/// The task attribute of a SCSI command: simple (RFC 7143 section 11.3.1).
const SIMPLE: u8 = 0x01;
const READ: u8 = 0x40;
const WRITE: u8 = 0x20;

/// The data of a command.
#[derive(Debug, Clone, Copy)]
pub enum Transfer<'a> {
    /// None.
    None,
    /// At most this number of bytes is received.
    In(usize),
    /// These bytes are sent.
    Out(&'a [u8]),
}

impl Transfer<'_> {
    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(len) => *len,
            Self::Out(data) => data.len(),
        }
    }

    /// Whether it has no data.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flags of its command, with the final bit.
    #[must_use]
    pub fn flags(&self) -> u8 {
        FINAL
            | SIMPLE
            | match self {
                Self::None => 0,
                Self::In(_) => READ,
                Self::Out(_) => WRITE,
            }
    }
}

/// A connection's sequence numbers and task tags (RFC 7143 section 4.2.2). All fields may be changed, for tests that violate the protocol.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// The next command's CmdSN.
    pub cmd_sn: u32,
    /// The StatSN that the target's next status must have.
    pub exp_stat_sn: u32,
    /// The last CmdSN that the target accepts now: the end of the window.
    pub max_cmd_sn: u32,
    /// The last request's initiator task tag.
    pub itt: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { cmd_sn: 1, exp_stat_sn: 0, max_cmd_sn: 1, itt: 1 }
    }
}

/// Whether `a` comes after `b` in serial number arithmetic (RFC 7143 section 4.2.2.1, RFC 1982).
fn after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

impl Numbers {
    /// A request with the next task tag and the next CmdSN. An [immediate](IMMEDIATE) one does not advance CmdSN.
    pub fn request(&mut self, op: u8, flags: u8) -> Bhs {
        self.itt = self.itt.wrapping_add(1);
        if self.itt == NO_TAG {
            self.itt = 0;
        }
        let mut bhs = Bhs::new(op, flags);
        bhs.set_word(16, self.itt);
        bhs.set_word(24, self.cmd_sn);
        bhs.set_word(28, self.exp_stat_sn);
        if !bhs.immediate() {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        bhs
    }

    /// A SCSI command (RFC 7143 section 11.3). Only the first 16 bytes of the CDB are sent.
    pub fn command(&mut self, lun: u8, flags: u8, cdb: &[u8], expected: u32) -> Bhs {
        let mut bhs = self.request(opcode::SCSI_COMMAND, flags);
        bhs.set(9, &[lun]);
        bhs.set_word(20, expected);
        bhs.set(32, &cdb[..cdb.len().min(16)]);
        bhs
    }

    /// A Data-Out PDU (RFC 7143 section 11.7). `ttt` is the R2T's tag, or [`NO_TAG`] for unsolicited data.
    #[must_use]
    pub fn data_out(&self, lun: u8, itt: u32, ttt: u32, data_sn: u32, offset: u32, last: bool) -> Bhs {
        let mut bhs = Bhs::new(opcode::DATA_OUT, if last { FINAL } else { 0 });
        bhs.set(9, &[lun]);
        bhs.set_word(16, itt);
        bhs.set_word(20, ttt);
        bhs.set_word(28, self.exp_stat_sn);
        bhs.set_word(36, data_sn);
        bhs.set_word(40, offset);
        bhs
    }

    /// The Data-Out PDUs that carry `bytes` of a task's data in segments of at most `segment` bytes, each with its range of the data; the
    /// last one is final.
    pub fn burst(
        &self,
        lun: u8,
        itt: u32,
        ttt: u32,
        bytes: Range<usize>,
        segment: usize,
    ) -> impl Iterator<Item = (Bhs, Range<usize>)> + use<> {
        let (numbers, segment, end) = (*self, segment.max(1), bytes.end);
        (0..).zip(bytes.step_by(segment)).map(move |(data_sn, at)| {
            let to = (at + segment).min(end);
            (numbers.data_out(lun, itt, ttt, data_sn, sat32(at), to == end), at..to)
        })
    }

    /// The answer to a target's ping (RFC 7143 section 11.18), if it wants one.
    #[must_use]
    pub fn pong(&self, ping: &Bhs) -> Option<Bhs> {
        if ping.opcode() != opcode::NOP_IN || ping.ttt() == NO_TAG {
            return None;
        }
        let mut bhs = Bhs::new(opcode::NOP_OUT | IMMEDIATE, FINAL);
        bhs.set(8, &ping.lun());
        bhs.set_word(16, NO_TAG);
        bhs.set_word(20, ping.ttt());
        bhs.set_word(24, self.cmd_sn);
        bhs.set_word(28, self.exp_stat_sn);
        Some(bhs)
    }

    /// Updates the numbers from a PDU of the target: its StatSN, if it carries status, and the command window.
    ///
    /// # Errors
    /// The StatSN is not the next one: a status was lost, and error recovery level 0 cannot recover it.
    pub fn heard(&mut self, bhs: &Bhs) -> Result<(), Error> {
        let carries_status = match bhs.opcode() {
            opcode::DATA_IN => bhs.flags() & 1 != 0,
            opcode::NOP_IN => bhs.itt() != NO_TAG,
            opcode::R2T => false,
            _ => true,
        };
        if carries_status {
            let stat_sn = bhs.word(24);
            if stat_sn != self.exp_stat_sn {
                let op = bhs.opcode();
                return Err(Error::Protocol(format!(
                    "StatSN {stat_sn} in a PDU of opcode {op:#04x}, expected {}",
                    self.exp_stat_sn
                )));
            }
            self.exp_stat_sn = stat_sn.wrapping_add(1);
        }
        self.window(bhs);
        Ok(())
    }

    /// Updates the end of the window, which never moves back (RFC 7143 section 4.2.2.1).
    pub(super) fn window(&mut self, bhs: &Bhs) {
        let (exp, max) = (bhs.word(28), bhs.word(32));
        let sane = !after(exp, max.wrapping_add(1));
        if sane && after(max, self.max_cmd_sn) {
            self.max_cmd_sn = max;
        }
    }

    /// Whether the window has room for another command.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !after(self.cmd_sn, self.max_cmd_sn)
    }
}

/// How much of `len` bytes to write is sent with the command as immediate data, and how much is sent before the first R2T, including the
/// immediate data (RFC 7143 sections 4.2.5.2 and 13.10 to 13.14).
#[must_use]
pub fn unsolicited(terms: &Params, len: usize) -> (usize, usize) {
    let burst = usize::try_from(terms.first_burst).unwrap_or(usize::MAX);
    let segment = usize::try_from(terms.peer_max_data).unwrap_or(usize::MAX);
    let immediate = if terms.immediate_data { len.min(burst).min(segment) } else { 0 };
    (immediate, if terms.initial_r2t { immediate } else { len.min(burst) })
}

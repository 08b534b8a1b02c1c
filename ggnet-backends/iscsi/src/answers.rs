//! Answers: data, status, sense and residuals.
//!
//! Invariants: every command is answered exactly once; the residual tells the difference between what the initiator
//! expected to move and what the CDB asked for (RFC 7143 section 11.4.5).

use super::bytes::{index, sat16};
use super::pdu::{Bhs, FINAL, opcode};
use super::scsi::Reply;
use super::scsi::sense::{Sense, status};
use super::session::Session;
use super::tasks::Command;

/// How far the Data-In PDUs of a command have come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) bytes: u32,
    pub(super) pdus: u32,
    pub(super) in_burst: u32,
}

impl Session {
    /// Ends a command: its data, if any, and its status. `moved` is what the CDB asked to move, where that differs from
    /// the data at hand.
    pub(super) fn answer(&mut self, command: &Command, reply: Reply, moved: Option<u64>) {
        self.answer_after(command, reply, moved, 0);
    }

    pub(super) fn answer_after(&mut self, command: &Command, reply: Reply, moved: Option<u64>, pdus: u32) {
        let Reply { status, sense, data } = reply;
        if status != status::GOOD {
            self.counters().failed(sense.is_some_and(Sense::is_device_error));
        }
        if status == status::GOOD && !data.is_empty() && command.expect_in > 0 {
            return self.answer_data(command, &data);
        }
        let descriptor = self.descriptor_sense(command.lun);
        let mut b = Bhs::new(opcode::SCSI_RESPONSE, FINAL);
        b.0[3] = status;
        b.set_word(16, command.itt);
        b.set_word(36, pdus);
        let expected = command.expect_in.max(command.expect_out);
        b.0[1] |= residual(&mut b, 44, expected, moved.unwrap_or(data.len() as u64));
        self.ended(command);
        self.number(&mut b, true);
        match sense {
            None => self.out.push(b, &[]),
            Some(sense) => {
                let sense = sense.encode(descriptor);
                let mut segment = sat16(sense.len()).to_be_bytes().to_vec();
                segment.extend(sense);
                self.out.push(b, &segment);
            }
        }
    }

    /// Parameter data goes out; the last PDU carries GOOD.
    pub(super) fn answer_data(&mut self, command: &Command, data: &[u8]) {
        let mut rest = &data[..data.len().min(index(u64::from(command.expect_in)))];
        let mut sent = Sent::default();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.pdu_room(&sent)));
            let header =
                self.data_in_header(command, &mut sent, now.len(), later.is_empty(), data.len() as u64);
            self.out.push(header, now);
            rest = later;
        }
    }

    pub(super) fn descriptor_sense(&self, lun: u16) -> bool {
        let unit = self.units.get(usize::from(lun));
        unit.is_some_and(|u| u.d_sense.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// Bookkeeping at the end of a command.
    pub(super) fn ended(&mut self, command: &Command) {
        self.command_ended(command.immediate);
        // Commands that end in the turn they came in share one look at the clock with their arrival.
        let took = if command.started == self.now { self.now.elapsed() } else { command.started.elapsed() };
        self.counters().latency(took);
    }
}

/// Sets the residual count and returns its flags.
pub(super) fn residual(b: &mut Bhs, at: usize, expected: u32, moved: u64) -> u8 {
    let expected = u64::from(expected);
    let (flag, count) = match moved.cmp(&expected) {
        std::cmp::Ordering::Greater => (0x04, moved - expected),
        std::cmp::Ordering::Less => (0x02, expected - moved),
        std::cmp::Ordering::Equal => return 0,
    };
    b.set_word(at, u32::try_from(count).unwrap_or(u32::MAX));
    flag
}

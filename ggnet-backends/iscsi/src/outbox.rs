//! A session's output: numbered PDUs, and the answers to commands.
//!
//! Invariants:
//! * StatSN grows by one with every PDU that carries status; ExpCmdSN by one with every non-immediate command that is accepted; MaxCmdSN
//!   never decreases, because the sum of open commands and the free window is constant (RFC 7143 section 4.2.2);
//! * every command is answered exactly once; the residual count is the difference between the length that the initiator expects and the
//!   length in the CDB (RFC 7143 section 11.4.5).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::bytes::{index, sat16, sat32};
use super::conn::OutBuf;
use super::login::Established;
use super::memory::STEP;
use super::negotiate::Params;
use super::pdu::{Bhs, FINAL, NO_TAG, opcode};
use super::scsi::sense::{Sense, status};
use super::scsi::{Reply, Units};
use super::stats::Counters;
use super::target::SessionShared;
use super::task::{Command, Sent};
use super::{CloseReason, Limits};

/// Bytes of output above which no more input is handled and no more data is fetched.
const OUT_HIGH: usize = 512 << 10;

/// The output.
pub(super) struct Outbox {
    pub(super) me: Arc<SessionShared>,
    pub(super) params: Params,
    pub(super) buf: OutBuf,
    /// When the current input arrived: the clock is read once for many commands.
    pub(super) now: Instant,
    /// The logical units, for the format of sense data.
    units: Units,
    stat_sn: u32,
    exp_cmd_sn: u32,
    window: Window,
}

/// The slots for commands.
#[derive(Debug)]
struct Window {
    size: u32,
    /// Commands in the window.
    open: u32,
    max_immediate: u32,
    /// Immediate commands, which are outside the window.
    open_immediate: u32,
}

impl Outbox {
    /// The output of a new session.
    pub(super) fn new(
        me: Arc<SessionShared>,
        units: Units,
        limits: &Limits,
        established: Established,
    ) -> Self {
        let Established { params, exp_cmd_sn, stat_sn, .. } = established;
        let mut buf = OutBuf::default();
        buf.set_digests(params.digests);
        let (size, max_immediate) = (limits.queue_depth, limits.immediate_commands);
        let window = Window { size, open: 0, max_immediate, open_immediate: 0 };
        Self { me, params, buf, now: Instant::now(), units, stat_sn, exp_cmd_sn, window }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.me.counters
    }

    /// Whether the output is so long that nothing may be added.
    pub(super) fn is_full(&self) -> bool {
        self.buf.len() >= OUT_HIGH
    }

    /// Checks a request's CmdSN and gives it a slot in the window. False: the request must be ignored.
    ///
    /// # Errors
    /// The session must end.
    pub(super) fn accept(&mut self, bhs: &Bhs) -> Result<bool, CloseReason> {
        if bhs.immediate() || matches!(bhs.opcode(), opcode::DATA_OUT | opcode::SNACK) {
            return Ok(true);
        }
        let ahead = bhs.cmd_sn().wrapping_sub(self.exp_cmd_sn);
        if ahead >= self.free_window() {
            // Outside the window: silently ignored (RFC 7143 section 4.2.2.1).
            return Ok(false);
        }
        if ahead > 0 {
            // A gap on the only connection never closes at error recovery level 0.
            return Err(CloseReason::ProtocolError);
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        self.window.open += 1;
        self.me.counters.depth(self.window.open);
        Ok(true)
    }

    /// Gives an immediate SCSI command a slot outside the window. False: there is none.
    pub(super) fn accept_immediate(&mut self) -> bool {
        let free = self.window.open_immediate < self.window.max_immediate;
        self.window.open_immediate += u32::from(free);
        free
    }

    /// Free slots in the command window.
    fn free_window(&self) -> u32 {
        self.window.size.saturating_sub(self.window.open)
    }

    /// Frees the slot of a SCSI command that has ended.
    pub(super) fn command_ended(&mut self, immediate: bool) {
        if immediate {
            self.window.open_immediate = self.window.open_immediate.saturating_sub(1);
        } else {
            self.window.open = self.window.open.saturating_sub(1);
            self.me.counters.depth(self.window.open);
        }
    }

    /// Frees the slot of a request that is not a SCSI command. Immediate ones are not counted, because they are answered at once or have
    /// limits of their own.
    pub(super) fn request_ended(&mut self, bhs: &Bhs) {
        if !bhs.immediate() {
            self.command_ended(false);
        }
    }

    /// Fills in StatSN (advancing it when the PDU carries status), ExpCmdSN and MaxCmdSN.
    fn number(&mut self, bhs: &mut Bhs, carries_status: bool) {
        bhs.set_word(24, self.stat_sn);
        if carries_status {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        bhs.set_word(28, self.exp_cmd_sn);
        bhs.set_word(32, self.exp_cmd_sn.wrapping_add(self.free_window()).wrapping_sub(1));
    }

    /// Sends a PDU that carries status.
    pub(super) fn respond(&mut self, mut bhs: Bhs, data: &[u8]) {
        self.number(&mut bhs, true);
        self.buf.push(bhs, data);
    }

    /// Sends a PDU that carries no status.
    pub(super) fn ask(&mut self, mut bhs: Bhs) {
        self.number(&mut bhs, false);
        self.buf.push(bhs, &[]);
    }

    /// Rejects a PDU; the answer contains its header.
    pub(super) fn reject(&mut self, bhs: &Bhs, reason: u8) {
        let mut r = Bhs::new(opcode::REJECT, FINAL);
        r.0[2] = reason;
        r.set_word(16, NO_TAG);
        self.respond(r, &bhs.0);
    }

    /// The longest data segment that the initiator accepts.
    pub(super) fn peer_max_data(&self) -> usize {
        index(u64::from(self.params.peer_max_data))
    }

    /// Ends a command with its data, if any, and its status. `moved` is the length in the CDB, if it differs from the length of the data.
    pub(super) fn answer(&mut self, command: &Command, reply: Reply, moved: Option<u64>) {
        self.answer_after(command, reply, moved, 0);
    }

    /// Ends a command that has sent this number of Data-In PDUs.
    pub(super) fn answer_after(&mut self, command: &Command, reply: Reply, moved: Option<u64>, pdus: u32) {
        let Reply { status, sense, data } = reply;
        if status != status::GOOD {
            self.counters().failed(sense.is_some_and(Sense::is_device_error));
        }
        if status == status::GOOD && !data.is_empty() && command.expect_in > 0 {
            return self.answer_data(command, &data);
        }
        let mut b = Bhs::new(opcode::SCSI_RESPONSE, FINAL);
        b.0[3] = status;
        b.set_word(16, command.itt);
        b.set_word(36, pdus);
        let expected = command.expect_in.max(command.expect_out);
        b.0[1] |= residual(&mut b, 44, expected, moved.unwrap_or(data.len() as u64));
        self.ended(command);
        match sense {
            None => self.respond(b, &[]),
            Some(sense) => {
                let sense = sense.encode(self.descriptor_sense(command.lun));
                let mut segment = sat16(sense.len()).to_be_bytes().to_vec();
                segment.extend(sense);
                self.respond(b, &segment);
            }
        }
    }

    /// Sends parameter data; the last PDU carries GOOD.
    fn answer_data(&mut self, command: &Command, data: &[u8]) {
        let mut rest = &data[..data.len().min(index(u64::from(command.expect_in)))];
        let mut sent = Sent::default();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.pdu_room(&sent)));
            let header =
                self.data_in_header(command, &mut sent, now.len(), later.is_empty(), data.len() as u64);
            self.buf.push(header, now);
            rest = later;
        }
    }

    fn descriptor_sense(&self, lun: u16) -> bool {
        self.units.get(usize::from(lun)).is_some_and(|u| u.d_sense.load(Relaxed))
    }

    /// Space for data in the next Data-In PDU: what the initiator accepts, and not more than a step.
    pub(super) fn pdu_room(&self, sent: &Sent) -> usize {
        index(u64::from(self.params.peer_max_data.min(self.params.max_burst - sent.in_burst))).min(STEP)
    }

    /// The header of a Data-In PDU; the last one carries the status and ends the command.
    pub(super) fn data_in_header(
        &mut self,
        command: &Command,
        sent: &mut Sent,
        len: usize,
        last: bool,
        asked: u64,
    ) -> Bhs {
        let len = sat32(len);
        let mut b = Bhs::new(opcode::DATA_IN, 0);
        b.set_word(16, command.itt);
        b.set_word(20, NO_TAG);
        b.set_word(36, sent.pdus);
        b.set_word(40, sent.bytes);
        sent.pdus += 1;
        sent.bytes = sent.bytes.wrapping_add(len);
        sent.in_burst += len;
        let burst_ends = sent.in_burst >= self.params.max_burst;
        if last {
            b.0[1] = FINAL | 1 | residual(&mut b, 44, command.expect_in, asked);
            self.ended(command);
        } else if burst_ends {
            b.0[1] = FINAL;
        }
        if burst_ends {
            sent.in_burst = 0;
        }
        self.number(&mut b, last);
        b
    }

    /// Updates window and counters at the end of a command.
    fn ended(&mut self, command: &Command) {
        self.command_ended(command.immediate);
        // Commands that end in the turn they came in share one look at the clock with their arrival.
        let took = if command.started == self.now { self.now.elapsed() } else { command.started.elapsed() };
        self.counters().latency(took);
    }
}

/// Sets the residual count and returns its flags.
fn residual(b: &mut Bhs, at: usize, expected: u32, moved: u64) -> u8 {
    let expected = u64::from(expected);
    let (flag, count) = match moved.cmp(&expected) {
        std::cmp::Ordering::Greater => (0x04, moved - expected),
        std::cmp::Ordering::Less => (0x02, expected - moved),
        std::cmp::Ordering::Equal => return 0,
    };
    b.set_word(at, u32::try_from(count).unwrap_or(u32::MAX));
    flag
}

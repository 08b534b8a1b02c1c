//! One read transfer as a state machine, without sockets and without a clock.
//!
//! ```text
//!              options accepted          ACK 0
//!   new ──────────────────────▶ Options ───────▶ Data ──ACK of the last block──▶ Ended(Complete)
//!    │ none                        │               ▲ │
//!    └─────────────────────────────┼───────────────┘ │ ACK of a block in flight: slide the window, send on
//!                                  │                 │
//!        client ERROR: Ended(ClientError)   no progress after `retries` timeouts: Ended(TimedOut)
//! ```
//!
//! Invariants:
//! * The last block is the first short one: the number of blocks is known only after that block was made.
//! * `acked < next`; `starts` has the start of each block after `acked` up to `next`.
//! * At most `window` blocks after `acked` are in flight, so a 16-bit block number identifies one block, even after it wrapped from 65535
//!   to 0 (RFC 1350 does not define this; all clients in use count this way).
//! * In lock step, only an ACK of the block in flight sends the next one: a duplicate ACK sends nothing (Sorcerer's Apprentice, RFC 1123
//!   section 4.2.3.1). With a window (RFC 7440) a duplicate ACK requests the window again, which is granted once between two events of
//!   progress or timeout.
//! * A transfer always ends: every timeout counts, and only progress resets the count. Before the client's first response our own timeouts
//!   apply, whatever timeout it requested, and there are few of them, because the client may not exist.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    content::{Content, Place},
    options::Negotiated,
    packet::{self, Packet},
};

/// Retransmissions to a client that has not acknowledged anything, with our own timeouts: it may not exist.
const UNANSWERED_RETRIES: u32 = 3;
/// The longest time between two retransmissions if the client set none.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The client acknowledged the last block.
    Complete,
    /// The client sent ERROR; firmware does this after it has queried a file's size.
    ClientError(u16, String),
    /// The client stopped responding.
    TimedOut,
    /// The client's host reports that the port is closed.
    Gone,
    /// The client sent a packet that clients must not send.
    Violation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Options { due: bool },
    Data,
}

/// Retransmission: the first timeout, and the number of retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RetryPolicy {
    /// Time before the first retransmission; it doubles with each one, unless the client set the timeout.
    pub(super) first: Duration,
    /// Retransmissions without progress before the transfer is aborted.
    pub(super) retries: u32,
}

/// The total number of bytes to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    blocks: u64,
    bytes: u64,
}

/// A transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    content: Content,
    options: Negotiated,
    retry_policy: RetryPolicy,
    phase: Phase,
    /// Known after the last block was made.
    end: Option<End>,
    acked: u64,
    next: u64,
    starts: VecDeque<Place>,
    tries: u32,
    repeated: bool,
    retransmits: u64,
    deadline: Instant,
    outcome: Option<Outcome>,
}

impl Transfer {
    /// Starts the transfer: the first packets are due at once.
    pub(super) fn new(
        content: Content,
        options: Negotiated,
        retry_policy: RetryPolicy,
        now: Instant,
    ) -> Self {
        let phase = if options.acknowledged.is_empty() { Phase::Data } else { Phase::Options { due: true } };
        let mut transfer = Self {
            content,
            options,
            retry_policy,
            phase,
            end: None,
            acked: 0,
            next: 1,
            starts: VecDeque::from([Place::default()]),
            tries: 0,
            repeated: false,
            retransmits: 0,
            deadline: now,
            outcome: None,
        };
        transfer.arm(now);
        transfer
    }

    /// Writes the next due packet into `out`; returns false if none is due.
    pub(super) fn transmit(&mut self, out: &mut Vec<u8>) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        match self.phase {
            Phase::Options { due: false } => false,
            Phase::Options { due: true } => {
                packet::encode_oack(out, &self.options.acknowledged);
                self.phase = Phase::Options { due: false };
                true
            }
            Phase::Data => {
                let last = self.acked + u64::from(self.options.window);
                if self.next > self.end.map_or(last, |end| last.min(end.blocks)) {
                    return false;
                }
                self.make_block(out);
                true
            }
        }
    }

    /// Processes a datagram from the client.
    pub(super) fn receive(&mut self, bytes: &[u8], now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        match Packet::decode(bytes) {
            Ok(Packet::Ack(number)) => self.acknowledge(number, now),
            Ok(Packet::Error(code, message)) => {
                let message = String::from_utf8_lossy(message).chars().take(120).collect();
                self.outcome = Some(Outcome::ClientError(code, message));
            }
            Ok(Packet::Write(_) | Packet::ServersOwn) => self.outcome = Some(Outcome::Violation),
            // A second request belongs to the listening port; noise is not a reason to abort.
            Ok(Packet::Read(_)) | Err(_) => {}
        }
    }

    /// Processes a timeout.
    pub(super) fn timeout(&mut self, now: Instant) {
        if self.outcome.is_some() || now < self.deadline {
            return;
        }
        let retries = if self.progressed() {
            self.retry_policy.retries
        } else {
            self.retry_policy.retries.min(UNANSWERED_RETRIES)
        };
        if self.tries >= retries {
            self.outcome = Some(Outcome::TimedOut);
            return;
        }
        self.tries += 1;
        self.send_again();
        self.repeated = false;
        self.arm(now);
    }

    /// The client repeated its request because our first packet was lost or late: sends that packet again, from the same port.
    pub(super) fn request_repeated(&mut self, now: Instant) {
        if self.outcome.is_none() && !self.progressed() {
            self.send_again();
            self.arm(now);
        }
    }

    /// The client's port is closed.
    pub(super) fn gone(&mut self) {
        self.outcome.get_or_insert(Outcome::Gone);
    }

    /// When [`timeout`](Self::timeout) should be called next.
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The outcome, after it has ended.
    pub(super) const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Whether the client responded at all.
    pub(super) fn progressed(&self) -> bool {
        self.acked > 0 || (matches!(self.phase, Phase::Data) && !self.options.acknowledged.is_empty())
    }

    /// The number of retransmissions.
    pub(super) const fn retransmits(&self) -> u64 {
        self.retransmits
    }

    /// The number of bytes that the client acknowledged.
    pub(super) fn bytes_acked(&self) -> u64 {
        let full = self.acked * u64::from(self.options.block_size);
        self.end.map_or(full, |end| full.min(end.bytes))
    }

    fn acknowledge(&mut self, number: u16, now: Instant) {
        if let Phase::Options { .. } = self.phase {
            if number == 0 {
                self.phase = Phase::Data;
                self.progress(now);
            }
            return;
        }
        let ahead = u64::from(number.wrapping_sub(wire_number(self.acked)));
        let in_flight = self.next - 1 - self.acked;
        if ahead == 0 {
            if self.options.window > 1 && !self.repeated && in_flight > 0 {
                self.repeated = true;
                self.send_again();
                self.arm(now);
            }
        } else if ahead <= in_flight {
            self.acked += ahead;
            if ahead < in_flight {
                // RFC 7440 section 4: the client missed the blocks after this one; the window restarts after the last block it received.
                self.retransmits += 1;
            }
            self.starts.drain(..usize::try_from(ahead).unwrap_or(usize::MAX).min(self.starts.len()));
            self.back_to_acked();
            if self.end.is_some_and(|end| end.blocks == self.acked) {
                self.outcome = Some(Outcome::Complete);
            }
            self.progress(now);
        }
    }

    fn progress(&mut self, now: Instant) {
        self.tries = 0;
        self.repeated = false;
        self.arm(now);
    }

    fn send_again(&mut self) {
        self.retransmits += 1;
        match &mut self.phase {
            Phase::Options { due } => *due = true,
            Phase::Data => self.back_to_acked(),
        }
    }

    /// Makes the block after the acknowledged one due.
    fn back_to_acked(&mut self) {
        self.next = self.acked + 1;
        self.starts.truncate(1);
    }

    /// Writes the next block.
    fn make_block(&mut self, out: &mut Vec<u8>) {
        let (from, size) = (self.starts.back().copied().unwrap_or_default(), self.options.block_size);
        packet::begin_data(out, wire_number(self.next));
        self.starts.push_back(self.content.append_block(from, size, out));
        let length = out.len() - packet::DATA_HEADER;
        // The last block is shorter than the others; a file with an exact multiple of the block size ends with an empty block.
        if length < usize::from(size) {
            let bytes = (self.next - 1) * u64::from(size) + length as u64;
            self.end = Some(End { blocks: self.next, bytes });
        }
        self.next += 1;
    }

    fn arm(&mut self, now: Instant) {
        let pause = match self.options.timeout.filter(|_| self.progressed()) {
            Some(fixed) => fixed,
            None => {
                let doubled = self.retry_policy.first.saturating_mul(1 << self.tries.min(16));
                doubled.min(MAX_BACKOFF.max(self.retry_policy.first))
            }
        };
        self.deadline = now + pause;
    }
}

/// The block number on the wire.
#[expect(clippy::cast_possible_truncation, reason = "block numbers roll over at 16 bits")]
const fn wire_number(block: u64) -> u16 {
    block as u16
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;

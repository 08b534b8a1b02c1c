//! Pings: answers the initiator's NOP-Out, and sends NOP-In to an initiator that is silent (RFC 7143 sections 11.18 and 11.19).
//!
//! Invariant: an initiator that has never answered a ping does not count as dead, and is pinged once.

use std::time::{Duration, Instant};

use super::outbox::Outbox;
use super::pdu::{Bhs, FINAL, NO_TAG, opcode};
use super::{CloseReason, NOP_MISSES};

/// The state of the pings of one session.
#[derive(Debug)]
pub(super) struct Ping {
    /// Time of silence before a ping; none: never.
    interval: Option<Duration>,
    heard: Instant,
    asked: Option<Instant>,
    answered_once: bool,
    missed: u32,
}

impl Ping {
    pub(super) fn new(interval: Option<Duration>, now: Instant) -> Self {
        Self { interval, heard: now, asked: None, answered_once: false, missed: 0 }
    }

    /// Records that bytes were received.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Handles a NOP-Out: an answer to a ping of the target, or a ping of the initiator.
    pub(super) fn nop_out(&mut self, out: &mut Outbox, bhs: &Bhs, data: &[u8]) {
        self.asked = None;
        if bhs.itt() == NO_TAG {
            // The answer to our own question (or a ping that wants none).
            self.answered_once = true;
            self.missed = 0;
        } else {
            out.request_ended(bhs);
            let mut r = Bhs::new(opcode::NOP_IN, FINAL);
            r.set(8, &bhs.lun());
            r.set_word(16, bhs.itt());
            r.set_word(20, NO_TAG);
            out.respond(r, &data[..data.len().min(out.peer_max_data())]);
        }
    }

    /// Sends a ping if it is due. Returns a reason if the session must end.
    pub(super) fn tick(&mut self, out: &mut Outbox) -> Option<CloseReason> {
        let interval = self.interval?;
        let now = Instant::now();
        let silent_since = self.asked.unwrap_or(self.heard).max(self.heard);
        if now.duration_since(silent_since) < interval || !out.buf.is_empty() {
            return None;
        }
        if self.asked.is_some() && self.answered_once {
            self.missed += 1;
            if self.missed >= NOP_MISSES {
                return Some(CloseReason::Silent);
            }
        } else if self.asked.is_some() {
            // It has never answered a ping: it is not held to this one, and not flooded either.
            return None;
        }
        self.asked = Some(now);
        let mut nop = Bhs::new(opcode::NOP_IN, FINAL);
        nop.set_word(16, NO_TAG);
        nop.set_word(20, 1);
        out.ask(nop);
        None
    }
}

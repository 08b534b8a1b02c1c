//! Text Requests of the full feature phase, discovery among them (RFC 7143 sections 11.10, 11.11 and appendix C).
//!
//! Invariants: one negotiation at a time; a request is collected up to `Limits::max_text`, and of an answer one rest at most is kept.

use std::sync::Arc;

use super::pdu::{Bhs, FINAL, NO_TAG, opcode, reject};
use super::session::Session;
use super::tasks::Done;
use super::text;

/// A session's negotiation.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Of a request that comes in pieces.
    collected: Vec<u8>,
    /// Of an answer that did not fit into one PDU.
    rest: Option<Rest>,
    /// A discovery waits for the policy.
    discovering: bool,
}

/// A text answer, and how much of it has been sent.
#[derive(Debug)]
struct Rest {
    ttt: u32,
    data: Vec<u8>,
    at: usize,
}

impl Session {
    /// A Text Request: collected, understood and answered.
    pub(super) fn text_request(&mut self, bhs: &Bhs, data: &[u8]) {
        self.request_ended(bhs);
        let more = bhs.flags() & 0x40 != 0;
        if self.texts.discovering {
            // One negotiation at a time (RFC 7143 section 11.10.3).
            return self.reject(bhs, reject::PROTOCOL_ERROR);
        }
        if bhs.ttt() != NO_TAG {
            match self.texts.rest.take() {
                Some(rest) if rest.ttt == bhs.ttt() && data.is_empty() && !more => {
                    return self.send_text(bhs.itt(), rest);
                }
                _ => {}
            }
        }
        if self.texts.collected.len() + data.len() > self.around.limits.max_text {
            self.texts.collected.clear();
            return self.reject(bhs, reject::INVALID_PDU_FIELD);
        }
        self.texts.collected.extend_from_slice(data);
        if more {
            let mut r = Bhs::new(opcode::TEXT_RESPONSE, 0);
            r.set_word(16, bhs.itt());
            r.set_word(20, 1);
            self.number(&mut r, true);
            return self.out.push(r, &[]);
        }
        let collected = std::mem::take(&mut self.texts.collected);
        let Ok(pairs) = text::parse(&collected) else { return self.reject(bhs, reject::PROTOCOL_ERROR) };
        let mut answer = Vec::new();
        let mut send_targets = None;
        for (key, value) in pairs {
            match key {
                "SendTargets" => send_targets = Some(value.to_lowercase()),
                _ if matches!(value, "NotUnderstood" | "Reject" | "Irrelevant") => {}
                "MaxRecvDataSegmentLength" => match text::number(value) {
                    Some(n @ 512..=0xff_ffff) => self.params.peer_max_data = n,
                    _ => text::push(&mut answer, key, "Reject"),
                },
                "InitiatorAlias" => {}
                _ => text::push(&mut answer, key, "NotUnderstood"),
            }
        }
        let itt = bhs.itt();
        match (send_targets, &self.around.target) {
            (None, _) => self.send_text(itt, Rest { ttt: 1, data: answer, at: 0 }),
            // In a normal session an initiator learns of the target it is at, by its name or by an empty value.
            (Some(name), Some(target)) => {
                if name.is_empty() || name == *target.iqn {
                    self.push_target(&mut answer, &Arc::clone(&target.iqn));
                }
                self.send_text(itt, Rest { ttt: 1, data: answer, at: 0 });
            }
            (Some(name), None) => {
                self.texts.discovering = true;
                let (policy, request) = (Arc::clone(&self.around.policy), self.around.request.clone());
                self.jobs.push(Box::pin(async move {
                    let mut targets = policy.discover(&request).await;
                    if name != "all" {
                        targets.retain(|t| *t == name);
                    }
                    Done::Discovered { itt, answer, targets }
                }));
            }
        }
    }

    /// The policy has said what discovery may tell.
    pub(super) fn discovered(&mut self, itt: u32, mut answer: Vec<u8>, targets: &[String]) {
        self.texts.discovering = false;
        for target in targets {
            self.push_target(&mut answer, target);
        }
        self.send_text(itt, Rest { ttt: 1, data: answer, at: 0 });
    }

    fn push_target(&self, answer: &mut Vec<u8>, iqn: &str) {
        text::push(answer, "TargetName", iqn);
        text::push(answer, "TargetAddress", &self.around.address);
    }

    /// Sends a text answer, or the next piece of one.
    fn send_text(&mut self, itt: u32, mut text: Rest) {
        let most = usize::try_from(self.params.peer_max_data).unwrap_or(usize::MAX);
        let rest = &text.data[text.at..];
        let piece = rest[..rest.len().min(most)].to_vec();
        let whole = piece.len() == rest.len();
        let mut r = Bhs::new(opcode::TEXT_RESPONSE, if whole { FINAL } else { 0x40 });
        r.set_word(16, itt);
        r.set_word(20, if whole { NO_TAG } else { text.ttt });
        self.number(&mut r, true);
        self.out.push(r, &piece);
        if !whole {
            text.at += piece.len();
            self.texts.rest = Some(text);
        }
    }
}

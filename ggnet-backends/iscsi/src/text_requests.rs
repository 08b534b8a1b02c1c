//! Text Requests of the full feature phase, including discovery (RFC 7143 sections 11.10, 11.11 and appendix C).
//!
//! Invariants: one negotiation at a time; a request is collected up to `Limits::max_text`; at most one unsent rest of an answer is kept.

use std::sync::Arc;

use super::flow::Flow;
use super::outbox::Outbox;
use super::pdu::{Bhs, FINAL, NO_TAG, opcode, reject};
use super::task::Done;
use super::text;
use super::{LoginPolicy, LoginRequest};

/// The text negotiation of a session.
pub(super) struct Texts {
    asked: Asked,
    /// The text of a request that arrives in pieces.
    collected: Vec<u8>,
    /// The rest of an answer that did not fit into one PDU.
    rest: Option<Rest>,
    /// Whether a discovery waits for the policy.
    discovering: bool,
}

/// What is needed to answer a discovery.
pub(super) struct Asked {
    pub(super) policy: Arc<dyn LoginPolicy>,
    /// The login request.
    pub(super) request: LoginRequest,
    /// The address that discovery reports for every target.
    pub(super) address: String,
    /// Longest text of one request, in bytes.
    pub(super) max_text: usize,
}

/// A text answer, and how much of it has been sent.
#[derive(Debug)]
struct Rest {
    ttt: u32,
    data: Vec<u8>,
    at: usize,
}

impl Rest {
    fn new(data: Vec<u8>) -> Self {
        Self { ttt: 1, data, at: 0 }
    }
}

impl Texts {
    pub(super) fn new(asked: Asked) -> Self {
        Self { asked, collected: Vec::new(), rest: None, discovering: false }
    }

    /// Handles a Text Request: collects it, parses it and answers it.
    pub(super) fn request(&mut self, flow: &mut Flow, bhs: &Bhs, data: &[u8]) {
        let out = &mut flow.out;
        out.request_ended(bhs);
        let more = bhs.flags() & 0x40 != 0;
        if self.discovering {
            // One negotiation at a time (RFC 7143 section 11.10.3).
            return out.reject(bhs, reject::PROTOCOL_ERROR);
        }
        if bhs.ttt() != NO_TAG {
            match self.rest.take() {
                Some(rest) if rest.ttt == bhs.ttt() && data.is_empty() && !more => {
                    return self.send(out, bhs.itt(), rest);
                }
                _ => {}
            }
        }
        if self.collected.len() + data.len() > self.asked.max_text {
            self.collected.clear();
            return out.reject(bhs, reject::INVALID_PDU_FIELD);
        }
        self.collected.extend_from_slice(data);
        if more {
            let mut r = Bhs::new(opcode::TEXT_RESPONSE, 0);
            r.set_word(16, bhs.itt());
            r.set_word(20, 1);
            return out.respond(r, &[]);
        }
        let collected = std::mem::take(&mut self.collected);
        let Ok(pairs) = text::parse(&collected) else { return out.reject(bhs, reject::PROTOCOL_ERROR) };
        let mut answer = Vec::new();
        let mut send_targets = None;
        for (key, value) in pairs {
            match key {
                "SendTargets" => send_targets = Some(value.to_lowercase()),
                _ if matches!(value, "NotUnderstood" | "Reject" | "Irrelevant") => {}
                "MaxRecvDataSegmentLength" => match text::number(value) {
                    Some(n @ 512..=0xff_ffff) => out.params.peer_max_data = n,
                    _ => text::push(&mut answer, key, "Reject"),
                },
                "InitiatorAlias" => {}
                _ => text::push(&mut answer, key, "NotUnderstood"),
            }
        }
        let itt = bhs.itt();
        match (send_targets, &out.me.target) {
            (None, _) => self.send(out, itt, Rest::new(answer)),
            // In a normal session an initiator learns of the target it is at, by its name or by an empty value.
            (Some(name), Some(target)) => {
                if name.is_empty() || name == **target {
                    self.push_target(&mut answer, target);
                }
                self.send(out, itt, Rest::new(answer));
            }
            (Some(name), None) => {
                self.discovering = true;
                let (policy, request) = (Arc::clone(&self.asked.policy), self.asked.request.clone());
                flow.jobs.push(async move {
                    let mut targets = policy.discover(&request).await;
                    if name != "all" {
                        targets.retain(|t| *t == name);
                    }
                    Done::Discovered { itt, answer, targets }
                });
            }
        }
    }

    /// Answers a discovery with the targets that the policy returned.
    pub(super) fn discovered(&mut self, out: &mut Outbox, itt: u32, mut answer: Vec<u8>, targets: &[String]) {
        self.discovering = false;
        for target in targets {
            self.push_target(&mut answer, target);
        }
        self.send(out, itt, Rest::new(answer));
    }

    fn push_target(&self, answer: &mut Vec<u8>, iqn: &str) {
        text::push(answer, "TargetName", iqn);
        text::push(answer, "TargetAddress", &self.asked.address);
    }

    /// Sends a text answer, or its next piece.
    fn send(&mut self, out: &mut Outbox, itt: u32, mut text: Rest) {
        let rest = &text.data[text.at..];
        let piece = &rest[..rest.len().min(out.peer_max_data())];
        let whole = piece.len() == rest.len();
        let mut r = Bhs::new(opcode::TEXT_RESPONSE, if whole { FINAL } else { 0x40 });
        r.set_word(16, itt);
        r.set_word(20, if whole { NO_TAG } else { text.ttt });
        out.respond(r, piece);
        if !whole {
            text.at += piece.len();
            self.rest = Some(text);
        }
    }
}

//! The login phase (RFC 7143 chapters 6 and 11.12-13) as a state machine without sockets.
//!
//! ```text
//!              ┌── C bit: collect ──┐
//!  request ────┴─▶ first one: names ─┴─▶ Decide ── refused ──▶ Fail
//!                                          │ accepted
//!                                          ▼
//!                  Security (CHAP until it is proved) ──▶ Operational ──▶ Commit ──▶ Done
//!                            └──────────── NSG = full feature ────────────▶┘
//! ```
//!
//! The caller passes each request to [`LoginMachine::request`] and does what the returned [`Step`] says. It passes the policy's answers to
//! [`LoginMachine::decided`] and [`LoginMachine::committed`].
//!
//! Invariants: nothing about a target is revealed before the policy has decided; no step beyond the security stage without the
//! authentication that the policy requires; `Commit` is returned exactly once, after the authentication and before the final response;
//! after `Fail` or `Done` the machine must not be used again.

use super::chap::{Chap, ChapError, Exchange};
use super::negotiate::{Answer, Negotiation, Params, Wishes};
use super::pdu::{Bhs, FINAL, opcode};
use super::text;

/// Status class and detail of a login response (RFC 7143 section 11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8, pub(crate) u8);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0, 0);
    pub(crate) const INITIATOR_ERROR: Self = Self(2, 0);
    pub(crate) const AUTHENTICATION: Self = Self(2, 1);
    pub(crate) const AUTHORIZATION: Self = Self(2, 2);
    pub(crate) const NOT_FOUND: Self = Self(2, 3);
    pub(crate) const VERSION: Self = Self(2, 5);
    pub(crate) const TOO_MANY_CONNECTIONS: Self = Self(2, 6);
    pub(crate) const MISSING_PARAMETER: Self = Self(2, 7);
    pub(crate) const SESSION_TYPE: Self = Self(2, 9);
    pub(crate) const NO_SESSION: Self = Self(2, 10);
    pub(crate) const INVALID_REQUEST: Self = Self(2, 11);
    pub(crate) const TARGET_ERROR: Self = Self(3, 0);
    pub(crate) const UNAVAILABLE: Self = Self(3, 1);
    pub(crate) const OUT_OF_RESOURCES: Self = Self(3, 2);
}

impl Status {
    /// The status as text, for logs and for an initiator's errors.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::SUCCESS => "success",
            Self::INITIATOR_ERROR => "the initiator broke the protocol",
            Self::AUTHENTICATION => "the initiator has not proved who it is",
            Self::AUTHORIZATION => "this initiator may not use the target",
            Self::NOT_FOUND => "there is no such target",
            Self::VERSION => "unknown protocol version",
            Self::TOO_MANY_CONNECTIONS => "one connection for each session",
            Self::MISSING_PARAMETER => "a name is missing",
            Self::SESSION_TYPE => "unknown session type",
            Self::NO_SESSION => "no such session",
            Self::INVALID_REQUEST => "not allowed at this point of a login",
            Self::TARGET_ERROR => "an error of the target",
            Self::UNAVAILABLE => "not yet: it may try again",
            Self::OUT_OF_RESOURCES => "all places are taken",
            Self(..) => "refused",
        }
    }
}

/// The names in a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// The initiator's name.
    pub(crate) initiator: String,
    /// The target's name; none in a discovery session.
    pub(crate) target: Option<String>,
}

/// The caller's next action.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this and read the next request.
    Reply(Bhs, Vec<u8>),
    /// Ask the policy about [`LoginMachine::names`], then call [`LoginMachine::decided`].
    Decide,
    /// The authentication is complete: commit, then call [`LoginMachine::committed`].
    Commit,
    /// Send this; the full feature phase begins.
    Done(Bhs, Vec<u8>),
    /// Send this and close.
    Fail(Bhs),
}

/// The values that the full feature phase starts with.
#[derive(Debug, Clone)]
pub(crate) struct Established {
    /// The agreed parameters.
    pub(crate) params: Params,
    /// The next command sequence number that the target expects.
    pub(crate) exp_cmd_sn: u32,
    /// The next status sequence number that the target sends.
    pub(crate) stat_sn: u32,
    /// The connection's id, chosen by the initiator.
    pub(crate) cid: u16,
}

/// The stages of a login, as they are in the flags (RFC 7143 section 11.12.3).
pub(crate) const SECURITY: u8 = 0;
pub(crate) const OPERATIONAL: u8 = 1;
pub(crate) const FULL_FEATURE: u8 = 3;
/// The text continues in the next PDU (section 11.12.2).
pub(crate) const CONTINUE: u8 = 0x40;
/// Maximum number of requests of one login: an initiator that does not finish is disconnected.
const MAX_REQUESTS: u32 = 64;

/// One login.
#[derive(Debug)]
pub(crate) struct LoginMachine {
    wishes: Wishes,
    portal_group: u16,
    window: u32,
    max_text: usize,
    requests: u32,
    first: Option<Bhs>,
    current: Bhs,
    collected: Vec<u8>,
    stage: u8,
    names: Option<Names>,
    chap: Option<Chap>,
    method_agreed: bool,
    exchange: Exchange,
    negotiation: Negotiation,
    declared: bool,
    stat_sn: u32,
    cmd_sn: u32,
    answer: Vec<u8>,
    tsih: u16,
}

impl LoginMachine {
    /// A new login. `window` is the command window to announce, `max_text` is the limit for the text of one request.
    pub(crate) fn new(wishes: Wishes, portal_group: u16, window: u32, max_text: usize) -> Self {
        Self {
            wishes,
            portal_group,
            window,
            max_text,
            requests: 0,
            first: None,
            current: Bhs::new(opcode::LOGIN, 0),
            collected: Vec::new(),
            stage: SECURITY,
            names: None,
            chap: None,
            method_agreed: false,
            exchange: Exchange::default(),
            negotiation: Negotiation::new(wishes, false),
            declared: false,
            stat_sn: 0,
            cmd_sn: 0,
            answer: Vec::new(),
            tsih: 0,
        }
    }

    /// The names of the first request; set when `Decide` is returned.
    pub(crate) fn names(&self) -> Option<&Names> {
        self.names.as_ref()
    }

    /// The initiator's session id.
    pub(crate) fn isid(&self) -> [u8; 6] {
        let mut isid = [0; 6];
        isid.copy_from_slice(&self.current.0[8..14]);
        isid
    }

    /// The target session handle that the initiator sent: zero for a new session.
    pub(crate) fn asked_tsih(&self) -> u16 {
        u16::from_be_bytes([self.current.0[14], self.current.0[15]])
    }

    /// The agreed values; valid after `Done` was returned.
    pub(crate) fn established(&self) -> Established {
        let cid = u16::from_be_bytes([self.current.0[20], self.current.0[21]]);
        Established { params: self.negotiation.finish(), exp_cmd_sn: self.cmd_sn, stat_sn: self.stat_sn, cid }
    }

    /// Handles one request.
    pub(crate) fn request(&mut self, bhs: &Bhs, data: &[u8]) -> Step {
        let (new, first) = (*bhs, self.first.is_none());
        self.requests += 1;
        if first {
            self.first = Some(new);
            self.cmd_sn = new.cmd_sn();
            // The initiator leads with what it expects; any value of ours is right.
            self.stat_sn = new.word(28);
        }
        let previous = std::mem::replace(&mut self.current, new);
        if new.opcode() != opcode::LOGIN || self.requests > MAX_REQUESTS {
            return self.fail(Status::INVALID_REQUEST);
        }
        // Version 0 is the only one there is.
        if new.0[3] > 0 {
            return self.fail(Status::VERSION);
        }
        let same = |at: std::ops::Range<usize>| new.0[at.clone()] == previous.0[at];
        if !(first || same(8..16) && same(16..20) && same(20..22)) {
            return self.fail(Status::INVALID_REQUEST);
        }
        let (csg, nsg) = (new.flags() >> 2 & 3, new.flags() & 3);
        let more = new.flags() & CONTINUE != 0;
        let stage_fits = if first { csg == SECURITY || csg == OPERATIONAL } else { csg == self.stage };
        let transit_fits = !new.is_final() || (nsg > csg && nsg != 2);
        if !stage_fits || !transit_fits || (more && new.is_final()) {
            return self.fail(Status::INVALID_REQUEST);
        }
        self.stage = csg;
        if self.collected.len() + data.len() > self.max_text {
            return self.fail(Status::INITIATOR_ERROR);
        }
        self.collected.extend_from_slice(data);
        if more {
            let (bhs, data) = self.response(Status::SUCCESS, 0, Vec::new());
            return Step::Reply(bhs, data);
        }
        if self.names.is_none() {
            return match self.read_names() {
                Ok(names) => {
                    self.negotiation = Negotiation::new(self.wishes, names.target.is_none());
                    self.names = Some(names);
                    Step::Decide
                }
                Err(status) => self.fail(status),
            };
        }
        self.proceed()
    }

    /// The policy's answer: how the initiator must authenticate, or why it is refused.
    pub(crate) fn decided(&mut self, answer: Result<Chap, Status>) -> Step {
        match answer {
            Ok(chap) => {
                self.chap = Some(chap);
                if self.names.as_ref().is_some_and(|n| n.target.is_some()) {
                    text::push(&mut self.answer, "TargetPortalGroupTag", &self.portal_group.to_string());
                }
                self.proceed()
            }
            Err(status) => self.fail(status),
        }
    }

    /// The result of the commit: the session's handle, or why there is no session.
    pub(crate) fn committed(&mut self, outcome: Result<u16, Status>) -> Step {
        match outcome {
            Ok(tsih) => {
                self.tsih = tsih;
                let answer = std::mem::take(&mut self.answer);
                let flags = FINAL | self.stage << 2 | FULL_FEATURE;
                let (bhs, data) = self.response(Status::SUCCESS, flags, answer);
                Step::Done(bhs, data)
            }
            Err(status) => self.fail(status),
        }
    }

    /// Bytes of memory that the requests made it hold.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn held(&self) -> usize {
        let names = self.names.as_ref();
        self.collected.capacity()
            + self.answer.capacity()
            + names.map_or(0, |n| n.initiator.capacity() + n.target.as_ref().map_or(0, String::capacity))
    }

    fn read_names(&self) -> Result<Names, Status> {
        let pairs = text::parse(&self.collected).map_err(|_| Status::INITIATOR_ERROR)?;
        let get = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let initiator = get("InitiatorName").filter(|n| valid_name(n)).ok_or(Status::MISSING_PARAMETER)?;
        let target = match get("SessionType") {
            None | Some("Normal") => {
                Some(get("TargetName").filter(|n| valid_name(n)).ok_or(Status::MISSING_PARAMETER)?)
            }
            Some("Discovery") => None,
            Some(_) => return Err(Status::SESSION_TYPE),
        };
        Ok(Names { initiator: initiator.to_lowercase(), target: target.map(str::to_lowercase) })
    }

    /// Handles the collected text in the current stage and answers.
    fn proceed(&mut self) -> Step {
        let collected = std::mem::take(&mut self.collected);
        let Ok(pairs) = text::parse(&collected) else { return self.fail(Status::INITIATOR_ERROR) };
        let handled = if self.stage == SECURITY { self.security(&pairs) } else { self.operational(&pairs) };
        if let Err(status) = handled {
            return self.fail(status);
        }
        let nsg = self.current.flags() & 3;
        let mut flags = self.stage << 2;
        if self.current.is_final() && self.proved() {
            if nsg == FULL_FEATURE {
                return Step::Commit;
            }
            flags |= FINAL | nsg;
        }
        let answer = std::mem::take(&mut self.answer);
        let (bhs, data) = self.response(Status::SUCCESS, flags, answer);
        if flags & FINAL != 0 {
            self.stage = nsg;
        }
        Step::Reply(bhs, data)
    }

    /// Whether the initiator may leave the security stage: it has authenticated, or need not.
    fn proved(&self) -> bool {
        match &self.chap {
            None => false,
            Some(chap) => !chap.required() || self.exchange.done(),
        }
    }

    fn security(&mut self, pairs: &[(&str, &str)]) -> Result<(), Status> {
        let chap = self.chap.clone().ok_or(Status::TARGET_ERROR)?;
        let mut speaks_chap = false;
        for (key, value) in pairs {
            match *key {
                "AuthMethod" => {
                    let want = if chap.required() { "CHAP" } else { "None" };
                    if !value.split(',').any(|m| m == want) {
                        return Err(Status::AUTHENTICATION);
                    }
                    text::push(&mut self.answer, "AuthMethod", want);
                    self.method_agreed = true;
                }
                k if k.starts_with("CHAP_") => speaks_chap = true,
                k => self.common(k, value)?,
            }
        }
        if chap.required() {
            if speaks_chap {
                if !self.method_agreed || self.exchange.done() {
                    return Err(Status::INITIATOR_ERROR);
                }
                self.exchange.step(&chap, pairs, &mut self.answer).map_err(|e| match e {
                    ChapError::NoEntropy => Status::OUT_OF_RESOURCES,
                    ChapError::Malformed | ChapError::Denied | ChapError::NoAlgorithm => {
                        Status::AUTHENTICATION
                    }
                })?;
            } else if !self.method_agreed && self.current.is_final() {
                // It wants to go on and has not even offered a method.
                return Err(Status::AUTHENTICATION);
            }
        } else if speaks_chap {
            return Err(Status::INITIATOR_ERROR);
        }
        Ok(())
    }

    fn operational(&mut self, pairs: &[(&str, &str)]) -> Result<(), Status> {
        if !self.proved() {
            return Err(Status::AUTHENTICATION);
        }
        for (key, value) in pairs {
            self.common(key, value)?;
        }
        if !self.declared {
            self.declared = true;
            text::push(&mut self.answer, "MaxRecvDataSegmentLength", &self.wishes.max_data.to_string());
        }
        Ok(())
    }

    /// Keys that are allowed in both stages.
    fn common(&mut self, key: &str, value: &str) -> Result<(), Status> {
        match key {
            "InitiatorName" | "TargetName" | "SessionType" | "InitiatorAlias" => Ok(()),
            "AuthMethod" => Err(Status::INITIATOR_ERROR),
            // Answers to what we sent; nothing to say.
            _ if matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") => Ok(()),
            _ => match self.negotiation.offer(key, value) {
                Answer::Value(v) => {
                    text::push(&mut self.answer, key, &v);
                    Ok(())
                }
                Answer::Silent => Ok(()),
                Answer::Repeated => Err(Status::INITIATOR_ERROR),
            },
        }
    }

    fn fail(&mut self, status: Status) -> Step {
        let (bhs, _) = self.response(status, 0, Vec::new());
        Step::Fail(bhs)
    }

    fn response(&mut self, status: Status, flags: u8, data: Vec<u8>) -> (Bhs, Vec<u8>) {
        let mut bhs = Bhs::new(opcode::LOGIN_RESPONSE, if flags == 0 { self.stage << 2 } else { flags });
        bhs.set_data_len(data.len());
        bhs.set(8, &self.isid());
        let tsih = if self.tsih == 0 { self.asked_tsih() } else { self.tsih };
        bhs.set(14, &tsih.to_be_bytes());
        bhs.set_word(16, self.current.itt());
        bhs.set_word(24, self.stat_sn);
        bhs.set_word(28, self.cmd_sn);
        bhs.set_word(32, self.cmd_sn.wrapping_add(self.window - 1));
        bhs.set(36, &[status.0, status.1]);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        (bhs, data)
    }
}

/// Whether a name could be an iSCSI name: its length and characters (RFC 7143 section 4.2.7, after normalisation).
pub(crate) fn valid_name(name: &str) -> bool {
    (1..=223).contains(&name.len()) && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::super::chap::{ChapPair, Secret};
    use super::*;
    use proptest::prelude::*;

    const WISHES: Wishes = Wishes { max_data: 262_144, max_burst: 1_048_576, first_burst: 262_144 };
    const T: u8 = FINAL;

    fn machine() -> LoginMachine {
        LoginMachine::new(WISHES, 1, 128, 16_384)
    }

    fn request(flags: u8, pairs: &[(&str, &str)]) -> (Bhs, Vec<u8>) {
        let mut data = Vec::new();
        for (k, v) in pairs {
            text::push(&mut data, k, v);
        }
        let mut bhs = Bhs::new(opcode::LOGIN | 0x40, flags);
        bhs.set(8, &[0x80, 1, 2, 3, 4, 5]);
        bhs.set_word(16, 1);
        bhs.set_word(24, 5);
        bhs.set_data_len(data.len());
        (bhs, data)
    }

    const NAMES: [(&str, &str); 3] = [
        ("InitiatorName", "iqn.2024-01.org.example:PC"),
        ("TargetName", "iqn.2024-01.org.example:disk"),
        ("SessionType", "Normal"),
    ];

    fn status(step: &Step) -> (u8, u8) {
        match step {
            Step::Fail(b) | Step::Reply(b, _) | Step::Done(b, _) => (b.0[36], b.0[37]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn straight_to_full_feature_without_chap() {
        let mut m = machine();
        let mut keys = NAMES.to_vec();
        keys.extend([("HeaderDigest", "None"), ("InitialR2T", "No"), ("X-y", "z")]);
        let (b, d) = request(T | OPERATIONAL << 2 | FULL_FEATURE, &keys);
        assert!(matches!(m.request(&b, &d), Step::Decide));
        let names = m.names().unwrap().clone();
        assert_eq!(
            (names.initiator.as_str(), names.target.as_deref()),
            ("iqn.2024-01.org.example:pc", Some("iqn.2024-01.org.example:disk"))
        );
        assert!(matches!(m.decided(Ok(Chap::None)), Step::Commit));
        let Step::Done(bhs, data) = m.committed(Ok(7)) else { panic!("done") };
        assert_eq!((bhs.0[0], bhs.0[1], bhs.0[14], bhs.0[15]), (0x23, 0x87, 0, 7));
        assert_eq!((bhs.word(28), bhs.word(32)), (5, 132));
        let pairs = text::parse(&data).unwrap();
        assert_eq!(
            pairs,
            vec![
                ("TargetPortalGroupTag", "1"),
                ("HeaderDigest", "None"),
                ("InitialR2T", "No"),
                ("X-y", "NotUnderstood"),
                ("MaxRecvDataSegmentLength", "262144")
            ]
        );
        let e = m.established();
        assert_eq!((e.exp_cmd_sn, e.stat_sn, e.params.initial_r2t), (5, 1, false));
    }

    #[test]
    fn chap_cannot_be_skipped() {
        let need = Chap::OneWay(ChapPair { user: "u".into(), secret: Secret::new("0123456789ab") });
        // Straight to the operational stage.
        let mut m = machine();
        let (b, d) = request(T | OPERATIONAL << 2 | FULL_FEATURE, &NAMES);
        m.request(&b, &d);
        assert_eq!(status(&m.decided(Ok(need.clone()))), (2, 1));
        // Offering None only.
        let mut m = machine();
        let mut keys = NAMES.to_vec();
        keys.push(("AuthMethod", "None"));
        let (b, d) = request(T | FULL_FEATURE, &keys);
        m.request(&b, &d);
        assert_eq!(status(&m.decided(Ok(need.clone()))), (2, 1));
        // Agreeing on CHAP and then transiting without it: the transit is not granted.
        let mut m = machine();
        keys[3] = ("AuthMethod", "CHAP,None");
        let (b, d) = request(T | FULL_FEATURE, &keys);
        m.request(&b, &d);
        let Step::Reply(bhs, data) = m.decided(Ok(need)) else { panic!("reply") };
        assert_eq!(bhs.0[1] & T, 0);
        assert!(text::parse(&data).unwrap().contains(&("AuthMethod", "CHAP")));
        let (b, d) = request(T | OPERATIONAL << 2 | FULL_FEATURE, &[]);
        assert_eq!(status(&m.request(&b, &d)), (2, 11));
    }

    #[test]
    fn refusals_and_malformed_requests() {
        let fails = |flags: u8, pairs: &[(&str, &str)]| {
            let (b, d) = request(flags, pairs);
            status(&machine().request(&b, &d))
        };
        assert_eq!(fails(T | FULL_FEATURE, &[("TargetName", "iqn.x")]), (2, 7));
        assert_eq!(fails(T | FULL_FEATURE, &[("InitiatorName", "iqn.x")]), (2, 7));
        assert_eq!(fails(T | FULL_FEATURE, &[("InitiatorName", "iqn.x"), ("SessionType", "Odd")]), (2, 9));
        assert_eq!(fails(T | CONTINUE | FULL_FEATURE, &NAMES), (2, 11));
        assert_eq!(fails(T | 2, &NAMES), (2, 11));
        let (mut b, d) = request(T | FULL_FEATURE, &NAMES);
        b.0[3] = 1;
        assert_eq!(status(&machine().request(&b, &d)), (2, 5));
        let mut m = machine();
        let (b, d) = request(T | FULL_FEATURE, &NAMES);
        m.request(&b, &d);
        assert_eq!(status(&m.decided(Err(Status::UNAVAILABLE))), (3, 1));
    }

    #[test]
    fn text_in_pieces_and_its_limit() {
        let mut m = LoginMachine::new(WISHES, 1, 128, 100);
        let (b, d) = request(CONTINUE, &[("InitiatorName", "iqn.a")]);
        assert!(matches!(m.request(&b, &d), Step::Reply(b, ref d) if d.is_empty() && b.0[1] == 0));
        let (b, d) = request(T | OPERATIONAL, &[("TargetName", "iqn.b")]);
        assert!(matches!(m.request(&b, &d), Step::Decide));
        let mut m = LoginMachine::new(WISHES, 1, 128, 100);
        let (b, _) = request(CONTINUE, &[]);
        assert_eq!(status(&m.request(&b, &[b'a'; 101])), (2, 0));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_commits_unproved(
            steps in proptest::collection::vec((any::<[u8; 4]>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..64), any::<bool>()), 1..8)
        ) {
            let need = Chap::OneWay(ChapPair { user: "u".into(), secret: Secret::new("0123456789ab") });
            let mut m = machine();
            for (head, flags, junk, named) in steps {
                let (mut b, mut d) = request(flags, if named { &NAMES } else { &[] });
                if head[0] > 200 { b.0[..4].copy_from_slice(&head); b.0[1] = flags; }
                d.extend(junk);
                let step = match m.request(&b, &d) { Step::Decide => m.decided(Ok(need.clone())), s => s };
                prop_assert!(!matches!(step, Step::Commit | Step::Done(..)));
                if matches!(step, Step::Fail(_)) { break; }
            }
        }
    }
}

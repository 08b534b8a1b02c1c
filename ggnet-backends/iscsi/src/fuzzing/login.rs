//! The login machine, called as the server calls it, by an initiator that has the right secret, a wrong one, or none.
//!
//! Input: a byte for the policy and the limits, then one request after the other:
//!
//! ```text
//!  flags | ctl | (ctl & HEADER: opcode, versions 2, ISID 6, TSIH 2, ITT 4, CID 2) | length 2 | text
//! ```
//!
//! `ctl` also adds keys before the text: names, an offer of CHAP, a proof. The challenge is random, as always: everything else follows from
//! the input, and no property depends on it.

use super::super::chap::{Chap, ChapPair, Secret, md5_response};
use super::super::login::{LoginMachine, Status, Step};
use super::super::pdu::{BHS_LEN, Bhs, opcode};
use super::super::text::{binary, push, to_hex};
use super::Input;
use super::text::{WISHES, agreed};

// What `ctl` asks for.
const NAMES: u8 = 1;
const OFFER: u8 = 1 << 1;
const PROOF: u8 = 1 << 2;
const WRONG_SECRET: u8 = 1 << 3;
const STALE: u8 = 1 << 4;
const ASK_TARGET: u8 = 1 << 5;
const REFLECT: u8 = 1 << 6;
const HEADER: u8 = 1 << 7;

/// An initiator that does not finish is disconnected after this number of requests.
const MAX_REQUESTS: usize = 64;
/// The longest answer: 64 keys of 63 characters, each with the longest answer to it, and the target's own declarations. Initiators accept
/// 8192 bytes in the login phase (RFC 7143 section 13.12).
const MAX_ANSWER: usize = 8192;

/// The secrets of both directions; each text of the initiator is tried with `right` and `wrong`.
struct Secrets {
    right: Secret,
    wrong: Secret,
    target: Secret,
}

/// What the initiator has received and proved.
#[derive(Default)]
struct Initiator {
    /// The last challenge, and the one before.
    challenge: Option<(u8, Vec<u8>)>,
    stale: Option<(u8, Vec<u8>)>,
    /// Whether a request contained a right answer to the last challenge.
    proved: bool,
    /// Whether a right answer was sent together with the target's own challenge, as the first keys of their request.
    reflected: bool,
    /// Whether text was sent that is not handled yet.
    collecting: bool,
}

/// Runs one login to its end, or to the end of the input.
pub fn login(input: &[u8]) {
    let mut input = Input(input);
    let setup = input.byte();
    let secrets = Secrets {
        right: Secret::new("right-secret-16b"),
        wrong: Secret::new("wrong-secret-16b"),
        target: Secret::new("the-targets-own-"),
    };
    let pair = |user: &str, secret: &Secret| ChapPair { user: user.into(), secret: secret.clone() };
    let initiator = pair("user", &secrets.right);
    let policy = match setup & 7 {
        0 => {
            Err([Status::UNAVAILABLE, Status::NOT_FOUND, Status::AUTHORIZATION][usize::from(setup >> 6) % 3])
        }
        1 | 2 => Ok(Chap::None),
        3 | 4 => Ok(Chap::OneWay(initiator)),
        _ => Ok(Chap::Mutual { initiator, target: pair("target", &secrets.target) }),
    };
    let max_text = [300, 1000, 16_384][usize::from(setup >> 3 & 3) % 3];
    let commits = setup & 0x20 == 0;
    let mut machine = LoginMachine::new(WISHES, 1, 128, max_text);
    let mut me = Initiator::default();
    let (mut requests, mut decided) = (0, false);
    let mut last_stat_sn = None;
    while !input.is_empty() {
        let (bhs, data) = request(&mut input, &mut me, &secrets);
        requests += 1;
        assert!(requests <= MAX_REQUESTS + 1, "it goes on after {requests} requests");
        let mut step = machine.request(&bhs, &data);
        if matches!(step, Step::Decide) {
            assert!(!decided, "the policy is asked twice");
            assert!(machine.names().is_some(), "the policy is asked about nobody");
            decided = true;
            step = machine.decided(policy.clone());
        }
        let required = policy.as_ref().is_ok_and(Chap::required);
        let mut committed = false;
        if matches!(step, Step::Commit) {
            assert!(decided && policy.is_ok(), "a commit against the policy");
            assert!(!required || me.proved, "a commit without the proof");
            committed = true;
            step = machine.committed(if commits { Ok(7) } else { Err(Status::UNAVAILABLE) });
        }
        let bound = 2 * max_text.max(64) + 2 * MAX_ANSWER + 1024;
        assert!(machine.held() <= bound, "{} bytes held of a login", machine.held());
        let (answer, text, goes_on) = match step {
            Step::Reply(answer, text) => {
                assert!(decided || text.is_empty(), "an answer before the policy has spoken");
                (answer, text, true)
            }
            Step::Done(answer, text) => {
                assert!(committed && commits, "the end without a commit");
                (answer, text, false)
            }
            Step::Fail(answer) => {
                assert!(answer.0[36] != 0, "a failure with the status of success");
                (answer, Vec::new(), false)
            }
            Step::Decide | Step::Commit => unreachable!("asked twice"),
        };
        assert!(!(me.reflected && answer.0[36] == 0), "our own challenge was taken for the initiator's");
        response(&bhs, &answer, &text, &mut last_stat_sn);
        if !goes_on {
            if answer.0[36] == 0 {
                agreed(&machine.established().params);
                assert_eq!(answer.0[1] & 0x83, 0x83, "the end is not the full feature phase");
            }
            return;
        }
        hear(&text, &mut me, &secrets);
    }
}

/// The next request.
fn request(input: &mut Input<'_>, me: &mut Initiator, secrets: &Secrets) -> (Bhs, Vec<u8>) {
    let (flags, ctl) = (input.byte(), input.byte());
    let mut bhs = Bhs::new(opcode::LOGIN | 0x40, flags);
    bhs.set(8, &[0x80, 1, 2, 3, 4, 5]);
    if ctl & HEADER != 0 {
        bhs.0[0] = input.byte();
        bhs.set(2, input.take(2));
        bhs.set(8, input.take(8));
        bhs.set(16, input.take(4));
        bhs.set(20, input.take(2));
    }
    let mut data = Vec::new();
    if ctl & NAMES != 0 {
        push(&mut data, "InitiatorName", "iqn.2024-01.org.example:pc");
        push(&mut data, "TargetName", "iqn.2024-01.org.example:disk");
    }
    if ctl & OFFER != 0 {
        push(&mut data, "AuthMethod", "CHAP,None");
        push(&mut data, "CHAP_A", "5");
    }
    let known = if ctl & STALE != 0 { me.stale.as_ref() } else { me.challenge.as_ref() };
    if let Some((id, challenge)) = known.filter(|_| ctl & PROOF != 0) {
        let secret = if ctl & WRONG_SECRET != 0 { &secrets.wrong } else { &secrets.right };
        push(&mut data, "CHAP_N", "user");
        push(&mut data, "CHAP_R", &to_hex(&md5_response(*id, secret, challenge)));
        let right = ctl & (WRONG_SECRET | STALE) == 0;
        // Once it is proved the same keys mean nothing any more, and are answered so.
        let counts = right && !me.proved;
        me.proved |= right;
        if ctl & REFLECT != 0 {
            push(&mut data, "CHAP_I", &id.to_string());
            push(&mut data, "CHAP_C", &to_hex(challenge));
            me.reflected |= counts && !me.collecting && ctl & OFFER == 0 && flags & 0x40 == 0;
        } else if ctl & ASK_TARGET != 0 {
            push(&mut data, "CHAP_I", "9");
            push(&mut data, "CHAP_C", "0x00112233445566778899aabbccddeeff");
        }
    }
    me.collecting = flags & 0x40 != 0;
    let length = usize::from(u16::from_be_bytes(input.array())) % 2048;
    data.extend_from_slice(input.take(length));
    bhs.set_data_len(data.len());
    (bhs, data)
}

/// Properties of every response.
fn response(request: &Bhs, answer: &Bhs, text: &[u8], last_stat_sn: &mut Option<u32>) {
    assert_eq!(BHS_LEN + answer.ahs_len(), BHS_LEN, "additional headers");
    assert_eq!((answer.0[0], answer.0[2], answer.0[3]), (opcode::LOGIN_RESPONSE, 0, 0));
    assert_eq!((answer.data_len(), text.len() <= MAX_ANSWER), (text.len(), true), "{} bytes", text.len());
    assert_eq!((answer.itt(), &answer.0[8..14]), (request.itt(), &request.0[8..14]), "another's tags");
    let stat_sn = answer.word(24);
    assert!(last_stat_sn.is_none_or(|last| stat_sn == last.wrapping_add(1)), "StatSN jumps to {stat_sn}");
    *last_stat_sn = Some(stat_sn);
    if answer.0[36] != 0 {
        return assert_eq!(answer.flags() & 0x80, 0, "a failure that transits");
    }
    assert!(request.flags() & 0x40 == 0 || text.is_empty(), "an answer to a part of a text");
    assert_eq!(answer.flags() & 0x0c, request.flags() & 0x0c, "another stage than the request's");
    if answer.is_final() {
        assert!(request.is_final(), "a transit that nobody asked for");
        assert_eq!(answer.flags() & 3, request.flags() & 3, "a transit to another stage");
    }
    for pair in text.split_inclusive(|b| *b == 0) {
        assert!(pair.len() > 2 && pair.ends_with(&[0]) && pair.contains(&b'='), "no key and value");
    }
}

/// Records what the initiator learns from an answer.
fn hear(text: &[u8], me: &mut Initiator, secrets: &Secrets) {
    let value = |key: &str| {
        let found = text.split(|b| *b == 0).find_map(|pair| pair.strip_prefix(key.as_bytes()))?;
        std::str::from_utf8(found).ok()
    };
    // In the operational stage these keys are no longer ours, and answered so.
    if let Some(response) = value("CHAP_R=").filter(|response| *response != "NotUnderstood") {
        assert!(me.proved, "the target proves itself to a stranger");
        if let Some((id, challenge)) = &me.challenge {
            let own = to_hex(&md5_response(*id, &secrets.target, challenge));
            assert_ne!(response, own, "the target answers its own challenge");
        }
    }
    let id = value("CHAP_I=").and_then(|id| id.parse().ok());
    if let Some(new) = id.zip(value("CHAP_C=").and_then(|c| binary(c, 64))) {
        assert_ne!(me.challenge.as_ref(), Some(&new), "a challenge comes twice");
        me.stale = me.challenge.replace(new);
        me.proved = false;
    }
}

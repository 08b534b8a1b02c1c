//! CHAP with MD5 (RFC 1994, RFC 7143 section 12.1.3), one-way and mutual.
//!
//! ```text
//!  Start ── CHAP_A ──▶ Challenged ── CHAP_N, CHAP_R ──▶ Done
//! ```
//!
//! Invariants: a challenge is random, new for each login and answered once; responses are compared in constant time; the initiator's own
//! challenge must differ from the target's (no reflection); a secret never appears in a log (its `Debug` is redacted) and is wiped when
//! dropped.

use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::text;

/// Longest challenge and response that are accepted, in bytes.
pub(crate) const MAX_BINARY: usize = 1024;
pub(crate) const CHALLENGE_LEN: usize = 16;
const RESPONSE_LEN: usize = 16;

/// A CHAP secret.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Wraps the secret's bytes. 12 to 16 characters of `[A-Za-z0-9]` work with every initiator that we know.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// A user name and its secret.
#[derive(Clone, Debug)]
pub struct ChapPair {
    /// The name (`CHAP_N`).
    pub user: String,
    /// The secret.
    pub secret: Secret,
}

/// How an initiator must authenticate before it may use a target (RFC 7143 section 12.1.3).
#[derive(Clone, Debug, Default)]
pub enum Chap {
    /// Not at all.
    #[default]
    None,
    /// The initiator must prove that it knows this pair.
    OneWay(ChapPair),
    /// Like `OneWay`; in addition the target proves that it knows `target`, if the initiator asks for it.
    Mutual {
        /// The initiator's pair.
        initiator: ChapPair,
        /// The target's pair. Its secret must differ from the initiator's.
        target: ChapPair,
    },
}

impl Chap {
    pub(crate) fn required(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// Why an authentication failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChapError {
    /// A key is missing or malformed.
    Malformed,
    /// The proof is wrong.
    Denied,
    /// No algorithm in common.
    NoAlgorithm,
    /// The system has no random numbers available.
    NoEntropy,
}

/// The CHAP exchange of one login.
#[derive(Debug, Default)]
pub(crate) enum Exchange {
    /// Not started.
    #[default]
    Start,
    /// The target's challenge was sent.
    Challenged {
        /// Its identifier.
        id: u8,
        /// The challenge.
        challenge: [u8; CHALLENGE_LEN],
    },
    /// The initiator has authenticated.
    Done,
}

impl Exchange {
    /// Answers the `CHAP_*` keys of one request; the answer is appended to `out`.
    pub(crate) fn step(
        &mut self,
        need: &Chap,
        pairs: &[(&str, &str)],
        out: &mut Vec<u8>,
    ) -> Result<(), ChapError> {
        let get = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        match self {
            Self::Start => {
                let Some(offer) = get("CHAP_A") else { return Err(ChapError::Malformed) };
                if !offer.split(',').any(|a| a.trim() == "5") {
                    return Err(ChapError::NoAlgorithm);
                }
                let mut random = [0; CHALLENGE_LEN + 1];
                getrandom::fill(&mut random).map_err(|_| ChapError::NoEntropy)?;
                let mut challenge = [0; CHALLENGE_LEN];
                challenge.copy_from_slice(&random[1..]);
                let id = random[0];
                text::push(out, "CHAP_A", "5");
                text::push(out, "CHAP_I", &id.to_string());
                text::push(out, "CHAP_C", &text::to_hex(&challenge));
                *self = Self::Challenged { id, challenge };
                Ok(())
            }
            Self::Challenged { id, challenge } => {
                let (id, challenge) = (*id, *challenge);
                // Answered once, whatever the answer is.
                *self = Self::Start;
                let name = get("CHAP_N").ok_or(ChapError::Malformed)?;
                let response =
                    get("CHAP_R").and_then(|v| text::binary(v, MAX_BINARY)).ok_or(ChapError::Malformed)?;
                let (pair, target) = match need {
                    Chap::None => return Err(ChapError::Malformed),
                    Chap::OneWay(pair) => (pair, None),
                    Chap::Mutual { initiator, target } => (initiator, Some(target)),
                };
                let want = md5_response(id, &pair.secret, &challenge);
                let right_name = name.as_bytes().ct_eq(pair.user.as_bytes());
                if response.len() != RESPONSE_LEN || !bool::from(response.ct_eq(&want) & right_name) {
                    return Err(ChapError::Denied);
                }
                match (get("CHAP_I"), get("CHAP_C")) {
                    (None, None) => {}
                    (Some(id), Some(theirs)) => {
                        let id = text::number(id)
                            .and_then(|n| u8::try_from(n).ok())
                            .ok_or(ChapError::Malformed)?;
                        let theirs = text::binary(theirs, MAX_BINARY).ok_or(ChapError::Malformed)?;
                        // We have nothing to prove it with, or it is our own challenge sent back.
                        let target = target.ok_or(ChapError::Denied)?;
                        if bool::from(theirs.ct_eq(&challenge)) {
                            return Err(ChapError::Denied);
                        }
                        text::push(out, "CHAP_N", &target.user);
                        text::push(out, "CHAP_R", &text::to_hex(&md5_response(id, &target.secret, &theirs)));
                    }
                    _ => return Err(ChapError::Malformed),
                }
                *self = Self::Done;
                Ok(())
            }
            Self::Done => Err(ChapError::Malformed),
        }
    }

    pub(crate) fn done(&self) -> bool {
        matches!(self, Self::Done)
    }
}

/// MD5 over identifier, secret and challenge (RFC 1994 section 4.1).
pub(crate) fn md5_response(id: u8, secret: &Secret, challenge: &[u8]) -> [u8; RESPONSE_LEN] {
    let mut md5 = Md5::new();
    md5.update([id]);
    md5.update(secret.0.as_slice());
    md5.update(challenge);
    md5.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(user: &str, secret: &str) -> ChapPair {
        ChapPair { user: user.into(), secret: Secret::new(secret) }
    }

    fn challenged(need: &Chap) -> (Exchange, u8, Vec<u8>) {
        let (mut x, mut out) = (Exchange::default(), Vec::new());
        x.step(need, &[("CHAP_A", "6,5")], &mut out).unwrap();
        let pairs = text::parse(&out).unwrap();
        assert_eq!(pairs[0], ("CHAP_A", "5"));
        let id = pairs[1].1.parse().unwrap();
        let challenge = text::binary(pairs[2].1, 64).unwrap();
        (x, id, challenge)
    }

    #[test]
    fn a_known_response() {
        // printf '\x01secret1234567\x00\x01\x02\x03' | md5sum
        let got = md5_response(1, &Secret::new("secret1234567"), &[0, 1, 2, 3]);
        assert_eq!(text::to_hex(&got), "0xe3338fb1c848f4dc055b132c7a32cc14");
    }

    #[test]
    fn one_way_right_and_wrong() {
        let need = Chap::OneWay(pair("lab", "abcdefgh12345678"));
        let (mut x, id, c) = challenged(&need);
        let right = text::to_hex(&md5_response(id, &Secret::new("abcdefgh12345678"), &c));
        x.step(&need, &[("CHAP_N", "lab"), ("CHAP_R", &right)], &mut Vec::new()).unwrap();
        assert!(x.done());
        for (user, secret) in [("lab", "wrong"), ("bal", "abcdefgh12345678")] {
            let (mut x, id, c) = challenged(&need);
            let r = text::to_hex(&md5_response(id, &Secret::new(secret), &c));
            assert_eq!(
                x.step(&need, &[("CHAP_N", user), ("CHAP_R", &r)], &mut Vec::new()),
                Err(ChapError::Denied)
            );
            // A challenge is answered once: the right answer comes too late.
            let r = text::to_hex(&md5_response(id, &Secret::new("abcdefgh12345678"), &c));
            assert!(x.step(&need, &[("CHAP_N", "lab"), ("CHAP_R", &r)], &mut Vec::new()).is_err());
            assert!(!x.done());
        }
    }

    #[test]
    fn mutual_and_reflection() {
        let need = Chap::Mutual {
            initiator: pair("in", "aaaaaaaaaaaaaaaa"),
            target: pair("out", "bbbbbbbbbbbbbbbb"),
        };
        let (mut x, id, c) = challenged(&need);
        let r = text::to_hex(&md5_response(id, &Secret::new("aaaaaaaaaaaaaaaa"), &c));
        let mut out = Vec::new();
        x.step(
            &need,
            &[
                ("CHAP_N", "in"),
                ("CHAP_R", &r),
                ("CHAP_I", "9"),
                ("CHAP_C", "0x00112233445566778899aabbccddeeff"),
            ],
            &mut out,
        )
        .unwrap();
        let want = text::to_hex(&md5_response(
            9,
            &Secret::new("bbbbbbbbbbbbbbbb"),
            &text::binary("0x00112233445566778899aabbccddeeff", 99).unwrap(),
        ));
        assert_eq!(text::parse(&out).unwrap(), vec![("CHAP_N", "out"), ("CHAP_R", want.as_str())]);

        let (mut x, id, c) = challenged(&need);
        let r = text::to_hex(&md5_response(id, &Secret::new("aaaaaaaaaaaaaaaa"), &c));
        let back = text::to_hex(&c);
        let reflected =
            [("CHAP_N", "in"), ("CHAP_R", r.as_str()), ("CHAP_I", "9"), ("CHAP_C", back.as_str())];
        assert_eq!(x.step(&need, &reflected, &mut Vec::new()), Err(ChapError::Denied));
    }

    #[test]
    fn no_common_algorithm_and_redaction() {
        let need = Chap::OneWay(pair("lab", "abcdefgh12345678"));
        assert_eq!(
            Exchange::default().step(&need, &[("CHAP_A", "6,7")], &mut Vec::new()),
            Err(ChapError::NoAlgorithm)
        );
        assert!(!format!("{need:?}").contains("abcdefgh"));
    }
}

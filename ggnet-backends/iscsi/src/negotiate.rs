//! Negotiation of the operational keys, each by its own rule (RFC 7143 chapter 13).
//!
//! Invariants: a key is negotiated at most once per login; a key that is not offered keeps the RFC's default; an answer is always one that
//! the offer allows, or `Reject`; an unknown key is answered with `NotUnderstood`.

use super::pdu::Digests;
use super::text;

/// What the two sides of a login agreed on (RFC 7143 chapter 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Digests, used in the full feature phase.
    pub digests: Digests,
    /// No unsolicited Data-Out PDUs.
    pub initial_r2t: bool,
    /// Data may be sent in the same PDU as the command.
    pub immediate_data: bool,
    /// The longest data segment that the other side accepts.
    pub peer_max_data: u32,
    /// Longest sequence of Data-In, or of Data-Out for one R2T.
    pub max_burst: u32,
    /// Longest unsolicited data of a command.
    pub first_burst: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            initial_r2t: true,
            immediate_data: true,
            peer_max_data: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
        }
    }
}

/// The target's preferences; an offer can only lower them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    /// Longest data segment that the target accepts; declared to the initiator.
    pub(crate) max_data: u32,
    /// The target's MaxBurstLength.
    pub(crate) max_burst: u32,
    /// The target's FirstBurstLength.
    pub(crate) first_burst: u32,
}

/// The answer to one offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Send this value back.
    Value(String),
    /// A declaration: nothing to send.
    Silent,
    /// The key was repeated.
    Repeated,
}

/// One login's negotiation.
#[derive(Debug)]
pub(crate) struct Negotiation {
    wishes: Wishes,
    discovery: bool,
    seen: Vec<&'static str>,
    params: Params,
}

/// Every known key of the operational stage.
const KEYS: [&str; 20] = [
    "HeaderDigest",
    "DataDigest",
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxRecvDataSegmentLength",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "IFMarker",
    "OFMarker",
    "IFMarkInt",
    "OFMarkInt",
];

impl Negotiation {
    pub(crate) fn new(wishes: Wishes, discovery: bool) -> Self {
        Self { wishes, discovery, seen: Vec::new(), params: Params::default() }
    }

    /// Answers one offered key.
    pub(crate) fn offer(&mut self, key: &str, value: &str) -> Answer {
        let Some(known) = KEYS.iter().find(|k| **k == key) else {
            return Answer::Value("NotUnderstood".into());
        };
        if self.seen.contains(known) {
            return Answer::Repeated;
        }
        self.seen.push(known);
        self.decide(key, value).unwrap_or_else(|| Answer::Value("Reject".into()))
    }

    /// The agreed values.
    pub(crate) fn finish(&self) -> Params {
        let mut p = self.params.clone();
        p.first_burst = p.first_burst.min(p.max_burst);
        p
    }

    /// `None` if the value is outside the range of the key.
    fn decide(&mut self, key: &str, value: &str) -> Option<Answer> {
        if self.discovery
            && !matches!(
                key,
                "HeaderDigest"
                    | "DataDigest"
                    | "MaxRecvDataSegmentLength"
                    | "ErrorRecoveryLevel"
                    | "DefaultTime2Wait"
                    | "DefaultTime2Retain"
                    | "iSCSIProtocolLevel"
                    | "MaxConnections"
                    | "IFMarker"
                    | "OFMarker"
                    | "IFMarkInt"
                    | "OFMarkInt"
            )
        {
            return Some(Answer::Value("Irrelevant".into()));
        }
        let w = self.wishes;
        let p = &mut self.params;
        Some(match key {
            "HeaderDigest" => digest(value, &mut p.digests.header)?,
            "DataDigest" => digest(value, &mut p.digests.data)?,
            "InitialR2T" => {
                // OR: the side that wants every burst solicited wins, and we do not insist.
                p.initial_r2t = boolean(value)?;
                Answer::Value(yes(p.initial_r2t))
            }
            "ImmediateData" => {
                p.immediate_data = boolean(value)?;
                Answer::Value(yes(p.immediate_data))
            }
            "MaxRecvDataSegmentLength" => {
                p.peer_max_data = range(value, 512, 0xff_ffff)?;
                Answer::Silent
            }
            "MaxBurstLength" => {
                p.max_burst = range(value, 512, 0xff_ffff)?.min(w.max_burst);
                Answer::Value(p.max_burst.to_string())
            }
            "FirstBurstLength" => {
                p.first_burst = range(value, 512, 0xff_ffff)?.min(w.first_burst);
                Answer::Value(p.first_burst.to_string())
            }
            "MaxConnections" => min(value, 1, 65_535, 1)?,
            "MaxOutstandingR2T" => min(value, 1, 65_535, 1)?,
            // The larger wait and the smaller retention: a session that broke is not kept.
            "DefaultTime2Wait" => Answer::Value(range(value, 0, 3600)?.to_string()),
            "DefaultTime2Retain" => min(value, 0, 3600, 0)?,
            "ErrorRecoveryLevel" => min(value, 0, 2, 0)?,
            "iSCSIProtocolLevel" => min(value, 0, 31, 1)?,
            "DataPDUInOrder" | "DataSequenceInOrder" => {
                boolean(value)?;
                Answer::Value("Yes".into())
            }
            "TaskReporting" => {
                let offered = value.split(',').any(|v| v == "RFC3720");
                Answer::Value(if offered { "RFC3720" } else { "Reject" }.into())
            }
            // Obsolete, but never "NotUnderstood" (RFC 7143 section 13.25).
            "IFMarker" | "OFMarker" => {
                boolean(value)?;
                Answer::Value("No".into())
            }
            _ => return None,
        })
    }
}

fn digest(value: &str, on: &mut bool) -> Option<Answer> {
    // A list in the initiator's order of preference: the first one we can do.
    let pick = value.split(',').find(|v| matches!(*v, "None" | "CRC32C"))?;
    *on = pick == "CRC32C";
    Some(Answer::Value(pick.into()))
}

pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn yes(value: bool) -> String {
    if value { "Yes" } else { "No" }.into()
}

pub(crate) fn range(value: &str, low: u32, high: u32) -> Option<u32> {
    text::number(value).filter(|n| (low..=high).contains(n))
}

fn min(value: &str, low: u32, high: u32, ours: u32) -> Option<Answer> {
    Some(Answer::Value(range(value, low, high)?.min(ours).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: Wishes = Wishes { max_data: 262_144, max_burst: 1_048_576, first_burst: 262_144 };

    fn answer(key: &str, value: &str) -> String {
        match Negotiation::new(WISHES, false).offer(key, value) {
            Answer::Value(v) => v,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn each_key_by_its_rule() {
        for (key, offer, want) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-foo,CRC32C", "CRC32C"),
            ("DataDigest", "X-foo", "Reject"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "maybe", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxRecvDataSegmentLength", "262144", "Silent"),
            ("MaxRecvDataSegmentLength", "511", "Reject"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "4096", "4096"),
            ("FirstBurstLength", "262144", "262144"),
            ("FirstBurstLength", "16777216", "Reject"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Retain", "20", "0"),
            ("MaxOutstandingR2T", "16", "1"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "Yes", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("TaskReporting", "RFC3720,FastAbort", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "1~2048", "Reject"),
            ("X-com.example.turbo", "1", "NotUnderstood"),
        ] {
            assert_eq!(answer(key, offer), want, "{key}={offer}");
        }
    }

    #[test]
    fn repeated_and_irrelevant() {
        let mut n = Negotiation::new(WISHES, false);
        assert_eq!(n.offer("InitialR2T", "No"), Answer::Value("No".into()));
        assert_eq!(n.offer("InitialR2T", "No"), Answer::Repeated);
        let mut d = Negotiation::new(WISHES, true);
        assert_eq!(d.offer("MaxBurstLength", "4096"), Answer::Value("Irrelevant".into()));
        assert_eq!(d.offer("MaxRecvDataSegmentLength", "4096"), Answer::Silent);
        assert_eq!(d.finish().peer_max_data, 4096);
    }

    #[test]
    fn the_first_burst_never_exceeds_the_burst() {
        let mut n = Negotiation::new(WISHES, false);
        n.offer("MaxBurstLength", "4096");
        assert_eq!(n.finish().first_burst, 4096);
    }
}

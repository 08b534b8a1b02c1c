//! Whom to log in to, as whom, and what to say.

use std::net::SocketAddr;

use crate::chap::ChapPair;

/// Everything that a login needs. The secrets in it never appear in its `Debug`.
#[derive(Clone, Debug)]
pub struct Account {
    /// Where the target listens.
    pub portal: SocketAddr,
    /// The target's name; none for a discovery session.
    pub target: Option<String>,
    /// The initiator's name.
    pub initiator: String,
    /// The initiator's half of the session's identifier (RFC 7143 section 11.12.5). The same one at the next login replaces the session.
    pub isid: [u8; 6],
    /// The logical unit that commands go to.
    pub lun: u8,
    /// What the initiator proves to the target by CHAP; none: it logs in without a proof.
    pub chap: Option<ChapPair>,
    /// What the target must prove to the initiator; looked at only with `chap`.
    pub mutual: Option<ChapPair>,
    /// The operational keys (RFC 7143 chapter 13), in the order in which they are said.
    pub keys: Vec<(String, String)>,
}

/// What is said unless something else is wanted: unsolicited and immediate data where the target allows them, no digests, one connection,
/// error recovery level 0. Every key that a target could ask for is there, so that one request is enough.
const KEYS: [(&str, &str); 14] = [
    ("HeaderDigest", "None"),
    ("DataDigest", "None"),
    ("InitialR2T", "No"),
    ("ImmediateData", "Yes"),
    ("MaxRecvDataSegmentLength", "262144"),
    ("MaxBurstLength", "1048576"),
    ("FirstBurstLength", "262144"),
    ("MaxConnections", "1"),
    ("MaxOutstandingR2T", "1"),
    ("DefaultTime2Wait", "2"),
    ("DefaultTime2Retain", "0"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
    ("ErrorRecoveryLevel", "0"),
];

impl Account {
    /// LUN 0 of this target, without a proof and with keys that suit every target.
    pub fn new(portal: SocketAddr, target: impl Into<String>, initiator: impl Into<String>) -> Self {
        Self {
            portal,
            target: Some(target.into()),
            initiator: initiator.into(),
            isid: [0x80, 0, 0, 0, 0, 1],
            lun: 0,
            chap: None,
            mutual: None,
            keys: Vec::new(),
        }
        .say(&KEYS)
    }

    /// The same with exactly these operational keys; what is not said keeps the RFC's default.
    #[must_use]
    pub fn say(mut self, keys: &[(&str, &str)]) -> Self {
        self.keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// What is offered for a key.
    pub(super) fn offer(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

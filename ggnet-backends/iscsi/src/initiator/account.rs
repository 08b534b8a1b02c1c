//! The target to log in to, the credentials, and the keys to offer.

use std::net::SocketAddr;

use crate::chap::ChapPair;

/// Everything that a login needs. Its `Debug` does not show secrets.
#[derive(Clone, Debug)]
pub struct Account {
    /// The address of the target.
    pub portal: SocketAddr,
    /// The target's name; none for a discovery session.
    pub target: Option<String>,
    /// The initiator's name.
    pub initiator: String,
    /// The initiator's part of the session's identifier (RFC 7143 section 11.12.5). A later login with the same value replaces the session.
    pub isid: [u8; 6],
    /// The logical unit that commands go to.
    pub lun: u8,
    /// The initiator's CHAP pair; none: it logs in without authentication.
    pub chap: Option<ChapPair>,
    /// The pair with which the target must authenticate; used only together with `chap`.
    pub mutual: Option<ChapPair>,
    /// The operational keys (RFC 7143 chapter 13), in the order in which they are sent.
    pub keys: Vec<(String, String)>,
}

/// The keys that are offered by default: unsolicited and immediate data if the target allows them, no digests, one connection, error
/// recovery level 0. Every key that a target could ask for is included, so that one request is enough.
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
    /// LUN 0 of this target, without authentication and with keys that suit every target.
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

    /// The same with exactly these operational keys; a key that is not offered keeps the RFC's default.
    #[must_use]
    pub fn say(mut self, keys: &[(&str, &str)]) -> Self {
        self.keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// The value that is offered for a key.
    pub(super) fn offer(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

//! Why a login or a command did not succeed.

use std::io;
use std::time::Duration;

use crate::login::Status;
use crate::pdu::FrameError;

/// Why a login or a command did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network error.
    #[error("connection to the target: {0}")]
    Io(#[from] io::Error),
    /// The target closed the connection when something else was expected.
    #[error("the target closed the connection")]
    Closed,
    /// No complete answer arrived in time, or the target accepted no output.
    #[error("no answer from the target within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The status of a login that was refused (RFC 7143 section 11.13.5).
    #[error("login refused with status {class:02x}{detail:02x}: {}", words(.class, .detail))]
    Refused {
        /// Status-Class: 1 redirection, 2 initiator error, 3 target error.
        class: u8,
        /// Status-Detail.
        detail: u8,
    },
    /// The target's answer to the initiator's CHAP challenge is wrong or missing.
    #[error("the target has not proved that it knows the mutual CHAP secret")]
    Unproved,
    /// The target violated the protocol; the text says what was expected and what arrived.
    #[error("{0}")]
    Protocol(String),
    /// A command that ended with another status than GOOD (SAM-5 section 5.3.1).
    #[error("SCSI status {status:#04x}, sense data {sense:02x?}")]
    Scsi {
        /// The SCSI status.
        status: u8,
        /// Its sense data (SPC-4 section 4.5), without the length field before it.
        sense: Vec<u8>,
    },
    /// A request that cannot be sent, with the reason. Nothing was sent.
    #[error("{0}")]
    Invalid(&'static str),
}

impl Error {
    /// Whether another login may help: the connection broke, or the target answered that it cannot serve now (status class 3).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Closed | Self::Timeout(_) | Self::Refused { class: 3, .. })
    }

    /// Class and detail of a refused login.
    #[must_use]
    pub fn status(&self) -> Option<(u8, u8)> {
        match self {
            Self::Refused { class, detail } => Some((*class, *detail)),
            _ => None,
        }
    }
}

impl From<FrameError> for Error {
    fn from(e: FrameError) -> Self {
        Self::Protocol(format!("PDU from the target: {e}"))
    }
}

/// The meaning of a login's status.
fn words(class: &u8, detail: &u8) -> &'static str {
    Status(*class, *detail).words()
}

//! The messages: a [`Request`] and an [`Answer`], each one line of JSON.
//!
//! Every request is an enum without unknown fields. A message that cannot be parsed is rejected without a quotation, because it may contain
//! a secret. An error is sent as a whole, with its context and its causes.

use std::io;

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{daemon::State, lio::Op};

/// The default path of the helper's socket.
pub const SOCKET: &str = "/run/ggnet/helper.sock";
/// The maximum length of a request in bytes, including its newline: about a hundred LUNs.
pub const MAX_REQUEST: usize = 1 << 20;
/// The maximum length of a response.
pub(super) const MAX_ANSWER: usize = 64 << 10;

/// The possible requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Make the kernel load its iSCSI target, if it is not loaded.
    LoadTarget,
    /// Change the kernel's objects of one target, in this order, up to the first change that fails.
    Apply {
        /// The target.
        target: ResourceId,
        /// The changes.
        ops: Vec<Op>,
    },
    /// Manage a daemon.
    Unit {
        /// The name of its systemd unit.
        unit: String,
        /// The action.
        action: Action,
    },
}

/// The actions on a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// None: only report whether it runs.
    State,
    /// Start it, if it does not run.
    Start,
    /// Stop it, if it runs, and start it.
    Restart,
}

/// The possible responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Done.
    Done,
    /// Whether the daemon runs.
    State(State),
    /// It was rejected or it failed.
    Failed(Error),
}

/// The line of a message, with its newline.
///
/// # Errors
/// `Invalid`: a path that is not UTF-8.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>> {
    // Large enough that the buffer is seldom reallocated, which would leave a copy of a secret behind.
    let mut line = Zeroizing::new(Vec::with_capacity(16 << 10));
    serde_json::to_writer(&mut *line, message)
        .map_err(|_| Error::new(ErrorKind::Invalid, "Cannot encode a request to the helper as JSON"))?;
    line.push(b'\n');
    Ok(line)
}

/// Parses the message in a line, which must be exactly one message. An error contains the position, not the text.
///
/// # Errors
/// `Invalid`.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    let invalid = |why: String| {
        Error::new(ErrorKind::Invalid, format!("The helper cannot read this message: {why}"))
            .with_hint("After an upgrade: systemctl restart ggnet-helper ggnet-server")
    };
    match line.split_last() {
        Some((b'\n', json)) if !json.contains(&b'\n') => serde_json::from_slice(json)
            .map_err(|e| invalid(format!("{:?} error at byte {}", e.classify(), e.column()))),
        _ => Err(invalid("it is not exactly one line".to_owned())),
    }
}

/// The error for a line that is too long.
pub(crate) fn too_long(limit: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes"))
}

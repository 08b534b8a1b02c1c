//! The lines that travel: a [`Request`] and an [`Answer`], each one line of JSON.
//!
//! Everything that is asked is an enum without unknown fields; what does not parse is refused without being quoted, for it may hold a
//! secret. An error travels whole, with its context and its causes.

use std::io;

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{daemon::State, lio::Op};

/// Where the helper listens unless told otherwise.
pub const SOCKET: &str = "/run/ggnet/helper.sock";
/// The longest request in bytes, its newline included: some hundred LUNs.
pub const MAX_REQUEST: usize = 1 << 20;
/// The longest answer.
pub(super) const MAX_ANSWER: usize = 64 << 10;

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Has the kernel load its iSCSI target, if it has not.
    LoadTarget,
    /// Changes the kernel's objects of one target, in this order, up to the first change that fails.
    Apply {
        /// The target.
        target: ResourceId,
        /// The changes.
        ops: Vec<Op>,
    },
    /// Does something with a daemon.
    Unit {
        /// systemd's name for it.
        unit: String,
        /// What.
        action: Action,
    },
}

/// What can be done with a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: says whether it runs.
    State,
    /// Starts it, if it does not run.
    Start,
    /// Stops it, if it runs, and starts it.
    Restart,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It is done.
    Done,
    /// Whether the daemon runs.
    State(State),
    /// It was refused or it failed.
    Failed(Error),
}

/// The line of a message, with its newline.
///
/// # Errors
/// `Invalid`: a path that is no text.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>> {
    // Large enough that the buffer seldom moves and leaves a copy behind.
    let mut line = Zeroizing::new(Vec::with_capacity(16 << 10));
    serde_json::to_writer(&mut *line, message)
        .map_err(|_| Error::new(ErrorKind::Invalid, "Cannot encode a request to the helper as JSON"))?;
    line.push(b'\n');
    Ok(line)
}

/// The message of a line, which must be whole and alone. What is wrong is told by its place, not by its text.
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

/// That a line is longer than it may be.
pub(crate) fn too_long(limit: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes"))
}

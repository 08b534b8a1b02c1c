//! The lines of the protocol: what GGnet writes and what a program may send. docs/backend-authors.md describes it for people.
//!
//! One JSON object per line, UTF-8. A request has `id`, `method` and `params`; its response has the same `id` and either `result` or
//! `error`. A message with a `method` and without an `id` gets no response. Invariants of the reader: it never holds more than the limit in
//! memory, and its description of an invalid line is short and without control characters.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ggnet_core::{
    error::{Error, ErrorKind, Result},
    nouns::{ImageVersionId, InstanceId, ResourceId},
    ports::{BootBundle, BootPath, DhcpChange, DhcpHost, Observation, Removal, SpecDigest},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

use crate::run::shown;

/// The version of the protocol that GGnet uses.
pub(super) const PROTOCOL: u32 = 2;

/// A request.
#[derive(Serialize)]
struct Request<'a, P> {
    id: u64,
    method: &'a str,
    params: P,
}

/// Empty parameters: `{}`.
#[derive(Serialize)]
pub(super) struct Nothing {}

/// Parameters of `hello`, the first request.
#[derive(Serialize)]
pub(super) struct Hello<'a> {
    pub protocol: u32,
    pub port: &'a str,
    pub instance: &'a InstanceId,
    pub config: &'a serde_json::Map<String, Value>,
    /// Whether this is the only request, while a server may be running.
    pub check: bool,
}

/// What a program declares about itself. Further fields belong to later versions of the protocol and are ignored.
#[derive(Deserialize)]
pub(super) struct HelloAnswer {
    pub protocol: u32,
    pub port: String,
    #[serde(default)]
    pub capabilities: Value,
}

/// Parameters of `get`, and of `remove` of boot files.
#[derive(Serialize)]
pub(super) struct Named<'a> {
    pub id: &'a ResourceId,
}

/// Parameters of `remove` of a writeback.
#[derive(Serialize)]
pub(super) struct Remove<'a> {
    pub id: &'a ResourceId,
    pub how: Removal,
}

/// Parameters of `apply`: changes of DHCP entries.
#[derive(Serialize)]
pub(super) struct Apply<'a> {
    pub changes: Vec<Change<'a>>,
}

impl<'a> Apply<'a> {
    pub(super) fn new(changes: &'a [DhcpChange]) -> Self {
        let change = |change: &'a DhcpChange| match change {
            DhcpChange::Ensure(host) => Change::Ensure { digest: host.digest(), host },
            DhcpChange::Remove(id) => Change::Remove { id },
        };
        Self { changes: changes.iter().map(change).collect() }
    }
}

/// A change of a DHCP entry.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change<'a> {
    /// Add or replace the entry of this machine.
    Ensure {
        digest: SpecDigest,
        #[serde(flatten)]
        host: &'a DhcpHost,
    },
    /// Remove the entry of this machine.
    Remove { id: &'a ResourceId },
}

/// The response to `apply`: the failed changes.
#[derive(Debug, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(Serialize))]
#[serde(deny_unknown_fields)]
pub(super) struct Applied {
    pub failed: Vec<Failed>,
}

/// A change that failed.
#[derive(Debug, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(Serialize))]
#[serde(deny_unknown_fields)]
pub(super) struct Failed {
    pub id: ResourceId,
    pub error: Refusal,
}

/// Parameters of `ensure` of boot files: path → content in base64.
#[derive(Serialize)]
pub(super) struct EnsureFiles<'a> {
    pub digest: SpecDigest,
    pub id: &'a ResourceId,
    pub files: BTreeMap<&'a str, String>,
}

impl<'a> EnsureFiles<'a> {
    pub(super) fn new(bundle: &'a BootBundle) -> Self {
        let files =
            bundle.files.iter().map(|(path, bytes)| (path.as_str(), STANDARD.encode(bytes))).collect();
        Self { digest: bundle.digest(), id: &bundle.id, files }
    }
}

/// Parameters of `read`.
#[derive(Serialize)]
pub(super) struct Read<'a> {
    pub path: &'a str,
}

impl<'a> Read<'a> {
    pub(super) fn new(path: &'a BootPath) -> Self {
        Self { path: path.as_str() }
    }
}

/// The response to `read`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    #[serde(deserialize_with = "base64")]
    pub content: Bytes,
}

fn base64<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(d)?;
    STANDARD.decode(&text).map(Bytes::from).map_err(serde::de::Error::custom)
}

/// Parameters of `ensure` of a writeback.
#[derive(Serialize)]
pub(super) struct EnsureWriteback<'a> {
    pub digest: SpecDigest,
    pub id: &'a ResourceId,
    pub base: Base<'a>,
}

/// The image version of a writeback.
#[derive(Serialize)]
pub(super) struct Base<'a> {
    pub version: ImageVersionId,
    /// Its raw file, which must never be changed.
    pub path: &'a Path,
    pub size_bytes: u64,
}

/// The line of a request.
pub(super) fn request(id: u64, method: &str, params: impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Request { id, method, params }).map_err(|e| {
        Error::internal(format!("Cannot encode the parameters of {method} as JSON")).with_source(e)
    })?;
    line.push(b'\n');
    Ok(line)
}

/// The line that cancels a request.
pub(super) fn cancel(id: u64) -> Vec<u8> {
    format!("{}\n", json!({ "method": "cancel", "params": { "id": id } })).into_bytes()
}

/// The line that requests the shutdown.
pub(super) fn shutdown() -> Vec<u8> {
    format!("{}\n", json!({ "method": "shutdown", "params": {} })).into_bytes()
}

/// A message of a program.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// The response to a request.
    Answer(u64, std::result::Result<Value, Refusal>),
    /// An observation.
    Observed(Observation),
}

/// An error of a program, in the protocol's own terms: it has fewer fields than an [`Error`], and all of them are checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(Serialize))]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    pub kind: ErrorKind,
    pub message: String,
    /// If missing: the default of the kind.
    pub retryable: Option<bool>,
    pub hint: Option<String>,
    pub subject: Option<String>,
}

impl Refusal {
    /// Converts it to an error for our callers. Its texts come from the program: they are truncated and control characters are removed.
    pub(super) fn into_error(self) -> Error {
        let mut error = Error::new(self.kind, shown(&self.message));
        if let Some(retryable) = self.retryable {
            error = error.retryable(retryable);
        }
        if let Some(hint) = self.hint {
            error = error.with_hint(shown(&hint));
        }
        if let Some(subject) = self.subject {
            error = error.with_subject(shown(&subject));
        }
        error
    }
}

/// All keys that a program's line may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spoken {
    id: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<Refusal>,
    method: Option<String>,
    #[serde(default, deserialize_with = "present")]
    params: Option<Value>,
}

/// A key that is present, possibly with `null`.
fn present<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(d).map(Some)
}

/// Parses a line without its line end. The error describes why it is invalid and quotes its beginning.
pub(super) fn decode(line: &[u8]) -> Result<Said, String> {
    let wrong = |why: &str| format!("it sent {}, which is not a valid message: {}", quoted(line), shown(why));
    let spoken: Spoken = serde_json::from_slice(line).map_err(|e| wrong(&e.to_string()))?;
    match spoken {
        Spoken { id: Some(id), result: Some(result), error: None, method: None, params: None } => {
            Ok(Said::Answer(id, Ok(result)))
        }
        Spoken { id: Some(id), result: None, error: Some(refusal), method: None, params: None } => {
            Ok(Said::Answer(id, Err(refusal)))
        }
        Spoken { id: None, result: None, error: None, method: Some(method), params: Some(params) } => {
            if method != "observed" {
                return Err(wrong(&format!("method {method:?} is unknown")));
            }
            serde_json::from_value(params).map(Said::Observed).map_err(|e| wrong(&e.to_string()))
        }
        _ => Err(wrong(
            "a response has `id` and either `result` or `error`; any other message has `method` and `params`",
        )),
    }
}

/// The beginning of a line, formatted for an error.
fn quoted(line: &[u8]) -> String {
    // More than is shown, so that the truncation is visible.
    let start = &line[..line.len().min(2000)];
    format!("`{}`", shown(&String::from_utf8_lossy(start)))
}

/// The next item of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line, without its line end.
    Line(Vec<u8>),
    /// The end of the stream, after this number of bytes without a line end.
    End(usize),
    /// A line longer than the limit.
    TooLong,
}

/// Reads up to the next line end. `limit` applies to the line without its line end.
pub(super) async fn next_line(
    stream: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> std::io::Result<Next> {
    let mut line = Vec::new();
    stream.take(limit as u64 + 1).read_until(b'\n', &mut line).await?;
    Ok(match line.last() {
        Some(b'\n') => {
            line.pop();
            Next::Line(line)
        }
        _ if line.len() > limit => Next::TooLong,
        _ => Next::End(line.len()),
    })
}

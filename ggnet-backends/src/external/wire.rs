//! The lines of the protocol: what we write, and what a program may answer. Its text for people is docs/backend-authors.md.
//!
//! One JSON object a line, UTF-8. A request has `id`, `method` and `params`; its answer has the same `id` and either `result` or `error`.
//! What has a `method` and no `id` gets no answer. Invariants of the reader: it takes no more than the limit into memory, and what it
//! says of a bad line is short and has no control characters.

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

/// The version of the protocol that we speak.
pub(super) const PROTOCOL: u32 = 2;

/// A request.
#[derive(Serialize)]
struct Request<'a, P> {
    id: u64,
    method: &'a str,
    params: P,
}

/// No parameters: `{}`.
#[derive(Serialize)]
pub(super) struct Nothing {}

/// Of `hello`, the first request.
#[derive(Serialize)]
pub(super) struct Hello<'a> {
    pub protocol: u32,
    pub port: &'a str,
    pub instance: &'a InstanceId,
    pub config: &'a serde_json::Map<String, Value>,
    /// Whether only this will be asked, beside a server that may run.
    pub check: bool,
}

/// What a program says of itself. More than this is for a later version of the protocol, and not looked at.
#[derive(Deserialize)]
pub(super) struct HelloAnswer {
    pub protocol: u32,
    pub port: String,
    #[serde(default)]
    pub capabilities: Value,
}

/// Of `get`, and of `remove` of boot files.
#[derive(Serialize)]
pub(super) struct Named<'a> {
    pub id: &'a ResourceId,
}

/// Of `remove` of a writeback.
#[derive(Serialize)]
pub(super) struct Remove<'a> {
    pub id: &'a ResourceId,
    pub how: Removal,
}

/// Of `apply`: changes of DHCP entries.
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
    /// The machine is to be known so.
    Ensure {
        digest: SpecDigest,
        #[serde(flatten)]
        host: &'a DhcpHost,
    },
    /// The machine is to be forgotten.
    Remove { id: &'a ResourceId },
}

/// The answer to `apply`: what failed.
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

/// Of `ensure` of boot files: path → content in base64.
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

/// Of `read`.
#[derive(Serialize)]
pub(super) struct Read<'a> {
    pub path: &'a str,
}

impl<'a> Read<'a> {
    pub(super) fn new(path: &'a BootPath) -> Self {
        Self { path: path.as_str() }
    }
}

/// The answer to `read`.
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

/// Of `ensure` of a writeback.
#[derive(Serialize)]
pub(super) struct EnsureWriteback<'a> {
    pub digest: SpecDigest,
    pub id: &'a ResourceId,
    pub base: Base<'a>,
}

/// The version below a writeback.
#[derive(Serialize)]
pub(super) struct Base<'a> {
    pub version: ImageVersionId,
    /// Its raw file, never to be changed.
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

/// The line that says that nobody waits for this request any more.
pub(super) fn cancel(id: u64) -> Vec<u8> {
    format!("{}\n", json!({ "method": "cancel", "params": { "id": id } })).into_bytes()
}

/// The line that asks for the end.
pub(super) fn shutdown() -> Vec<u8> {
    format!("{}\n", json!({ "method": "shutdown", "params": {} })).into_bytes()
}

/// What a program said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// The answer to a request.
    Answer(u64, std::result::Result<Value, Refusal>),
    /// Something that it saw.
    Observed(Observation),
}

/// A request that a program could not fulfil, in the protocol's own words: fewer than an [`Error`] has, and none that we have not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(Serialize))]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    pub kind: ErrorKind,
    pub message: String,
    /// Left out: as the kind has it.
    pub retryable: Option<bool>,
    pub hint: Option<String>,
    pub subject: Option<String>,
}

impl Refusal {
    /// The error that it is for our callers. Its texts are not ours: they are cut and have no control characters.
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

/// Every key that a program's line may have.
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

/// A key that is there, also with `null`.
fn present<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(d).map(Some)
}

/// Reads a line without its end. The error says what is wrong with it and quotes its beginning.
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

/// The beginning of a line, fit for an error.
fn quoted(line: &[u8]) -> String {
    // More than is shown, so that the cut shows.
    let start = &line[..line.len().min(2000)];
    format!("`{}`", shown(&String::from_utf8_lossy(start)))
}

/// What came of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line, without its end.
    Line(Vec<u8>),
    /// The end, after so many bytes that were no whole line.
    End(usize),
    /// A line longer than the limit.
    TooLong,
}

/// Reads up to the next line's end. `limit` bounds the line without its end.
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

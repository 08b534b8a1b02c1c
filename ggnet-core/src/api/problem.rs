//! [`Problem`]: an error as RFC 9457 `application/problem+json`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A problem document. `detail` is for people; `kind` is for programs; `code` with `args` is for translations and searches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem: `urn:ggnet:problem:conflict`.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What happened, for people.
    pub detail: String,
    /// [`crate::ErrorKind`] by name.
    pub kind: String,
    /// The code of the failure, as docs/errors.md lists it. Empty from an older server without codes.
    #[serde(default)]
    pub code: String,
    /// The arguments of the code's text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// The input field that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The request's id, as in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// The part of an error that a user is shown: neither its context nor its causes.
    #[must_use]
    pub fn of(error: &Error, status: u16, title: &str) -> Self {
        let (kind, code) = (error.kind(), error.code());
        Self {
            type_uri: Self::type_of(kind),
            title: title.to_owned(),
            status,
            detail: error.explain(),
            kind: kind.to_string(),
            code: code.name().to_owned(),
            args: code.args().clone(),
            field: error.field().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            retryable: error.is_retryable(),
            request_id: None,
        }
    }

    /// The URI of a kind.
    #[must_use]
    pub fn type_of(kind: impl fmt::Display) -> String {
        format!("urn:ggnet:problem:{kind}")
    }
}

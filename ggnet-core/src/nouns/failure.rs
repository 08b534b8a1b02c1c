//! [`Failure`]: the part of an error that is stored, in addition to its text, in the record of the thing that failed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Which failure it was and what to do next. The text is a separate field of the record, as it was before there were codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind, for decisions by programs.
    pub kind: String,
    /// The code, as docs/errors.md lists it.
    pub code: String,
    /// The arguments of its text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().to_string(),
            code: error.code().name().to_owned(),
            args: error.code().args().clone(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

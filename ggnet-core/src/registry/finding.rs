//! [`Finding`]: what a look at the host found: how good it is, why, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but somebody should look at it.
    Warn,
    /// It will not work.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was looked at: `UDP port 69`.
    pub what: String,
    /// What is so, in one sentence.
    pub why: String,
    /// What to do: a command line where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), why: why.into(), mend: None }
    }

    /// Not as it should be, and what to do.
    pub fn bad(
        level: Level,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { level, what: what.into(), why: why.into(), mend: Some(mend.into()) }
    }

    /// What failed, with the error's hint as what to do.
    pub fn failed(level: Level, what: impl Into<String>, e: &Error) -> Self {
        Self::bad(level, what, e.report(), e.hint().unwrap_or("See the message"))
    }

    /// A warning: it could not be found out.
    pub fn unknown(what: impl Into<String>, why: &dyn fmt::Display) -> Self {
        Self { level: Level::Warn, what: what.into(), why: format!("Could not check: {why}"), mend: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}  {}: {}", self.level, self.what, self.why)?;
        match &self.mend {
            Some(mend) => write!(f, "\n      {mend}"),
            None => Ok(()),
        }
    }
}

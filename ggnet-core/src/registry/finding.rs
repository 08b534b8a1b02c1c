//! [`Finding`]: the result of one check of the host: how serious it is, why, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but someone should look at it.
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
    /// How serious it is.
    pub level: Level,
    /// What was checked: `UDP port 69`.
    pub what: String,
    /// What was found, in one sentence.
    pub why: String,
    /// What to do: a command line if there is one.
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

    /// A warning: the check could not be made.
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

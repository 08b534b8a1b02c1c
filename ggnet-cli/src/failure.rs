//! [`Failure`]: what went wrong, as a problem document, with the exit code that it means.
//!
//! The only place where an HTTP status meets an exit code. A failure that never reached the server (wrong input, no connection) has the
//! same form as one that the server reported, so that a script reads one thing.

use std::{fmt, io, process::ExitCode};

use ggnet_core::{ErrorKind, api::Problem};
use serde_json::{Value, json};

/// What every command returns.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The exit codes, as `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Whoever read our output has gone (`ggnet … | head`): not an error, and nobody is there to be told.
    ReaderGone = 0,
    /// The server refused or failed.
    Refused = 1,
    /// Wrong arguments or input.
    Input = 2,
    /// Not logged in, or forbidden.
    Forbidden = 3,
    /// The named thing does not exist.
    NotFound = 4,
    /// The server does not answer.
    Unreachable = 5,
    /// What was waited for did not happen in time.
    TimedOut = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

/// A failed command.
#[derive(Clone, Debug)]
pub struct Failure {
    exit: Exit,
    // Boxed so that a `Result` stays small on the success path.
    problem: Box<Problem>,
    // A status code that no server sent is not shown.
    by_server: bool,
}

impl Failure {
    /// What the server reported.
    pub fn server(problem: Problem) -> Self {
        Self { exit: exit_of(problem.status), problem: Box::new(problem), by_server: true }
    }

    fn local(exit: Exit, kind: ErrorKind, detail: impl fmt::Display) -> Self {
        let problem = Problem {
            type_uri: format!("urn:ggnet:problem:{kind}"),
            title: kind.to_string(),
            status: 0,
            detail: detail.to_string(),
            kind: kind.to_string(),
            field: None,
            hint: None,
            retryable: kind.retryable_by_default(),
            request_id: None,
        };
        Self { exit, problem: Box::new(problem), by_server: false }
    }

    /// Wrong input: the field and what is wrong with it.
    pub fn input(field: &str, detail: impl fmt::Display) -> Self {
        let mut failure = Self::local(Exit::Input, ErrorKind::Invalid, detail);
        failure.problem.field = Some(field.to_owned());
        failure
    }

    /// Not logged in.
    pub fn forbidden(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Forbidden, ErrorKind::Permission, detail)
    }

    /// The named thing does not exist.
    pub fn not_found(detail: impl fmt::Display) -> Self {
        Self::local(Exit::NotFound, ErrorKind::NotFound, detail)
    }

    /// The server does not answer.
    pub fn unreachable(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Unreachable, ErrorKind::Unavailable, detail)
    }

    /// What was waited for did not happen in time.
    pub fn timed_out(detail: impl fmt::Display) -> Self {
        Self::local(Exit::TimedOut, ErrorKind::Timeout, detail)
    }

    /// It was refused, or did not work.
    pub fn refused(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Refused, ErrorKind::Unavailable, detail).retryable(false)
    }

    /// Ctrl-C.
    pub fn interrupted(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Interrupted, ErrorKind::Unavailable, detail)
    }

    /// A local file or stream failed; `doing` says which.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::local(Exit::ReaderGone, ErrorKind::Unavailable, "");
        }
        Self::local(Exit::Refused, ErrorKind::Unavailable, format!("{doing}: {error}")).retryable(false)
    }

    /// What to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.problem.hint = Some(hint.to_string());
        self
    }

    fn retryable(mut self, retryable: bool) -> Self {
        self.problem.retryable = retryable;
        self
    }

    /// Whether the server could not be reached, so that one who waits tries again.
    pub fn is_unreachable(&self) -> bool {
        self.exit == Exit::Unreachable
    }

    /// Whether the named thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.exit == Exit::NotFound
    }

    /// What it means for the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }

    /// Whether nobody is there to be told.
    pub fn is_reader_gone(&self) -> bool {
        self.exit == Exit::ReaderGone
    }

    /// The problem document, with the exit code beside it.
    pub fn document(&self) -> Value {
        let mut document =
            serde_json::to_value(&self.problem).unwrap_or_else(|_| json!({ "detail": self.problem.detail }));
        if let Value::Object(fields) = &mut document {
            if !self.by_server {
                fields.remove("status");
            }
            fields.insert("exit_code".to_owned(), json!(self.exit as u8));
        }
        document
    }
}

const fn exit_of(status: u16) -> Exit {
    match status {
        400 | 413 | 422 => Exit::Input,
        401 | 403 => Exit::Forbidden,
        404 => Exit::NotFound,
        _ => Exit::Refused,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.problem;
        write!(f, "error: {}", p.detail)?;
        if let Some(field) = &p.field {
            write!(f, "\n  field: {field}")?;
        }
        if let Some(hint) = &p.hint {
            write!(f, "\n  what to do: {hint}")?;
        }
        // A defect has nothing to say for itself: the log has it under this id.
        if p.status >= 500
            && let Some(id) = &p.request_id
        {
            write!(f, "\n  request: {id}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_documented_exit_code() {
        let want = [
            (400, Exit::Input),
            (401, Exit::Forbidden),
            (403, Exit::Forbidden),
            (404, Exit::NotFound),
            (409, Exit::Refused),
            (422, Exit::Input),
            (500, Exit::Refused),
            (503, Exit::Refused),
            (507, Exit::Refused),
        ];
        for (status, exit) in want {
            assert_eq!(exit_of(status), exit, "{status}");
        }
    }

    #[test]
    fn people_read_the_field_and_the_hint_and_programs_the_document() {
        let failure = Failure::input("mac", "That is no MAC address").hint("Type six octets");
        assert_eq!(
            failure.to_string(),
            "error: That is no MAC address\n  field: mac\n  what to do: Type six octets"
        );
        let document = failure.document();
        assert_eq!(document["field"], "mac");
        assert_eq!(document["kind"], "invalid");
        assert_eq!(document["exit_code"], 2);
        assert!(document.get("status").is_none(), "no server sent a status");
    }
}

//! [`Failure`]: a problem document and the exit code.
//!
//! This is the only place that maps an HTTP status to an exit code. A failure that never reached the server (wrong input, no connection)
//! has the same form as one that the server reported, so that scripts parse only one form.

use std::{fmt, io, process::ExitCode};

use ggnet_core::{
    Error, ErrorKind,
    api::Problem,
    error::{Code, code},
    nouns,
};
use serde_json::{Value, json};

/// The result of every command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The exit codes, as `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The reader of our output has exited (`ggnet … | head`): not an error, and nothing is reported.
    ReaderGone = 0,
    /// The server refused the request or failed.
    Refused = 1,
    /// Wrong arguments or input.
    Input = 2,
    /// Not logged in, or forbidden.
    Forbidden = 3,
    /// The named object does not exist.
    NotFound = 4,
    /// The server does not respond.
    Unreachable = 5,
    /// The awaited event did not happen in time.
    TimedOut = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

/// A failed command.
#[derive(Clone, Debug)]
pub struct Failure {
    exit: Exit,
    // Boxed to keep `Result` small on the success path.
    problem: Box<Problem>,
    // A status code is shown only if a server sent it.
    by_server: bool,
}

impl Failure {
    /// A failure that the server reported.
    pub fn server(problem: Problem) -> Self {
        Self { exit: exit_of(problem.status), problem: Box::new(problem), by_server: true }
    }

    fn local(exit: Exit, code: impl Into<Code>, detail: impl fmt::Display) -> Self {
        let error = Error::new(code, detail.to_string());
        let problem = Problem::of(&error, 0, error.kind().as_str());
        Self { exit, problem: Box::new(problem), by_server: false }
    }

    /// Wrong input: the field and the reason.
    pub fn input(field: &str, detail: impl fmt::Display) -> Self {
        let mut failure = Self::local(Exit::Input, ErrorKind::Invalid, detail);
        failure.problem.field = Some(field.to_owned());
        failure
    }

    /// Not logged in.
    pub fn forbidden(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Forbidden, code::not_logged_in(), detail)
    }

    /// The named object does not exist.
    pub fn not_found(detail: impl fmt::Display) -> Self {
        Self::local(Exit::NotFound, ErrorKind::NotFound, detail)
    }

    /// The server does not respond.
    pub fn unreachable(server: impl fmt::Display, why: impl fmt::Display) -> Self {
        let detail = format!("The server {server} cannot be reached: {why}");
        Self::local(Exit::Unreachable, code::server_unreachable(server), detail)
    }

    /// The awaited event did not happen in time.
    pub fn timed_out(detail: impl fmt::Display) -> Self {
        Self::local(Exit::TimedOut, code::wait_too_long(), detail)
    }

    /// The request was refused or failed.
    pub fn refused(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Refused, ErrorKind::Unavailable, detail).retryable(false)
    }

    /// Ctrl-C.
    pub fn interrupted(detail: impl fmt::Display) -> Self {
        Self::local(Exit::Interrupted, code::interrupted(), detail)
    }

    /// An operation on a local file or stream failed; `doing` names it.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::local(Exit::ReaderGone, ErrorKind::Unavailable, "");
        }
        Self::local(Exit::Refused, ErrorKind::Unavailable, format!("{doing}: {error}")).retryable(false)
    }

    /// Takes kind, code and hint from the failure that the server recorded.
    #[must_use]
    pub fn because_of(mut self, failure: &nouns::Failure) -> Self {
        self.problem.type_uri = Problem::type_of(&failure.kind);
        self.problem.title.clone_from(&failure.kind);
        self.problem.kind.clone_from(&failure.kind);
        self.problem.code.clone_from(&failure.code);
        self.problem.args.clone_from(&failure.args);
        self.problem.hint.clone_from(&failure.hint);
        self
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

    /// Whether the server could not be reached, so that a waiting command retries.
    pub fn is_unreachable(&self) -> bool {
        self.exit == Exit::Unreachable
    }

    /// Whether the server no longer knows a cursor of events.
    pub fn is_lost_cursor(&self) -> bool {
        matches!(self.problem.code.as_str(), "cursor_expired" | "cursor_unknown")
    }

    /// Whether the named object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.exit == Exit::NotFound
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }

    /// Whether the reader of our output has exited.
    pub fn is_reader_gone(&self) -> bool {
        self.exit == Exit::ReaderGone
    }

    /// The problem document, with the field `exit_code` added.
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
        // A code that only repeats the kind adds no information.
        if !p.code.is_empty() && p.code != p.kind {
            write!(f, "\n  code: {}", p.code)?;
        }
        // The message of an internal error has no details: they are in the server's log under this id.
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
        assert_eq!((&document["kind"], &document["code"]), (&"invalid".into(), &"invalid".into()));
        assert_eq!(document["exit_code"], 2);
        assert!(document.get("status").is_none(), "no server sent a status");
    }

    #[test]
    fn a_specific_code_is_shown_to_people_and_has_its_arguments_for_programs() {
        let failure = Failure::unreachable("http://pc:8470", "it is off");
        let words = failure.to_string();
        assert!(words.ends_with("\n  code: server_unreachable"), "{words}");
        let document = failure.document();
        assert_eq!(document["code"], "server_unreachable");
        assert_eq!(document["args"]["server"], "http://pc:8470");
    }

    #[test]
    fn what_failed_on_the_server_keeps_its_code_and_hint() {
        let full = Error::new(code::image_folder_full(), "Full").with_hint("Free space");
        let failure = Failure::refused("The import failed").because_of(&nouns::Failure::from(&full));
        assert_eq!(
            failure.to_string(),
            "error: The import failed\n  what to do: Free space\n  code: image_folder_full"
        );
        let document = failure.document();
        assert_eq!((&document["kind"], &document["code"]), (&"full".into(), &"image_folder_full".into()));
        assert_eq!(document["type"], "urn:ggnet:problem:full");
    }
}

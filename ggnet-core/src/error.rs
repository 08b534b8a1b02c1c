//! The error type of every port: which failure it is, whether a retry may help, what happened, where, and why.
//!
//! ```text
//! code      which failure, with the arguments of its text; it has a kind (module `code`)
//! message   what failed, and on what
//! reason    why: the words of the operating system or of a library, where they are fit for people
//! hint      what to do next
//! context   where: pairs of key and value that the layers on the error's way added, innermost first
//! tool      an external program: argv, exit code, last lines of stderr
//! causes    the chain of sources behind that, for the log
//! ```
//!
//! A caller decides by [`ErrorKind`] and [`Error::is_retryable`] alone; it never needs to know which backend failed. Context, tool and
//! causes are for logs; message, reason, hint and code are what a user sees.
//!
//! Invariants:
//! * Everything is text, so an error can be cloned, stored and sent, and arrives unchanged, its causes included.
//! * Each cause is printed once. The message holds neither reason nor causes; `Display` prints message, reason, kind and context, and
//!   [`source`](StdError::source) starts after them. [`Error::report`] prints all of it.
//! * Secrets never enter an error: [`ToolFailure::argv`] is redacted by the code that builds it.

mod causes;
pub mod code;
mod kind;

use std::{borrow::Cow, error::Error as StdError, fmt};

use causes::Causes;
use serde::{Deserialize, Serialize};

pub use self::{code::Code, kind::ErrorKind};

/// The result of every port call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How an external tool failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolFailure {
    /// The program and its arguments, secrets redacted.
    pub argv: Vec<String>,
    /// Exit code; `None` when it was killed by a signal or never started.
    pub exit_code: Option<i32>,
    /// The last lines that it wrote to stderr.
    pub stderr_tail: String,
}

/// One fact about the place where an error happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The kind of fact: `backend`, `operation`, `subject`, or a key of the layer that added it.
    pub key: Cow<'static, str>,
    /// The value.
    pub value: String,
}

const BACKEND: &str = "backend";
const OPERATION: &str = "operation";
const SUBJECT: &str = "subject";

/// A failure. See the [module](self).
// Boxed so that a `Result` stays small on the success path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Parts>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Parts {
    #[serde(flatten)]
    code: Code,
    retryable: bool,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    context: Vec<Context>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool: Option<ToolFailure>,
    #[serde(default, skip_serializing_if = "Causes::is_empty")]
    causes: Causes,
}

impl Error {
    /// A failure with this code; a kind is a code as well. `message` starts with a capital, names the subject and does not repeat the
    /// source.
    pub fn new(code: impl Into<Code>, message: impl Into<String>) -> Self {
        let code = code.into();
        Self(Box::new(Parts {
            retryable: code.kind().retryable_by_default(),
            code,
            message: message.into(),
            reason: None,
            field: None,
            hint: None,
            context: Vec::new(),
            tool: None,
            causes: Causes::default(),
        }))
    }

    /// `Invalid` input: the field's name and what is wrong with it.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message).with_field(field)
    }

    /// `NotFound`: `what` ("machine") and its name or id.
    pub fn not_found(what: &str, which: impl fmt::Display) -> Self {
        let which = which.to_string();
        Self::new(code::not_found(what, &which), format!("No {what} {which}")).with_subject(which)
    }

    /// A defect in GGnet; the message says which invariant was broken.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An I/O error, mapped to the kind that callers can act on; `doing` is what was attempted, with the path.
    pub fn io(doing: impl fmt::Display, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Permission,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
            Io::TimedOut => ErrorKind::Timeout,
            Io::AlreadyExists => ErrorKind::Conflict,
            Io::InvalidData | Io::UnexpectedEof => ErrorKind::Corrupt,
            Io::ResourceBusy | Io::ExecutableFileBusy | Io::AddrInUse | Io::WouldBlock => ErrorKind::Busy,
            Io::Unsupported => ErrorKind::Unsupported,
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::NotConnected
            | Io::BrokenPipe
            | Io::AddrNotAvailable => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, doing.to_string()).with_reason(source)
    }

    /// Overrides whether a retry may help.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Sets a more exact code. If the code has another kind, whether a retry may help follows that kind.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        if code.kind() != self.kind() {
            self.0.retryable = code.kind().retryable_by_default();
        }
        self.0.code = code;
        self
    }

    /// Names the input that is wrong: a field, a key of the configuration, or a place in a body (`macs[0]`).
    #[must_use]
    pub fn with_field(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Why it failed, if the source's own text is fit for people. The sources of `source` become the causes.
    #[must_use]
    pub fn with_reason(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source: Box<dyn StdError + Send + Sync> = source.into();
        let mut texts = causes::texts(&*source).into_iter();
        self.0.reason = texts.next();
        self.0.causes = self.0.causes.and(texts);
        self
    }

    /// Adds where it happened. Later additions are further out.
    #[must_use]
    pub fn with_context(mut self, key: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        let here = Context { key: key.into(), value: value.into() };
        if !self.0.context.contains(&here) {
            self.0.context.push(here);
        }
        self
    }

    /// Names the backend ("builtin", "lio-configfs").
    #[must_use]
    pub fn with_backend(self, backend: impl Into<String>) -> Self {
        self.with_context(BACKEND, backend)
    }

    /// Names the port's method ("ensure").
    #[must_use]
    pub fn with_operation(self, operation: impl Into<String>) -> Self {
        self.with_context(OPERATION, operation)
    }

    /// Names what the call was about (an id, a path, a unit).
    #[must_use]
    pub fn with_subject(self, subject: impl Into<String>) -> Self {
        self.with_context(SUBJECT, subject)
    }

    /// What the operator should do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// How the external tool failed.
    #[must_use]
    pub fn with_tool(mut self, tool: ToolFailure) -> Self {
        self.0.tool = Some(tool);
        self
    }

    /// The cause, with its own causes: for the log only.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source: Box<dyn StdError + Send + Sync> = source.into();
        self.0.causes = self.0.causes.and(causes::texts(&*source));
        self
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.code.kind()
    }

    /// Which failure this is, with the arguments of its text.
    #[must_use]
    pub fn code(&self) -> &Code {
        &self.0.code
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// What failed, without the reason and the context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Why it failed, if a reason is known that is fit for people.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// What failed and why, for people.
    #[must_use]
    pub fn explain(&self) -> String {
        match &self.0.reason {
            Some(reason) => format!("{}: {reason}", self.0.message),
            None => self.0.message.clone(),
        }
    }

    /// The input that is wrong, for `Invalid`.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// What the operator should do next.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Where it happened, innermost first.
    #[must_use]
    pub fn context(&self) -> &[Context] {
        &self.0.context
    }

    fn innermost(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|here| here.key == key).map(|here| here.value.as_str())
    }

    /// The innermost backend: the one that failed.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.innermost(BACKEND)
    }

    /// What the innermost call was about.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.innermost(SUBJECT)
    }

    /// How the external tool failed, when one was run.
    #[must_use]
    pub fn tool(&self) -> Option<&ToolFailure> {
        self.0.tool.as_ref()
    }

    /// The whole chain on one line, for logs.
    #[must_use]
    pub fn report(&self) -> String {
        causes::texts(self).join(": ")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &*self.0;
        f.write_str(&parts.message)?;
        if let Some(reason) = &parts.reason {
            write!(f, ": {reason}")?;
        }
        write!(f, " ({}", self.kind())?;
        if parts.code.is_specific() {
            write!(f, ", code {}", parts.code)?;
        }
        for Context { key, value } in &parts.context {
            match &**key {
                OPERATION => write!(f, ", {value}")?,
                SUBJECT if parts.message.contains(value.as_str()) => {}
                SUBJECT => write!(f, ", {value}")?,
                key => write!(f, ", {key} {value}")?,
            }
        }
        if let Some(tool) = &parts.tool {
            write!(f, ", ran `{}`", tool.argv.join(" "))?;
            match tool.exit_code {
                Some(code) => write!(f, ", exit code {code}")?,
                None => write!(f, ", no exit code")?,
            }
            if !tool.stderr_tail.is_empty() {
                write!(f, ", stderr: {}", tool.stderr_tail.trim_end())?;
            }
        }
        f.write_str(")")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.causes.first()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// An error with every part, over a chain of two.
    fn whole() -> Error {
        let cause = Error::new(ErrorKind::Busy, "The cause").with_source("the root");
        Error::new(code::image_file_gone("v1"), "Could not start the converter")
            .with_field("path")
            .with_hint("Bring it back")
            .with_backend("qemu-img")
            .with_operation("convert")
            .with_subject("a.qcow2")
            .with_tool(ToolFailure {
                argv: vec!["qemu-img".to_owned()],
                exit_code: Some(1),
                stderr_tail: "no\n".to_owned(),
            })
            .with_reason(io::Error::other("the reason"))
            .with_source(cause)
    }

    #[test]
    fn display_has_kind_code_and_context_and_the_report_each_cause_once() {
        let e = whole();
        assert_eq!(
            e.to_string(),
            "Could not start the converter: the reason (corrupt, code image_file_gone, backend qemu-img, convert, a.qcow2, \
             ran `qemu-img`, exit code 1, stderr: no)"
        );
        assert_eq!(e.report(), format!("{e}: The cause (busy): the root"));
        assert_eq!((e.message(), e.reason()), ("Could not start the converter", Some("the reason")));
        assert_eq!(e.explain(), "Could not start the converter: the reason");
    }

    #[test]
    fn a_clone_and_what_comes_out_of_json_are_the_same_error_with_its_causes() {
        let e = whole();
        assert_eq!(e.clone(), e);
        let json = serde_json::to_value(&e).unwrap();
        assert_eq!((&json["kind"], &json["code"]), (&"corrupt".into(), &"image_file_gone".into()));
        assert_eq!(json["args"]["version"], "v1");
        assert_eq!(json["causes"], serde_json::json!(["The cause (busy)", "the root"]));
        let back: Error = serde_json::from_value(json).unwrap();
        assert_eq!(back, e);
        assert_eq!(back.report(), e.report());
        assert_eq!(depth(&back), 2);
    }

    fn depth(e: &dyn StdError) -> usize {
        e.source().map_or(0, |cause| 1 + depth(cause))
    }

    #[test]
    fn a_code_that_only_the_sender_knows_arrives_with_its_kind() {
        let sent =
            r#"{"kind":"busy","code":"of_tomorrow","args":{"a":"1"},"retryable":true,"message":"M","new":1}"#;
        let e: Error = serde_json::from_str(sent).unwrap();
        assert_eq!((e.kind(), e.code().name(), e.message()), (ErrorKind::Busy, "of_tomorrow", "M"));
        assert_eq!(e.code().args()["a"], "1");
    }

    #[test]
    fn context_is_a_list_and_the_innermost_word_is_what_a_caller_reads() {
        let e = Error::not_found("machine", "pc-1").with_backend("inner").with_subject("a batch");
        let e = e.with_backend("outer").with_operation("commit").with_backend("inner");
        assert_eq!((e.backend(), e.subject()), (Some("inner"), Some("pc-1")));
        let pairs: Vec<_> = e.context().iter().map(|c| format!("{}={}", c.key, c.value)).collect();
        let want = ["subject=pc-1", "backend=inner", "subject=a batch", "backend=outer", "operation=commit"];
        assert_eq!(pairs, want, "and what is known already is not added again");
    }

    #[test]
    fn each_kind_of_a_source_goes_on_behind_it() {
        let deep = io::Error::other(Error::internal("Outer").with_source("inner"));
        let e = Error::io("Doing", deep);
        assert_eq!(e.report(), "Doing: Outer (internal) (internal): inner");
    }

    #[test]
    fn a_full_disk_is_full() {
        let e = Error::io("Writing /x", io::Error::from_raw_os_error(28));
        assert_eq!(e.kind(), ErrorKind::Full);
        assert!(!e.is_retryable());
        assert_eq!(e.message(), "Writing /x", "the source is not in the message");
        assert!(e.explain().starts_with("Writing /x: No space left"), "{e}");
        for printed in [e.to_string(), e.report()] {
            assert_eq!(printed.matches("No space left").count(), 1, "{printed}");
        }
    }

    #[test]
    fn a_more_exact_code_brings_its_kind_and_what_that_says_of_trying_again() {
        let e = Error::new(ErrorKind::Internal, "M").with_code(code::database_locked("/x"));
        assert!(e.is_retryable());
        let e = Error::new(ErrorKind::Busy, "M").retryable(false).with_code(code::database_locked("/x"));
        assert!(!e.is_retryable(), "what was said of this error stays");
    }

    #[test]
    fn what_is_not_there_has_the_code_of_its_kind_of_thing() {
        assert_eq!(Error::not_found("image version", 7).code(), &code::version_not_found(7));
        assert_eq!(Error::not_found("spoon", 7).code(), &ErrorKind::NotFound.into());
    }
}

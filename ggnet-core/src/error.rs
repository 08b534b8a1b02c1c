//! One error for every port: what kind of failure, whether trying again may help, and where it happened.
//!
//! A caller decides by [`ErrorKind`] and [`Error::is_retryable`] alone; it never needs to know which backend spoke. The
//! context (backend, operation, subject, and for an external tool its argv, exit code and last lines of stderr) is for people
//! and logs. `Display` prints kind and context and never the source: the chain is printed once, by [`Error::report`].
//! Secrets never enter an error: [`ToolFailure::argv`] is redacted by whoever builds it.

use std::{error::Error as StdError, fmt, sync::Arc};

/// The result of every port call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure this is; stable, and the only thing to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// The request contradicts what exists (a duplicate name, a second start, a changed revision).
    Conflict,
    /// The thing is in use right now (a live initiator, a held lock); nothing was changed.
    Busy,
    /// The request itself is wrong; `field` says where.
    Invalid,
    /// The operating system or a policy forbids it.
    Permission,
    /// A service, tool, file or device that is needed is not there or does not answer.
    Unavailable,
    /// It took longer than allowed; the outcome is unknown, and `ensure` or `list` will tell.
    Timeout,
    /// No space (or quota) is left.
    Full,
    /// Stored data is not what it should be.
    Corrupt,
    /// The backend cannot do this, and says so in its capabilities.
    Unsupported,
    /// A defect of ours.
    Internal,
}

impl ErrorKind {
    /// The kind's name as it stands in logs, in problem documents and between us and a backend in another process.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Busy => "busy",
            Self::Invalid => "invalid",
            Self::Permission => "permission",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Full => "full",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later without anybody changing the request.
    #[must_use]
    pub const fn retryable_by_default(self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable | Self::Timeout)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an external tool failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolFailure {
    /// The program and its arguments, secrets redacted.
    pub argv: Vec<String>,
    /// Exit code; `None` when it was killed by a signal or never started.
    pub exit_code: Option<i32>,
    /// The last lines that it wrote to stderr.
    pub stderr_tail: String,
}

#[derive(Clone, Debug, Default)]
struct Context {
    backend: Option<String>,
    operation: Option<&'static str>,
    subject: Option<String>,
    field: Option<&'static str>,
    hint: Option<String>,
    tool: Option<ToolFailure>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// A failure: kind + retryable? + message + context + source.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    retryable: bool,
    message: String,
    // Boxed so that a `Result` stays two words wide on the success path.
    context: Box<Context>,
}

impl Error {
    /// A failure of `kind`; `message` starts with a capital, names the subject and does not repeat the source.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            retryable: kind.retryable_by_default(),
            message: message.into(),
            context: Box::default(),
        }
    }

    /// `Invalid` input: the field's name and what is wrong with it.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        let mut e = Self::new(ErrorKind::Invalid, message);
        e.context.field = Some(field);
        e
    }

    /// `NotFound`: `what` ("machine") and its name or id.
    pub fn not_found(what: &str, which: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("No {what} {which}")).with_subject(which.to_string())
    }

    /// A defect of ours; say which invariant broke.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An I/O error with the kind that callers can act on; `doing` is what was attempted, with the path.
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
        Self::new(kind, format!("{doing}: {source}")).with_source(source)
    }

    /// Overrides whether trying again may help.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// Names the backend ("builtin", "lio-configfs").
    #[must_use]
    pub fn with_backend(mut self, backend: impl Into<String>) -> Self {
        self.context.backend = Some(backend.into());
        self
    }

    /// Names the port's method ("ensure").
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.context.operation = Some(operation);
        self
    }

    /// Names what the call was about (an id, a path, a unit).
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        self.context.subject = Some(subject.into());
        self
    }

    /// What a person should do next; shown to operators.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.context.hint = Some(hint.into());
        self
    }

    /// How the external tool failed.
    #[must_use]
    pub fn with_tool(mut self, tool: ToolFailure) -> Self {
        self.context.tool = Some(tool);
        self
    }

    /// The cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.context.source = Some(Arc::from(source.into()));
        self
    }

    /// What kind of failure this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// The message alone, without context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The input field that is wrong, for `Invalid`.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        self.context.field
    }

    /// What a person should do next.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.context.hint.as_deref()
    }

    /// The backend that failed.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.context.backend.as_deref()
    }

    /// What the call was about.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.context.subject.as_deref()
    }

    /// How the external tool failed, when one was run.
    #[must_use]
    pub fn tool(&self) -> Option<&ToolFailure> {
        self.context.tool.as_ref()
    }

    /// The whole chain on one line, for logs.
    #[must_use]
    pub fn report(&self) -> String {
        let mut out = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // The message of an I/O error says its cause already.
            if !out.contains(&text) {
                out.push_str(": ");
                out.push_str(&text);
            }
            next = cause.source();
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.kind)?;
        let c = &self.context;
        if let Some(backend) = &c.backend {
            write!(f, ", backend {backend}")?;
        }
        if let Some(operation) = c.operation {
            write!(f, ", {operation}")?;
        }
        if let Some(subject) = &c.subject
            && !self.message.contains(subject.as_str())
        {
            write!(f, ", {subject}")?;
        }
        if let Some(tool) = &c.tool {
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
        self.context.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_has_kind_and_context_but_not_the_source() {
        let e = Error::new(ErrorKind::Unavailable, "Could not start the converter")
            .with_backend("qemu-img")
            .with_operation("convert")
            .with_subject("a.qcow2")
            .with_source(std::io::Error::other("the cause"));
        let s = e.to_string();
        assert!(s.contains("unavailable") && s.contains("qemu-img") && s.contains("a.qcow2"), "{s}");
        assert!(!s.contains("the cause"), "{s}");
        assert!(e.report().ends_with(": the cause"), "{}", e.report());
        assert!(e.is_retryable());
    }

    #[test]
    fn a_full_disk_is_full() {
        let e = Error::io("writing /x", std::io::Error::from_raw_os_error(28));
        assert_eq!(e.kind(), ErrorKind::Full);
        assert!(!e.is_retryable());
        assert_eq!(e.report().matches("No space left").count(), 1, "{}", e.report());
    }
}

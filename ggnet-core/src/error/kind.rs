//! [`ErrorKind`]: the basis of a caller's decisions.

use std::fmt;

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
    /// A service, tool, file or device that is needed is missing or does not respond.
    Unavailable,
    /// It took longer than allowed; the outcome is unknown until `ensure` or `list` shows it.
    Timeout,
    /// No space (or quota) is left.
    Full,
    /// Stored data is damaged.
    Corrupt,
    /// The backend cannot do this, as its capabilities declare.
    Unsupported,
    /// A defect in GGnet.
    Internal,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::NotFound,
        Self::Conflict,
        Self::Busy,
        Self::Invalid,
        Self::Permission,
        Self::Unavailable,
        Self::Timeout,
        Self::Full,
        Self::Corrupt,
        Self::Unsupported,
        Self::Internal,
    ];

    /// The kind's name in logs, in problem documents and in the protocol with a backend in another process.
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

    /// Whether the same call may succeed later without a change of the request.
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

//! [`Output`]: the exit status and the output of a program.

use bytes::Bytes;
use ggnet_core::error::{Code, Error, Result, ToolFailure};

/// A program that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The program and its arguments in a form that may be shown.
    pub argv: Vec<String>,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its stdout, up to the invocation's limit.
    pub stdout: Bytes,
    /// Whether its stdout was longer than what was kept.
    pub stdout_cut: bool,
    /// The last lines of its stderr.
    pub stderr_tail: String,
}

impl Output {
    /// Whether it ended with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// An error with this code or of this kind, with argv, exit code and the last lines of stderr.
    pub fn failure(&self, code: impl Into<Code>, message: impl Into<String>) -> Error {
        let mut message = message.into();
        if let Some(signal) = self.signal {
            message.push_str(&format!(": ended by signal {signal}"));
        }
        Error::new(code, message).with_tool(ToolFailure {
            argv: self.argv.clone(),
            exit_code: self.code,
            stderr_tail: self.stderr_tail.clone(),
        })
    }

    /// Returns itself if it ended with exit code 0, otherwise an error.
    ///
    /// # Errors
    /// [`Output::failure`] for every other exit status.
    pub fn require_success(self, code: impl Into<Code>, message: impl Into<String>) -> Result<Self> {
        if self.success() { Ok(self) } else { Err(self.failure(code, message)) }
    }
}

/// The end of a stream, in limited memory.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    const BYTES: usize = 4096;
    const LINES: usize = 20;

    /// Appends received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Truncated at twice the limit, not at each read, so that a program with much output does not cost a copy per byte.
        if self.0.len() > 2 * Self::BYTES {
            self.0.drain(..self.0.len() - Self::BYTES);
        }
    }

    /// The last lines; control characters except newlines are removed, so that a tool cannot write escape sequences to our log.
    pub(super) fn text(&self) -> String {
        let kept = &self.0[self.0.len().saturating_sub(Self::BYTES)..];
        let text: String = String::from_utf8_lossy(kept)
            .chars()
            .map(|c| if c == '\r' { '\n' } else { c })
            .filter(|c| *c == '\n' || !c.is_control())
            .collect();
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(Self::LINES)..].join("\n")
    }
}

//! The backends "external": a program of somebody else's, in any language, that is spoken to over its stdin and stdout. One program per
//! port; docs/backend-authors.md has the protocol for its author.
//!
//! Floors: `dhcp`, `boot_files`, `writeback` (a port each, thin) → `connection` (there is a program, or why not) → `session` (one life of a program)
//! → `wire` (lines and messages); `run` starts it.
//!
//! Invariants:
//! * The program is ours for as long as we live: it dies with us, and one that died is started again by the next call, with back-off.
//! * Nothing that it does or leaves undone holds a call for longer than a few deadlines (a start, which may be another's, and the call
//!   itself), takes unbounded memory, or ends anything but itself.
//! * A call is written whole or not at all, and calls are written in the order in which they were made.

mod boot_files;
mod connection;
pub mod descriptor;
mod dhcp;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod session;
#[cfg(test)]
mod tests;
mod wire;
mod writeback;

use std::time::Duration;

use ggnet_core::error::{Error, Result};
use serde::Deserialize;

pub use boot_files::{ExternalBootFiles, boot_file_settings};
pub use connection::look;
pub use dhcp::ExternalDhcp;
pub use writeback::ExternalWritebacks;

/// The backends' name in the configuration and in errors.
pub const NAME: &str = "external";

/// The settings of one external backend. No `Debug`: what is the program's own may hold a secret.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// The program (a path, or a name that is looked up in the system's folders) and its arguments. Every user of the host can see
    /// them.
    pub command: Vec<String>,
    /// What the program is told in the hello: its own settings.
    #[serde(default)]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Seconds that it has to answer the hello, and each request.
    #[serde(default = "thirty")]
    pub deadline_s: u64,
    /// Seconds that it has to end after it was asked to.
    #[serde(default = "ten")]
    pub shutdown_s: u64,
    /// The longest line in bytes, either way; a bundle of boot files is one line, a third longer than its files.
    #[serde(default = "lines")]
    pub max_line: usize,
}

const fn thirty() -> u64 {
    30
}

const fn ten() -> u64 {
    10
}

const fn lines() -> usize {
    32 << 20
}

impl ExternalConfig {
    /// The defaults for a program.
    #[must_use]
    pub fn new(command: Vec<String>) -> Self {
        let config = serde_json::Map::new();
        Self { command, config, deadline_s: thirty(), shutdown_s: ten(), max_line: lines() }
    }

    /// The program's name and its arguments, once the settings make sense.
    fn program(&self) -> Result<(&str, &[String])> {
        for (field, value, range) in [
            ("deadline_s", self.deadline_s, 1..=3600),
            ("shutdown_s", self.shutdown_s, 1..=3600),
            ("max_line", self.max_line as u64, 4096..=1 << 30),
        ] {
            if !range.contains(&value) {
                let (low, high) = range.into_inner();
                return Err(Error::invalid(field, format!("{field} is {value}; it can be {low} to {high}")));
            }
        }
        match self.command.split_first() {
            Some((program, arguments)) if !program.is_empty() => Ok((program, arguments)),
            _ => Err(Error::invalid("command", "The command is empty")
                .with_hint("command = [\"/usr/lib/ggnet/my-backend\"]")),
        }
    }

    const fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_s)
    }
}

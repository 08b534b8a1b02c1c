//! The backends "external": an external program in any language, connected through its stdin and stdout. One program for each port;
//! docs/backend-authors.md describes the protocol for its author.
//!
//! Levels: `dhcp`, `boot_files`, `writeback` (one port each, thin) → `connection` (a running program, or the reason why there is none) →
//! `session` (one run of a program) → `wire` (lines and messages); `run` starts it.
//!
//! Invariants:
//! * The program belongs to this process: it ends with us, and after it ended the next call restarts it, with back-off.
//! * The program cannot delay a call for longer than a few deadlines (that of a start, possibly for another call, and that of the call
//!   itself), use unlimited memory of ours, or stop anything except itself.
//! * A call is written completely or not at all, and calls are written in the order in which they were made.

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

/// The settings of one external backend. No `Debug`, because the program's own settings may contain a secret.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// The program (a path, or a name that is looked up in the system's folders) and its arguments. Every user of the host can see them.
    pub command: Vec<String>,
    /// The program's own settings, which it gets in the hello.
    #[serde(default)]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Time limit for the response to the hello and to each request, in seconds.
    #[serde(default = "thirty")]
    pub deadline_s: u64,
    /// Time limit for the program to exit after the shutdown request, in seconds.
    #[serde(default = "ten")]
    pub shutdown_s: u64,
    /// The maximum length of a line in either direction, in bytes; a bundle of boot files is one line, a third longer than its files.
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

    /// The program's name and its arguments, after validating the settings.
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

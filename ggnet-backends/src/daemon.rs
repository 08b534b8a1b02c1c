//! What is said of a daemon of the host: how the configuration names it, what a backend knows of it, whether it runs.
//!
//! Below `service`, which manages daemons, and `helper`, which asks another process to: both say it in these types.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who manages the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// systemd where it runs the host, else the pid file.
    #[default]
    Auto,
    /// systemd, by D-Bus.
    Systemd,
    /// Its pid file.
    Process,
    /// systemd, asked by the helper: for a server that is not root.
    Helper,
}

/// How the configuration says where a daemon is. What is left out is the backend's default, which is Debian's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Who manages it.
    pub manager: Manager,
    /// systemd's name for it.
    pub unit: Option<String>,
    /// The file that holds its process id, where systemd does not manage it.
    pub pid_file: Option<PathBuf>,
    /// Starts it, where systemd does not manage it: a program and its arguments; it must go to the background by itself.
    /// Without it the daemon is never started by us.
    pub command: Option<Vec<String>>,
    /// The helper's socket, where the helper manages it.
    pub helper: Option<PathBuf>,
}

/// What a backend knows of its daemon.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The program's name, as the kernel shows it.
    pub program: &'static str,
    /// The line that installs it.
    pub install: &'static str,
    /// Its unit on Debian.
    pub unit: &'static str,
    /// Its pid file on Debian.
    pub pid_file: &'static str,
    /// The command that starts it, if the backend knows one.
    pub command: Option<Vec<String>>,
}

/// Whether a daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// Its process is there, and a signal has stopped it: it answers nobody until it is continued.
    Suspended(String),
    /// It does not run; why, in words that name the unit or the pid file.
    Stopped(String),
}

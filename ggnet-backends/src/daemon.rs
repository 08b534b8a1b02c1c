//! Types that describe a daemon of the host: its configuration, what a backend knows about it, and whether it runs.
//!
//! This module is below `service`, which manages daemons, and `helper`, which asks another process to manage them; both use these types.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What manages the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// systemd if it runs on this host, otherwise the pid file.
    #[default]
    Auto,
    /// systemd, through D-Bus.
    Systemd,
    /// The pid file.
    Process,
    /// systemd, through the helper: for a server that does not run as root.
    Helper,
}

/// The configuration of a daemon. Each missing value has the backend's default, which is the one of Debian.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// What manages it.
    pub manager: Manager,
    /// The name of its systemd unit.
    pub unit: Option<String>,
    /// The file with its process ID, if systemd does not manage it.
    pub pid_file: Option<PathBuf>,
    /// The program and arguments that start it, if systemd does not manage it. The program must go to the background by itself. Without
    /// this value GGnet never starts the daemon.
    pub command: Option<Vec<String>>,
    /// The helper's socket, if the helper manages it.
    pub helper: Option<PathBuf>,
}

/// What a backend knows about its daemon.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The program's name as the kernel shows it.
    pub program: &'static str,
    /// The command that installs it.
    pub install: &'static str,
    /// Its unit on Debian.
    pub unit: &'static str,
    /// Its pid file on Debian.
    pub pid_file: &'static str,
    /// The command that starts it, if the backend has one.
    pub command: Option<Vec<String>>,
}

/// Whether a daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// Its process exists but was stopped by a signal: it does not respond until it is continued.
    Suspended(String),
    /// It does not run, with the reason, which names the unit or the pid file.
    Stopped(String),
}

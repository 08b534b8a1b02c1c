//! [`Service`]: a daemon of the host that a backend needs: checks whether it runs, starts and restarts it.
//!
//! ```text
//!            state                      start            restart
//!   systemd  ActiveState of the unit    StartUnit        RestartUnit, paced (limit)
//!   process  pid file + /proc           fixed argv       SIGTERM, wait, fixed argv
//!   helper   request to the helper      the same         the same
//! ```
//! If systemd runs on the host, it is used through D-Bus, which allows changes only to root; the helper runs as root and makes these calls
//! for us. Otherwise (containers, other init systems, tests) the pid file identifies the daemon. The daemon is never our child process: a
//! daemon that assigns addresses must outlive our crashes and upgrades, so it is started in its usual way (it goes to the background and
//! writes its pid file), and the next GGnet finds it running.
//!
//! Invariants: a signal is only sent to a process with the daemon's name, through a handle that pins it (a recycled process ID is never
//! used); every error names the unit or the pid file.

mod batch;
#[cfg(feature = "helper")]
mod helped;
#[cfg(feature = "service-systemd")]
mod limit;
mod process;
#[cfg(feature = "service-systemd")]
mod systemd;

use std::sync::Arc;

use ggnet_core::{Error, ErrorKind, Result, registry::Key};

pub use batch::Batch;

pub use crate::daemon::{Daemon, Manager, ServiceConfig, State};
use crate::run::CommandRunner;

/// The keys of [`ServiceConfig`], as the table `service` of a backend's section.
pub(crate) const KEYS: &[Key] = &[
    ("service.manager", "\"auto\", \"systemd\", \"process\" or \"helper\"; default: \"auto\""),
    ("service.unit", "The name of its systemd unit; default: the name in Debian"),
    ("service.pid_file", "The file with its process ID; default: the path in Debian"),
    ("service.command", "The program and arguments that start it, if systemd does not"),
    ("service.helper", "The helper's socket; default: /run/ggnet/helper.sock"),
];

/// A daemon of the host. Dropping this value does not stop it.
pub struct Service {
    kind: Kind,
    program: &'static str,
}

enum Kind {
    Process(process::Process),
    #[cfg(feature = "service-systemd")]
    Systemd(systemd::Unit),
    #[cfg(feature = "helper")]
    Helped(helped::Helped),
}

impl Service {
    /// The daemon in `config`. Does not contact it yet.
    ///
    /// # Errors
    /// `Unsupported` if systemd or the helper is configured but was not compiled in; `Invalid` for a command without a program.
    pub fn new(config: &ServiceConfig, daemon: &Daemon, runner: Arc<dyn CommandRunner>) -> Result<Self> {
        let unit = config.unit.as_deref().unwrap_or(daemon.unit);
        let systemd = match config.manager {
            Manager::Helper => {
                return Ok(Self { kind: Self::helped(config, unit)?, program: daemon.program });
            }
            Manager::Systemd => true,
            Manager::Process => false,
            // The check of sd_booted(3). A configured pid file or command means that systemd is not used.
            Manager::Auto => {
                config.pid_file.is_none()
                    && config.command.is_none()
                    && cfg!(feature = "service-systemd")
                    && std::path::Path::new("/run/systemd/system").is_dir()
            }
        };
        let kind = if systemd {
            Self::unit(unit)?
        } else {
            let command = config.command.as_ref().or(daemon.command.as_ref());
            if command.is_some_and(|argv| argv.first().is_none_or(String::is_empty)) {
                return Err(Error::invalid("service.command", "The command of the service is empty"));
            }
            Kind::Process(process::Process {
                program: daemon.program,
                install: daemon.install,
                pid_file: config.pid_file.clone().unwrap_or_else(|| daemon.pid_file.into()),
                command: command.cloned(),
                runner,
            })
        };
        Ok(Self { kind, program: daemon.program })
    }

    #[cfg(feature = "service-systemd")]
    fn unit(name: &str) -> Result<Kind> {
        Ok(Kind::Systemd(systemd::Unit::new(name)?))
    }

    #[cfg(not(feature = "service-systemd"))]
    fn unit(name: &str) -> Result<Kind> {
        let message = format!("Unit {name} cannot be managed: this build has no support for systemd");
        Err(Error::new(ErrorKind::Unsupported, message).with_hint("Set service.manager to \"process\""))
    }

    #[cfg(feature = "helper")]
    fn helped(config: &ServiceConfig, unit: &str) -> Result<Kind> {
        Ok(Kind::Helped(helped::Helped::new(config.helper.as_deref(), unit)))
    }

    #[cfg(not(feature = "helper"))]
    fn helped(_: &ServiceConfig, unit: &str) -> Result<Kind> {
        let message = format!("Unit {unit} cannot be managed: this build has no helper");
        Err(Error::new(ErrorKind::Unsupported, message).with_hint("Set service.manager to \"process\""))
    }

    /// "unit dnsmasq.service" or "pid file /run/…", for messages.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.kind {
            Kind::Process(process) => process.label(),
            #[cfg(feature = "service-systemd")]
            Kind::Systemd(unit) => unit.label(),
            #[cfg(feature = "helper")]
            Kind::Helped(unit) => unit.label(),
        }
    }

    /// Whether it runs now.
    ///
    /// # Errors
    /// If that cannot be determined: `Permission`, or `Unavailable` if D-Bus does not respond.
    pub async fn state(&self) -> Result<State> {
        let state = match &self.kind {
            Kind::Process(process) => process.state(),
            #[cfg(feature = "service-systemd")]
            Kind::Systemd(unit) => unit.state().await,
            #[cfg(feature = "helper")]
            Kind::Helped(unit) => unit.state().await,
        };
        state.map_err(|e| e.with_subject(self.label()))
    }

    /// Succeeds if it runs.
    ///
    /// # Errors
    /// `Unavailable`, with the unit or the pid file, if it does not run; otherwise those of [`Service::state`].
    pub async fn require_running(&self) -> Result<()> {
        match self.state().await? {
            State::Running => Ok(()),
            State::Stopped(why) => Err(self.stopped(why)),
            State::Suspended(why) => Err(Error::new(ErrorKind::Unavailable, why)
                .with_subject(self.label())
                .with_hint("Continue the process (kill -CONT), or restart the daemon")),
        }
    }

    /// Whether [`Service::start`] is possible.
    #[must_use]
    pub fn can_start(&self) -> bool {
        match &self.kind {
            Kind::Process(process) => process.command.is_some(),
            #[cfg(feature = "service-systemd")]
            Kind::Systemd(_) => true,
            #[cfg(feature = "helper")]
            Kind::Helped(_) => true,
        }
    }

    /// Starts it, if it does not run; when this returns, it runs. If the future is dropped, it starts or not.
    ///
    /// # Errors
    /// `Unavailable` with the message of the program or of systemd; `Permission`; `Unsupported` without a command.
    pub async fn start(&self) -> Result<()> {
        let done = match &self.kind {
            Kind::Process(process) => process.start().await,
            #[cfg(feature = "service-systemd")]
            Kind::Systemd(unit) => unit.start().await,
            #[cfg(feature = "helper")]
            Kind::Helped(unit) => unit.start().await,
        };
        done.map_err(|e| e.with_subject(self.label()))
    }

    /// Stops it, if it runs, and starts it; when this returns, the new one runs. With systemd it first waits as long as systemd's start
    /// limit requires. If the future is dropped, it may be stopped; a second call starts it.
    ///
    /// # Errors
    /// Those of [`Service::start`].
    pub async fn restart(&self) -> Result<()> {
        let done = match &self.kind {
            Kind::Process(process) => process.restart().await,
            #[cfg(feature = "service-systemd")]
            Kind::Systemd(unit) => unit.restart().await,
            #[cfg(feature = "helper")]
            Kind::Helped(unit) => unit.restart().await,
        };
        done.map_err(|e| e.with_subject(self.label()))
    }

    fn stopped(&self, why: String) -> Error {
        Error::new(ErrorKind::Unavailable, why).with_subject(self.label()).with_hint(match &self.kind {
            Kind::Process(_) => {
                format!("Start {} (ps -C {} shows whether it runs)", self.program, self.program)
            }
            #[cfg(feature = "service-systemd")]
            Kind::Systemd(unit) => by_hand(unit.name()),
            #[cfg(feature = "helper")]
            Kind::Helped(unit) => by_hand(unit.name()),
        })
    }
}

/// The commands for an operator of a unit.
#[cfg(any(feature = "helper", feature = "service-systemd"))]
fn by_hand(unit: &str) -> String {
    format!("systemctl start {unit}; systemctl status {unit} shows why it stopped")
}

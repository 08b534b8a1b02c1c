//! [`Service`]: a daemon of the host that a backend needs: is it running, start it, restart it.
//!
//! ```text
//!            state                      start            restart
//!   systemd  ActiveState of the unit    StartUnit        RestartUnit, paced (limit)
//!   process  pid file + /proc           fixed argv       SIGTERM, wait, fixed argv
//!   helper   asked of the helper        the same         the same
//! ```
//! Where systemd runs the host it is asked by D-Bus, which grants changes to root; the helper is root's process that asks for us;
//! elsewhere (containers, other init systems, tests) the daemon is found by its pid file. It is never a child of ours: a daemon that gives out addresses must outlive our crashes and upgrades, so it is started
//! as it starts itself (it goes to the background and writes its pid file), and the next GGnet finds it there.
//!
//! Invariants: a signal only ever goes to a process that bears the daemon's name, through a handle that pins it (a recycled process
//! id is never hit); every error names the unit or the pid file.

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

/// A daemon of the host. Nothing here keeps it running or stops it when this is dropped.
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
    /// The daemon that `config` names. Asks nobody yet.
    ///
    /// # Errors
    /// `Unsupported` when systemd or the helper is asked for and was not compiled in; `Invalid` for a command without a program.
    pub fn new(config: &ServiceConfig, daemon: &Daemon, runner: Arc<dyn CommandRunner>) -> Result<Self> {
        let unit = config.unit.as_deref().unwrap_or(daemon.unit);
        let systemd = match config.manager {
            Manager::Helper => {
                return Ok(Self { kind: Self::helped(config, unit)?, program: daemon.program });
            }
            Manager::Systemd => true,
            Manager::Process => false,
            // What sd_booted(3) looks at. Whoever names a pid file or a command does not mean systemd.
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

    /// "unit dnsmasq.service" or "pid file /run/…": what messages name.
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
    /// When nobody can tell: `Permission`, or `Unavailable` where D-Bus does not answer.
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

    /// Nothing, if it runs.
    ///
    /// # Errors
    /// `Unavailable`, naming the unit or the pid file, if it does not; as [`Service::state`] else.
    pub async fn require_running(&self) -> Result<()> {
        match self.state().await? {
            State::Running => Ok(()),
            State::Stopped(why) => Err(self.stopped(why)),
            State::Suspended(why) => Err(Error::new(ErrorKind::Unavailable, why)
                .with_subject(self.label())
                .with_hint("Continue the process (kill -CONT), or restart the daemon")),
        }
    }

    /// Whether [`Service::start`] can work.
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

    /// Starts it, if it does not run; when this returns it runs. Dropped half-way: it starts, or it does not.
    ///
    /// # Errors
    /// `Unavailable` with what the program or systemd said; `Permission`; `Unsupported` without a command.
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

    /// Stops it, if it runs, and starts it; when this returns the new one runs. Under systemd it first waits for as long as
    /// systemd's start limit demands. Dropped half-way: it may be stopped; a second call starts it.
    ///
    /// # Errors
    /// As [`Service::start`].
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

/// What an operator types for a unit.
#[cfg(any(feature = "helper", feature = "service-systemd"))]
fn by_hand(unit: &str) -> String {
    format!("systemctl start {unit}; systemctl status {unit} shows why it stopped")
}

//! [`Process`]: a daemon that is identified by its pid file.
//!
//! The pid file may be stale, and its process ID may belong to another process by now. So the process is pinned first (a pidfd), then its
//! name is checked, and signals are sent through the pidfd.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ggnet_core::{Error, ErrorKind, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use super::State;
use crate::run::{CommandRunner, Invocation};

/// Time limit for a daemon to start or to end.
const TIME_LIMIT: Duration = Duration::from_secs(20);
/// How often the pid file is checked during that time.
const LOOK: Duration = Duration::from_millis(5);

pub(super) struct Process {
    pub(super) program: &'static str,
    pub(super) install: &'static str,
    pub(super) pid_file: PathBuf,
    pub(super) command: Option<Vec<String>>,
    pub(super) runner: Arc<dyn CommandRunner>,
}

/// A pinned process, which cannot be replaced by another one during the checks.
struct Pinned {
    fd: OwnedFd,
    id: i32,
}

impl Pinned {
    /// Its name; `None` if it has ended, whether or not its parent has reaped it.
    fn name(&self) -> Option<String> {
        self.look().map(|(name, _)| name)
    }

    /// Its name, and whether a signal has stopped it.
    fn look(&self) -> Option<(String, bool)> {
        // "4711 (dnsmasq) S …": the name is truncated to 15 bytes and may contain any character.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        let (start, end) = (stat.find('(')?, stat.rfind(')')?);
        let state = stat[end + 1..].trim_start();
        let (ended, stopped) = (state.starts_with(['Z', 'X']), state.starts_with('T'));
        // The ID may belong to another process by now; then our pidfd reports -1.
        let held = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd())).ok()?;
        let gone = held.lines().any(|line| line.strip_prefix("Pid:").is_some_and(|pid| pid.trim() == "-1"));
        (!ended && !gone).then(|| (stat[start + 1..end].to_owned(), stopped))
    }

    async fn ends_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.name().is_some() {
            if Instant::now() > end {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }
}

impl Process {
    pub(super) fn label(&self) -> String {
        format!("pid file {}", self.pid_file.display())
    }

    pub(super) fn state(&self) -> Result<State> {
        Ok(match self.find()? {
            Ok(pinned) if pinned.look().is_some_and(|(_, stopped)| stopped) => {
                let (program, id) = (self.program, pinned.id);
                State::Suspended(format!(
                    "{program} is suspended: a signal stopped process {id}; kill -CONT {id} continues it"
                ))
            }
            Ok(_) => State::Running,
            Err(why) => State::Stopped(why),
        })
    }

    /// The running daemon, pinned; or the reason why there is none. Reads small files in memory, so it needs no separate thread.
    fn find(&self) -> Result<Result<Pinned, String>> {
        let file = self.pid_file.display();
        let stopped = |why: String| Ok(Err(format!("{} is not running: {why}", self.program)));
        let text = match std::fs::read_to_string(&self.pid_file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return stopped(format!("there is no pid file {file}"));
            }
            Err(e) => return Err(Error::io(format!("Reading the pid file {file}"), e)),
        };
        let Some(pid) = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) else {
            return stopped(format!("the pid file {file} does not contain a process ID"));
        };
        let id = pid.as_raw_nonzero();
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => {
                return stopped(format!("process {id} of pid file {file} has ended"));
            }
            Err(e) => {
                return Err(Error::io(format!("Looking for process {id} of pid file {file}"), e.into()));
            }
        };
        let pinned = Pinned { fd, id: id.get() };
        match pinned.name() {
            Some(name) if name == self.program[..self.program.len().min(15)] => Ok(Ok(pinned)),
            Some(name) => stopped(format!("process {id} of pid file {file} is {name:?}, another program")),
            None => stopped(format!("process {id} of pid file {file} has ended")),
        }
    }

    fn signal(&self, pinned: &Pinned, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&pinned.fd, signal) {
            // It has ended since the check.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => {
                Err(Error::io(format!("Sending a signal to {} ({})", self.program, self.label()), e.into()))
            }
        }
    }

    pub(super) async fn restart(&self) -> Result<()> {
        if let Ok(pinned) = self.find()? {
            self.signal(&pinned, Signal::TERM)?;
            if !pinned.ends_within(TIME_LIMIT).await {
                self.signal(&pinned, Signal::KILL)?;
                pinned.ends_within(TIME_LIMIT).await;
            }
        }
        self.start().await
    }

    pub(super) async fn start(&self) -> Result<()> {
        if self.find()?.is_ok() {
            return Ok(());
        }
        let Some([program, args @ ..]) = self.command.as_deref() else {
            let message = format!(
                "{} is not running, and no start command is configured ({})",
                self.program,
                self.label()
            );
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint(format!("Start {}, or set the command in service.command", self.program)));
        };
        // Remove the pid file of the ended process: dhcpd treats any process with that ID, even a zombie, as another dhcpd. If only the
        // daemon's user may remove it, the daemon handles it.
        let _ = std::fs::remove_file(&self.pid_file);
        let invocation = Invocation::new(program, self.install).args(args).time_limit(TIME_LIMIT);
        let failed = format!("{} did not start ({})", self.program, self.label());
        self.runner.run(invocation).await?.require_success(ErrorKind::Unavailable, &failed)?;
        // It may go to the background before it writes its pid file.
        let end = Instant::now() + TIME_LIMIT;
        loop {
            match self.find()? {
                Ok(_) => return Ok(()),
                Err(why) if Instant::now() > end => return Err(Error::new(ErrorKind::Unavailable, why)),
                Err(_) => sleep(LOOK).await,
            }
        }
    }
}

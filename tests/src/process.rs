//! Child processes that have an owner, tools that name their package when they are missing, and free ports.
//!
//! Invariants: a [`Process`] that is dropped is killed and reaped. If the test process itself is killed, the kernel kills
//! the children: they are started through `setpriv --pdeathsig`, by one thread that lives as long as this process
//! (the signal comes at the death of the *thread* that forked, and a test's thread ends early).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A running program with its output in a log file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its standard output and error in `log` (overwritten), and no standard input.
    ///
    /// Build the command with [`command`] or [`Netns::command`](crate::Netns::command), so that it dies with us.
    ///
    /// # Errors
    /// The log cannot be made, or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("log of {name}: {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let shown = format!("{command:?}");
        let child = spawn_in_keeper(command).with_context(|| format!("cannot start {name}: {shown}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs. A program that ended is reaped here.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Fails, with the program's output, if it no longer runs.
    ///
    /// # Errors
    /// The program ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; its output:\n{}", self.name, self.log_text()),
        }
    }

    /// `kill -9`, and waits until it is gone. Nothing to do if it ended already.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal, for instance `Signal::TERM` or `Signal::STOP`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no such pid")?;
        kill_process(pid, signal).with_context(|| format!("signal to {}", self.name))
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, limit, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Forks in the one thread that never ends before the process does.
fn spawn_in_keeper(command: Command) -> Result<Child> {
    static KEEPER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, result) = mpsc::channel();
    keeper.send((command, answer)).map_err(|_| anyhow!("the spawning thread ended"))?;
    Ok(result.recv()??)
}

/// The argv in front of a program that makes it die with us. Goes inside of whatever changes namespaces, because a change
/// of credentials clears the signal.
pub(crate) const WITH_US: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// A command for `program` that is killed when this process ends.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(WITH_US[0]);
    command.args(&WITH_US[1..]).arg(program);
    command
}

/// Runs a command to its end and returns what it wrote on standard output.
///
/// # Errors
/// It cannot be started, or ends with another code than 0: the error holds the command and its last output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let err = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}\n{text}{err}", output.status);
    }
    Ok(text)
}

/// Runs a command to its end, whatever its exit code.
///
/// # Errors
/// It cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))
}

/// Runs a script of this crate that builds something, unless it is there, and prints the folder; what it does is on standard error.
///
/// # Errors
/// It cannot be run, or fails; its last lines are on standard error.
pub fn built_by(script: &str, args: &[&Path]) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(&script)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(output.status.success(), "{} ended with {}", script.display(), output.status);
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The anonymous memory of a process now, in bytes; none when it has ended.
#[must_use]
pub fn anonymous_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// How many descriptors a process has open now; none when it has ended.
#[must_use]
pub fn descriptors(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// The path of a tool, looked for in `PATH` and in the folders for administrators.
///
/// # Errors
/// It is not installed: the error carries the `apt-get install` line for `package`.
pub fn tool(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| anyhow!("{name} is not installed. Run: {}", install_line(package)))
}

/// Fails with the `apt-get install` line if a file of a package is not there.
///
/// # Errors
/// The file does not exist.
pub fn package_file(path: &str, package: &str) -> Result<PathBuf> {
    let file = PathBuf::from(path);
    if file.is_file() { Ok(file) } else { bail!("{path} is missing. Run: {}", install_line(package)) }
}

fn install_line(package: &str) -> String {
    format!("apt-get install -y --no-install-recommends {package}   (or all at once: tests/install-deps all)")
}

/// A TCP port of the loopback that is free now.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A UDP port of the loopback that is free now.
///
/// # Errors
/// There is none.
pub fn free_udp_port() -> Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

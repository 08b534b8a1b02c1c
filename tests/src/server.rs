//! The real `ggnet-server`, as its users run it: the binary, a data folder, ports of its own, and the API.
//!
//! States: running → (kill_9, stop) → down → (restart) → running. Ports, data folder and token stay the same over all of
//! them, which is what a machine in the middle of a session, or an operator with a token, relies on.
//!
//! Invariant: it takes nothing from the host but the binary: a configuration file of its own (so that one in /etc is not
//! read), no `GGNET_` variable, loopback ports that were free.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ggnet_core::nouns::ImageVersionId;
use rustix::process::Signal;

use crate::api::Api;
use crate::process::{self, Process};
use crate::wait;

/// How to start a server; the default is what a user gets who configures nothing, on other ports.
#[derive(Debug, Default, Clone)]
pub struct ServerOptions {
    /// The configuration file's text.
    pub config: String,
    /// Folders to import from.
    pub import_dirs: Vec<PathBuf>,
    /// Where everything is kept; none: a temporary folder that goes with the value.
    pub data_dir: Option<PathBuf>,
    /// The administrator token of a data folder that was used before; none: the server makes one and prints it.
    pub token: Option<String>,
}

/// A server of one's own. Dropping it kills it.
#[derive(Debug)]
pub struct GgnetServer {
    binary: PathBuf,
    options: ServerOptions,
    data_dir: PathBuf,
    logs: tempfile::TempDir,
    starts: usize,
    http_port: u16,
    iscsi_port: u16,
    token: String,
    process: Process,
    // Last: removed when nothing uses it any more.
    _data: Option<tempfile::TempDir>,
}

impl GgnetServer {
    /// Starts a server on an empty data folder, or on one whose token is known, and waits until machines can boot.
    ///
    /// # Errors
    /// The binary was not built (the error says how), or the server does not become ready: the error holds its log.
    pub fn start(options: ServerOptions) -> Result<Self> {
        let binary = binary()?;
        let data = match options.data_dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("ggnet-data-").tempdir()?),
        };
        let data_dir = match (&options.data_dir, &data) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) => dir.path().to_owned(),
            (None, None) => bail!("no data folder"),
        };
        let logs = tempfile::Builder::new().prefix("ggnet-logs-").tempdir()?;
        std::fs::write(logs.path().join("config.toml"), &options.config)?;
        let (http_port, iscsi_port) = (process::free_port()?, process::free_port()?);
        let command = command(&binary, &options, &data_dir, logs.path(), http_port, iscsi_port);
        let process = Process::spawn("ggnet-server", command, &log_file(logs.path(), 0))?;
        let mut server = Self {
            binary,
            options,
            data_dir,
            logs,
            starts: 1,
            http_port,
            iscsi_port,
            token: String::new(),
            process,
            _data: data,
        };
        server.wait_ready()?;
        server.token = match &server.options.token {
            Some(token) => token.clone(),
            None => token_in(&server.log_text()).context("the server printed no token")?,
        };
        Ok(server)
    }

    /// The API, with the administrator token.
    ///
    /// # Errors
    /// No client can be made on this host.
    pub fn api(&self) -> Result<Api> {
        Api::new(&self.url(), &self.token)
    }

    /// Runs the command line tool `ggnet` against this server and returns what it printed.
    ///
    /// # Errors
    /// It was not built (the error says how), or ends with another code than 0.
    pub fn ggnet(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(beside("ggnet", "ggnet-cli")?);
        without_our_variables(&mut command);
        // Credentials of the developer's own server are none of this one's business.
        command.env("GGNET_SERVER", self.url()).env("GGNET_TOKEN", &self.token).args(args);
        process::run(&mut command)
    }

    /// Where the API is: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// The boot script's URL of a machine in QEMU's user-mode network, to whom the host's loopback is 10.0.2.2.
    #[must_use]
    pub fn script_url(&self, mac: &str) -> String {
        format!("http://10.0.2.2:{}{}", self.http_port, script_path(mac))
    }

    /// The port of the iSCSI target, on the loopback.
    #[must_use]
    pub fn iscsi_port(&self) -> u16 {
        self.iscsi_port
    }

    /// The administrator token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The file of an image version.
    #[must_use]
    pub fn version_file(&self, id: ImageVersionId) -> PathBuf {
        self.data_dir.join("images").join(format!("{id}.raw"))
    }

    /// The command that started it, as one would type it.
    #[must_use]
    pub fn command_line(&self) -> String {
        let dirs = self.options.import_dirs.iter().map(|d| format!(" --import-dir {}", d.display()));
        format!(
            "ggnet-server --data-dir {} --http-listen 127.0.0.1:{} --iscsi-listen 127.0.0.1:{}{}",
            self.data_dir.display(),
            self.http_port,
            self.iscsi_port,
            dirs.collect::<String>()
        )
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What all its processes so far wrote, on standard output and error.
    #[must_use]
    pub fn log_text(&self) -> String {
        (0..self.starts)
            .map(|n| std::fs::read(log_file(self.logs.path(), n)).unwrap_or_default())
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .collect()
    }

    /// `kill -9`, in the middle of whatever it does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It does not end in 30 s, or not with exit code 0: the error holds its log.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(wait::SHORT).with_context(|| self.log_text())?;
        if !status.success() {
            bail!("ggnet-server ended with {status}; its log:\n{}", self.log_text());
        }
        Ok(())
    }

    /// Starts it again over the same data, on the same ports, and waits until machines can boot. Stops it first if it runs.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`stop`](Self::stop).
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_running() {
            self.stop()?;
        }
        let (http, iscsi) = (self.http_port, self.iscsi_port);
        let command = command(&self.binary, &self.options, &self.data_dir, self.logs.path(), http, iscsi);
        self.process = Process::spawn("ggnet-server", command, &log_file(self.logs.path(), self.starts))?;
        self.starts += 1;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let api = Api::new(&self.url(), "")?;
        let ready = wait::until("the server to be ready", wait::SHORT, || {
            self.process.check_running()?;
            Ok(api.is_ready().then_some(()))
        });
        ready.with_context(|| format!("its log:\n{}", self.log_text()))
    }

    /// Waits until a line of its log contains `text`.
    ///
    /// # Errors
    /// It does not within `limit`: the error holds the log.
    pub fn wait_log(&self, text: &str, limit: Duration) -> Result<()> {
        let found = wait::until(&format!("{text:?} in the server's log"), limit, || {
            Ok(self.log_text().contains(text).then_some(()))
        });
        found.with_context(|| format!("its log:\n{}", self.log_text()))
    }
}

/// Where a machine's boot script is.
#[must_use]
pub fn script_path(mac: &str) -> String {
    format!("/boot/{}.ipxe", mac.replace(':', "-"))
}

/// The server's binary.
///
/// # Errors
/// It was not built: the error says how.
pub fn binary() -> Result<PathBuf> {
    beside("ggnet-server", "ggnet-server")
}

/// A binary of this workspace beside the running test (`target/debug/deps/it-…`) or program (`target/debug/ggnet-demo`).
pub(crate) fn beside(name: &str, package: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|f| f.is_file());
    found
        .with_context(|| format!("there is no {name} beside {}. Run: cargo build -p {package}", me.display()))
}

fn log_file(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("server-{n}.log"))
}

fn command(
    binary: &Path,
    options: &ServerOptions,
    data_dir: &Path,
    logs: &Path,
    http: u16,
    iscsi: u16,
) -> Command {
    let mut command = process::command(binary);
    without_our_variables(&mut command);
    command.arg("--config").arg(logs.join("config.toml")).arg("--data-dir").arg(data_dir);
    command.arg(format!("--http-listen=127.0.0.1:{http}")).arg(format!("--iscsi-listen=127.0.0.1:{iscsi}"));
    for dir in &options.import_dirs {
        command.arg("--import-dir").arg(dir);
    }
    command
}

/// What is set for this process is not meant for the server or tool under test.
fn without_our_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("GGNET_")) {
        command.env_remove(name);
    }
}

/// The token stands alone on the indented line that follows the announcement.
pub(crate) fn token_in(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("administrator token")?;
    let line = rest.lines().skip(1).map(str::trim).find(|l| !l.is_empty())?;
    line.chars().all(|c| c.is_ascii_alphanumeric()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_token_among_log_lines() {
        let log =
            "info one\nThe administrator token, printed only once:\n\n    abcDEF123\n\nUse it with: x\n";
        assert_eq!(token_in(log).as_deref(), Some("abcDEF123"));
        assert_eq!(token_in("nothing here"), None);
        assert_eq!(script_path("52:54:00:aa:00:01"), "/boot/52-54-00-aa-00-01.ipxe");
    }
}

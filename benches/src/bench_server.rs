//! The server as a process of its own, ready, with a client that may use it.

use std::path::Path;

use anyhow::{Context as _, Result};
use ggnet_tests::{Api, Process, process, wait};
use tempfile::TempDir;

/// The server as a process; it ends with this value.
pub struct BenchServer {
    /// A client with the administrator token.
    pub api: Api,
    /// Where it answers: `http://127.0.0.1:<port>`.
    pub url: String,
    /// The administrator token.
    pub token: String,
    process: Process,
    // Last, so that the folder outlives the process.
    _folder: TempDir,
}

impl BenchServer {
    /// Starts `program` (`bench-server`) over an empty data folder; images may be imported from below `imports`.
    ///
    /// # Errors
    /// It does not become ready.
    #[expect(clippy::disallowed_methods, reason = "a file that is thrown away")]
    pub fn start(program: &str, imports: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ggnet-bench-").tempdir()?;
        let (http, iscsi) = (process::free_port()?, process::free_port()?);
        let data = folder.path().join("data");
        let text = format!(
            "data_dir = {data:?}\n[http]\nlisten = \"127.0.0.1:{http}\"\n[target]\nlisten = [\"127.0.0.1:{iscsi}\"]\n\
             [images]\nimport_dirs = [{imports:?}]\n"
        );
        let settings = folder.path().join("config.toml");
        std::fs::write(&settings, text)?;
        let mut command = process::command(program);
        command.arg("--config").arg(&settings);
        let mut server = Process::spawn("bench-server", command, &folder.path().join("log"))?;
        let url = format!("http://127.0.0.1:{http}");
        let probe = Api::new(&url, "")?;
        wait::until("the server to be ready", wait::SHORT, || {
            server.check_running()?;
            Ok(probe.is_ready().then_some(()))
        })?;
        let said = server.log_text();
        let (_, after) = said.split_once("The administrator token, ").context("no token was shown")?;
        let (_, after) = after.split_once(':').context("no token was shown")?;
        let token = after.split_whitespace().next().context("no token was shown")?.to_owned();
        let api = Api::new(&url, &token)?;
        Ok(Self { api, url, token, process: server, _folder: folder })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

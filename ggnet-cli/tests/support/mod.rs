//! A real ggnet-server with its own folder, and the real `ggnet` with its own home directory.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails as tests fail")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A server that is killed when this is dropped.
pub struct Server {
    process: Child,
    // Kept open until the end, so that stdout is not closed.
    _stdout: BufReader<ChildStdout>,
    /// Its address and port.
    pub address: String,
    /// The administrator token.
    pub token: String,
    folder: TempDir,
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its results.
    pub stdout: String,
    /// Its notes and errors.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it was not killed"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Checks its exit code; the test fails with its output.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Its stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is no JSON ({e}): {self:#?}"))
    }

    /// Its stderr as one problem document.
    #[track_caller]
    pub fn problem(&self) -> Value {
        serde_json::from_str(&self.stderr).unwrap_or_else(|e| panic!("stderr is no JSON ({e}): {self:#?}"))
    }

    /// Checks that stderr contains this.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} in {self:#?}");
        self
    }

    /// Checks that stdout contains this.
    #[track_caller]
    pub fn shows(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?} in {self:#?}");
        self
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `ggnet` with this home and without our variables in its environment.
pub fn ggnet(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggnet"));
    for name in ["GGNET_SERVER", "GGNET_TOKEN", "GGNET_OUTPUT", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("XDG_CONFIG_HOME", home.join("config")).stdin(Stdio::null());
    command
}

fn server_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_ggnet")).with_file_name("ggnet-server");
    assert!(
        path.exists(),
        "{} is missing: these tests drive a real server. Build it first: cargo build -p ggnet-server --bin ggnet-server",
        path.display()
    );
    path
}

/// The server in this folder, which logs to a file there.
pub fn serve(folder: &Path, address: &str) -> Command {
    serve_and_log(folder, address, "info")
}

/// The same, with the log at this level.
pub fn serve_and_log(folder: &Path, address: &str, level: &str) -> Command {
    let mut command = Command::new(server_binary());
    command.arg("--config").arg(folder.join("empty.toml"));
    command.arg("--data-dir").arg(folder.join("data"));
    command.arg("--import-dir").arg(folder.join("import"));
    let iscsi = format!("127.0.0.1:{}", free_port());
    command.args(["--http-listen", address, "--iscsi-listen", &iscsi, "--log", level]);
    let log = File::create(folder.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command
}

/// The token, if this line contains it.
pub fn token_in(line: &str) -> Option<&str> {
    line.strip_prefix("    ").map(str::trim)
}

/// `GET` of a path without a token. Returns the whole response.
pub fn boot_request(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

impl Server {
    /// Starts a server; it is ready, but `ggnet` is not logged in.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// The same in a prepared folder.
    pub fn start_with(prepare: impl Fn(&Path)) -> Self {
        // Another process may take the port before the server binds it.
        (0..5).find_map(|_| Self::try_start(&prepare)).expect("the server did not start; its log is above")
    }

    fn try_start(prepare: &impl Fn(&Path)) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        std::fs::create_dir(folder.path().join("import")).unwrap();
        File::create(folder.path().join("empty.toml")).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut process = serve(folder.path(), &address).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        let token = loop {
            line.clear();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let _ = process.wait();
                eprintln!("{}", std::fs::read_to_string(folder.path().join("log")).unwrap());
                return None;
            }
            if let Some(token) = token_in(&line) {
                break token.to_owned();
            }
        };
        let server = Self { process, _stdout: stdout, address, token, folder };
        Some(server)
    }

    /// Kills the server and starts it again with its folder; returns its output until it exits or prints a new token.
    pub fn over_again(&mut self) -> Ran {
        self.kill();
        self.process = serve(self.folder.path(), &self.address).spawn().unwrap();
        let mut said = String::new();
        let mut stdout = BufReader::new(self.process.stdout.take().unwrap());
        while stdout.read_line(&mut said).unwrap() > 0 && !said.lines().any(|l| token_in(l).is_some()) {}
        let code = if said.is_empty() { self.process.wait().unwrap().code().unwrap() } else { 0 };
        self._stdout = stdout;
        Ran { code, stdout: said, stderr: std::fs::read_to_string(self.folder.path().join("log")).unwrap() }
    }

    /// Kills the server and runs another command of ggnet-server with its folder, such as `key reset`.
    pub fn offline(&mut self, words: &str) -> Ran {
        self.kill();
        let mut command = serve(self.folder.path(), &self.address);
        let output = command.args(words.split_whitespace()).stderr(Stdio::piped()).output().unwrap();
        output.into()
    }

    /// Kills the server and starts it again with its folder, which has its token; it is ready when this returns.
    pub fn again(&mut self) {
        self.kill();
        self.process = serve(self.folder.path(), &self.address).spawn().unwrap();
        self._stdout = BufReader::new(self.process.stdout.take().unwrap());
        while TcpStream::connect(&self.address).is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(self.process.try_wait().unwrap().is_none(), "it did not start: {}", log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The folder of its configuration, log and data folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts a server and logs in.
    pub fn logged_in() -> Self {
        let server = Self::start();
        server.login(&server.token).ends(0);
        server.run("server --wait 60").ends(0);
        server
    }

    /// The home of `ggnet`.
    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Creates a sparse raw image of this many MiB, with a few marked bytes, in the import folder.
    pub fn raw_image(&self, name: &str, mib: u64) -> String {
        let path = self.folder.path().join("import").join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"a disk image of a test").unwrap();
        file.set_len(mib << 20).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `ggnet` with these arguments, not yet started.
    pub fn command(&self, words: &str) -> Command {
        let mut command = ggnet(&self.home());
        command.args(words.split_whitespace());
        command
    }

    /// Runs `ggnet` with these arguments.
    #[track_caller]
    pub fn run(&self, words: &str) -> Ran {
        self.command(words).output().unwrap().into()
    }

    /// Runs `ggnet --output json` with these arguments; it must succeed and print JSON.
    #[track_caller]
    pub fn json(&self, words: &str) -> Value {
        self.run(&format!("{words} --output json")).ends(0).json()
    }

    /// Logs in with this token.
    pub fn login(&self, token: &str) -> Ran {
        let mut command = self.command(&format!("login --server http://{} --token-stdin", self.address));
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        writeln!(process.stdin.take().unwrap(), "{token}").unwrap();
        process.wait_with_output().unwrap().into()
    }

    /// A request of a booting machine: `GET` of a path without a token. Returns the whole response.
    pub fn boot_request(&self, path: &str) -> String {
        boot_request(&self.address, path)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- the server's log:\n{log}");
        }
    }
}

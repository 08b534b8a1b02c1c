//! [`SystemRunner`]: runs programs on this host.

use std::{
    ffi::OsString,
    fs::File,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use ggnet_core::error::{Error, ErrorKind, Result, ToolFailure, code};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, Command},
    time::timeout,
};

use super::{CommandRunner, Invocation, LineSink, Output, Stdin, output::Tail, spawn::Spawner};

/// The search path for programs; fixed, so that the caller's environment cannot substitute another program.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Time limit for a killed program to end; a longer time means that it hangs in the kernel, and waiting does not help.
pub(super) const REAP: Duration = Duration::from_secs(5);

/// Runs programs on this host. Dropping it kills those that still run.
#[derive(Debug)]
pub struct SystemRunner {
    spawner: Spawner,
    path: OsString,
}

impl SystemRunner {
    /// A runner that looks for programs in the system's folders.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn new() -> Result<Self> {
        Self::with_path(SEARCH_PATH)
    }

    /// A runner that looks for programs in `path` (as in `PATH`), which is also the programs' own `PATH`.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn with_path(path: impl Into<OsString>) -> Result<Self> {
        Ok(Self { spawner: Spawner::new()?, path: path.into() })
    }

    /// The executable file of `program`.
    pub(crate) async fn resolve(&self, program: &Path, install_hint: &str) -> Result<PathBuf> {
        let candidates: Vec<PathBuf> = if program.components().count() > 1 || program.is_absolute() {
            vec![program.to_owned()]
        } else {
            std::env::split_paths(&self.path).map(|dir| dir.join(program)).collect()
        };
        let mut forbidden = None;
        for candidate in candidates {
            match tokio::fs::metadata(&candidate).await {
                Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => return Ok(candidate),
                Ok(_) => forbidden = Some(candidate),
                Err(_) => {}
            }
        }
        Err(match forbidden {
            Some(file) => {
                Error::new(ErrorKind::Permission, format!("{} is not an executable file", file.display()))
                    .with_hint(format!("Install the program there: {install_hint}"))
            }
            None => {
                let program = program.display();
                Error::new(code::program_missing(&program), format!("Program {program} is not installed"))
                    .with_hint(install_hint)
            }
        })
    }

    /// The whole argv: the programs that tie it to our process and limit it, then the program itself.
    pub(super) async fn full_argv(&self, invocation: &Invocation) -> Result<Vec<OsString>> {
        let program = self.resolve(&invocation.program, &invocation.install_hint).await?;
        let mut argv: Vec<OsString> = Vec::new();
        let mut push = |program: PathBuf, args: &[&str]| {
            argv.push(program.into());
            argv.extend(args.iter().map(OsString::from));
        };
        let util = "apt-get install util-linux";
        push(self.resolve(Path::new("setpriv"), util).await?, &["--pdeathsig", "KILL", "--"]);
        if invocation.background {
            push(self.resolve(Path::new("nice"), "apt-get install coreutils").await?, &["-n", "10"]);
            push(self.resolve(Path::new("ionice"), util).await?, &["-c", "2", "-n", "7"]);
        }
        let prlimit = self.resolve(Path::new("prlimit"), util).await?;
        argv.push(prlimit.into());
        argv.push("--core=0".into());
        let limits = invocation.limits;
        if let Some(bytes) = limits.address_space {
            argv.push(format!("--as={bytes}").into());
        }
        if let Some(seconds) = limits.cpu_seconds {
            argv.push(format!("--cpu={seconds}:{}", seconds.saturating_mul(2)).into());
        }
        if let Some(bytes) = limits.file_size {
            argv.push(format!("--fsize={bytes}").into());
        }
        argv.push("--".into());
        argv.push(program.into());
        argv.extend(invocation.args.iter().map(|a| a.value().to_owned()));
        Ok(argv)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the CommandRunner that everything else must use")]
    pub(super) fn command(&self, argv: &[OsString], invocation: &Invocation) -> Result<Command> {
        let [program, args @ ..] = argv else {
            return Err(Error::internal("A command without a program"));
        };
        let stdin = match &invocation.stdin {
            Stdin::Empty => Stdio::null(),
            Stdin::Bytes(_) => Stdio::piped(),
            Stdin::File(file) => {
                let file: File = file.try_clone().map_err(|e| Error::io("handing a file to a program", e))?;
                file.into()
            }
        };
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", &self.path)
            .env("LC_ALL", "C")
            .current_dir(invocation.current_dir.as_deref().unwrap_or(Path::new("/")))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A new process group, so that a kill reaches its children and a Ctrl-C on our terminal does not reach it.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    /// Starts it; the error names the program.
    pub(super) async fn spawn(&self, command: Command, argv: &[String]) -> Result<Child> {
        self.spawner.spawn(command).await.map_err(|e| {
            let subject = argv.first().map_or("", String::as_str);
            let tool = ToolFailure { argv: argv.to_vec(), exit_code: None, stderr_tail: String::new() };
            Error::io(format_args!("starting {subject}"), e).with_tool(tool)
        })
    }
}

#[async_trait]
impl CommandRunner for SystemRunner {
    async fn run(&self, invocation: Invocation) -> Result<Output> {
        let argv = invocation.shown_argv();
        let subject = argv.first().cloned().unwrap_or_default();
        let command = self.command(&self.full_argv(&invocation).await?, &invocation)?;
        tracing::debug!(?invocation, "starting a program");
        let mut child = self.spawn(command, &argv).await?;
        // Declared after the child, so dropped before it: the group gets its signal while the child is unreaped and its ID is still its
        // own.
        let mut group = Group::of(&child);
        let mut streams = Streams { tail: Tail::default(), kept: Vec::new(), cut: false };
        let ended = timeout(invocation.time_limit, streams.follow(&mut child, &invocation)).await;
        let status = match ended {
            Ok(Ok(status)) => status,
            Ok(Err(e)) => return Err(Error::io(format_args!("reading the output of {subject}"), e)),
            Err(_elapsed) => {
                group.kill();
                if timeout(REAP, child.wait()).await.is_ok() {
                    group.disarm();
                }
                let limit = invocation.time_limit;
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("{subject} took longer than {limit:?} and was killed"),
                )
                .with_tool(ToolFailure {
                    argv,
                    exit_code: None,
                    stderr_tail: streams.tail.text(),
                }));
            }
        };
        group.disarm();
        Ok(Output {
            argv,
            code: status.code(),
            signal: status.signal(),
            stdout: Bytes::from(streams.kept),
            stdout_cut: streams.cut,
            stderr_tail: streams.tail.text(),
        })
    }
}

/// Kills a process group when dropped, unless its leader was reaped (its ID may then belong to another process).
pub(super) struct Group(Option<Pid>);

impl Group {
    pub(super) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    pub(super) fn kill(&self) {
        if let Some(pid) = self.0 {
            // The only possible failure is that no process is left.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    pub(super) fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The output of a running program.
struct Streams {
    tail: Tail,
    kept: Vec<u8>,
    cut: bool,
}

impl Streams {
    /// Writes stdin, reads both streams to their end, then waits: the child stays unreaped until no process of its group writes any more.
    async fn follow(&mut self, child: &mut Child, invocation: &Invocation) -> std::io::Result<ExitStatus> {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let Self { tail, kept, cut } = self;
        let sink = invocation.on_line.as_ref();
        let limit = invocation.stdout_limit;
        let (fed, out, err) = tokio::join!(
            feed(stdin, &invocation.stdin),
            async {
                match stdout {
                    Some(stream) => read_lines(stream, limit, kept, cut, sink).await,
                    None => Ok(()),
                }
            },
            async {
                match stderr {
                    Some(stream) => read_tail(stream, tail).await,
                    None => Ok(()),
                }
            }
        );
        fed?;
        out?;
        err?;
        child.wait().await
    }
}

async fn feed(pipe: Option<ChildStdin>, stdin: &Stdin) -> std::io::Result<()> {
    let (Some(mut pipe), Stdin::Bytes(bytes)) = (pipe, stdin) else {
        return Ok(());
    };
    match pipe.write_all(bytes).await {
        // A program may end without reading all input; its exit code shows whether that is an error.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

async fn read_lines(
    mut stream: impl AsyncRead + Unpin,
    limit: usize,
    kept: &mut Vec<u8>,
    cut: &mut bool,
    sink: Option<&LineSink>,
) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 16 * 1024];
    let mut lines = LineSplitter::default();
    loop {
        let n = stream.read(&mut buffer).await?;
        let got = &buffer[..n];
        let room = limit.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&got[..room]);
        *cut |= room < n;
        if let Some(sink) = sink {
            lines.push(got, n == 0, |line| sink(line));
        }
        if n == 0 {
            return Ok(());
        }
    }
}

async fn read_tail(mut stream: impl AsyncRead + Unpin, tail: &mut Tail) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 4 * 1024];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        tail.push(&buffer[..n]);
    }
}

/// Splits a stream into lines terminated by `\n` or `\r`; empty lines are dropped, and a line longer than 4 KiB is split.
#[derive(Default)]
pub(super) struct LineSplitter(Vec<u8>);

impl LineSplitter {
    pub(super) fn push(&mut self, bytes: &[u8], end: bool, mut line: impl FnMut(&str)) {
        let mut flush = |buffer: &mut Vec<u8>| {
            if !buffer.is_empty() {
                line(&String::from_utf8_lossy(buffer));
                buffer.clear();
            }
        };
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                flush(&mut self.0);
                continue;
            }
            self.0.push(byte);
            if self.0.len() == 4096 {
                flush(&mut self.0);
            }
        }
        if end {
            flush(&mut self.0);
        }
    }
}

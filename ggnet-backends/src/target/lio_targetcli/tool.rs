//! [`Tool`]: the program targetcli, started when there is a command for it, and stopped when it has been idle for some time.
//!
//! ```text
//!            ┌──────────── LINGER without a command ────────────┐
//!            ▼                                                  │
//!   not running ──say──▶ starting ──prompt──▶ busy ──prompt──▶ idle ──say──▶ busy
//!            ▲              │ (waits for the lock of another)  │
//!            └──────────────┴── it ended, or its time is up ───┘
//! ```
//! A start of the tool takes several times as long as a command (it loads its libraries and reads the whole tree), and a change of a target
//! takes a dozen commands. It holds its lock while it runs, so it is stopped when idle.
//!
//! Invariants: one command at a time, the next only after the prompt; of its stdout only the presence of the prompt is used, because it
//! repeats the secrets in commands; an interrupted command leaves no program running.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ggnet_core::error::{Error, ErrorKind, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Mutex as Turn,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::words::Command;
use crate::run::{Coprocess, Invocation, Pipes, SystemRunner};

const PROGRAM: &str = "targetcli";
const INSTALL: &str = "apt-get install targetcli-fb";
/// Its prompt at the root of its tree, where we leave it.
const PROMPT: &[u8] = b"/> ";
/// How long it waits for the next command before it is stopped and its lock is released.
const LINGER: Duration = Duration::from_secs(2);
/// Time limit for it to exit on request.
const LEAVING: Duration = Duration::from_secs(5);
/// The first commands. They prevent automatic changes that were not requested, saving (after a restart of the host GGnet creates its
/// targets again), and logging (by default every command, including its secrets, goes into a file that everyone can read).
const SETTINGS: &str = "set global loglevel_file=critical auto_save_on_exit=false auto_add_mapped_luns=false \
    auto_add_default_portal=false auto_enable_tpgt=false auto_cd_after_create=false export_backstore_name_as_model=false \
    color_mode=false";

/// The program. See the module.
pub(super) struct Tool {
    home: PathBuf,
    time_limit: Duration,
    runner: SystemRunner,
    running: Arc<Turn<Option<Running>>>,
    /// Stops it when it has been idle; a new timer replaces the previous one.
    leaving: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct Running {
    program: Coprocess,
    pipes: Pipes,
}

impl Tool {
    /// A tool with its own folder `home`, which is created.
    pub(super) fn new(home: &Path, time_limit: Duration, runner: SystemRunner) -> Result<Self> {
        // The tool's own files: its settings, and a log that we disable.
        match fs::DirBuilder::new().mode(0o700).create(home) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(format!("Making {}", home.display()), e)),
        }
        Ok(Self {
            home: home.to_owned(),
            time_limit,
            runner,
            running: Arc::default(),
            leaving: Mutex::default(),
        })
    }

    /// Whether it is installed.
    pub(super) async fn is_there(&self) -> Result<()> {
        self.runner.resolve(Path::new(PROGRAM), INSTALL).await.map(drop)
    }

    /// Sends the commands; before each, `before` is called with its number. An error means that a command could not be sent: whether the
    /// tool did what it was asked to is visible in the kernel's tree.
    ///
    /// # Cancellation
    /// If the future is dropped, or its time is up, the program is killed during a command or between two.
    pub(super) async fn say(
        &self,
        commands: &[Command],
        before: &(dyn Fn(usize) -> Result<()> + Sync),
    ) -> Result<()> {
        // Held across awaits: it serializes the users of the tool.
        let mut running = self.running.lock().await;
        // Taken out, so that an interruption ends the program.
        let mut now = running.take();
        let saying = async {
            let tool = match &mut now {
                Some(tool) => tool,
                None => now.insert(self.start().await?),
            };
            for command in commands {
                before(command.op)?;
                if let Err(lost) = tool.command(command.text.expose()).await {
                    return Err(lost.error(tool).await);
                }
            }
            Ok(())
        };
        let said = timeout(self.time_limit, saying).await.unwrap_or_else(|_elapsed| {
            let message = format!("targetcli took longer than {:?} and was killed", self.time_limit);
            Err(Error::new(ErrorKind::Timeout, message)
                .with_hint("Another targetcli may be open: it holds /var/run/targetcli.lock"))
        });
        if said.is_ok() {
            *running = now;
            self.linger();
        }
        said
    }

    /// Ends it, and creates an error from its last output: the tree is not in the requested state.
    pub(super) async fn blamed(&self, message: String) -> Error {
        let ended = match self.running.lock().await.take() {
            Some(running) => Some(running.end().await),
            None => None,
        };
        let Some((_, tool)) = ended else { return Error::internal(message) };
        let words = tool.stderr_tail.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        Error::new(ErrorKind::Internal, format!("{message}: {words}")).with_tool(tool)
    }

    async fn start(&self) -> Result<Running> {
        self.is_there().await?;
        let invocation = Invocation::new("env", "apt-get install coreutils")
            .arg(format!("TARGETCLI_HOME={}", self.home.display()))
            .arg(PROGRAM);
        let complaint = |line: &str| tracing::debug!("targetcli: {}", crate::run::shown(line));
        let (program, pipes) = self.runner.start(&invocation, Arc::new(complaint)).await?;
        let mut running = Running { program, pipes };
        let started = match running.prompt().await {
            Ok(()) => running.command(SETTINGS).await,
            lost => lost,
        };
        match started {
            Ok(()) => Ok(running),
            Err(lost) => Err(lost.error(&mut running).await),
        }
    }

    /// Stops it later, unless another command is sent first.
    fn linger(&self) {
        let running = Arc::clone(&self.running);
        #[expect(clippy::disallowed_methods, reason = "ends by itself after LINGER")]
        let leaving = tokio::spawn(async move {
            sleep(LINGER).await;
            if let Some(running) = running.lock().await.take() {
                running.end().await;
            }
        });
        // Cancels the previous timer, which would stop it too early.
        *self.leaving.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(leaving));
    }
}

/// It does not respond any more.
struct Lost(Option<io::Error>);

impl Lost {
    async fn error(self, running: &mut Running) -> Error {
        let (how, tool) = running.program.end(LEAVING).await;
        let error = Error::new(ErrorKind::Unavailable, format!("Program targetcli ended: {how}"));
        let error = match self.0 {
            Some(e) => error.with_source(e),
            None => error,
        };
        error.with_tool(tool).with_hint("Run `targetcli ls` as root; it also needs the system's D-Bus")
    }
}

impl Running {
    /// Sends one command and waits for its end.
    async fn command(&mut self, text: &str) -> std::result::Result<(), Lost> {
        let line = zeroize::Zeroizing::new(format!("{text}\n"));
        let stdin = &mut self.pipes.stdin;
        stdin.write_all(line.as_bytes()).await.map_err(|e| Lost(Some(e)))?;
        stdin.flush().await.map_err(|e| Lost(Some(e)))?;
        self.prompt().await
    }

    /// Reads up to the prompt, the last output before it waits for input.
    async fn prompt(&mut self) -> std::result::Result<(), Lost> {
        let mut end: Vec<u8> = Vec::new();
        let mut buffer = zeroize::Zeroizing::new([0_u8; 4096]);
        while !end.ends_with(PROMPT) {
            let n = self.pipes.stdout.read(buffer.as_mut_slice()).await.map_err(|e| Lost(Some(e)))?;
            if n == 0 {
                return Err(Lost(None));
            }
            end.extend_from_slice(&buffer[..n]);
            let surplus = end.len().saturating_sub(PROMPT.len());
            end.drain(..surplus);
        }
        Ok(())
    }

    /// Asks it to exit, and waits until it has exited and released its lock.
    async fn end(mut self) -> (String, ggnet_core::error::ToolFailure) {
        // A program that does not accept it is killed.
        let _ = self.pipes.stdin.write_all(b"exit\n").await;
        let Pipes { stdin, mut stdout } = self.pipes;
        drop(stdin);
        // It would block forever on a full pipe.
        let _ = timeout(LEAVING, tokio::io::copy(&mut stdout, &mut tokio::io::sink())).await;
        self.program.end(LEAVING).await
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a program that is discarded")]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, process};

    use ggnet_core::nouns::Secret;

    use super::*;

    /// Behaves like the real tool, and records its input; the real one runs in `--test native`.
    const SPEAKER: &str = r#"#!/bin/sh
echo "started $$" >>"$TARGETCLI_HOME/heard"
printf 'targetcli shell\n\n/> '
while read -r line; do
  echo "$line" >>"$TARGETCLI_HOME/heard"
  case $line in
    exit) echo "left $$" >>"$TARGETCLI_HOME/heard"; exit 0 ;;
    *hang*) sleep 600 ;;
    *die*) echo 'a reason' >&2; exit 1 ;;
    *complain*) echo 'Error: not that' >&2 ;;
  esac
  printf 'Parameter is now %s\n/> ' "$line"
done
"#;

    struct Lab {
        dir: tempfile::TempDir,
        tool: Tool,
    }

    impl Lab {
        fn with(program: Option<&str>, time_limit: Duration) -> Self {
            let dir = tempfile::tempdir().unwrap();
            if let Some(text) = program {
                let path = dir.path().join(PROGRAM);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let path = format!("{}:/usr/bin:/bin", dir.path().display());
            let runner = SystemRunner::with_path(path).unwrap();
            let tool = Tool::new(&dir.path().join("home"), time_limit, runner).unwrap();
            Self { dir, tool }
        }

        async fn say(&self, lines: &[&str]) -> Result<()> {
            let command = |(op, line): (usize, &&str)| Command { text: Secret::new(*line), op };
            let commands: Vec<Command> = lines.iter().enumerate().map(command).collect();
            self.tool.say(&commands, &|_| Ok(())).await
        }

        fn heard(&self) -> Vec<String> {
            let text = fs::read_to_string(self.dir.path().join("home/heard")).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }

        fn starts(&self) -> usize {
            self.heard().iter().filter(|line| line.starts_with("started")).count()
        }
    }

    const TIME_LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_program_is_told_what_many_calls_say_and_goes_when_nobody_has_more() {
        let lab = Lab::with(Some(SPEAKER), TIME_LIMIT);
        lab.say(&["one", "two"]).await.unwrap();
        lab.say(&["three"]).await.unwrap();
        assert_eq!(lab.heard()[1..], [SETTINGS, "one", "two", "three"]);
        while !lab.heard().last().unwrap().starts_with("left") {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(lab.starts(), 1);
        lab.say(&["four"]).await.unwrap();
        assert_eq!(lab.starts(), 2);
    }

    #[tokio::test]
    async fn its_folder_is_nobody_elses() {
        let lab = Lab::with(Some(SPEAKER), TIME_LIMIT);
        let mode = fs::metadata(lab.dir.path().join("home")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // Again, as after a restart.
        Tool::new(&lab.dir.path().join("home"), TIME_LIMIT, SystemRunner::new().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn without_the_program_the_line_that_installs_it() {
        let lab = Lab::with(None, TIME_LIMIT);
        for e in [lab.tool.is_there().await.unwrap_err(), lab.say(&["one"]).await.unwrap_err()] {
            assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
            assert_eq!(e.hint(), Some(INSTALL));
        }
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_killed_and_the_next_call_has_another() {
        let lab = Lab::with(Some(SPEAKER), Duration::from_secs(3));
        let e = lab.say(&["hang", "never"]).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
        assert!(e.hint().unwrap().contains("targetcli.lock"), "{e:?}");
        lab.say(&["two"]).await.unwrap();
        assert_eq!(lab.starts(), 2);
        assert!(!lab.heard().contains(&"never".to_owned()), "{:?}", lab.heard());
        let first = lab.heard()[0].strip_prefix("started ").unwrap().to_owned();
        assert_ne!(first, process::id().to_string());
        while Path::new("/proc").join(&first).join("exe").exists() {
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn one_that_ended_is_named_with_its_last_words() {
        let lab = Lab::with(Some(SPEAKER), TIME_LIMIT);
        let e = lab.say(&["die"]).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
        assert!(e.to_string().contains("exit code 1") && e.report().contains("a reason"), "{}", e.report());
        lab.say(&["one"]).await.unwrap();
        assert_eq!(lab.starts(), 2);
    }

    #[tokio::test]
    async fn what_it_complained_of_is_the_reason_of_what_was_not_done() {
        let lab = Lab::with(Some(SPEAKER), TIME_LIMIT);
        lab.say(&["complain"]).await.unwrap();
        let e = lab.tool.blamed("1 changes were not made".to_owned()).await;
        assert!(e.to_string().contains("not made: Error: not that"), "{e}");
        assert!(lab.heard().last().unwrap().starts_with("left"), "{:?}", lab.heard());
    }

    #[tokio::test]
    async fn who_is_asked_before_a_command_can_end_it() {
        let lab = Lab::with(Some(SPEAKER), TIME_LIMIT);
        let commands = ["one", "two"].map(|line| Command { text: Secret::new(line), op: line.len() });
        let e = lab.tool.say(&commands, &|op| Err(Error::internal(format!("at {op}")))).await.unwrap_err();
        assert!(e.to_string().contains("at 3"), "{e}");
        assert_eq!(lab.heard()[1..], [SETTINGS]);
    }
}

//! [`Coprocess`]: a program that runs on beside us and is spoken to by its stdin and stdout.
//!
//! ```text
//!   start ──▶ running ──it ends, and is reaped──▶ gone
//!                └──ended by us, or dropped: SIGKILL to the whole group, reaped──▶ gone
//! ```
//! Started as [`CommandRunner::run`](super::CommandRunner::run) starts programs, with the same argv, environment and limits, and tied
//! to us in the same way: it dies with its handle and with our process. Invariant: what it says on stderr is always read, so that it
//! never waits for us there; of that the last lines are kept.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ggnet_core::error::{Error, Result, ToolFailure};
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Invocation, LineSink, SystemRunner,
    output::Tail,
    system::{Group, LineSplitter, REAP},
};

/// How long the last words of a program that has ended are waited for: a child of its own may hold its stderr open.
const STDERR_GRACE: Duration = Duration::from_secs(1);

/// A program that runs. Dropping it kills its whole group.
pub struct Coprocess {
    argv: Vec<String>,
    tail: Arc<Mutex<Tail>>,
    complaints: AbortOnDropHandle<()>,
    // Before the child, so dropped before it: the group gets its signal while the child is unreaped and its id ours.
    group: Group,
    child: Child,
}

/// The pipes of a [`Coprocess`].
pub struct Pipes {
    /// What it reads. Dropping it is the end of its input.
    pub stdin: ChildStdin,
    /// What it says.
    pub stdout: ChildStdout,
}

impl SystemRunner {
    /// Starts a program that runs until it ends or is ended; `complaint` is called with each line of its stderr. What the invocation
    /// says of stdin, stdout and time is not used.
    ///
    /// # Errors
    /// As [`CommandRunner::run`](super::CommandRunner::run): `Unavailable` when the program is missing, `Permission` when it must not
    /// be executed.
    ///
    /// # Cancellation
    /// When the future is dropped the program is not started, or killed.
    pub async fn start(&self, invocation: &Invocation, complaint: LineSink) -> Result<(Coprocess, Pipes)> {
        let argv = invocation.shown_argv();
        let mut command = self.command(&self.full_argv(invocation).await?, invocation)?;
        command.stdin(Stdio::piped());
        tracing::debug!(?invocation, "starting a program that runs alongside");
        let mut child = self.spawn(command, &argv).await?;
        let group = Group::of(&child);
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::internal("A program was started without its pipes"));
        };
        let tail = Arc::<Mutex<Tail>>::default();
        let following = follow(stderr, Arc::clone(&tail), complaint);
        #[expect(clippy::disallowed_methods, reason = "lives as long as its program")]
        let complaints = AbortOnDropHandle::new(tokio::spawn(following));
        Ok((Coprocess { argv, tail, complaints, group, child }, Pipes { stdin, stdout }))
    }
}

impl Coprocess {
    /// Waits up to `grace` for its end, then kills its group. How it ended: in words that go on a sentence, and in detail.
    pub async fn end(&mut self, grace: Duration) -> (String, ToolFailure) {
        let ended = match timeout(grace, self.child.wait()).await {
            Ok(ended) => ended.ok(),
            Err(_elapsed) => {
                self.group.kill();
                timeout(REAP, self.child.wait()).await.ok().and_then(std::io::Result::ok)
            }
        };
        if ended.is_some() {
            self.group.disarm();
        }
        let words = match ended.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("it ended with exit code {code}"),
            Some((None, Some(signal))) => format!("it was ended by signal {signal}"),
            _ => "it was killed but has not ended yet".to_owned(),
        };
        // Nothing to do about a task of ours that panicked: only words are lost.
        let _ = timeout(STDERR_GRACE, &mut self.complaints).await;
        let stderr_tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner).text();
        (words, ToolFailure { argv: self.argv.clone(), exit_code: ended.and_then(|s| s.code()), stderr_tail })
    }
}

/// Reads stderr to its end; a pipe that fails has ended.
async fn follow(mut stderr: ChildStderr, tail: Arc<Mutex<Tail>>, complaint: LineSink) {
    let mut buffer = vec![0_u8; 4 * 1024];
    let mut lines = LineSplitter::default();
    loop {
        let n = stderr.read(&mut buffer).await.unwrap_or(0);
        tail.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..n]);
        lines.push(&buffer[..n], n == 0, |line| complaint(line));
        if n == 0 {
            return;
        }
    }
}

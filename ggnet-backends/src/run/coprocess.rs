//! [`Coprocess`]: a program that runs alongside this process and communicates through its stdin and stdout.
//!
//! ```text
//!   start ──▶ running ──it ends, and is reaped──▶ gone
//!                └──ended by us, or dropped: SIGKILL to the whole group, reaped──▶ gone
//! ```
//! It is started as [`CommandRunner::run`](super::CommandRunner::run) starts programs, with the same argv, environment and limits, and ends
//! in the same way: with its handle and with our process. Invariant: its stderr is always read, so that it never blocks there; the last
//! lines are kept.

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

/// Time limit for reading the rest of stderr after the program has ended: a child of it may keep stderr open.
const STDERR_GRACE: Duration = Duration::from_secs(1);

/// A running program. Dropping it kills its whole process group.
pub struct Coprocess {
    argv: Vec<String>,
    tail: Arc<Mutex<Tail>>,
    complaints: AbortOnDropHandle<()>,
    // Declared before the child, so dropped first: the group gets its signal while the child is unreaped and its ID is still its own.
    group: Group,
    child: Child,
}

/// The pipes of a [`Coprocess`].
pub struct Pipes {
    /// Its stdin. Dropping it closes its input.
    pub stdin: ChildStdin,
    /// Its stdout.
    pub stdout: ChildStdout,
}

impl SystemRunner {
    /// Starts a program that runs until it ends or is stopped; `complaint` is called with each line of its stderr. The invocation's
    /// settings for stdin, stdout and time are not used.
    ///
    /// # Errors
    /// Those of [`CommandRunner::run`](super::CommandRunner::run): `Unavailable` if the program is missing, `Permission` if it must not be
    /// executed.
    ///
    /// # Cancellation
    /// If the future is dropped, the program is not started, or is killed.
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
    /// Waits up to `grace` for its end, then kills its group. Returns how it ended: as the end of a sentence, and in detail.
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
        // Nothing to do if our task panicked: only the stderr text is lost.
        let _ = timeout(STDERR_GRACE, &mut self.complaints).await;
        let stderr_tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner).text();
        (words, ToolFailure { argv: self.argv.clone(), exit_code: ended.and_then(|s| s.code()), stderr_tail })
    }
}

/// Reads stderr to its end; a failed pipe counts as its end.
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

//! [`Session`]: one run of a program: the requests in flight, the responses, and how it ended.
//!
//! ```text
//!   start ──hello answered──▶ alive ──died, sent an invalid message, or sent nothing──▶ ended: requests in flight fail with
//!     └──rejected, silent──▶ killed └──shutdown: message, close its input, wait, kill──▶ ended         `Unavailable` and the reason
//! ```
//! Invariants:
//! * One task owns the program, and writes to it and reads from it concurrently, so that neither side ever waits for the other to read.
//! * Every registered request ends exactly once: with its response, with the end of the session, or with its caller (deadline, dropped).
//! * A response that no caller waits for any more is dropped; a response to a request that was never sent is an invalid message.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result, ToolFailure},
    ports::Observer,
};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    process::{ChildStdin, ChildStdout},
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::wire::{self, Next, Said};
use crate::run::{Coprocess, Invocation, LineSink, Pipes, SystemRunner, shown};

/// The number of requests that can wait to be written; further callers wait too.
const QUEUE: usize = 64;
/// Time limit for a program to exit after it closed its pipes.
const LEAVING: Duration = Duration::from_secs(2);
/// The maximum number of stderr lines per second that are logged.
const LINES_A_SECOND: u32 = 50;

/// The observer of the program, once it is set.
pub(super) type Attached = Arc<OnceLock<Arc<dyn Observer>>>;

/// See the module. Dropping the session kills the program.
pub(super) struct Session {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Out>,
    max_line: usize,
    _task: AbortOnDropHandle<()>,
}

/// Messages to the program.
enum Out {
    Request(u64, Vec<u8>),
    Cancel(u64),
    Shutdown,
}

struct Shared {
    program: String,
    observer: Attached,
    state: Mutex<State>,
    /// Whether it has responded to anything except the hello.
    proven: AtomicBool,
    /// Why the session is stopped; set before `stop`.
    verdict: OnceLock<String>,
    stop: CancellationToken,
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Asked>,
    next: u64,
    /// The time since which it has sent nothing although a deadline has passed.
    silent: Option<Instant>,
    ended: Option<End>,
}

/// A request with a waiting caller.
struct Asked {
    answer: oneshot::Sender<Result<Value>>,
    /// Whether the request was written to the program, or is being written.
    written: bool,
}

/// How a session ended.
#[derive(Clone)]
struct End {
    words: String,
    tool: ToolFailure,
}

impl End {
    fn error(&self) -> Error {
        Error::new(ErrorKind::Unavailable, self.words.clone()).with_tool(self.tool.clone())
    }
}

impl Session {
    /// Starts the program. Nothing has been sent yet.
    ///
    /// # Errors
    /// Those of [`SystemRunner::start`].
    pub(super) async fn start(
        runner: &SystemRunner,
        invocation: &Invocation,
        observer: Attached,
        max_line: usize,
    ) -> Result<Self> {
        let program = invocation.shown_argv().into_iter().next().unwrap_or_default();
        let (coprocess, pipes) = runner.start(invocation, complaints(&program)).await?;
        let shared = Arc::new(Shared {
            program,
            observer,
            state: Mutex::default(),
            proven: AtomicBool::new(false),
            verdict: OnceLock::new(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        let (queue, written) = mpsc::channel(QUEUE);
        let life = Life(Arc::clone(&shared));
        #[expect(
            clippy::disallowed_methods,
            reason = "lives as long as its program; the connection notices its end and restarts it"
        )]
        let task = tokio::spawn(live(coprocess, pipes, written, life, max_line));
        Ok(Self { shared, queue, max_line, _task: AbortOnDropHandle::new(task) })
    }

    /// Whether requests are still accepted.
    pub(super) fn is_alive(&self) -> bool {
        self.shared.state().ended.is_none() && !self.shared.stop.is_cancelled()
    }

    /// Whether it has responded to anything except the hello.
    pub(super) fn is_proven(&self) -> bool {
        self.shared.proven.load(Ordering::Relaxed)
    }

    /// Waits until the program has ended; returns how it ended.
    pub(super) async fn gone(&self) -> Error {
        self.shared.ended.cancelled().await;
        let state = self.shared.state();
        state
            .ended
            .as_ref()
            .map_or_else(|| Error::internal("A session ended without a recorded reason"), End::error)
    }

    /// Sends a request and waits for its response.
    ///
    /// # Errors
    /// Those of the program; `Timeout` if no response arrives in time; `Unavailable` if the program ends first, with the reason; `Invalid`
    /// if the request is longer than a line may be.
    ///
    /// # Cancellation
    /// If the future is dropped, either the request was not written, or the program gets a cancel message.
    pub(super) async fn call(
        &self,
        method: &str,
        params: impl Serialize,
        deadline: Duration,
    ) -> Result<Value> {
        let (id, answer) = self.shared.register()?;
        let _waiting = Waiting { session: self, id };
        let line = wire::request(id, method, params)?;
        if line.len() > self.max_line {
            let message =
                format!("The request is {} bytes long, but `max_line` is {}", line.len(), self.max_line);
            return Err(
                Error::invalid("max_line", message).with_hint("raise `max_line` in the configuration")
            );
        }
        let asked = async {
            // An ended session fails the request with its reason.
            let _ = self.queue.send(Out::Request(id, line)).await;
            answer.await
        };
        match timeout(deadline, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::internal("A request was dropped without a response")),
            Err(_) => {
                self.shared.missed(deadline);
                let program = &self.shared.program;
                Err(Error::new(
                    ErrorKind::Timeout,
                    format!("Program {program} did not respond to {method} within {deadline:?}"),
                ))
            }
        }
    }

    /// Sends the shutdown request to the program, and kills it if it does not exit within `grace`.
    ///
    /// # Cancellation
    /// If the future is dropped, the program still ends, unless the session is dropped: then it is killed.
    pub(super) async fn shut_down(&self, grace: Duration) {
        let asked = async {
            let _ = self.queue.send(Out::Shutdown).await;
            self.shared.ended.cancelled().await;
        };
        if timeout(grace, asked).await.is_err() {
            self.shared.end_it(format!("it did not exit within {grace:?} of the shutdown request"));
            let end = self.gone().await;
            tracing::warn!(error = %end.report(), "killed a backend's program");
        }
    }
}

/// A waiting caller. If it is dropped before the response, the program gets a cancel message.
struct Waiting<'a> {
    session: &'a Session,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let asked = self.session.shared.state().waiting.remove(&self.id);
        if asked.is_some_and(|asked| asked.written) {
            // The queue is full: the program does not even read, so a cancel message is pointless.
            let _ = self.session.queue.try_send(Out::Cancel(self.id));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<(u64, oneshot::Receiver<Result<Value>>)> {
        let mut state = self.state();
        if let Some(end) = &state.ended {
            return Err(end.error());
        }
        let (answered, answer) = oneshot::channel();
        let id = state.next;
        state.next += 1;
        state.waiting.insert(id, Asked { answer: answered, written: false });
        Ok((id, answer))
    }

    /// Whether a caller still waits for this request; if so, marks it as written.
    fn begin(&self, id: u64) -> bool {
        let mut state = self.state();
        let asked = state.waiting.get_mut(&id);
        asked.is_some_and(|asked| {
            asked.written = true;
            true
        })
    }

    /// Processes a line of the program. The error describes why it is invalid.
    fn heard(&self, line: &[u8]) -> Result<(), String> {
        let said = wire::decode(line)?;
        let mut state = self.state();
        state.silent = None;
        match said {
            Said::Answer(id, _) if id >= state.next => {
                Err(format!("it responded to request {id}, which was never sent"))
            }
            Said::Answer(id, answer) => {
                let asked = state.waiting.remove(&id);
                drop(state);
                self.proven.fetch_or(id > 0, Ordering::Relaxed);
                if let Some(asked) = asked {
                    // The receiver may just have been dropped.
                    let _ = asked.answer.send(answer.map_err(wire::Refusal::into_error));
                }
                Ok(())
            }
            Said::Observed(observation) => {
                drop(state);
                if let Some(observer) = self.observer.get() {
                    observer.observe(observation);
                }
                Ok(())
            }
        }
    }

    /// Called when a deadline has passed. A program that then sends nothing for another deadline is stopped, because it would never respond
    /// again.
    fn missed(&self, deadline: Duration) {
        let since = *self.state().silent.get_or_insert_with(Instant::now);
        if since.elapsed() >= deadline {
            self.end_it(format!("it sent nothing for {deadline:?} after it missed a deadline"));
        }
    }

    fn end_it(&self, why: String) {
        // Only the first reason is kept.
        let _ = self.verdict.set(why);
        self.stop.cancel();
    }

    fn finish(&self, end: &End) {
        let mut state = self.state();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(end.clone());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for (_, asked) in waiting {
            let _ = asked.answer.send(Err(end.error()));
        }
        self.ended.cancel();
    }
}

/// The session ends whenever the task ends, for any reason.
struct Life(Arc<Shared>);

impl Drop for Life {
    fn drop(&mut self) {
        let words = format!("GGnet no longer uses program {}", self.0.program);
        self.0.finish(&End { words, tool: ToolFailure::default() });
    }
}

/// The task that owns the program.
async fn live(
    mut program: Coprocess,
    pipes: Pipes,
    written: mpsc::Receiver<Out>,
    life: Life,
    max_line: usize,
) {
    let shared = &life.0;
    let ended = tokio::select! {
        // Reads its last output first.
        biased;
        ended = listen(pipes.stdout, shared, max_line) => ended,
        () = speak(pipes.stdin, written, shared) => None,
        () = shared.stop.cancelled() => shared.verdict.get().cloned(),
    };
    let grace = if ended.is_some() { Duration::ZERO } else { LEAVING };
    let (how, tool) = program.end(grace).await;
    let name = &shared.program;
    let words = match ended {
        Some(why) => format!("Program {name} was stopped: {why}"),
        None => format!("Program {name} ended: {how}"),
    };
    tracing::debug!(program = %name, %words, "a backend's program ended");
    shared.finish(&End { words, tool });
}

/// Reads its output to the end; returns the error that ended it, if any.
async fn listen(stdout: ChildStdout, shared: &Shared, max_line: usize) -> Option<String> {
    let mut stdout = BufReader::new(stdout);
    loop {
        match wire::next_line(&mut stdout, max_line).await {
            Ok(Next::Line(line)) => {
                if let Err(why) = shared.heard(&line) {
                    return Some(why);
                }
            }
            Ok(Next::TooLong) => return Some(format!("it sent a line longer than {max_line} bytes")),
            // A failed pipe counts as its end.
            Ok(Next::End(_)) | Err(_) => return None,
        }
    }
}

/// Writes the requests; returns when the program does not read any more.
async fn speak(mut stdin: ChildStdin, mut written: mpsc::Receiver<Out>, shared: &Shared) {
    while let Some(out) = written.recv().await {
        let last = matches!(out, Out::Shutdown);
        let line = match out {
            // Its caller was dropped while the request waited here.
            Out::Request(id, _) if !shared.begin(id) => continue,
            Out::Request(_, line) => line,
            Out::Cancel(id) => wire::cancel(id),
            Out::Shutdown => wire::shutdown(),
        };
        if stdin.write_all(&line).await.is_err() {
            return;
        }
        if last {
            break;
        }
    }
    // Closes its input. Its remaining output is read until it has exited.
    drop(stdin);
    std::future::pending::<()>().await;
}

/// Copies its stderr to our log, with a limited number of lines per second.
fn complaints(program: &str) -> LineSink {
    let program = program.to_owned();
    let counted = Mutex::new((Instant::now(), 0_u32));
    Arc::new(move |line| {
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.0.elapsed() >= Duration::from_secs(1) {
            if counted.1 > LINES_A_SECOND {
                tracing::warn!(%program, lines = counted.1 - LINES_A_SECOND, "lines dropped from the log");
            }
            *counted = (Instant::now(), 0);
        }
        counted.1 = counted.1.saturating_add(1);
        if counted.1 <= LINES_A_SECOND {
            tracing::info!(%program, "{}", shown(line));
        }
    })
}

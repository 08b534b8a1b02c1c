//! [`Session`]: one life of a program: requests in flight, answers as they come, and how it ended.
//!
//! ```text
//!   start ──hello answered──▶ alive ──died, said what is no message, or was silent──▶ ended: what is in flight fails with
//!     └──refused, silent──▶ killed  └──shutdown: message, end of its input, wait, kill──▶ ended        `Unavailable` and the reason
//! ```
//! Invariants:
//! * One task owns the program, writes to it and reads from it, both at once, so that neither side ever waits for the other to read.
//! * Every request that is registered gets exactly one of: its answer, the session's end, or its caller's own end (deadline, dropped).
//! * An answer that nobody waits for any more is dropped; one to a request that was never made is no message.

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

/// Requests that wait to be written; whoever comes then waits too.
const QUEUE: usize = 64;
/// How long a program that closed its pipes may take to be gone.
const LEAVING: Duration = Duration::from_secs(2);
/// Lines of stderr that go to the log in a second.
const LINES_A_SECOND: u32 = 50;

/// Who is told of what the program saw, once somebody is attached.
pub(super) type Attached = Arc<OnceLock<Arc<dyn Observer>>>;

/// See the module. Dropping it kills the program.
pub(super) struct Session {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Out>,
    max_line: usize,
    _task: AbortOnDropHandle<()>,
}

/// What goes to the program.
enum Out {
    Request(u64, Vec<u8>),
    Cancel(u64),
    Shutdown,
}

struct Shared {
    program: String,
    observer: Attached,
    state: Mutex<State>,
    /// Whether it has answered anything but the hello.
    proven: AtomicBool,
    /// Why we end it; set before `stop`.
    verdict: OnceLock<String>,
    stop: CancellationToken,
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Asked>,
    next: u64,
    /// Since when it has not said a word although a deadline has passed.
    silent: Option<Instant>,
    ended: Option<End>,
}

/// A request that somebody waits for.
struct Asked {
    answer: oneshot::Sender<Result<Value>>,
    /// Whether the program was told, or is being told this moment.
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
    /// Starts the program. Nothing was said yet.
    ///
    /// # Errors
    /// As [`SystemRunner::start`].
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

    /// Whether requests may still be made.
    pub(super) fn is_alive(&self) -> bool {
        self.shared.state().ended.is_none() && !self.shared.stop.is_cancelled()
    }

    /// Whether it has answered anything but the hello.
    pub(super) fn is_proven(&self) -> bool {
        self.shared.proven.load(Ordering::Relaxed)
    }

    /// Waits until the program is gone; how it ended.
    pub(super) async fn gone(&self) -> Error {
        self.shared.ended.cancelled().await;
        let state = self.shared.state();
        state
            .ended
            .as_ref()
            .map_or_else(|| Error::internal("A session ended without a recorded reason"), End::error)
    }

    /// Makes a request and waits for its answer.
    ///
    /// # Errors
    /// The program's own; `Timeout` when the answer does not come in time; `Unavailable` when the program ends first, with how; `Invalid`
    /// when the request is longer than a line may be.
    ///
    /// # Cancellation
    /// When the future is dropped, the request was not written, or the program is told that nobody waits any more.
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
            // A session that has ended answers by its end.
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

    /// Asks the program to end and kills it when it does not within `grace`.
    ///
    /// # Cancellation
    /// When the future is dropped it ends all the same, unless the session is dropped: then it is killed.
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

/// A caller that waits. Dropped before the answer came: the program is told.
struct Waiting<'a> {
    session: &'a Session,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let asked = self.session.shared.state().waiting.remove(&self.id);
        if asked.is_some_and(|asked| asked.written) {
            // A full queue: it does not even read, so there is nobody to be told.
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

    /// Whether anybody still waits for this request, which is now written then.
    fn begin(&self, id: u64) -> bool {
        let mut state = self.state();
        let asked = state.waiting.get_mut(&id);
        asked.is_some_and(|asked| {
            asked.written = true;
            true
        })
    }

    /// Hands on what the program said. The error says what is wrong with it.
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
                    // Nobody there: he was dropped this moment.
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

    /// A deadline has passed. A program that says nothing at all for another one is ended: it would never answer again.
    fn missed(&self, deadline: Duration) {
        let since = *self.state().silent.get_or_insert_with(Instant::now);
        if since.elapsed() >= deadline {
            self.end_it(format!("it sent nothing for {deadline:?} after it missed a deadline"));
        }
    }

    fn end_it(&self, why: String) {
        // The first reason is the one.
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

/// Whatever ends the task ends the session.
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
        // What it said before it died is heard first.
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

/// Reads to the end of what it says; what is wrong with it, if that ended it.
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
            // A pipe that fails has ended.
            Ok(Next::End(_)) | Err(_) => return None,
        }
    }
}

/// Writes what is asked; returns when it does not read any more.
async fn speak(mut stdin: ChildStdin, mut written: mpsc::Receiver<Out>, shared: &Shared) {
    while let Some(out) = written.recv().await {
        let last = matches!(out, Out::Shutdown);
        let line = match out {
            // Its caller has gone while it waited here.
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
    // The end of its input. What it still says is read until it has gone.
    drop(stdin);
    std::future::pending::<()>().await;
}

/// Its stderr goes to our log: as many lines a second as somebody can read.
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

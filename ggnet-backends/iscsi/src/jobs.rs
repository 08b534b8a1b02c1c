//! A session's jobs: device calls on the blocking pool, waits for other sessions, calls of the policy.
//!
//! Invariants: a job owns everything that it needs, so that the job of an aborted command can end unobserved; whether its command must
//! still be answered is decided when the job ends; the bytes that jobs hold are counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinError;

use super::scsi::Reply;
use super::scsi::sense::Sense;
use super::task::{Command, Done};
use super::workers::{Cancel, Queue, Share};

/// A future that ends later.
type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

/// A command that has a job.
#[derive(Debug)]
struct Running {
    ticket: u64,
    itt: u32,
    lun: u16,
    immediate: bool,
    aborted: bool,
    /// Cancels its job, if the job can end early.
    cancel: Cancel,
}

/// All jobs of a session.
pub(super) struct Jobs {
    jobs: FuturesUnordered<Job>,
    running: Vec<Running>,
    workers: Share,
    next_ticket: u64,
    /// Bytes that jobs hold.
    pub(super) bytes: usize,
}

impl Jobs {
    pub(super) fn new(workers: Share) -> Self {
        Self { jobs: FuturesUnordered::new(), running: Vec::new(), workers, next_ticket: 0, bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The next job that has ended; `Pending` also if there are no jobs.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        if self.jobs.is_empty() {
            return Poll::Pending;
        }
        match self.jobs.poll_next_unpin(cx) {
            Poll::Ready(Some(done)) => Poll::Ready(done),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Waits for the next job that ends; `None` if there are no jobs. If the future is dropped half-way, nothing is lost.
    pub(super) async fn ended(&mut self) -> Option<Done> {
        self.jobs.next().await
    }

    /// A new ticket for a job of this command.
    pub(super) fn ticket(&mut self, command: &Command) -> (u64, Cancel) {
        self.next_ticket += 1;
        let Command { itt, lun, immediate, .. } = *command;
        let cancel = Cancel::default();
        let running =
            Running { ticket: self.next_ticket, itt, lun, immediate, aborted: false, cancel: cancel.clone() };
        self.running.push(running);
        (self.next_ticket, cancel)
    }

    /// Adds a future to wait for.
    pub(super) fn push(&self, job: impl Future<Output = Done> + Send + 'static) {
        self.jobs.push(Box::pin(job));
    }

    /// Runs `work` on the blocking pool when its turn comes; not at all if it is cancelled before.
    pub(super) fn spawn<T: Send + LostJob + 'static>(
        &self,
        queue: Queue,
        cancel: Option<Cancel>,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(T) -> Done + Send + 'static,
    ) {
        let share = self.workers.clone();
        self.push(async move {
            let _turn = share.turn(queue).await;
            if cancel.is_some_and(|c| c.is_cancelled()) {
                return done(T::cancelled());
            }
            let result = tokio::task::spawn_blocking(work).await;
            done(result.unwrap_or_else(|e| T::lost(&e)))
        });
    }

    /// Whether the job has not ended yet.
    pub(super) fn runs(&self, ticket: u64) -> bool {
        self.running.iter().any(|r| r.ticket == ticket)
    }

    /// Whether a job that has ended was cancelled: then its result is not a failure of the device.
    pub(super) fn was_cancelled(&self, ticket: u64) -> bool {
        self.running.iter().any(|r| r.ticket == ticket && r.cancel.is_cancelled())
    }

    /// Removes a job that has ended; false if its command was aborted in the meantime.
    pub(super) fn still_wanted(&mut self, ticket: u64) -> bool {
        let Some(at) = self.running.iter().position(|r| r.ticket == ticket) else { return false };
        !self.running.swap_remove(at).aborted
    }

    /// Cancels every job that can end early.
    pub(super) fn cancel_all(&self) {
        self.running.iter().for_each(|r| r.cancel.cancel());
    }

    /// Aborts the jobs of commands for which `f` is true: they end unobserved. Adds the commands (tag, immediate) to `hit` and returns the
    /// jobs' tickets.
    pub(super) fn abort(&mut self, f: impl Fn(u32, u16) -> bool, hit: &mut Vec<(u32, bool)>) -> Vec<u64> {
        let mut tickets = Vec::new();
        for running in self.running.iter_mut().filter(|r| !r.aborted && f(r.itt, r.lun)) {
            running.aborted = true;
            running.cancel.cancel();
            tickets.push(running.ticket);
            if !hit.iter().any(|(itt, _)| *itt == running.itt) {
                hit.push((running.itt, running.immediate));
            }
        }
        tickets
    }
}

/// The result of a job that was lost (it panicked, or the runtime shuts down): an error of the device.
pub(super) trait LostJob {
    fn lost(error: &JoinError) -> Self;

    /// The result of a job that was cancelled before its turn: it is not used.
    fn cancelled() -> Self;
}

impl<T> LostJob for io::Result<T> {
    fn lost(error: &JoinError) -> Self {
        Err(io::Error::other(error.to_string()))
    }

    fn cancelled() -> Self {
        Err(io::ErrorKind::Interrupted.into())
    }
}

impl LostJob for Reply {
    fn lost(error: &JoinError) -> Self {
        tracing::error!(%error, "a device call was lost");
        Reply::check(Sense::WRITE_ERROR)
    }

    fn cancelled() -> Self {
        Reply::check(Sense::COMMAND_ABORTED)
    }
}

//! The queues of device calls.
//!
//! ```text
//!  job ──▶ the session's turn in the queue ──▶ the server's turn ──▶ blocking pool
//! ```
//!
//! There are three queues, so that slow work does not delay fast work: reads and writes; flushes, which wait for the disk; and commands
//! over many blocks (VERIFY, WRITE SAME, EXTENDED COPY). In each queue a session has a share of its own, so that a session with a full
//! window leaves slots to others. A free slot goes to the job that has waited longest.
//!
//! Invariant: a job that is cancelled before its turn touches no device; one that works on many blocks checks its [`Cancel`] between two
//! steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Concurrent commands over many blocks: of all sessions together, and of one session.
const LONG: usize = 4;
const LONG_OF_ONE: usize = 1;

/// The queue of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// A read, a piece of a write, or a command over few blocks.
    Data,
    /// A flush, alone or at the end of a write.
    Flush,
    /// A command over many blocks.
    Long,
}

/// Tells a job that its result is not needed any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The slots of the queues: those of the server, or the share of a session.
#[derive(Debug, Clone)]
struct Places {
    data: Arc<Semaphore>,
    flush: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Places {
    fn new(data: usize, flush: usize, long: usize) -> Self {
        let places = |n: usize| Arc::new(Semaphore::new(n.max(1)));
        Self { data: places(data), flush: places(flush), long: places(long) }
    }

    async fn take(&self, queue: Queue) -> Option<OwnedSemaphorePermit> {
        let places = match queue {
            Queue::Data => &self.data,
            Queue::Flush => &self.flush,
            Queue::Long => &self.long,
        };
        // Never closed; were it, the work would still be done, only unbounded.
        Arc::clone(places).acquire_owned().await.ok()
    }
}

/// The server's queues.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    all: Places,
    jobs: usize,
}

impl Workers {
    /// For `jobs` concurrent reads and writes, and half as many flushes.
    pub(super) fn new(jobs: usize) -> Self {
        Self { all: Places::new(jobs, jobs / 2, LONG), jobs }
    }

    /// A session's share of the queues: a quarter of the slots.
    pub(super) fn share(&self) -> Share {
        Share { own: Places::new(self.jobs / 4, self.jobs / 8, LONG_OF_ONE), all: self.all.clone() }
    }
}

/// A session's access to the queues.
#[derive(Debug, Clone)]
pub(super) struct Share {
    own: Places,
    all: Places,
}

/// A job's turn; it ends when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    // In this order: the place of all is free first.
    _of_all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Waits for a turn.
    pub(super) async fn turn(&self, queue: Queue) -> Turn {
        let own = self.own.take(queue).await;
        Turn { _of_all: self.all.take(queue).await, _own: own }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_session_leaves_places_to_the_others_and_flushes_none_to_starve_reads() {
        let workers = Workers::new(8);
        let (greedy, other) = (workers.share(), workers.share());
        let mut turns = Vec::new();
        while let Some(turn) = greedy.turn(Queue::Data).now_or_never() {
            turns.push(turn);
        }
        assert_eq!(turns.len(), 2, "a quarter of all");
        let place = other.turn(Queue::Data).now_or_never();
        assert!(place.is_some(), "another session has places of its own");
        while let Some(turn) = greedy.turn(Queue::Flush).now_or_never() {
            turns.push(turn);
        }
        while let Some(turn) = greedy.turn(Queue::Long).now_or_never() {
            turns.push(turn);
        }
        assert_eq!(turns.len(), 2 + 1 + 1);
        assert!(other.turn(Queue::Long).now_or_never().is_some());
        drop(turns);
        assert!(greedy.turn(Queue::Data).now_or_never().is_some(), "a turn that is over is free");
    }

    #[tokio::test]
    async fn all_sessions_together_have_so_many_places() {
        let workers = Workers::new(8);
        let turns: Vec<_> = (0..8).filter_map(|_| workers.share().turn(Queue::Long).now_or_never()).collect();
        assert_eq!(turns.len(), LONG);
    }
}

//! [`Batch`]: combines concurrent callers into one run of an action.
//!
//! ```text
//!   caller ──▶ waiting ──(window without another caller)──▶ one run of the action ──▶ same result for all who waited at its start
//!                 ▲                          │ callers who arrive during a run wait for the next one
//!                 └──────────────────────────┘
//! ```
//! Invariants: the run that serves a caller started after the caller arrived; at most one run at a time; runs belong to a task of the
//! batch, so a caller that is gone does not interrupt a run.

use std::{
    future::Future,
    mem::take,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ggnet_core::{Error, Result};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

type Action<T> = dyn Fn(Vec<T>) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync;

/// Combines concurrent callers into one run; each passes a `T`.
pub struct Batch<T = ()>(Arc<Inner<T>>);

impl<T> Clone for Batch<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<T> {
    action: Box<Action<T>>,
    window: Duration,
    tasks: TaskTracker,
    state: Mutex<Waiting<T>>,
}

struct Waiting<T> {
    callers: Vec<(T, oneshot::Sender<Result<()>>)>,
    at_work: bool,
}

impl<T: Send + 'static> Batch<T> {
    /// Runs `action` once for all callers that arrive with less than `window` between them, with their values in the order of arrival; no
    /// caller waits for more than ten windows.
    pub fn new<F, Fut>(window: Duration, action: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self(Arc::new(Inner {
            action: Box::new(move |brought| Box::pin(action(brought))),
            window,
            tasks: TaskTracker::new(),
            state: Mutex::new(Waiting { callers: Vec::new(), at_work: false }),
        }))
    }

    /// Waits for a run that starts after this call. If the future is dropped, the run continues.
    ///
    /// # Errors
    /// Those of the action, the same for all callers of this run.
    pub async fn join(&self, brings: T) -> Result<()> {
        let (reply, outcome) = oneshot::channel();
        {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.callers.push((brings, reply));
            if !state.at_work {
                state.at_work = true;
                #[expect(clippy::disallowed_methods, reason = "one run, tracked")]
                self.0.tasks.spawn(Arc::clone(&self.0).work());
            }
        }
        outcome
            .await
            .unwrap_or_else(|_| Err(Error::internal("The task that runs for several callers panicked")))
    }

    /// Waits until no run is in progress.
    pub async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.tasks.reopen();
    }
}

impl<T: Send + 'static> Inner<T> {
    /// Waits until no caller has arrived for one window, at most ten windows: many concurrent callers may need longer to arrive.
    async fn gather(&self) {
        let waiting = || self.state.lock().unwrap_or_else(PoisonError::into_inner).callers.len();
        let mut before = waiting();
        for _ in 0..10 {
            tokio::time::sleep(self.window).await;
            match waiting() {
                now if now == before => return,
                now => before = now,
            }
        }
    }

    async fn work(self: Arc<Self>) {
        loop {
            self.gather().await;
            let (brought, callers): (Vec<T>, Vec<_>) = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.callers.is_empty() {
                    state.at_work = false;
                    return;
                }
                take(&mut state.callers).into_iter().unzip()
            };
            let outcome = (self.action)(brought).await;
            for caller in callers {
                // The caller may be gone.
                let _ = caller.send(outcome.clone());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tasks of the test, which it waits for")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use ggnet_core::ErrorKind;
    use tokio::sync::Semaphore;

    use super::*;

    fn failure() -> Error {
        let cause = Error::internal("The cause").with_source("the root");
        let e = Error::new(ErrorKind::Unavailable, "It is off").with_subject("unit x").with_hint("on");
        e.with_backend("dnsmasq").with_source(cause)
    }

    #[tokio::test]
    async fn a_hundred_callers_at_once_are_one_run_and_share_its_failure() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let batch = Batch::new(Duration::from_millis(1), move |brought: Vec<u32>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(brought == (0..100).collect::<Vec<_>>() || brought == [7], "{brought:?}");
                Err(failure())
            }
        });
        for outcome in join_all((0..100).map(|n| batch.join(n))).await {
            assert_eq!(outcome, Err(failure()));
        }
        batch.finish().await;
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert!(batch.join(7).await.is_err(), "and again after that");
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn who_comes_during_a_run_waits_for_the_next_and_a_dropped_caller_stops_none() {
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, closed) = (Arc::clone(&runs), Arc::clone(&gate));
        let batch = Batch::new(Duration::ZERO, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            let closed = Arc::clone(&closed);
            async move {
                closed.acquire().await.map_err(|_| Error::internal("closed"))?.forget();
                Ok(())
            }
        });
        let first = tokio::spawn({
            let batch = batch.clone();
            async move { batch.join(()).await }
        });
        while runs.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let batch = batch.clone();
            async move { batch.join(()).await }
        });
        first.abort();
        gate.add_permits(2);
        second.await.unwrap().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }
}

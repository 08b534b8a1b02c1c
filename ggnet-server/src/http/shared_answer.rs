//! [`SharedAnswer`]: many concurrent callers share the result of one run.
//!
//! ```text
//!             first call                work ends                 first call after `fresh`
//!   nothing ─────────────▶ running ───────────────▶ answered ─────────────────────────────▶ running
//!                          callers wait              callers get the result
//! ```
//! Invariants: one run at a time; a result is used for at most `fresh` after its run ended; a dropped caller does not stop the run, which is
//! a task of its own.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// See the module.
pub(super) struct SharedAnswer<T> {
    fresh: Duration,
    stopping: CancellationToken,
    tasks: TaskTracker,
    last: Mutex<Option<watch::Receiver<Option<Answered<T>>>>>,
}

struct Answered<T> {
    at: Instant,
    what: Arc<T>,
}

impl<T: Send + Sync + 'static> SharedAnswer<T> {
    /// Results are used for `fresh`; a run ends when `stopping` is cancelled.
    pub(super) fn new(fresh: Duration, stopping: CancellationToken) -> Self {
        Self { fresh, stopping, tasks: TaskTracker::new(), last: Mutex::default() }
    }

    /// The result of the present run or of a recent one, else of `work`. None: the server is stopping, or the run panicked.
    pub(super) async fn get<F>(&self, work: impl FnOnce() -> F) -> Option<Arc<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = self.join(work);
        let answered = answer.wait_for(Option::is_some).await.ok()?;
        answered.as_ref().map(|answered| Arc::clone(&answered.what))
    }

    fn join<F>(&self, work: impl FnOnce() -> F) -> watch::Receiver<Option<Answered<T>>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        // Every step under this lock leaves valid data.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = last.as_ref().filter(|answer| self.is_good(answer)) {
            return answer.clone();
        }
        let (sender, answer) = watch::channel(None);
        let work = self.stopping.clone().run_until_cancelled_owned(work());
        #[expect(clippy::disallowed_methods, reason = "one run, which ends when the server stops")]
        self.tasks.spawn(async move {
            if let Some(what) = work.await {
                sender.send_replace(Some(Answered { at: Instant::now(), what: Arc::new(what) }));
            }
        });
        *last = Some(answer.clone());
        answer
    }

    fn is_good(&self, answer: &watch::Receiver<Option<Answered<T>>>) -> bool {
        match &*answer.borrow() {
            Some(answered) => answered.at.elapsed() < self.fresh,
            // Closed without a result: the run panicked.
            None => answer.has_changed().is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    const FRESH: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_thousand_concurrent_callers_share_one_run() {
        let shared = Arc::new(SharedAnswer::new(FRESH, CancellationToken::new()));
        let (count, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (shared, count, gate) = (Arc::clone(&shared), Arc::clone(&count), Arc::clone(&gate));
            async move {
                let work = || async move {
                    gate.acquire().await.unwrap().forget();
                    count.fetch_add(1, Ordering::Relaxed) + 1
                };
                shared.get(work).await.map(|n| *n)
            }
        };
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            all.spawn(ask());
        }
        // One thread runs the tasks in order: when this one runs, all have called.
        let opener = Arc::clone(&gate);
        all.spawn(async move {
            opener.add_permits(1);
            Some(1)
        });
        assert_eq!(all.join_all().await, vec![Some(1); 1001]);
        assert_eq!(ask().await, Some(1), "the result is fresh");
        tokio::time::advance(FRESH).await;
        gate.add_permits(1);
        assert_eq!(ask().await, Some(2));
    }

    #[tokio::test]
    async fn a_dropped_caller_and_a_panic_leave_no_caller_waiting() {
        let shared = Arc::new(SharedAnswer::new(FRESH, CancellationToken::new()));
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let first = tokio::time::timeout(
            Duration::from_millis(1),
            shared.get(|| async move {
                held.acquire().await.unwrap().forget();
                1
            }),
        );
        assert!(first.await.is_err(), "the run has not ended");
        gate.add_permits(1);
        let second = shared.get(|| async { 2 }).await;
        assert_eq!(second.as_deref(), Some(&1), "the run of the dropped caller continues");

        let shared = SharedAnswer::new(Duration::ZERO, CancellationToken::new());
        assert_eq!(shared.get(|| async { std::hint::black_box(None::<u8>).unwrap() }).await, None);
        assert_eq!(shared.get(|| async { 3 }).await.as_deref(), Some(&3));
        let stopped = SharedAnswer::new(FRESH, CancellationToken::new());
        stopped.stopping.cancel();
        assert_eq!(stopped.get(std::future::pending::<u8>).await, None);
    }
}

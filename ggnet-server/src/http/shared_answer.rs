//! [`SharedAnswer`]: what many ask at once is worked on once.
//!
//! ```text
//!            somebody asks                 work ends                    `fresh` is over, somebody asks
//!   nothing ───────────────▶ under way ───────────────▶ answered ─────────────────────────────────────▶ under way
//!                            all who ask wait            all who ask have it
//! ```
//! Invariants: one piece of work at a time; an answer is given for at most `fresh` after its work ended; whoever goes away stops no work,
//! because it runs in a task of its own.

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
    /// With answers that are given for `fresh`; work ends with `stopping`.
    pub(super) fn new(fresh: Duration, stopping: CancellationToken) -> Self {
        Self { fresh, stopping, tasks: TaskTracker::new(), last: Mutex::default() }
    }

    /// The answer of the work that is under way or has just ended, else of `work`. None: the server stops, or the work panicked.
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
        // Every step under it leaves valid data.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = last.as_ref().filter(|answer| self.is_good(answer)) {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        let work = self.stopping.clone().run_until_cancelled_owned(work());
        #[expect(clippy::disallowed_methods, reason = "one piece of work, which ends with the stop")]
        self.tasks.spawn(async move {
            if let Some(what) = work.await {
                tell.send_replace(Some(Answered { at: Instant::now(), what: Arc::new(what) }));
            }
        });
        *last = Some(answer.clone());
        answer
    }

    fn is_good(&self, answer: &watch::Receiver<Option<Answered<T>>>) -> bool {
        match &*answer.borrow() {
            Some(answered) => answered.at.elapsed() < self.fresh,
            // Closed without an answer: its work panicked.
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
    async fn a_thousand_who_ask_at_once_are_one_piece_of_work() {
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
        // On one thread and in order: when this runs, each of them has asked.
        let opener = Arc::clone(&gate);
        all.spawn(async move {
            opener.add_permits(1);
            Some(1)
        });
        assert_eq!(all.join_all().await, vec![Some(1); 1001]);
        assert_eq!(ask().await, Some(1), "the answer is fresh");
        tokio::time::advance(FRESH).await;
        gate.add_permits(1);
        assert_eq!(ask().await, Some(2));
    }

    #[tokio::test]
    async fn whoever_goes_away_and_work_that_panics_leave_nobody_waiting() {
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
        assert!(first.await.is_err(), "nobody has answered");
        gate.add_permits(1);
        let second = shared.get(|| async { 2 }).await;
        assert_eq!(second.as_deref(), Some(&1), "the work of who went away goes on");

        let shared = SharedAnswer::new(Duration::ZERO, CancellationToken::new());
        assert_eq!(shared.get(|| async { std::hint::black_box(None::<u8>).unwrap() }).await, None);
        assert_eq!(shared.get(|| async { 3 }).await.as_deref(), Some(&3));
        let stopped = SharedAnswer::new(FRESH, CancellationToken::new());
        stopped.stopping.cancel();
        assert_eq!(stopped.get(std::future::pending::<u8>).await, None);
    }
}

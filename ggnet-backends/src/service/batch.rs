//! [`Batch`]: many callers at once, one run of an action for all of them.
//!
//! ```text
//!   caller ──▶ waiting ──(window)──▶ one run of the action ──▶ the same outcome for all who waited when it began
//!                 ▲                          │ callers who come during a run wait for the next one
//!                 └──────────────────────────┘
//! ```
//! Invariants: the run that answers a caller began after the caller came; at most one run at a time; runs belong to a task of the
//! batch, so a caller that goes away stops nothing half-way.

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

type Action = dyn Fn() -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync;

/// Many callers at once, one run for all.
#[derive(Clone)]
pub struct Batch(Arc<Inner>);

struct Inner {
    action: Box<Action>,
    window: Duration,
    tasks: TaskTracker,
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    callers: Vec<oneshot::Sender<Result<()>>>,
    at_work: bool,
}

impl Batch {
    /// Runs `action` at most once for all who come within `window`.
    pub fn new<F, Fut>(window: Duration, action: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self(Arc::new(Inner {
            action: Box::new(move || Box::pin(action())),
            window,
            tasks: TaskTracker::new(),
            state: Mutex::default(),
        }))
    }

    /// Waits for a run that begins after this call. Dropped half-way: the run goes on.
    ///
    /// # Errors
    /// The action's, the same for all who waited for this run.
    pub async fn join(&self) -> Result<()> {
        let (told, outcome) = oneshot::channel();
        {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.callers.push(told);
            if !state.at_work {
                state.at_work = true;
                self.0.tasks.spawn(Arc::clone(&self.0).work());
            }
        }
        outcome.await.unwrap_or_else(|_| Err(Error::internal("The task that runs for many callers died")))
    }

    /// Waits until no run is under way.
    pub async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.tasks.reopen();
    }
}

impl Inner {
    async fn work(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.window).await;
            let callers = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.callers.is_empty() {
                    state.at_work = false;
                    return;
                }
                take(&mut state.callers)
            };
            let outcome = (self.action)().await;
            for caller in callers {
                // A caller that went away needs no answer.
                let _ = caller.send(match &outcome {
                    Ok(()) => Ok(()),
                    Err(e) => Err(copy(e)),
                });
            }
        }
    }
}

/// The same failure for another caller; an error is not `Clone`, because of its source, which becomes text here.
fn copy(e: &Error) -> Error {
    let mut copy = Error::new(e.kind(), e.message()).retryable(e.is_retryable());
    if let Some(subject) = e.subject() {
        copy = copy.with_subject(subject);
    }
    if let Some(hint) = e.hint() {
        copy = copy.with_hint(hint);
    }
    if let Some(tool) = e.tool() {
        copy = copy.with_tool(tool.clone());
    }
    if let Some(source) = std::error::Error::source(e) {
        copy = copy.with_source(source.to_string());
    }
    copy
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use ggnet_core::ErrorKind;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_hundred_callers_at_once_are_one_run_and_share_its_failure() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let batch = Batch::new(Duration::from_millis(1), move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                Err(Error::new(ErrorKind::Unavailable, "It is off").with_subject("unit x").with_hint("on"))
            }
        });
        for outcome in join_all((0..100).map(|_| batch.join())).await {
            let e = outcome.unwrap_err();
            assert_eq!(
                (e.kind(), e.subject(), e.hint()),
                (ErrorKind::Unavailable, Some("unit x"), Some("on"))
            );
        }
        batch.finish().await;
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert!(batch.join().await.is_err(), "and again after that");
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn who_comes_during_a_run_waits_for_the_next_and_a_dropped_caller_stops_none() {
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, closed) = (Arc::clone(&runs), Arc::clone(&gate));
        let batch = Batch::new(Duration::ZERO, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let closed = Arc::clone(&closed);
            async move {
                closed.acquire().await.map_err(|_| Error::internal("closed"))?.forget();
                Ok(())
            }
        });
        let first = tokio::spawn({
            let batch = batch.clone();
            async move { batch.join().await }
        });
        while runs.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let batch = batch.clone();
            async move { batch.join().await }
        });
        first.abort();
        gate.add_permits(2);
        second.await.unwrap().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }
}

//! [`Supervisor`]: the one place where long-lived tasks are spawned: receive and accept loops, the reconciler, watchers. Each has a name,
//! and an owner whose health names it when it ended without being stopped.
//!
//! ```text
//!             ended (returned or panicked)             pause over, doubled each time
//!   running ──────────────────────────────▶ ended ──────────────────────────────────▶ running again
//!      │ stop asked                           │ stop asked                                 │ for SETTLED
//!      ▼                                      ▼                                            ▼
//!    over                                   over                                        healthy
//! ```
//! Short-lived work (one connection, one transfer, one call) is not spawned here: its owner tracks it in a `TaskTracker` and waits for it.
//!
//! Invariants: from the end of a task until it has run again for [`SETTLED`], [`Supervisor::trouble`] names it; each end is one log line; a
//! task that always ends at once costs one start per [`LONGEST_PAUSE`]; when [`Supervisor::stop`] returns, every task has ended. A task
//! ends itself when its stop is requested: it is never cut off in the middle.

use std::{
    any::Any,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The pause before a task's first new start; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two starts of a task.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a task must have run again before it is healthy: a loop that fails at once never counts as healthy.
pub const SETTLED: Duration = Duration::from_secs(2);
/// A task that ran this long starts again with the first pause.
const LONG_RUN: Duration = Duration::from_secs(60);

/// Owns long-lived tasks. When dropped, it asks them to stop and does not wait.
#[derive(Debug)]
pub struct Supervisor {
    stop: CancellationToken,
    tracker: TaskTracker,
    tasks: Mutex<Vec<Arc<Task>>>,
}

#[derive(Debug)]
struct Task {
    name: String,
    state: Mutex<State>,
    #[cfg(any(test, feature = "testkit"))]
    fault: faults::Fault,
}

#[derive(Debug)]
enum State {
    /// Runs for the first time, or has run long enough.
    Running,
    /// Ended for this reason, and waits for its next start.
    Ended(String),
    /// Has been running again since then, after it ended for this reason.
    Again(Instant, String),
}

impl Supervisor {
    /// A supervisor of tasks that end when `stop` is cancelled.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tracker: TaskTracker::new(), tasks: Mutex::default() }
    }

    /// Runs `work` in a task of its own, and again each time it ends, until the stop. `work` must return soon after the token that
    /// [`Supervisor::new`] got is cancelled. Must be called within a tokio runtime.
    pub fn keep<W>(&self, name: impl Into<String>, work: impl Fn() -> W + Send + Sync + 'static)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let task = Arc::new(Task {
            name: name.into(),
            state: Mutex::new(State::Running),
            #[cfg(any(test, feature = "testkit"))]
            fault: faults::Fault::default(),
        });
        lock(&self.tasks).push(Arc::clone(&task));
        #[cfg(any(test, feature = "testkit"))]
        faults::register(&task);
        #[expect(clippy::disallowed_methods, reason = "the one place for long-lived tasks")]
        self.tracker.spawn(supervise(task, work, self.stop.clone()));
    }

    /// The token that is cancelled when the tasks should stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The tasks that ended without being stopped and have not recovered yet; `None` if all run.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let tasks = lock(&self.tasks);
        let all: Vec<String> = tasks.iter().filter_map(|task| task.trouble()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Asks all tasks to stop and waits for them. If dropped half-way, they stop nevertheless.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Task {
    fn trouble(&self) -> Option<String> {
        match &*lock(&self.state) {
            State::Running => None,
            State::Ended(why) => Some(format!("{} ended ({why}) and will be started again", self.name)),
            State::Again(since, _) if since.elapsed() >= SETTLED => None,
            State::Again(_, why) => Some(format!("{} ended ({why}) and was started again", self.name)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every step under these locks leaves valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn supervise<W>(task: Arc<Task>, work: impl Fn() -> W + Send + Sync, stop: CancellationToken)
where
    W: Future<Output = ()> + Send,
{
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let begun = Instant::now();
        // `work` must cope with the state that a panic leaves behind: it starts from the beginning, and owners of std locks ignore
        // poisoning.
        let running = AssertUnwindSafe(async {
            let work = work();
            #[cfg(any(test, feature = "testkit"))]
            let work = task.fault.may_end(work);
            work.await;
        });
        let ended = running.catch_unwind().await;
        if stop.is_cancelled() {
            return;
        }
        let why = match ended {
            Ok(()) => "it returned".to_owned(),
            Err(panic) => format!("it panicked: {}", words(panic.as_ref())),
        };
        if begun.elapsed() >= LONG_RUN {
            pause = FIRST_PAUSE;
        }
        tracing::error!(task = task.name, why, again_in = ?pause, "a long-lived task ended");
        *lock(&task.state) = State::Ended(why.clone());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        *lock(&task.state) = State::Again(Instant::now(), why);
    }
}

/// The message of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

/// Faults for tests: end a running task of this process by its name.
#[cfg(any(test, feature = "testkit"))]
pub mod faults {
    use std::{
        future::Future,
        sync::{
            Arc, Mutex, Weak,
            atomic::{AtomicBool, Ordering},
        },
    };

    use tokio::sync::Notify;

    use super::{Task, lock};

    static TASKS: Mutex<Vec<Weak<Task>>> = Mutex::new(Vec::new());

    /// How a task ends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum End {
        /// Its function returns.
        Return,
        /// It panics.
        Panic,
    }

    #[derive(Debug, Default)]
    pub(super) struct Fault {
        now: Notify,
        panics: AtomicBool,
    }

    impl Fault {
        pub(super) async fn may_end(&self, work: impl Future<Output = ()>) {
            tokio::select! {
                () = work => {}
                () = self.now.notified() => {
                    #[expect(clippy::panic, reason = "the fault that a test asked for")]
                    if self.panics.load(Ordering::Acquire) {
                        panic!("a fault of a test");
                    }
                }
            }
        }
    }

    pub(super) fn register(task: &Arc<Task>) {
        let mut tasks = lock(&TASKS);
        tasks.retain(|task| task.strong_count() > 0);
        tasks.push(Arc::downgrade(task));
    }

    /// The names of all long-lived tasks of this process.
    #[must_use]
    pub fn names() -> Vec<String> {
        let tasks = lock(&TASKS);
        let mut names: Vec<String> = tasks.iter().filter_map(|t| Some(t.upgrade()?.name.clone())).collect();
        names.sort_unstable();
        names
    }

    /// Ends the tasks of this name, at their next await. Returns how many there are.
    pub fn end(name: &str, how: End) -> usize {
        let tasks = lock(&TASKS);
        let named = tasks.iter().filter_map(Weak::upgrade).filter(|task| task.name == name);
        named
            .map(|task| {
                task.fault.panics.store(how == End::Panic, Ordering::Release);
                task.fault.now.notify_one();
            })
            .count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn starts(count: &AtomicUsize, wanted: usize) {
        tokio::time::timeout(Duration::from_secs(600), async {
            while count.load(Ordering::SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("it was not started again");
    }

    fn kept(supervisor: &Supervisor, name: &str) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let (counted, stop) = (Arc::clone(&count), supervisor.stop.clone());
        supervisor.keep(name, move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let stop = stop.clone();
            async move { stop.cancelled().await }
        });
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_is_named_and_started_again_and_healthy_when_it_stays_up() {
        for (name, how, said) in [
            ("unit: returns", faults::End::Return, "it returned"),
            ("unit: panics", faults::End::Panic, "it panicked: a fault of a test"),
        ] {
            let supervisor = Supervisor::new(CancellationToken::new());
            let count = kept(&supervisor, name);
            starts(&count, 1).await;
            assert_eq!(supervisor.trouble(), None);
            assert_eq!(faults::end(name, how), 1);
            tokio::time::sleep(FIRST_PAUSE / 2).await;
            let trouble = supervisor.trouble().unwrap();
            assert!(trouble.contains(name) && trouble.contains(said), "{trouble}");
            starts(&count, 2).await;
            assert!(supervisor.trouble().unwrap().contains("was started again"));
            tokio::time::sleep(SETTLED).await;
            assert_eq!(supervisor.trouble(), None);
            supervisor.stop().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_at_once_every_time_is_never_healthy_and_starts_seldom() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        supervisor.keep("unit: fails at once", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async {}
        });
        starts(&count, 2).await;
        for _ in 0..600 {
            assert!(supervisor.trouble().is_some());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // Ten minutes: half a second, one, two … and then one in thirty seconds.
        let starts = count.load(Ordering::SeqCst);
        assert!((20..=27).contains(&starts), "{starts}");
        supervisor.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_is_no_end_and_waits_for_the_task() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let count = kept(&supervisor, "unit: stops");
        starts(&count, 1).await;
        supervisor.stop().await;
        assert_eq!((supervisor.trouble(), count.load(Ordering::SeqCst)), (None, 1));
        // Also one that waits for its next start.
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.keep("unit: stopped in its pause", || async {});
        tokio::time::sleep(FIRST_PAUSE / 2).await;
        supervisor.stop().await;
    }
}

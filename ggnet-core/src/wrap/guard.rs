//! [`Guard`]: the layer that puts [`Limits`] around the calls of one port. Its states and invariants are in [`crate::wrap`].

use std::{
    future::{Future, pending},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    Call, Class, Layer, Limits, Op,
    calls::{Begun, Calls, Late, commit, on},
    retry::tried,
};
use crate::{
    error::{Code, Error, ErrorKind, Result, code},
    keyed_locks::{KeyGuard, KeyedLocks},
    metrics::Metrics,
    ports::Health,
};

/// How long a call waits behind a call that blocks it and has lost its caller, before it is refused.
pub const OVERDUE_WAIT: Duration = Duration::from_secs(1);

/// What to do about a call that does not end.
const HINT: &str = "Check the daemon, program, folder or mount of this backend: it hangs. Waiting calls continue once it responds again; \
                    restart the server to give up calls that can never end";

/// The layer of a port with limits.
pub(crate) struct Guard {
    shared: Arc<Shared>,
    /// Owns the calls in flight.
    tasks: TaskTracker,
}

struct Shared {
    limits: Limits,
    calls: Arc<Calls>,
    turns: KeyedLocks<String>,
    places: Arc<Semaphore>,
    closed: CancellationToken,
    metrics: Metrics,
}

/// What a call holds until it ends.
type Held = (Vec<KeyGuard>, Option<OwnedSemaphorePermit>);

impl Class {
    /// Whether calls of this class count against [`Limits::in_flight`].
    pub(super) const fn needs_place(self) -> bool {
        !matches!(self, Self::Health | Self::Shutdown)
    }
}

impl Limits {
    const fn of(&self, class: Class) -> Duration {
        match class {
            Class::Read => self.read,
            Class::Change | Class::Commit => self.change,
            Class::Convert => self.stall,
            Class::Health => self.health,
            Class::Shutdown => self.shutdown,
        }
    }
}

impl Guard {
    pub(crate) fn new(port: &'static str, backend: &'static str, limits: Limits, metrics: &Metrics) -> Self {
        let shared = Shared {
            limits,
            calls: Calls::new(metrics.port(port, backend)),
            turns: KeyedLocks::default(),
            places: Arc::new(Semaphore::new(limits.in_flight)),
            closed: CancellationToken::new(),
            metrics: metrics.clone(),
        };
        Self { shared: Arc::new(shared), tasks: TaskTracker::new() }
    }
}

impl Layer for Guard {
    async fn around<T: Send + 'static>(
        &self,
        op: Op,
        call: impl Fn() -> Call<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let (asked, closes, shared) = (Instant::now(), op.class == Class::Shutdown, &self.shared);
        let held = match shared.admit(&op).await {
            Ok(held) => held,
            Err(e) => {
                shared.metrics.call(op.labels(), "refused", asked.elapsed());
                return Err(e);
            }
        };
        let (answer, answered) = oneshot::channel();
        let begun = shared.calls.begin(&op);
        let lost = what(&op);
        let work = Arc::clone(shared).work(op, call, (begun, held), asked, answer).in_current_span();
        #[expect(
            clippy::disallowed_methods,
            reason = "one call, tracked until it ends or the port is closed"
        )]
        if closes {
            self.tasks.spawn(work);
        } else {
            self.tasks.spawn(shared.closed.clone().run_until_cancelled_owned(work));
        }
        let result = answered.await.unwrap_or_else(|_| {
            Err(if shared.closed.is_cancelled() {
                Error::new(code::shutting_down(), format!("{lost}: the port was closed"))
            } else {
                Error::internal(format!("{lost}: the backend panicked"))
            })
        });
        if closes {
            shared.closed.cancel();
        }
        result
    }

    fn health(&self, reported: Health) -> Health {
        // An overdue `health` call is already in `reported`.
        let Some(overdue) = self.shared.calls.overdue() else { return reported };
        let text = format!("{}. {HINT}", overdue.text());
        match reported {
            Health::Down(why) => Health::Down(format!("{why}. {text}")),
            _ if overdue.count >= self.shared.limits.in_flight => {
                Health::Down(format!("No further calls are started: {text}"))
            }
            Health::Blocked(why) => Health::Blocked(format!("{why}. {text}")),
            Health::Degraded(why) => Health::Degraded(format!("{why}. {text}")),
            Health::Up => Health::Degraded(text),
        }
    }
}

impl Late {
    fn text(&self) -> String {
        let (oldest, seconds) = (&self.oldest, self.age.as_secs());
        match self.count {
            1 => format!("A call has not ended: {oldest}, for {seconds} s"),
            n => format!("{n} calls have not ended, the oldest is {oldest}, for {seconds} s"),
        }
    }
}

/// Names a call for people.
fn what(op: &Op) -> String {
    let of = if op.class == Class::Health { String::new() } else { op.of() };
    format!("{} {} {}{of}", op.port, op.backend, op.name)
}

impl Op {
    /// Names what it changes, for people.
    pub(super) fn of(&self) -> String {
        match self.objects.as_slice() {
            [] => String::new(),
            [object] => format!(" of {object}"),
            [first, others @ ..] => format!(" of {first} and {} more", others.len()),
        }
    }
}

fn failure(op: &Op, code: Code, message: &str) -> Error {
    let e = Error::new(code, format!("{}: {message}", what(op)));
    e.with_backend(op.backend).with_operation(op.name).with_hint(HINT)
}

impl Shared {
    /// Waits for everything that a call needs before it may start.
    async fn admit(&self, op: &Op) -> Result<Held> {
        let until = Instant::now() + self.limits.of(op.class);
        let (mut turns, mut place) = (Vec::with_capacity(op.objects.len()), None);
        for object in &op.objects {
            let blocked = |calls: &Calls| calls.left(on(object));
            turns.push(self.wait(op, until, self.turns.lock(object.as_str()), blocked).await?);
        }
        if op.class == Class::Commit {
            let blocked = |calls: &Calls| calls.left(commit);
            self.wait(op, until, self.calls.none_left(commit), blocked).await?;
        }
        if op.class.needs_place() {
            let full = |overdue: &Late| overdue.count >= self.limits.in_flight;
            let blocked = |calls: &Calls| calls.overdue().filter(full);
            let free = Arc::clone(&self.places).acquire_owned();
            // The semaphore is never closed.
            place = self.wait(op, until, free, blocked).await?.ok();
        }
        Ok((turns, place))
    }

    /// Waits for `thing`: only briefly if a call without a caller blocks it, and never beyond `until`.
    async fn wait<T>(
        &self,
        op: &Op,
        until: Instant,
        thing: impl Future<Output = T>,
        blocked: impl Fn(&Calls) -> Option<Late>,
    ) -> Result<T> {
        if self.closed.is_cancelled() && op.class != Class::Shutdown {
            return Err(failure(op, code::shutting_down(), "the port was closed"));
        }
        let cancelled = async {
            match &op.pulse {
                Some(pulse) => pulse.cancelled().await,
                None => pending().await,
            }
        };
        let busy = || code::backend_busy(op.port, op.backend, op.name);
        let (code, message) = tokio::select! {
            biased;
            thing = thing => return Ok(thing),
            late = self.calls.blocked(OVERDUE_WAIT, blocked) => {
                (busy(), format!("not started, still busy with an earlier call. {}", late.text()))
            }
            () = tokio::time::sleep_until(until) => {
                let limit = self.limits.of(op.class);
                (busy(), format!("not started, the calls before it did not end within {limit:?}"))
            }
            () = cancelled => (ErrorKind::Unavailable.into(), "cancelled before it started".to_owned()),
        };
        Err(failure(op, code, &message))
    }

    /// Returns when the caller's time limit has passed.
    async fn past_limit(&self, op: &Op) {
        match &op.pulse {
            None => tokio::time::sleep(self.limits.of(op.class)).await,
            Some(pulse) => pulse.silent(self.limits.stall).await,
        }
    }

    fn timeout(&self, op: &Op) -> Error {
        let limit = self.limits.of(op.class);
        let message = match &op.pulse {
            Some(pulse) if pulse.stalled() => format!("no progress for {limit:?}"),
            Some(_) => "was cancelled and did not end in time".to_owned(),
            None => format!("did not end within {limit:?}"),
        };
        failure(op, code::backend_timeout(op.port, op.backend, op.name), &message)
    }

    /// Runs the call until it really ends.
    async fn work<T: Send + 'static>(
        self: Arc<Self>,
        op: Op,
        call: impl Fn() -> Call<T> + Send + Sync + 'static,
        (begun, held): (Begun, Held),
        asked: Instant,
        mut answer: oneshot::Sender<Result<T>>,
    ) {
        if let Some(pulse) = &op.pulse {
            pulse.beat();
        }
        let let_go = AtomicBool::new(false);
        let mut tries = pin!(tried(&op, self.limits.tries, &let_go, &call));
        let ended = {
            let mut past_limit = pin!(self.past_limit(&op));
            let mut left = false;
            loop {
                tokio::select! {
                    biased;
                    result = &mut tries => break Some(result),
                    () = &mut past_limit => break None,
                    () = answer.closed(), if !left => {
                        left = true;
                        begun.is_left();
                    }
                }
            }
        };
        let mut result = match ended {
            Some(result) => result,
            // A conversion that ended at this very moment has its result.
            None if op.pulse.as_ref().is_some_and(|pulse| !pulse.give_up()) => tries.await,
            None => {
                let_go.store(true, Ordering::Release);
                begun.is_overdue();
                let e = self.timeout(&op);
                tracing::warn!(port = op.port, backend = op.backend, operation = op.name, objects = ?op.objects, error = %e,
                    "a call exceeded its time limit; it continues without its caller");
                self.metrics.call(op.labels(), "timeout", asked.elapsed());
                // The caller may be gone.
                let _ = answer.send(Err(e));
                let outcome = tries.await.err().map(|e| e.report());
                tracing::warn!(port = op.port, backend = op.backend, operation = op.name, objects = ?op.objects,
                    took = ?asked.elapsed(), error = outcome, "a call that had exceeded its time limit has ended");
                return;
            }
        };
        if result.is_err() && op.pulse.as_ref().is_some_and(|pulse| pulse.stalled()) {
            result = Err(self.timeout(&op));
        }
        let outcome = match &result {
            Ok(_) => "ok",
            Err(e) => e.kind().as_str(),
        };
        self.metrics.call(op.labels(), outcome, asked.elapsed());
        // Before the answer, so that the caller's next call does not wait for this one's turn and place.
        drop((begun, held));
        // The caller may be gone.
        let _ = answer.send(result);
    }
}

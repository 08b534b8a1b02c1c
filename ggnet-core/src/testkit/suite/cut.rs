//! Drops a call half-way, at every place where that can happen.
//!
//! A future is only ever dropped between two polls. So dropping it after no poll, one poll, two … until it completes by itself visits every
//! place of a call that waits in its own future; a call that passes its work to a task is also dropped at moments spread over its usual
//! duration.

use std::{
    future::{Future, poll_fn},
    task::Poll,
    time::{Duration, Instant},
};

use super::Effort;

/// Polls `call` at most `polls` times, then drops it. `Some`: it completed first.
pub async fn cut_after<T>(polls: usize, call: impl Future<Output = T>) -> Option<T> {
    let mut call = Box::pin(call);
    let mut done = 0;
    poll_fn(|cx| {
        if done == polls {
            return Poll::Ready(None);
        }
        done += 1;
        match call.as_mut().poll(cx) {
            Poll::Ready(out) => Poll::Ready(Some(out)),
            Poll::Pending if done == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// When a call is dropped.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// After so many polls.
    Polls(usize),
    /// After this time.
    Time(Duration),
}

impl Cut {
    /// Runs `call` until the cut. `Some`: it completed first.
    pub async fn apply<T>(self, call: impl Future<Output = T>) -> Option<T> {
        match self {
            Self::Polls(polls) => cut_after(polls, call).await,
            Self::Time(time) => tokio::time::timeout(time, call).await.ok(),
        }
    }

    /// Whether it counts polls: once a call has completed before its cut, more polls test nothing new.
    pub(super) fn is_polls(self) -> bool {
        matches!(self, Self::Polls(_))
    }
}

impl Effort {
    /// The number of concurrent callers.
    pub(super) fn callers(self) -> usize {
        match self {
            Self::Full => 50,
            Self::Less => 5,
        }
    }

    /// The cuts to try on a call that takes about `usual`: poll counts rising to 40, then moments spread over its duration; or a few.
    pub(super) fn cuts(self, usual: Duration) -> Vec<Cut> {
        match self {
            Self::Full => {
                let moments = (0..12).map(|n| Cut::Time(usual * n / 10));
                (0..=40).map(Cut::Polls).chain(moments).collect()
            }
            Self::Less => {
                let moments = [1, 2].map(|n| Cut::Time(usual * n / 3));
                (1..=3).map(Cut::Polls).chain(moments).collect()
            }
        }
    }
}

/// How long `call` takes, and what it gives.
pub(super) async fn timed<T>(call: impl Future<Output = T>) -> (Duration, T) {
    let begin = Instant::now();
    let out = call.await;
    (begin.elapsed(), out)
}

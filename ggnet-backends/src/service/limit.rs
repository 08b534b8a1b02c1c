//! [`StartLimit`]: the delay that is needed so that systemd does not refuse a start ("start-limit-hit").
//!
//! systemd refuses to start a unit more than `StartLimitBurst` times within `StartLimitIntervalSec` (five in ten seconds by default), and a
//! refused unit stays down until `reset-failed`. So we count our own starts and leave one of the burst to the operator. Resetting the
//! counter each time would disable a protection that the operator relies on.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Our own starts of a unit.
#[derive(Debug, Default)]
pub(super) struct StartLimit {
    starts: VecDeque<Instant>,
}

impl StartLimit {
    /// The delay before the next start at `now`, for a unit that systemd starts at most `burst` times within `interval` (0 for either: no
    /// limit).
    pub(super) fn wait(&mut self, now: Instant, burst: u32, interval: Duration) -> Duration {
        if burst == 0 || interval.is_zero() {
            return Duration::ZERO;
        }
        self.starts.retain(|start| now.duration_since(*start) < interval);
        let ours = usize::try_from(burst).unwrap_or(usize::MAX).saturating_sub(1).max(1);
        match self.starts.len().checked_sub(ours).and_then(|n| self.starts.get(n)) {
            Some(start) => (*start + interval).duration_since(now),
            None => Duration::ZERO,
        }
    }

    /// Records a start at `now`.
    pub(super) fn started(&mut self, now: Instant) {
        self.starts.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_interval_has_more_starts_than_the_burst_less_one() {
        let (zero, interval) = (Instant::now(), Duration::from_secs(10));
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let mut limit = StartLimit::default();
        for n in 0..4 {
            assert_eq!(limit.wait(at(n), 5, interval), Duration::ZERO, "start {n}");
            limit.started(at(n));
        }
        assert_eq!(limit.wait(at(1000), 5, interval), Duration::from_secs(9));
        limit.started(at(10_000));
        assert_eq!(
            limit.wait(at(10_000), 5, interval),
            Duration::from_millis(1),
            "the second falls out next"
        );
        assert_eq!(limit.wait(at(60_000), 5, interval), Duration::ZERO);
    }

    #[test]
    fn a_burst_of_one_still_starts_and_no_limit_never_waits() {
        let now = Instant::now();
        let mut limit = StartLimit::default();
        assert_eq!(limit.wait(now, 1, Duration::from_secs(1)), Duration::ZERO);
        limit.started(now);
        assert_eq!(limit.wait(now, 1, Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(limit.wait(now, 0, Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(limit.wait(now, 1, Duration::ZERO), Duration::ZERO);
    }
}

//! [`ManualClock`]: stands still until a test moves it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{nouns::Timestamp, ports::Clock};

/// A clock that a test sets. Cloning gives another handle to the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: Arc<Mutex<Timestamp>>,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { now: Arc::new(Mutex::new(now)) }
    }

    /// A clock that shows a fixed moment in 2026; for tests to which the date does not matter.
    #[must_use]
    pub fn new() -> Self {
        Self::at(Timestamp::constant(1_790_000_000, 0))
    }

    /// Sets it, forwards or backwards.
    pub fn set(&self, now: Timestamp) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves it forwards; it stops at the latest moment that a timestamp can hold.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(by).unwrap_or(Timestamp::MAX);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_only_when_told() {
        let clock = ManualClock::new();
        let (before, handle) = (clock.now(), clock.clone());
        assert_eq!(clock.now(), before);
        handle.advance(Duration::from_secs(600));
        assert_eq!(clock.now().duration_since(before).as_secs(), 600);
        handle.set(before);
        assert_eq!(clock.now(), before);
    }
}

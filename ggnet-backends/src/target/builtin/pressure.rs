//! Reports connections that were rejected recently to the operator.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ggnet_core::ports::Health;
use ggnet_iscsi::Occupancy;

/// How long it is reported after the last rejected connection.
const SAID_FOR: Duration = Duration::from_secs(60);

/// The observed state of rejected connections.
#[derive(Debug, Default)]
pub(super) struct Pressure(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    turned_away: u64,
    last: Option<Instant>,
}

impl Pressure {
    /// Degraded for a minute after a connection was rejected: the portal is flooded, or there are more machines than places.
    pub(super) fn health(&self, now: Occupancy) -> Health {
        // Every step under the lock leaves valid data.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.turned_away > seen.turned_away {
            (seen.turned_away, seen.last) = (now.turned_away, Some(Instant::now()));
        }
        if seen.last.is_none_or(|last| last.elapsed() >= SAID_FOR) {
            return Health::Up;
        }
        Health::Degraded(format!(
            "The iSCSI portal rejects connections: {} wait to log in, {} are logged in without a secret and {} with one, {} were \
             rejected since the start",
            now.waiting, now.open, now.proven, now.turned_away
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_connection_is_reported_and_not_before() {
        let pressure = Pressure::default();
        let now = Occupancy { waiting: 3, open: 2, proven: 1, ..Occupancy::default() };
        assert_eq!(pressure.health(now), Health::Up);
        let now = Occupancy { turned_away: 7, ..now };
        for _ in 0..2 {
            assert!(matches!(pressure.health(now), Health::Degraded(why) if why.contains("7 were rejected")));
        }
    }
}

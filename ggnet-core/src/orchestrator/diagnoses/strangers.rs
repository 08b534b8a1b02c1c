//! How much of what anybody on the network can cause is written down.
//!
//! A packet in a machine's name costs nobody anything; a row of the database costs a synced write and stays for months. So what strangers
//! and machines cause has a budget, which a boot or a room that is switched on fits into, and a flood does not: beyond it nothing is
//! written, and once a minute the log says how much was left out.
//!
//! Bounds: unknown machines, 200 at once and then 5 a second, of which the store keeps the last 1,000; their first sights as events, which
//! stay for months, 200 at once and then one in ten seconds; the stages and diagnoses of one registered machine, 60 at once and then
//! one in ten seconds, which is at most 420 in its first hour and 360 in each that follows.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::nouns::MachineId;

const UNKNOWN: Budget = Budget { burst: 200.0, a_second: 5.0 };
const FIRST_SIGHTS: Budget = Budget { burst: 200.0, a_second: 0.1 };
const OF_ONE_MACHINE: Budget = Budget { burst: 60.0, a_second: 0.1 };
/// How often the log says what was left out.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Machines that are remembered; those that have been quiet longest are forgotten first.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Budget {
    burst: f64,
    a_second: f64,
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug)]
struct Left {
    rows: f64,
    at: Instant,
}

impl Left {
    fn new(budget: Budget, now: Instant) -> Self {
        Self { rows: budget.burst, at: now }
    }

    fn take(&mut self, budget: Budget, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.rows = (self.rows + since * budget.a_second).min(budget.burst);
        self.at = now;
        let there = self.rows >= 1.0;
        if there {
            self.rows -= 1.0;
        }
        there
    }
}

/// What may still be written.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    unknown: Option<Left>,
    first_sights: Option<Left>,
    machines: HashMap<MachineId, Left>,
    left_out: u64,
    said: Option<Instant>,
}

impl Strangers {
    /// Whether the sight of an unknown machine may be written.
    pub(super) fn unknown(&self) -> bool {
        self.take(|state, now| state.unknown.get_or_insert(Left::new(UNKNOWN, now)).take(UNKNOWN, now))
    }

    /// Whether the first sight of an unknown machine may be an event.
    pub(super) fn first_sight(&self) -> bool {
        self.take(|state, now| {
            state.first_sights.get_or_insert(Left::new(FIRST_SIGHTS, now)).take(FIRST_SIGHTS, now)
        })
    }

    /// Whether an event that a machine, or somebody in its name, has caused may be written.
    pub(super) fn of_machine(&self, machine: MachineId) -> bool {
        self.take(|state, now| {
            if state.machines.len() >= REMEMBERED && !state.machines.contains_key(&machine) {
                let quiet = state.machines.iter().min_by_key(|(_, left)| left.at).map(|(id, _)| *id);
                quiet.and_then(|id| state.machines.remove(&id));
            }
            let left = state.machines.entry(machine).or_insert_with(|| Left::new(OF_ONE_MACHINE, now));
            left.take(OF_ONE_MACHINE, now)
        })
    }

    fn take(&self, budget: impl FnOnce(&mut State, Instant) -> bool) -> bool {
        // Every step under it leaves valid data.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if budget(&mut state, now) {
            return true;
        }
        state.left_out += 1;
        if state.said.is_none_or(|said| now.saturating_duration_since(said) >= SAID_EVERY) {
            state.said = Some(now);
            let left_out = std::mem::take(&mut state.left_out);
            tracing::warn!(left_out, "Events of a flood were not recorded");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_room_fits_and_a_flood_does_not() {
        let strangers = Strangers::default();
        assert_eq!((0..20_000).filter(|_| strangers.unknown()).count(), 200);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((0..20_000).filter(|_| strangers.unknown()).count(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn first_sights_have_a_stated_bound_an_hour() {
        let strangers = Strangers::default();
        let mut written = 0;
        for _ in 0..3600 {
            written += (0..5).filter(|_| strangers.first_sight()).count();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((559..=560).contains(&written), "{written}");
    }

    #[tokio::test(start_paused = true)]
    async fn each_machine_has_a_budget_of_its_own_and_a_stated_bound_an_hour() {
        let strangers = Strangers::default();
        let (flooded, quiet) = (MachineId::generate(), MachineId::generate());
        let mut written = 0;
        for _ in 0..3600 {
            written += (0..100).filter(|_| strangers.of_machine(flooded)).count();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((419..=420).contains(&written), "{written}");
        // A boot is eight events.
        assert!((0..8).all(|_| strangers.of_machine(quiet)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let strangers = Strangers::default();
        for _ in 0..2 * REMEMBERED {
            strangers.of_machine(MachineId::generate());
        }
        assert_eq!(strangers.0.lock().unwrap().machines.len(), REMEMBERED);
    }
}

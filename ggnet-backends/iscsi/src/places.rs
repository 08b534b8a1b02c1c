//! Limits of connections: a place for each connection, and which one is closed if there are too many.
//!
//! ```text
//!  accept ──▶ waiting ── login without CHAP ─────▶ open      (a target without CHAP; discovery, which has a time limit)
//!                │ └──── login with CHAP ────────▶ proven
//!                └─ too many: the oldest connection of the source with the most is closed
//! ```
//!
//! Invariants: connections that have not authenticated never take the place of one that has; a new connection is never rejected because
//! others wait, only because all places of the state that it reaches are taken; among waiting connections, a source with many loses one
//! before a source with few; no source has more than half of the open places, but each can have 16 if there are so many.

use std::collections::{HashMap, VecDeque, hash_map::Entry};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::Limits;

/// The state of a connection, as far as limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// Its login is in progress.
    Waiting,
    /// Logged in without authentication: discovery, or a target without CHAP.
    Open,
    /// Authenticated by CHAP.
    Proven,
}

/// The number of connections in each state, and how many were rejected so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Connections whose login is in progress.
    pub waiting: usize,
    /// Sessions without authentication.
    pub open: usize,
    /// Sessions that authenticated by CHAP.
    pub proven: usize,
    /// Connections that were closed, or logins that were delayed, because all places for their state were taken.
    pub turned_away: u64,
    /// Bytes of the shared memory (`Limits::memory`) that sessions hold now.
    pub leased: usize,
}

/// The number of open sessions that one source may have in any case.
const FEW: usize = 16;

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    max_waiting: usize,
    max_open: usize,
    max_open_of_one: usize,
    max_proven: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
    /// The number of open sessions, by source.
    open: HashMap<IpAddr, usize>,
    count: Occupancy,
}

impl State {
    /// Closes the oldest waiting connection of the source with the most.
    fn make_room(&mut self) {
        let Some(source) = self.waiting.iter().max_by_key(|(_, all)| all.len()).map(|(s, _)| *s) else {
            return;
        };
        let Some(all) = self.waiting.get_mut(&source) else { return };
        if let Some((_, go)) = all.pop_front() {
            go.cancel();
            self.count.waiting -= 1;
            self.count.turned_away += 1;
        }
        if all.is_empty() {
            self.waiting.remove(&source);
        }
    }

    /// Removes a connection from the list of waiting ones; false if it was asked to close before.
    fn forget_waiting(&mut self, source: IpAddr, id: u64) -> bool {
        let Some(all) = self.waiting.get_mut(&source) else { return false };
        let Some(at) = all.iter().position(|(n, _)| *n == id) else { return false };
        all.remove(at);
        if all.is_empty() {
            self.waiting.remove(&source);
        }
        self.count.waiting -= 1;
        true
    }
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max_waiting: limits.max_waiting.max(1),
            max_open: limits.max_open,
            max_open_of_one: (limits.max_open / 2).max(FEW),
            max_proven: limits.max_connections,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step under it leaves valid data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        self.lock().count
    }

    /// The place of a new connection.
    pub(super) fn take(self: &Arc<Self>, source: IpAddr) -> Place {
        let mut state = self.lock();
        if state.count.waiting >= self.max_waiting {
            state.make_room();
        }
        let (id, go) = (state.next, CancellationToken::new());
        state.next += 1;
        state.waiting.entry(source).or_default().push_back((id, go.clone()));
        state.count.waiting += 1;
        drop(state);
        Place { places: Arc::clone(self), source, id, go, standing: Standing::Waiting }
    }
}

/// A connection's place; freed when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    source: IpAddr,
    id: u64,
    go: CancellationToken,
    standing: Standing,
}

impl Place {
    /// A token that is cancelled when the connection must make room for others.
    pub(super) fn go(&self) -> CancellationToken {
        self.go.clone()
    }

    /// Moves to the state that the login reached. False: all places of that state are taken, or the connection was asked to close before.
    pub(super) fn stand(&mut self, standing: Standing) -> bool {
        let mut state = self.places.lock();
        let full = match standing {
            Standing::Waiting => return true,
            Standing::Open => {
                let own = state.open.get(&self.source).copied().unwrap_or(0);
                state.count.open >= self.places.max_open || own >= self.places.max_open_of_one
            }
            Standing::Proven => state.count.proven >= self.places.max_proven,
        };
        if full {
            state.count.turned_away += 1;
            return false;
        }
        if !state.forget_waiting(self.source, self.id) {
            return false;
        }
        match standing {
            Standing::Open => {
                state.count.open += 1;
                *state.open.entry(self.source).or_default() += 1;
            }
            _ => state.count.proven += 1,
        }
        drop(state);
        self.standing = standing;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        match self.standing {
            Standing::Waiting => {
                state.forget_waiting(self.source, self.id);
            }
            Standing::Open => {
                state.count.open -= 1;
                if let Entry::Occupied(mut own) = state.open.entry(self.source) {
                    *own.get_mut() -= 1;
                    if *own.get() == 0 {
                        own.remove();
                    }
                }
            }
            Standing::Proven => state.count.proven -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(waiting: usize, open: usize, proven: usize) -> Arc<Places> {
        Places::new(&Limits {
            max_waiting: waiting,
            max_open: open,
            max_connections: proven,
            ..Limits::default()
        })
    }

    fn from(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    #[test]
    fn who_waits_makes_room_and_a_source_with_many_does_so_first() {
        let places = places(4, 1, 1);
        let honest = places.take(from(1));
        let flood: Vec<_> = (0..100).map(|_| places.take(from(2))).collect();
        assert!(!honest.go().is_cancelled());
        assert_eq!(flood.iter().filter(|p| !p.go().is_cancelled()).count(), 3, "the newest stay");
        assert!(!flood[99].go().is_cancelled());
        assert_eq!(places.occupancy(), Occupancy { waiting: 4, turned_away: 97, ..Occupancy::default() });
        drop((honest, flood));
        assert_eq!(places.occupancy().waiting, 0);
    }

    #[test]
    fn who_has_proved_itself_keeps_its_place_whoever_waits_or_stands_in_the_open() {
        let places = places(2, 1, 2);
        let mut proven = places.take(from(1));
        assert!(proven.stand(Standing::Proven));
        let mut open = places.take(from(2));
        assert!(open.stand(Standing::Open));
        let mut second = places.take(from(2));
        assert!(!second.stand(Standing::Open), "all open places are taken");
        let _flood: Vec<_> = (0..10).map(|_| places.take(from(3))).collect();
        assert!(!proven.go().is_cancelled() && !open.go().is_cancelled());
        let mut late = places.take(from(1));
        assert!(
            late.stand(Standing::Proven),
            "neither of them takes a place of those who have proved themselves"
        );
        drop((proven, open, late));
        assert_eq!((places.occupancy().open, places.occupancy().proven), (0, 0));
    }

    #[test]
    fn one_source_leaves_half_of_the_open_places_to_others() {
        let places = places(200, 100, 1);
        let stand = |n| {
            let mut place = places.take(from(n));
            place.stand(Standing::Open).then_some(place)
        };
        let mut flood: Vec<_> = (0..100).filter_map(|_| stand(1)).collect();
        assert_eq!(flood.len(), 50);
        assert!(stand(2).is_some(), "another source has a place");
        flood.pop();
        assert!(stand(1).is_some(), "a place that was given back is free");
        drop(flood);
        assert!(places.lock().open.is_empty() && places.occupancy().open == 0);
    }

    #[test]
    fn who_was_asked_to_go_has_no_place_any_more() {
        let places = places(1, 1, 1);
        let mut old = places.take(from(1));
        let _new = places.take(from(2));
        assert!(old.go().is_cancelled() && !old.stand(Standing::Proven));
    }
}

//! The queue between backends, which observe from their data paths, and the task that records what they saw. It never waits: what finds
//! no place is dropped.
//!
//! Places are shared fairly, because anybody can send packets in a machine's name: each source has few, sources take turns, and when all
//! places are taken the source with most gives one up. So a flood in one machine's name costs that machine its own observations and
//! nobody else's; a flood under many made-up MAC addresses is dropped before what initiators have done on their targets.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    nouns::{MacAddr, MachineId, Timestamp},
    ports::Observation,
};

/// All places: a thousand machines that boot at once have four each.
const PLACES: usize = 4096;
/// The places of one machine: a boot is eight observations, and no more than sixty at once are recorded.
const OF_ONE: usize = 64;
/// The places that unregistered machines, manual targets and nameless requests share.
const OF_OTHERS: usize = 512;

/// An observation with the time it was made.
pub(super) struct Seen {
    pub(super) at: Timestamp,
    pub(super) what: Observation,
}

/// In whose name something was seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    /// Of a machine's target: its initiator proved itself.
    Initiator(MachineId),
    /// A packet with this address in it, which anybody can send.
    Packet(MacAddr),
    /// All else.
    Others,
}

impl Source {
    fn of(what: &Observation) -> Self {
        match what {
            Observation::AddressOffered { mac, .. }
            | Observation::NotAnswered { mac, .. }
            | Observation::BootFileSent { mac: Some(mac), .. } => Self::Packet(*mac),
            Observation::BootFileSent { mac: None, .. } | Observation::UnknownAsked { .. } => Self::Others,
            Observation::LoggedIn { target, .. }
            | Observation::FirstRead { target }
            | Observation::FirstWrite { target }
            | Observation::Disconnected { target, .. }
            | Observation::LoginStalled { target, .. }
            | Observation::LoginTooLate { target, .. }
            | Observation::DiskTrouble { target, .. } => {
                target.owner().map_or(Self::Others, |(machine, _)| Self::Initiator(machine))
            }
        }
    }

    fn places(self) -> usize {
        if self == Self::Others { OF_OTHERS } else { OF_ONE }
    }
}

/// What waits to be recorded.
#[derive(Default)]
pub(super) struct ObservationQueue {
    state: Mutex<State>,
    arrived: Notify,
}

/// Each source with something waiting stands in `turns` once.
#[derive(Default)]
struct State {
    waiting: HashMap<Source, VecDeque<Seen>>,
    turns: VecDeque<Source>,
    len: usize,
}

impl ObservationQueue {
    /// Adds an observation. False when one was dropped: this one, or another for which it took the place.
    pub(super) fn push(&self, seen: Seen) -> bool {
        let all = self.state.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        self.arrived.notify_one();
        all
    }

    /// Waits until there is something, and moves at most `max` of it into `to`, the sources in turn. Dropped while it waits, it has taken
    /// nothing.
    pub(super) async fn take(&self, to: &mut Vec<Seen>, max: usize) {
        loop {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).take(to, max);
            if !to.is_empty() {
                return;
            }
            self.arrived.notified().await;
        }
    }
}

impl State {
    fn push(&mut self, seen: Seen) -> bool {
        let source = Source::of(&seen.what);
        let have = self.waiting.get(&source).map_or(0, VecDeque::len);
        if have >= source.places() {
            return false;
        }
        let full = self.len >= PLACES;
        if full && !self.make_room(have) {
            return false;
        }
        if have == 0 {
            self.turns.push_back(source);
        }
        self.waiting.entry(source).or_default().push_back(seen);
        self.len += 1;
        !full
    }

    /// Drops the newest of the source that has most, if that is more than `have`.
    fn make_room(&mut self, have: usize) -> bool {
        let most = self
            .waiting
            .iter_mut()
            .max_by_key(|(source, waiting)| (waiting.len(), !matches!(source, Source::Initiator(_))));
        let Some((source, waiting)) = most.filter(|(_, waiting)| waiting.len() > have) else { return false };
        waiting.pop_back();
        self.len -= 1;
        if waiting.is_empty() {
            let source = *source;
            self.waiting.remove(&source);
            self.turns.retain(|turn| *turn != source);
        }
        true
    }

    fn take(&mut self, to: &mut Vec<Seen>, max: usize) {
        while to.len() < max {
            let Some(source) = self.turns.pop_front() else { return };
            let Some(waiting) = self.waiting.get_mut(&source) else { continue };
            if let Some(seen) = waiting.pop_front() {
                self.len -= 1;
                to.push(seen);
            }
            if waiting.is_empty() {
                self.waiting.remove(&source);
            } else {
                self.turns.push_back(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nouns::ResourceId;

    fn packet(n: usize) -> Observation {
        let [.., a, b, c] = n.to_be_bytes();
        let mac = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}").parse().unwrap();
        Observation::NotAnswered { mac, reason: String::new() }
    }

    fn disk(machine: MachineId) -> Observation {
        Observation::FirstRead { target: ResourceId::generation(machine, 1) }
    }

    fn push(queue: &ObservationQueue, what: Observation) -> bool {
        queue.push(Seen { at: Timestamp::UNIX_EPOCH, what })
    }

    async fn take(queue: &ObservationQueue, max: usize) -> Vec<Observation> {
        let mut to = Vec::new();
        queue.take(&mut to, max).await;
        to.into_iter().map(|seen| seen.what).collect()
    }

    #[tokio::test]
    async fn a_flood_in_one_name_costs_only_that_name_and_waits_for_its_turn() {
        let queue = ObservationQueue::default();
        assert_eq!((0..20_000).filter(|_| push(&queue, packet(1))).count(), OF_ONE);
        assert!(push(&queue, packet(2)) && push(&queue, packet(3)));
        assert_eq!(take(&queue, 4).await, [packet(1), packet(2), packet(3), packet(1)]);
        assert_eq!(take(&queue, PLACES).await, vec![packet(1); OF_ONE - 2]);
        assert!(push(&queue, packet(1)), "it has places again");
    }

    #[tokio::test]
    async fn when_all_places_are_taken_who_has_most_gives_one_up_and_initiators_last() {
        let queue = ObservationQueue::default();
        let first = MachineId::generate();
        assert!(push(&queue, disk(first)));
        for n in 1..PLACES {
            assert!(push(&queue, packet(n)));
        }
        let late: Vec<_> = (0..1000).map(|_| MachineId::generate()).collect();
        for machine in &late {
            assert!(!push(&queue, disk(*machine)), "something else was dropped");
        }
        assert!(!push(&queue, packet(0)), "a flood goes on");
        let left = take(&queue, 2 * PLACES).await;
        assert_eq!(left.len(), PLACES, "the bound holds");
        assert_eq!(left[0], disk(first));
        assert!(late.iter().all(|machine| left.contains(&disk(*machine))));
        let state = queue.state.lock().unwrap();
        assert!(state.waiting.is_empty() && state.turns.is_empty() && state.len == 0);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let queue = std::sync::Arc::new(ObservationQueue::default());
        let (taken, ()) = tokio::join!(take(&queue, 10), async {
            tokio::task::yield_now().await;
            assert!(push(&queue, packet(1)));
        });
        assert_eq!(taken, [packet(1)]);
    }
}

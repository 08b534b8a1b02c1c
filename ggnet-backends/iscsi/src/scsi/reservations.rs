//! The reservations of a logical unit: RESERVE(6) of SPC-2 and persistent reservations of SPC-4 section 5.12.
//!
//! ```text
//!  change (register, reserve, release, clear, preempt) ──▶ the new state, and the ports that get a unit attention: Told
//! ```
//!
//! Invariants: there is at most one persistent reservation; its holder is registered (for the "all registrants" types: at least one
//! initiator is); a simple and a persistent reservation exclude each other; the generation grows with every change that SPC-4 names and
//! with no other. Registrations outlive sessions, but not the server (PTPL_C is 0).

use super::Reply;
use super::nexus::{Attention, Port};
use super::sense::Sense;

/// The type of access of a command, for conflicts with reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Never conflicts.
    Free,
    /// Conflicts only with another initiator's RESERVE.
    Query,
    /// Reads the medium.
    Read,
    /// Changes the medium or the unit's state.
    Write,
}

/// The type field of a persistent reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u8);

impl Kind {
    fn parse(code: u8) -> Result<Self, Reply> {
        let known = matches!(code, 1 | 3 | 5 | 6 | 7 | 8);
        known.then_some(Self(code)).ok_or_else(|| Reply::check(Sense::cdb_bit(2, 3)))
    }

    /// The code in the CDB and in parameter data.
    pub(crate) fn code(self) -> u8 {
        self.0
    }

    /// A write exclusive type: every initiator may read.
    fn readable(self) -> bool {
        matches!(self.0, 1 | 5 | 7)
    }

    /// Every registrant may do what the holder may.
    fn registrants(self) -> bool {
        matches!(self.0, 5..=8)
    }

    /// Every registrant is a holder.
    fn all_registrants(self) -> bool {
        matches!(self.0, 7 | 8)
    }
}

/// An initiator port with a registered key.
#[derive(Debug)]
pub(crate) struct Registrant {
    pub(crate) port: Port,
    pub(crate) key: u64,
}

/// A persistent reservation; `holder` is the port that made it, and has no meaning for the "all registrants" types.
#[derive(Debug)]
struct Reservation {
    kind: Kind,
    holder: Port,
}

/// The unit attentions that a change causes: which condition, at which ports.
pub(crate) type Told = Vec<(Attention, Vec<Port>)>;

/// A unit's reservations.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    simple: Option<Port>,
    registrants: Vec<Registrant>,
    generation: u32,
    held: Option<Reservation>,
}

/// Maximum number of registrations of a unit: more than any cluster needs, and small enough to be harmless.
const MAX_REGISTRANTS: usize = 256;

impl Reservations {
    pub(crate) fn any(&self) -> bool {
        self.simple.is_some() || self.held.is_some()
    }

    /// LOGICAL UNIT RESET ends a RESERVE.
    pub(crate) fn reset(&mut self) {
        self.simple = None;
    }

    /// RELEASE, and the end of a session: its RESERVE ends. A release without a reservation is not an error.
    pub(crate) fn release_simple(&mut self, port: &Port) {
        if self.simple.as_ref() == Some(port) {
            self.simple = None;
        }
    }

    /// RESERVE. False: there is a conflict.
    pub(crate) fn reserve_simple(&mut self, port: &Port) -> bool {
        // A registered initiator and an old-style one do not mix (SPC-4 section 5.12.3).
        if self.reserved_by_another(port) || !self.registrants.is_empty() {
            return false;
        }
        self.simple = Some(port.clone());
        true
    }

    /// Whether there is a RESERVE of another initiator.
    pub(crate) fn reserved_by_another(&self, port: &Port) -> bool {
        self.simple.as_ref().is_some_and(|p| p != port)
    }

    /// Whether a reservation forbids this access to this port now.
    pub(crate) fn conflicts(&self, port: &Port, access: Access) -> bool {
        if access == Access::Free {
            return false;
        }
        if let Some(holder) = &self.simple {
            return holder != port;
        }
        let Some(held) = &self.held else { return false };
        let allowed = match access {
            Access::Free | Access::Query => true,
            Access::Read if held.kind.readable() => true,
            Access::Read | Access::Write => {
                self.is_holder(port) || (held.kind.registrants() && self.key_of(port).is_some())
            }
        };
        !allowed
    }

    /// The key that a port has registered.
    pub(crate) fn key_of(&self, port: &Port) -> Option<u64> {
        self.registrants.iter().find(|r| r.port == *port).map(|r| r.key)
    }

    pub(crate) fn is_holder(&self, port: &Port) -> bool {
        self.held.as_ref().is_some_and(|h| {
            if h.kind.all_registrants() { self.key_of(port).is_some() } else { h.holder == *port }
        })
    }

    pub(crate) fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The number of changes (PRgeneration).
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The persistent reservation: its holder's key (zero if all registrants are holders) and its type.
    pub(crate) fn held(&self) -> Option<(u64, Kind)> {
        self.held.as_ref().map(|held| {
            let key = if held.kind.all_registrants() { 0 } else { self.key_of(&held.holder).unwrap_or(0) };
            (key, held.kind)
        })
    }

    fn bump(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// All registrants but the acting one.
    fn others(&self, acting: &Port) -> Vec<Port> {
        others(&self.registrants, acting)
    }

    /// REGISTER: key zero removes the registration.
    pub(crate) fn register(&mut self, port: &Port, new_key: u64) -> Result<Told, Reply> {
        let mut told = Told::new();
        let at = self.registrants.iter().position(|g| g.port == *port);
        match (at, new_key) {
            (None, 0) => {}
            (None, key) => {
                if self.registrants.len() >= MAX_REGISTRANTS {
                    return Err(Reply::check(Sense::INSUFFICIENT_REGISTRATIONS));
                }
                self.registrants.push(Registrant { port: port.clone(), key });
            }
            (Some(at), 0) => {
                let holder = self.is_holder(port);
                self.registrants.remove(at);
                let none_left = self.registrants.is_empty();
                let ended = self.held.take_if(|h| holder && (!h.kind.all_registrants() || none_left));
                if ended.is_some_and(|h| h.kind.registrants()) {
                    told.push((Attention::ReservationsReleased, self.others(port)));
                }
            }
            (Some(at), key) => self.registrants[at].key = key,
        }
        self.bump();
        Ok(told)
    }

    /// RESERVE of a persistent reservation.
    pub(crate) fn reserve(&mut self, port: &Port, kind: u8) -> Result<Told, Reply> {
        let kind = Kind::parse(kind)?;
        match &self.held {
            None => self.held = Some(Reservation { kind, holder: port.clone() }),
            // The holder may ask again for what it has.
            Some(held) if self.is_holder(port) && held.kind == kind => {}
            Some(_) => return Err(Reply::conflict()),
        }
        Ok(Told::new())
    }

    /// RELEASE of a persistent reservation.
    pub(crate) fn release(&mut self, port: &Port, kind: u8) -> Result<Told, Reply> {
        let mut told = Told::new();
        let Some(held) = self.held.as_ref().map(|h| h.kind).filter(|_| self.is_holder(port)) else {
            return Ok(told);
        };
        if held.code() != kind {
            return Err(Reply::check(Sense::INVALID_RELEASE));
        }
        if held.registrants() {
            told.push((Attention::ReservationsReleased, self.others(port)));
        }
        self.held = None;
        Ok(told)
    }

    /// CLEAR.
    pub(crate) fn clear(&mut self, port: &Port) -> Told {
        let told = vec![(Attention::ReservationsPreempted, self.others(port))];
        self.held = None;
        self.registrants.clear();
        self.bump();
        told
    }

    /// PREEMPT and PREEMPT AND ABORT (SPC-4 section 5.12.11.4).
    pub(crate) fn preempt(&mut self, port: &Port, kind: u8, victim: u64) -> Result<Told, Reply> {
        let all = self.held.as_ref().is_some_and(|h| h.kind.all_registrants());
        let holder_key = self.held.as_ref().filter(|_| !all).and_then(|h| self.key_of(&h.holder));
        let takes_over =
            self.held.is_some() && ((all && victim == 0) || (!all && holder_key == Some(victim)));
        if victim == 0 && !takes_over {
            return Err(Reply::check(Sense::parameter(8)));
        }
        let new_kind = if takes_over { Some(Kind::parse(kind)?) } else { None };
        let hit = |g: &Registrant| g.port != *port && ((all && victim == 0) || g.key == victim);
        if !takes_over && !self.registrants.iter().any(|g| g.key == victim) {
            return Err(Reply::conflict());
        }
        // One's own key names oneself as well, unless the reservation is taken over by it.
        let own = !takes_over && self.key_of(port) == Some(victim);
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.registrants)
            .into_iter()
            .partition(|g| hit(g) || (own && g.port == *port));
        self.registrants = left;
        let mut told = vec![(Attention::RegistrationsPreempted, others(&gone, port))];
        if let Some(new_kind) = new_kind {
            let old = self.held.replace(Reservation { kind: new_kind, holder: port.clone() });
            if old.is_some_and(|o| o.kind != new_kind && o.kind.registrants()) {
                told.push((Attention::ReservationsReleased, self.others(port)));
            }
        } else if all && self.registrants.is_empty() {
            self.held = None;
        }
        self.bump();
        Ok(told)
    }
}

fn others(registrants: &[Registrant], acting: &Port) -> Vec<Port> {
    registrants.iter().map(|g| &g.port).filter(|p| *p != acting).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> Port {
        Port { name: name.into(), isid: [0x80, 0, 0, 0, 0, 1] }
    }

    #[test]
    fn a_change_names_those_who_must_hear_of_it_and_not_who_made_it() {
        let (a, b, c) = (port("a"), port("b"), port("c"));
        let mut r = Reservations::default();
        for (port, key) in [(&a, 1), (&b, 2), (&c, 3)] {
            assert_eq!(r.register(port, key), Ok(vec![]));
        }
        // Write exclusive, registrants only.
        assert_eq!(r.reserve(&a, 5), Ok(vec![]));
        assert!(r.reserve(&b, 5).is_err() && !r.conflicts(&b, Access::Write));
        assert_eq!(
            r.preempt(&b, 5, 3),
            Ok(vec![(Attention::RegistrationsPreempted, vec![c.clone()])]),
            "only its registration goes"
        );
        assert_eq!(r.release(&a, 5), Ok(vec![(Attention::ReservationsReleased, vec![b.clone()])]));
        assert_eq!(r.release(&a, 5), Ok(vec![]), "nothing is held");
        assert_eq!(r.clear(&b), [(Attention::ReservationsPreempted, vec![a])]);
        assert!(r.registrants().is_empty() && !r.any());
        assert_eq!(r.generation(), 5, "three registrations, a preemption, a clear");
    }

    #[test]
    fn the_last_holder_that_leaves_ends_a_reservation_of_all_registrants() {
        let (a, b) = (port("a"), port("b"));
        let mut r = Reservations::default();
        r.register(&a, 1).unwrap();
        r.register(&b, 2).unwrap();
        r.reserve(&a, 8).unwrap();
        assert_eq!(r.register(&a, 0), Ok(vec![]));
        assert!(r.any() && r.is_holder(&b) && r.conflicts(&a, Access::Read));
        assert_eq!(r.register(&b, 0), Ok(vec![(Attention::ReservationsReleased, vec![])]));
        assert!(!r.any());
    }
}

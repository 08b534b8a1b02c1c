//! Reservations: RESERVE(6)/RELEASE(6) of SPC-2 and persistent reservations of SPC-4 section 5.12.
//!
//! Invariants: at most one persistent reservation; its holder is registered (for the "all registrants" types: somebody
//! is); a simple and a persistent reservation exclude each other; the generation grows with every change that SPC-4 names
//! and with no other. Registrations outlive sessions, not the server (PTPL_C is 0).

use std::sync::Arc;

use super::super::bytes::{be16, be64, sat32, u8at};
use super::lu::{Attention, LogicalUnit, Nexus, Port};
use super::sense::Sense;
use super::{Action, Plan, Reply};

/// What a command does, as far as reservations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Never in conflict.
    Free,
    /// In conflict with another initiator's RESERVE only.
    Query,
    /// Reads the medium.
    Read,
    /// Changes the medium or the unit's state.
    Write,
}

/// The type field of a persistent reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    fn parse(code: u8) -> Option<Self> {
        matches!(code, 1 | 3 | 5 | 6 | 7 | 8).then_some(Self(code))
    }

    /// Write exclusive of any sort: everybody may read.
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

#[derive(Debug)]
struct Registrant {
    port: Port,
    key: u64,
}

/// A standing persistent reservation; `holder` is who made it and means nothing for the "all registrants" types.
#[derive(Debug)]
struct Reservation {
    kind: Kind,
    holder: Port,
}

/// A unit's reservations.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    simple: Option<Port>,
    registrants: Vec<Registrant>,
    generation: u32,
    held: Option<Reservation>,
}

/// Most registrations of a unit: far above any cluster, far below what would hurt.
const MAX_REGISTRANTS: usize = 256;

impl Reservations {
    pub(crate) fn any(&self) -> bool {
        self.simple.is_some() || self.held.is_some()
    }

    /// LOGICAL UNIT RESET ends a RESERVE.
    pub(crate) fn reset(&mut self) {
        self.simple = None;
    }

    /// The end of a session ends its RESERVE.
    pub(crate) fn nexus_lost(&mut self, nexus: &Nexus) {
        if self.simple.as_ref() == Some(&nexus.port) {
            self.simple = None;
        }
    }

    /// Whether this nexus must not do that now.
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

    fn key_of(&self, port: &Port) -> Option<u64> {
        self.registrants.iter().find(|r| r.port == *port).map(|r| r.key)
    }

    fn is_holder(&self, port: &Port) -> bool {
        self.held.as_ref().is_some_and(|h| {
            if h.kind.all_registrants() { self.key_of(port).is_some() } else { h.holder == *port }
        })
    }

    fn bump(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

/// RESERVE(6) and RESERVE(10).
pub(crate) fn reserve(lu: &LogicalUnit, nexus: &Nexus) -> Reply {
    lu.with_reservations(|r| {
        // A registered initiator and an old-style one do not mix (SPC-4 section 5.12.3).
        if r.simple.as_ref().is_some_and(|p| *p != nexus.port) || !r.registrants.is_empty() {
            return Reply::conflict();
        }
        r.simple = Some(nexus.port.clone());
        Reply::good()
    })
}

/// RELEASE(6) and RELEASE(10): releasing what one does not hold is no error.
pub(crate) fn release(lu: &LogicalUnit, nexus: &Nexus) -> Reply {
    lu.with_reservations(|r| r.nexus_lost(nexus));
    Reply::good()
}

/// PERSISTENT RESERVE IN.
pub(crate) fn read(lu: &LogicalUnit, nexus: &Nexus, cdb: &[u8; 16]) -> Reply {
    let allocation = usize::from(be16(cdb, 7));
    let out = lu.with_reservations(|r| {
        if r.simple.as_ref().is_some_and(|p| *p != nexus.port) {
            return Err(Reply::conflict());
        }
        let mut out = r.generation.to_be_bytes().to_vec();
        match cdb[1] & 0x1f {
            0 => {
                out.extend(sat32(r.registrants.len() * 8).to_be_bytes());
                r.registrants.iter().for_each(|g| out.extend(g.key.to_be_bytes()));
            }
            1 => match &r.held {
                None => out.extend([0; 4]),
                Some(held) => {
                    let key =
                        if held.kind.all_registrants() { 0 } else { r.key_of(&held.holder).unwrap_or(0) };
                    out.extend(16u32.to_be_bytes());
                    out.extend(key.to_be_bytes());
                    out.extend([0, 0, 0, 0, 0, held.kind.0, 0, 0]);
                }
            },
            2 => {
                // Length 8; ALL_TG_PT capable; TMV with the types we know.
                out = vec![0, 8, 0x04, 0x80, 0xea, 0x01, 0, 0];
            }
            3 => full_status(r, &mut out),
            _ => return Err(Reply::check(Sense::cdb_bit(1, 4))),
        }
        Ok(out)
    });
    match out {
        Ok(out) => Reply::data(out, allocation),
        Err(reply) => reply,
    }
}

/// READ FULL STATUS.
fn full_status(r: &Reservations, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    for g in &r.registrants {
        let holder = r.is_holder(&g.port);
        let kind = r.held.as_ref().filter(|_| holder).map_or(0, |h| h.kind.0);
        body.extend(g.key.to_be_bytes());
        // ALL_TG_PT 0, R_HOLDER, scope and type, relative target port 1.
        body.extend([0, 0, 0, 0, u8::from(holder), kind, 0, 0, 0, 0, 0, 1]);
        let id = transport_id(&g.port);
        body.extend(sat32(id.len()).to_be_bytes());
        body.extend(id);
    }
    out.extend(sat32(body.len()).to_be_bytes());
    out.extend(body);
}

/// The TransportID of an iSCSI initiator port (SPC-4 section 7.6.4.6, format 01b).
fn transport_id(port: &Port) -> Vec<u8> {
    let mut name = format!("{},i,0x", port.name).into_bytes();
    for byte in port.isid {
        name.extend(format!("{byte:02x}").into_bytes());
    }
    name.push(0);
    name.resize(name.len().next_multiple_of(4).max(20), 0);
    let mut id = vec![0x45, 0];
    id.extend(u16::try_from(name.len()).unwrap_or(0).to_be_bytes());
    id.extend(name);
    id
}

/// Decodes PERSISTENT RESERVE OUT.
pub(crate) fn decode_out(lu: &LogicalUnit, nexus: &Nexus, cdb: &[u8; 16]) -> Plan {
    let (action, scope) = (cdb[1] & 0x1f, cdb[2] >> 4);
    if lu.with_reservations(|r| r.simple.as_ref().is_some_and(|p| *p != nexus.port)) {
        return Plan::Reply(Reply::conflict());
    }
    if action > 6 {
        return Plan::Reply(Reply::check(Sense::cdb_bit(1, 4)));
    }
    if matches!(action, 1 | 2 | 4 | 5) && scope != 0 {
        return Plan::Reply(Reply::check(Sense::cdb_bit(2, 7)));
    }
    let len = usize::try_from(super::super::bytes::be32(cdb, 5)).unwrap_or(usize::MAX);
    if len != 24 {
        return Plan::Reply(Reply::check(Sense::PARAMETER_LIST_LENGTH));
    }
    Plan::Out { len, action: Action::PersistentReserve { action, kind: cdb[2] & 0x0f } }
}

/// Executes PERSISTENT RESERVE OUT with its parameter list.
pub(crate) fn write(lu: &LogicalUnit, nexus: &Arc<Nexus>, action: u8, kind: u8, data: &[u8]) -> Reply {
    if data.len() < 24 {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    }
    let (key, new_key) = (be64(data, 0), be64(data, 8));
    // SPEC_I_PT and APTPL are not offered; ALL_TG_PT means the one port there is.
    let flags = u8at(data, 20);
    if matches!(action, 0 | 6) && flags & 0x09 != 0 {
        return Reply::check(Sense::parameter(20));
    }
    let port = &nexus.port;
    let reply = lu.with_reservations(|r| {
        let mine = r.key_of(port);
        match action {
            0 if mine.is_some_and(|k| k != key) || (mine.is_none() && key != 0) => Err(Reply::conflict()),
            0 | 6 => register(lu, r, port, new_key),
            _ if mine != Some(key) => Err(Reply::conflict()),
            1 => reserve_persistent(r, port, kind),
            2 => release_persistent(lu, r, port, kind),
            3 => {
                r.held = None;
                let ports = std::mem::take(&mut r.registrants);
                raise(lu, Attention::ReservationsPreempted, ports.iter().map(|g| &g.port), port);
                r.bump();
                Ok(())
            }
            _ => preempt(lu, r, port, kind, new_key),
        }
    });
    if action == 5 && reply.is_ok() {
        // PREEMPT AND ABORT: whoever was writing has finished before we answer; later writes see the new reservation.
        drop(lu.gate.write());
    }
    reply.err().unwrap_or_else(Reply::good)
}

fn register(lu: &LogicalUnit, r: &mut Reservations, port: &Port, new_key: u64) -> Result<(), Reply> {
    let at = r.registrants.iter().position(|g| g.port == *port);
    match (at, new_key) {
        (None, 0) => {}
        (None, key) => {
            if r.registrants.len() >= MAX_REGISTRANTS {
                return Err(Reply::check(Sense::INSUFFICIENT_REGISTRATIONS));
            }
            r.registrants.push(Registrant { port: port.clone(), key });
        }
        (Some(at), 0) => {
            let holder = r.is_holder(port);
            r.registrants.remove(at);
            let ends = r
                .held
                .as_ref()
                .is_some_and(|h| holder && (!h.kind.all_registrants() || r.registrants.is_empty()));
            if ends && let Some(held) = r.held.take().filter(|h| h.kind.registrants()) {
                let _ = held;
                raise(lu, Attention::ReservationsReleased, r.registrants.iter().map(|g| &g.port), port);
            }
        }
        (Some(at), key) => r.registrants[at].key = key,
    }
    r.bump();
    Ok(())
}

fn reserve_persistent(r: &mut Reservations, port: &Port, kind: u8) -> Result<(), Reply> {
    let kind = Kind::parse(kind).ok_or_else(|| Reply::check(Sense::cdb_bit(2, 3)))?;
    match &r.held {
        None => r.held = Some(Reservation { kind, holder: port.clone() }),
        // The holder may ask again for what it has.
        Some(held) if r.is_holder(port) && held.kind == kind => {}
        Some(_) => return Err(Reply::conflict()),
    }
    Ok(())
}

fn release_persistent(lu: &LogicalUnit, r: &mut Reservations, port: &Port, kind: u8) -> Result<(), Reply> {
    let Some(held) = &r.held else { return Ok(()) };
    if !r.is_holder(port) {
        return Ok(());
    }
    if held.kind.0 != kind {
        return Err(Reply::check(Sense::INVALID_RELEASE));
    }
    if held.kind.registrants() {
        raise(lu, Attention::ReservationsReleased, r.registrants.iter().map(|g| &g.port), port);
    }
    r.held = None;
    Ok(())
}

/// PREEMPT and PREEMPT AND ABORT (SPC-4 section 5.12.11.4).
fn preempt(lu: &LogicalUnit, r: &mut Reservations, port: &Port, kind: u8, victim: u64) -> Result<(), Reply> {
    let all = r.held.as_ref().is_some_and(|h| h.kind.all_registrants());
    let holder_key = r.held.as_ref().filter(|_| !all).and_then(|h| r.key_of(&h.holder));
    let takes_over = r.held.is_some() && ((all && victim == 0) || (!all && holder_key == Some(victim)));
    if victim == 0 && !takes_over {
        return Err(Reply::check(Sense::parameter(8)));
    }
    let new_kind = if takes_over {
        Some(Kind::parse(kind).ok_or_else(|| Reply::check(Sense::cdb_bit(2, 3)))?)
    } else {
        None
    };
    let hit = |g: &Registrant| g.port != *port && ((all && victim == 0) || g.key == victim);
    if !takes_over && !r.registrants.iter().any(|g| g.key == victim) {
        return Err(Reply::conflict());
    }
    // One's own key names oneself as well, unless the reservation is taken over by it.
    let own = !takes_over && r.key_of(port) == Some(victim);
    let (gone, left): (Vec<_>, Vec<_>) =
        std::mem::take(&mut r.registrants).into_iter().partition(|g| hit(g) || (own && g.port == *port));
    r.registrants = left;
    raise(lu, Attention::RegistrationsPreempted, gone.iter().map(|g| &g.port), port);
    if let Some(new_kind) = new_kind {
        let old = r.held.replace(Reservation { kind: new_kind, holder: port.clone() });
        if old.is_some_and(|o| o.kind != new_kind && o.kind.registrants()) {
            raise(lu, Attention::ReservationsReleased, r.registrants.iter().map(|g| &g.port), port);
        }
    } else if all && r.registrants.is_empty() {
        r.held = None;
    }
    r.bump();
    Ok(())
}

/// Raises at the nexuses of `ports`, the acting one excepted.
fn raise<'a>(lu: &LogicalUnit, what: Attention, ports: impl Iterator<Item = &'a Port>, acting: &Port) {
    let ports: Vec<&Port> = ports.filter(|p| *p != acting).collect();
    lu.raise_where(what, |n| ports.contains(&&n.port));
}

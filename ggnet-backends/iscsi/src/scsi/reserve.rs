//! RESERVE and RELEASE of SPC-2, PERSISTENT RESERVE IN and OUT of SPC-4.
//!
//! Invariant: the unit attentions that a change causes have been raised at their nexuses before the change is answered.

use super::super::bytes::{be16, be32, be64, index, sat32, u8at};
use super::lu::LogicalUnit;
use super::nexus::{Nexus, Port};
use super::reservations::Reservations;
use super::sense::Sense;
use super::{Action, Plan, Reply};

/// PERSISTENT RESERVE OUT's parameter list, in bytes.
const LIST_LEN: usize = 24;

/// RESERVE(6) and RESERVE(10).
pub(crate) fn reserve(lu: &LogicalUnit, nexus: &Nexus) -> Reply {
    let reserved = lu.with_reservations(|r| r.reserve_simple(&nexus.port));
    if reserved { Reply::good() } else { Reply::conflict() }
}

/// RELEASE(6) and RELEASE(10): a release without a reservation is not an error.
pub(crate) fn release(lu: &LogicalUnit, nexus: &Nexus) -> Reply {
    lu.with_reservations(|r| r.release_simple(&nexus.port));
    Reply::good()
}

/// PERSISTENT RESERVE IN.
pub(crate) fn read(lu: &LogicalUnit, nexus: &Nexus, cdb: &[u8; 16]) -> Reply {
    let allocation = usize::from(be16(cdb, 7));
    lu.with_reservations(|r| {
        if r.reserved_by_another(&nexus.port) {
            return Reply::conflict();
        }
        let mut out = r.generation().to_be_bytes().to_vec();
        match cdb[1] & 0x1f {
            // READ KEYS.
            0 => {
                out.extend(sat32(r.registrants().len() * 8).to_be_bytes());
                r.registrants().iter().for_each(|g| out.extend(g.key.to_be_bytes()));
            }
            // READ RESERVATION.
            1 => match r.held() {
                None => out.extend([0; 4]),
                Some((key, kind)) => {
                    out.extend(16u32.to_be_bytes());
                    out.extend(key.to_be_bytes());
                    out.extend([0, 0, 0, 0, 0, kind.code(), 0, 0]);
                }
            },
            // REPORT CAPABILITIES: length 8; ALL_TG_PT capable; TMV with the types we know.
            2 => out = vec![0, 8, 0x04, 0x80, 0xea, 0x01, 0, 0],
            // The table of commands knows no other but READ FULL STATUS.
            _ => full_status(r, &mut out),
        }
        Reply::data(out, allocation)
    })
}

/// READ FULL STATUS.
fn full_status(r: &Reservations, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    for g in r.registrants() {
        let holder = r.is_holder(&g.port);
        let kind = r.held().filter(|_| holder).map_or(0, |(_, kind)| kind.code());
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
    if lu.with_reservations(|r| r.reserved_by_another(&nexus.port)) {
        return Plan::Reply(Reply::conflict());
    }
    if matches!(action, 1 | 2 | 4 | 5) && scope != 0 {
        return Plan::Reply(Reply::check(Sense::cdb_bit(2, 7)));
    }
    let len = index(u64::from(be32(cdb, 5)));
    if len != LIST_LEN {
        return Plan::Reply(Reply::check(Sense::PARAMETER_LIST_LENGTH));
    }
    Plan::Out { len, action: Action::PersistentReserve { action, kind: cdb[2] & 0x0f } }
}

/// Executes PERSISTENT RESERVE OUT with its parameter list.
pub(crate) fn write(lu: &LogicalUnit, nexus: &Nexus, action: u8, kind: u8, data: &[u8]) -> Reply {
    if data.len() < LIST_LEN {
        return Reply::check(Sense::PARAMETER_LIST_LENGTH);
    }
    let (key, new_key) = (be64(data, 0), be64(data, 8));
    // SPEC_I_PT and APTPL are not offered; ALL_TG_PT means the one port there is.
    let flags = u8at(data, 20);
    if matches!(action, 0 | 6) && flags & 0x09 != 0 {
        return Reply::check(Sense::parameter(20));
    }
    let port = &nexus.port;
    let changed = lu.with_reservations(|r| {
        let mine = r.key_of(port);
        let told = match action {
            0 if mine.is_some_and(|k| k != key) || (mine.is_none() && key != 0) => {
                return Err(Reply::conflict());
            }
            0 | 6 => r.register(port, new_key)?,
            _ if mine != Some(key) => return Err(Reply::conflict()),
            1 => r.reserve(port, kind)?,
            2 => r.release(port, kind)?,
            3 => r.clear(port),
            _ => r.preempt(port, kind, new_key)?,
        };
        // Under the lock, so that nobody who is no longer excluded comes before it.
        for (what, ports) in told {
            lu.raise_where(what, |n| ports.contains(&n.port));
        }
        Ok(())
    });
    if action == 5 && changed.is_ok() {
        // PREEMPT AND ABORT: whoever was writing has finished before we answer; later writes see the new reservation.
        drop(lu.gate.write());
    }
    changed.err().unwrap_or_else(Reply::good)
}

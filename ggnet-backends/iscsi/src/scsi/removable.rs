//! START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL.
//!
//! Invariants: a unit never stops: a guest that "stops" its disk at shutdown must find it ready at the next boot, so stopping only flushes;
//! a medium can be ejected only if the configuration allows it, and only while no initiator prevents it; prevention ends with its session.

use std::sync::atomic::Ordering::Relaxed;

use super::lu::LogicalUnit;
use super::nexus::{Attention, Nexus};
use super::sense::Sense;
use super::{Action, Plan, Reply};

/// START STOP UNIT.
pub(crate) fn start_stop(lu: &LogicalUnit, nexus: &Nexus, cdb: &[u8; 16]) -> Result<Plan, Reply> {
    let (condition, no_flush, loej, start) = (cdb[4] >> 4, cdb[4] & 4 != 0, cdb[4] & 2 != 0, cdb[4] & 1 != 0);
    if condition != 0 {
        // A power condition outranks START and LOEJ, and there is none that would change anything here.
        return Ok(Plan::Reply(Reply::good()));
    }
    if loej {
        if !lu.removable {
            return Err(Sense::cdb_bit(4, 1).into());
        }
        if lu.removal_prevented() {
            return Err(Sense::REMOVAL_PREVENTED.into());
        }
        let was_out = lu.ejected.swap(!start, Relaxed);
        if start && was_out {
            lu.raise_where(Attention::MediumChanged, |n| !std::ptr::eq(n, nexus));
        }
    }
    if start || no_flush { Ok(Plan::Reply(Reply::good())) } else { Ok(Plan::Run(Action::Flush)) }
}

/// PREVENT ALLOW MEDIUM REMOVAL.
pub(crate) fn prevent_allow(nexus: &Nexus, cdb: &[u8; 16]) -> Result<Reply, Reply> {
    match cdb[4] & 3 {
        prevent @ (0 | 1) => nexus.prevents.store(prevent == 1, Relaxed),
        // Obsolete since SPC-4.
        _ => return Err(Sense::cdb_bit(4, 1).into()),
    }
    Ok(Reply::good())
}

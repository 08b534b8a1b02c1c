//! A session's relation to all units of its target.
//!
//! Invariant: it ends when the session leaves, or at the latest with its task: then no unit knows the session any more, and its RESERVE
//! and its wish to keep a medium in have ended (SAM-5 section 6.3.4: with the session goes the I_T nexus).

use std::sync::Arc;

use super::scsi::Units;
use super::scsi::lu::LogicalUnit;
use super::scsi::nexus::{Nexus, Port};

/// The units of a session, each with its nexus.
pub(super) struct Attached {
    pub(super) units: Units,
    nexuses: Vec<Option<Arc<Nexus>>>,
}

impl Attached {
    /// Attaches to every unit.
    pub(super) fn new(units: Units, port: &Port) -> Self {
        let mut nexuses: Vec<Option<Arc<Nexus>>> = vec![None; units.slots()];
        for unit in units.iter() {
            let nexus = Arc::new(Nexus::new(port.clone()));
            unit.attach(&nexus);
            nexuses[usize::from(unit.number)] = Some(nexus);
        }
        Self { units, nexuses }
    }

    /// The unit of that number.
    pub(super) fn find(&self, number: usize) -> Option<(&Arc<LogicalUnit>, &Arc<Nexus>)> {
        Some((self.units.get(number)?, self.nexus(number)?))
    }

    /// The nexus with the unit of that number.
    pub(super) fn nexus(&self, number: usize) -> Option<&Arc<Nexus>> {
        self.nexuses.get(number)?.as_ref()
    }

    /// Detaches from every unit.
    pub(super) fn leave(&mut self) {
        for unit in self.units.iter() {
            if let Some(nexus) = self.nexuses.get_mut(usize::from(unit.number)).and_then(Option::take) {
                unit.detach(&nexus);
            }
        }
    }
}

/// A session whose task was dropped leaves, too.
impl Drop for Attached {
    fn drop(&mut self) {
        self.leave();
    }
}

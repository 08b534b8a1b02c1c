//! A session's nexuses with all units of its target.
//!
//! Invariant: the relation ends when the session leaves, or at the latest with its task. Then no unit has the session any more, and its
//! RESERVE and its prevention of medium removal have ended (SAM-5 section 6.3.4: the I_T nexus ends with the session).

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

    /// The unit with this number.
    pub(super) fn find(&self, number: usize) -> Option<(&Arc<LogicalUnit>, &Arc<Nexus>)> {
        Some((self.units.get(number)?, self.nexus(number)?))
    }

    /// The nexus with the unit of this number.
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

/// A session whose task was dropped is detached, too.
impl Drop for Attached {
    fn drop(&mut self) {
        self.leave();
    }
}

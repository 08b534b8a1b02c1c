//! Targets that were removed recently: an initiator that still requests one runs, or tries to run, on a disk that is no longer its own.
//!
//! Invariants: at most [`MOST`] are remembered, the most recently removed ones; each is reported at most once in [`REPORT_INTERVAL`],
//! however often an initiator retries (every two seconds, for hours).

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ggnet_core::nouns::ResourceId;

/// The maximum number of remembered targets: the disks of a large room, several boots of each.
const MOST: usize = 2048;
/// How often one of them is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gone(Mutex<VecDeque<Target>>);

#[derive(Debug)]
struct Target {
    name: String,
    id: ResourceId,
    /// The initiator that could use it; `None`: any.
    initiator: Option<String>,
    reported: Option<Instant>,
}

impl Gone {
    /// Records a removed target.
    pub(super) fn add(&self, name: &str, id: ResourceId, initiator: Option<String>) {
        // Every step under the lock leaves a valid list.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.pop_front();
        }
        all.push_back(Target { name: name.to_owned(), id, initiator, reported: None });
    }

    /// Forgets a target that exists again.
    pub(super) fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|t| t.name != name);
    }

    /// Called when this initiator requests a target that does not exist: returns the target's id if it is a remembered one that the
    /// initiator could use, and if it is time to report it. A name proves nothing: anyone who knows it can cause the report.
    pub(super) fn asked_for(&self, name: &str, initiator: &str) -> Option<ResourceId> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let target = all.iter_mut().rev().find(|t| t.name == name)?;
        if target.initiator.as_ref().is_some_and(|own| own != initiator) {
            return None;
        }
        if target.reported.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return None;
        }
        target.reported = Some(Instant::now());
        Some(target.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_told_of_once_a_minute() {
        let gone = Gone::default();
        let name = |n: usize| format!("iqn.2026-01.org.example:{n}");
        for n in 0..MOST + 10 {
            gone.add(
                &name(n),
                format!("t{n}").parse().unwrap(),
                Some("iqn.2026-01.org.example:pc".to_owned()),
            );
        }
        let asked_for = |n: usize| gone.asked_for(&name(n), "iqn.2026-01.org.example:pc");
        assert_eq!(asked_for(9), None, "it was pushed out");
        assert_eq!(gone.asked_for(&name(10), "iqn.2026-01.org.example:other"), None, "it was never its own");
        assert_eq!(asked_for(10), Some("t10".parse().unwrap()));
        assert_eq!(asked_for(10), None, "told already");
        gone.forget(&name(11));
        assert_eq!(asked_for(11), None, "it is there again");
    }
}

//! Monitors whether the image store has the versions that machines boot. If a disk is not mounted or files were removed, machines cannot
//! boot, and without this monitor nobody would know before a machine tries.
//!
//! Every [`LOOK_EVERY`] it asks the store which versions machines boot, and the image store which versions it has.
//!
//! Invariants: one check at a time, also while the image store hangs, and health reports how long it hangs; a version is missing only if
//! the store still lists it afterwards (a deletion removes it from the store first); one log line per change.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ggnet_core::{
    Result,
    nouns::ImageVersionId,
    orchestrator::Orchestrator,
    ports::{Completeness, Health, ImageListed},
    supervisor::Supervisor,
};
use tokio::time::Instant;

/// The interval of the checks.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A check that takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);
/// The most versions named in a message.
const NAMED: usize = 3;

/// The result of the last check.
#[derive(Debug)]
pub struct ImageFiles {
    /// The image store's name.
    store: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None before the first check.
    found: Option<Health>,
    /// Since when the image store has been asked; none if it is not being asked.
    looking: Option<Instant>,
}

/// A version that cannot be booted, and why.
#[derive(Debug)]
struct Missing {
    version: ImageVersionId,
    why: &'static str,
}

impl ImageFiles {
    /// Starts the checks in a task of `supervisor`.
    pub fn watch(orchestrator: &Orchestrator, supervisor: &Supervisor) -> Arc<Self> {
        let this = Arc::new(Self {
            store: orchestrator.read().image_store(),
            state: Mutex::new(State { found: None, looking: None }),
        });
        let (looking, orchestrator, stop) = (Arc::clone(&this), orchestrator.clone(), supervisor.stopping());
        supervisor.keep("the monitor of image files", move || {
            let (looking, orchestrator, stop) = (Arc::clone(&looking), orchestrator.clone(), stop.clone());
            async move {
                stop.run_until_cancelled_owned(looking.look_until_shutdown(&orchestrator)).await;
            }
        });
        this
    }

    /// Their health, at most [`LOOK_EVERY`] old.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = self.state();
        match state.looking.map(|since| since.elapsed()) {
            Some(took) if took >= HANGS => Health::Blocked(format!(
                "No list of versions from the image store {} for {} s: its disk or mount hangs",
                self.store,
                took.as_secs()
            )),
            _ => state.found.clone().unwrap_or_else(|| {
                Health::Blocked("The files of the images have not been checked yet".to_owned())
            }),
        }
    }

    async fn look_until_shutdown(&self, orchestrator: &Orchestrator) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.look(orchestrator).await {
                Ok(found) => self.note(found),
                // The store's own health reports this error.
                Err(e) => tracing::debug!(error = %e.report(), "the files of images were not checked"),
            }
        }
    }

    fn note(&self, found: Health) {
        let mut state = self.state();
        if state.found.as_ref() == Some(&found) {
            return;
        }
        match &found {
            Health::Up if state.found.is_none() => {}
            Health::Up => {
                tracing::info!(store = self.store, "the files of all images that machines boot are present");
            }
            Health::Degraded(why) | Health::Blocked(why) | Health::Down(why) => {
                tracing::warn!(why, "files of images that machines boot are missing");
            }
        }
        state.found = Some(found);
    }

    async fn look(&self, orchestrator: &Orchestrator) -> Result<Health> {
        let wanted = orchestrator.read().versions_to_boot().await?;
        let missing = match self.missing(orchestrator, &wanted).await {
            Ok(missing) => missing,
            // A version of an unknown state counts as missing: no machine could boot it now.
            Err(e) if !wanted.is_empty() => {
                return Ok(Health::Blocked(format!(
                    "The image store {} cannot list its versions: {}. Mount its disk, or restore its folder",
                    self.store,
                    e.explain()
                )));
            }
            Err(_) => Vec::new(),
        };
        if missing.is_empty() {
            return Ok(Health::Up);
        }
        // A version that was deleted meanwhile is not missing.
        let wanted = orchestrator.read().versions_to_boot().await?;
        let missing: Vec<Missing> = missing.into_iter().filter(|m| wanted.contains(&m.version)).collect();
        let mut named = Vec::new();
        for of in missing.iter().take(NAMED) {
            let name = orchestrator.read().version_name(of.version).await?;
            named.push(format!("{name}: {} {}", of.version, of.why));
        }
        Ok(judge(self.store, wanted.len(), missing.len(), &named))
    }

    async fn missing(
        &self,
        orchestrator: &Orchestrator,
        wanted: &BTreeSet<ImageVersionId>,
    ) -> Result<Vec<Missing>> {
        self.state().looking = Some(Instant::now());
        let listed = orchestrator.read().stored_versions().await;
        self.state().looking = None;
        let listed: HashMap<_, _> = listed?.into_iter().map(|v| (v.id, v)).collect();
        let missing =
            |version: &ImageVersionId| fault(&listed, *version).map(|why| Missing { version: *version, why });
        Ok(wanted.iter().filter_map(missing).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every step under it leaves valid data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a version cannot be booted: its own bytes, or those of a version that it is based on, are missing.
fn fault(listed: &HashMap<ImageVersionId, ImageListed>, version: ImageVersionId) -> Option<&'static str> {
    match listed.get(&version) {
        None => return Some("is missing"),
        Some(found) if found.completeness != Completeness::Whole => return Some("is incomplete"),
        Some(_) => {}
    }
    let parent = |of: ImageVersionId| listed.get(&of).and_then(|found| found.parent);
    // At most as many steps as there are versions, because two versions based on each other would loop.
    let mut below = std::iter::successors(parent(version), |of| parent(*of)).take(listed.len() + 1);
    let is_whole =
        |of: ImageVersionId| listed.get(&of).is_some_and(|found| found.completeness == Completeness::Whole);
    (!below.all(is_whole)).then_some("is based on a version that is missing or incomplete")
}

/// The health if `missing` of `wanted` versions are missing.
fn judge(store: &str, wanted: usize, missing: usize, named: &[String]) -> Health {
    let mut list = named.join("; ");
    if missing > named.len() {
        list.push_str(&format!("; and {} more", missing - named.len()));
    }
    match missing {
        0 => Health::Up,
        _ if missing >= wanted => Health::Blocked(format!(
            "No machine can boot, because the image store {store} has none of the versions that machines boot ({list}): mount its disk, or \
             restore the files"
        )),
        _ => Health::Degraded(format!(
            "Machines of some images cannot boot ({list}): restore the file, or make another version current"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_over_one_that_is_missing_is_missing_too() {
        let id = ImageVersionId::generate;
        let (raw, over_raw, partial, over_partial, lost) = (id(), id(), id(), id(), id());
        let all = [
            ImageListed::whole(raw, 512),
            ImageListed::whole(over_raw, 512).over(raw),
            ImageListed::partial(partial),
            ImageListed::whole(over_partial, 512).over(partial),
        ];
        let mut listed: HashMap<_, _> = all.into_iter().map(|v| (v.id, v)).collect();
        for version in [raw, over_raw] {
            assert_eq!(fault(&listed, version), None);
        }
        for (version, why) in
            [(lost, "is missing"), (partial, "is incomplete"), (over_partial, "is based on")]
        {
            assert!(fault(&listed, version).unwrap().contains(why), "{why}");
        }
        listed.remove(&raw);
        assert!(fault(&listed, over_raw).unwrap().contains("is based on"));
        // Two versions based on each other: no endless loop.
        listed.insert(raw, ImageListed::whole(raw, 512).over(over_raw));
        assert_eq!(fault(&listed, over_raw), None);
    }

    #[test]
    fn all_that_are_missing_block_and_some_degrade() {
        let judge = |wanted, missing, named: &[&str]| {
            let named: Vec<String> = named.iter().map(|n| (*n).to_owned()).collect();
            judge("files", wanted, missing, &named)
        };
        assert_eq!(judge(0, 0, &[]), Health::Up);
        assert_eq!(judge(3, 0, &[]), Health::Up);
        let Health::Degraded(why) = judge(3, 1, &["win11 version 3"]) else { panic!("others boot") };
        assert!(why.contains("win11 version 3") && !why.contains("more"), "{why}");
        let Health::Blocked(why) = judge(5, 5, &["a", "b", "c"]) else { panic!("nobody boots") };
        assert!(
            why.contains("a; b; c; and 2 more") && why.contains("image store files") && why.contains("mount"),
            "{why}"
        );
    }
}

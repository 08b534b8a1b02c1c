//! The bytes of the image versions that machines boot: are they there? A folder that is not mounted, or bytes that somebody removed, let no
//! machine boot, and nobody else looks before one asks.
//!
//! Every [`LOOK_EVERY`] the store is asked which versions those are, and the image store which it has.
//!
//! Invariants: one look at a time, also while the image store hangs, and health says how long it has; a version counts as missing only when
//! the store still wants it afterwards (a deletion forgets a version first); one log line for each change.

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

/// How often it is looked.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A look that takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);
/// Most versions that are named.
const NAMED: usize = 3;

/// What the last look found.
#[derive(Debug)]
pub struct ImageFiles {
    /// The image store's name.
    store: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None: not yet looked.
    found: Option<Health>,
    /// Since when the image store is being asked.
    looking: Option<Instant>,
}

/// A version whose bytes are not there, and why it is thought so.
#[derive(Debug)]
struct Missing {
    version: ImageVersionId,
    why: &'static str,
}

impl ImageFiles {
    /// Looks again and again, in a task of `supervisor`.
    pub fn watch(orchestrator: &Orchestrator, supervisor: &Supervisor) -> Arc<Self> {
        let this = Arc::new(Self {
            store: orchestrator.read().image_store(),
            state: Mutex::new(State { found: None, looking: None }),
        });
        let (looking, orchestrator, stop) = (Arc::clone(&this), orchestrator.clone(), supervisor.stopping());
        supervisor.keep("the watch over the files of images", move || {
            let (looking, orchestrator, stop) = (Arc::clone(&looking), orchestrator.clone(), stop.clone());
            async move {
                stop.run_until_cancelled_owned(looking.look_until_shutdown(&orchestrator)).await;
            }
        });
        this
    }

    /// How they are, as of at most [`LOOK_EVERY`] ago.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = self.state();
        match state.looking.map(|since| since.elapsed()) {
            Some(took) if took >= HANGS => Health::Blocked(format!(
                "The image store {} has not said which versions it has for {} s: its disk or mount hangs",
                self.store,
                took.as_secs()
            )),
            _ => state.found.clone().unwrap_or_else(|| {
                Health::Blocked("The files of the images have not been looked at yet".to_owned())
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
                // The store's own health says what is wrong with it.
                Err(e) => tracing::debug!(error = %e.report(), "the files of images were not looked at"),
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
                tracing::info!(store = self.store, "the files of all images that machines boot are there");
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
            // Unknown is not there: nobody could boot them now.
            Err(e) if !wanted.is_empty() => {
                return Ok(Health::Blocked(format!(
                    "The image store {} cannot say which versions it has: {}. Mount its disk, or put its folder back",
                    self.store,
                    e.explain()
                )));
            }
            Err(_) => Vec::new(),
        };
        if missing.is_empty() {
            return Ok(Health::Up);
        }
        // What was deleted meanwhile is not missing.
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

/// Why a version cannot be booted: its own bytes, or those of a version that it stands on, are not there.
fn fault(listed: &HashMap<ImageVersionId, ImageListed>, version: ImageVersionId) -> Option<&'static str> {
    match listed.get(&version) {
        None => return Some("is not there"),
        Some(found) if found.completeness != Completeness::Whole => return Some("is not whole"),
        Some(_) => {}
    }
    let parent = |of: ImageVersionId| listed.get(&of).and_then(|found| found.parent);
    // As many steps as there are versions, for two that stand on each other have no lowest one.
    let mut below = std::iter::successors(parent(version), |of| parent(*of)).take(listed.len() + 1);
    let is_whole =
        |of: ImageVersionId| listed.get(&of).is_some_and(|found| found.completeness == Completeness::Whole);
    (!below.all(is_whole)).then_some("stands on a version that is not there, or not whole")
}

/// How it is when of `wanted` versions `missing` are not there.
fn judge(store: &str, wanted: usize, missing: usize, named: &[String]) -> Health {
    let mut list = named.join("; ");
    if missing > named.len() {
        list.push_str(&format!("; and {} more", missing - named.len()));
    }
    match missing {
        0 => Health::Up,
        _ if missing >= wanted => Health::Blocked(format!(
            "No machine can boot, because the image store {store} has no version that machines boot ({list}): mount its disk, or put the \
             files back"
        )),
        _ => Health::Degraded(format!(
            "Machines of some images cannot boot ({list}): put the file back, or make another version current"
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
        for (version, why) in [(lost, "is not there"), (partial, "is not whole"), (over_partial, "stands on")]
        {
            assert!(fault(&listed, version).unwrap().contains(why), "{why}");
        }
        listed.remove(&raw);
        assert!(fault(&listed, over_raw).unwrap().contains("stands on"));
        // Two that stand on each other: it comes to an end.
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

//! The files of the image versions that machines boot: are they there? A folder that is not mounted, or a file that somebody removed, lets
//! no machine boot, and nobody else looks before one asks.
//!
//! Every [`LOOK_EVERY`] the store is asked which versions those are, and each file is looked at once, on one blocking thread.
//!
//! Invariants: one look at a time, also while the disk hangs, and health says how long it has; a file counts as missing only when the store
//! still wants its version afterwards (a deletion forgets a version first); one log line for each change.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ggnet_core::{
    Error, Result, nouns::ImageVersionId, orchestrator::Orchestrator, ports::Health, supervisor::Supervisor,
};
use tokio::time::Instant;

/// How often it is looked.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A look at the files that takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);
/// Most files that are looked at in one look; beyond it the first ones speak for all.
const MOST: usize = 10_000;
/// Most versions that are named.
const NAMED: usize = 3;

/// What the last look found.
#[derive(Debug)]
pub struct ImageFiles {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None: not yet looked.
    found: Option<Health>,
    /// Since when the files are being looked at.
    looking: Option<Instant>,
}

/// A version whose file is not there, and why it is thought so.
#[derive(Debug)]
struct Missing {
    version: ImageVersionId,
    path: PathBuf,
    why: String,
}

impl ImageFiles {
    /// Looks again and again, in a task of `supervisor`.
    pub fn watch(orchestrator: &Orchestrator, supervisor: &Supervisor) -> Arc<Self> {
        let this = Arc::new(Self {
            dir: orchestrator.config().images_dir.clone(),
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
                "A look at the files in {} has not ended for {} s: its disk or mount hangs",
                self.dir.display(),
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
                tracing::info!(dir = %self.dir.display(), "the files of all images that machines boot are there");
            }
            Health::Degraded(why) | Health::Blocked(why) | Health::Down(why) => {
                tracing::warn!(why, "files of images that machines boot are missing");
            }
        }
        state.found = Some(found);
    }

    async fn look(&self, orchestrator: &Orchestrator) -> Result<Health> {
        let wanted = orchestrator.versions_to_boot().await?;
        let missing = self.missing(orchestrator, &wanted).await?;
        if missing.is_empty() {
            return Ok(Health::Up);
        }
        // What was deleted meanwhile is not missing.
        let wanted = orchestrator.versions_to_boot().await?;
        let missing: Vec<Missing> = missing.into_iter().filter(|m| wanted.contains(&m.version)).collect();
        let mut named = Vec::new();
        for of in missing.iter().take(NAMED) {
            named.push(format!(
                "{}: {} {}",
                orchestrator.read().version_name(of.version).await?,
                of.path.display(),
                of.why
            ));
        }
        Ok(judge(&self.dir, wanted.len().min(MOST), missing.len(), &named))
    }

    async fn missing(
        &self,
        orchestrator: &Orchestrator,
        wanted: &BTreeSet<ImageVersionId>,
    ) -> Result<Vec<Missing>> {
        let paths: Vec<_> =
            wanted.iter().take(MOST).map(|id| (*id, orchestrator.version_path(*id))).collect();
        self.state().looking = Some(Instant::now());
        let looked = tokio::task::spawn_blocking(move || {
            let missing = |(version, path): (ImageVersionId, PathBuf)| {
                fault(&path).map(|why| Missing { version, path, why })
            };
            paths.into_iter().filter_map(missing).collect()
        });
        let looked = looked.await;
        self.state().looking = None;
        looked.map_err(|e| Error::internal("The look at the files of images died").with_source(e))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every step under it leaves valid data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with a version's file. Waits for the disk.
fn fault(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => None,
        Ok(_) => Some("is no file".to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("is not there".to_owned()),
        Err(e) => Some(format!("cannot be looked at: {e}")),
    }
}

/// How it is when of `wanted` files `missing` are not there.
fn judge(dir: &Path, wanted: usize, missing: usize, named: &[String]) -> Health {
    let mut list = named.join("; ");
    if missing > named.len() {
        list.push_str(&format!("; and {} more", missing - named.len()));
    }
    match missing {
        0 => Health::Up,
        _ if missing >= wanted => Health::Blocked(format!(
            "No machine can boot, because no file of an image is there ({list}): mount the disk of {}, or put the files back",
            dir.display()
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
    fn all_that_are_missing_block_and_some_degrade() {
        let judge = |wanted, missing, named: &[&str]| {
            let named: Vec<String> = named.iter().map(|n| (*n).to_owned()).collect();
            judge(Path::new("/srv/images"), wanted, missing, &named)
        };
        assert_eq!(judge(0, 0, &[]), Health::Up);
        assert_eq!(judge(3, 0, &[]), Health::Up);
        let Health::Degraded(why) = judge(3, 1, &["win11 version 3"]) else { panic!("others boot") };
        assert!(why.contains("win11 version 3") && !why.contains("more"), "{why}");
        let Health::Blocked(why) = judge(5, 5, &["a", "b", "c"]) else { panic!("nobody boots") };
        assert!(
            why.contains("a; b; c; and 2 more") && why.contains("mount the disk of /srv/images"),
            "{why}"
        );
    }
}

//! [`ServedVersions`]: the versions that targets serve directly, kept open as long as those targets.
//!
//! A writeback's disk keeps its version open by itself; a version's own disk does not ([`OpenImage`](crate::ports::OpenImage)). Targets
//! that outlive our process are served without it until they are ensured again: until then the record protects the bytes, because it
//! forbids the version's deletion.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{nouns::ResourceId, ports::Hold};

/// For each target, what keeps the versions that it serves open.
#[derive(Default)]
pub(super) struct ServedVersions(Mutex<HashMap<ResourceId, Vec<Hold>>>);

impl ServedVersions {
    /// Records that the target serves these from now on, and no others.
    pub(super) fn keep(&self, target: &ResourceId, holds: Vec<Hold>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if holds.is_empty() {
            held.remove(target);
        } else {
            held.insert(target.clone(), holds);
        }
    }

    /// Releases the versions of a removed target.
    pub(super) fn let_go(&self, target: &ResourceId) {
        self.keep(target, Vec::new());
    }
}

//! [`ServedVersions`]: the versions that targets serve as they are, kept open as long as those targets.
//!
//! A writeback's disk keeps its version open by itself; a version's own disk does not ([`OpenImage`](crate::ports::OpenImage)). Targets that
//! outlive our process are served without it until they are ensured again: what then keeps the bytes is the record, which forbids the
//! version's deletion.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{nouns::ResourceId, ports::Hold};

/// By target: what keeps open the versions that it serves.
#[derive(Default)]
pub(super) struct ServedVersions(Mutex<HashMap<ResourceId, Vec<Hold>>>);

impl ServedVersions {
    /// The target serves these from now on, and no others.
    pub(super) fn keep(&self, target: &ResourceId, holds: Vec<Hold>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if holds.is_empty() {
            held.remove(target);
        } else {
            held.insert(target.clone(), holds);
        }
    }

    /// The target is gone.
    pub(super) fn let_go(&self, target: &ResourceId) {
        self.keep(target, Vec::new());
    }
}

//! One call at a time for each object: calls for the same one wait for each other, those for different ones do not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ggnet_core::nouns::ResourceId;
use tokio::sync::OwnedMutexGuard;

/// The turn at an object; it ends when this is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// One lock per object's name; entries exist only while somebody holds or waits.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<ResourceId, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the turn at this object. Held across awaits on purpose: it orders whole calls.
    pub(crate) async fn of(&self, id: &ResourceId) -> Turn {
        let lock = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            turns.entry(id.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

//! One lock per key. Entries exist only while somebody holds or waits.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

pub(crate) struct KeyedLocks<K> {
    locks: Mutex<HashMap<K, Arc<AsyncMutex<()>>>>,
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self { locks: Mutex::default() }
    }
}

/// Held across awaits on purpose: it puts calls on one thing in order.
pub(crate) type KeyGuard = OwnedMutexGuard<()>;

impl<K: Hash + Eq> KeyedLocks<K> {
    /// Waits for the lock; first come, first served.
    pub(crate) async fn lock<Q>(&self, key: &Q) -> KeyGuard
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.entry(key).lock_owned().await
    }

    /// The lock if nobody holds it.
    pub(crate) fn try_lock<Q>(&self, key: &Q) -> Option<KeyGuard>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.entry(key).try_lock_owned().ok()
    }

    fn entry<Q>(&self, key: &Q) -> Arc<AsyncMutex<()>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody holds or waits for an entry whose only reference is the map's.
        if locks.len() > 64 {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(key.to_owned()).or_default().clone()
    }
}

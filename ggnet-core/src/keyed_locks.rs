//! [`KeyedLocks`]: one lock per key, so that calls for one thing run one after the other and calls for different things do not wait for
//! each other. Entries exist only while somebody holds or waits.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// One lock per key: a machine's, a target's, an object's.
pub struct KeyedLocks<K> {
    locks: Mutex<HashMap<K, Arc<AsyncMutex<()>>>>,
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self { locks: Mutex::default() }
    }
}

/// Holds one key's lock until it is dropped. Held across awaits on purpose: it puts calls on one thing in order.
pub type KeyGuard = OwnedMutexGuard<()>;

impl<K: Hash + Eq> KeyedLocks<K> {
    /// Waits for the lock; first come, first served. Dropped half-way: nothing happened.
    pub async fn lock<Q>(&self, key: &Q) -> KeyGuard
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.entry(key).lock_owned().await
    }

    /// The lock if nobody holds it.
    pub fn try_lock<Q>(&self, key: &Q) -> Option<KeyGuard>
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_key_waits_others_do_not_and_entries_go_when_nobody_holds_them() {
        let locks = KeyedLocks::<String>::default();
        let held = locks.lock("a").await;
        assert!(locks.try_lock("a").is_none());
        for n in 0..100 {
            drop(locks.lock(&n.to_string()).await);
        }
        assert!(locks.locks.lock().unwrap().len() <= 65);
        assert!(locks.try_lock("a").is_none(), "an entry in use stays");
        drop(held);
        assert!(locks.try_lock("a").is_some());
    }
}

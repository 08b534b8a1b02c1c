//! [`KeyedLocks`]: one lock per key, so that calls for one object run one after the other and calls for different objects do not wait for
//! each other. An entry exists only while its lock is held or waited for.

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

/// Holds one key's lock until it is dropped. Held across awaits on purpose: it orders the calls on one object.
pub type KeyGuard = OwnedMutexGuard<()>;

impl<K: Hash + Eq> KeyedLocks<K> {
    /// Waits for the lock; first come, first served. If dropped half-way, nothing has happened.
    pub async fn lock<Q>(&self, key: &Q) -> KeyGuard
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.entry(key).lock_owned().await
    }

    /// The lock, if it is free.
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
        // An entry that is referenced only by the map is neither held nor waited for.
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

//! [`Slots`]: one lock for each object, so that calls for the same id run one after the other and calls for different ids do not wait for
//! each other; and [`blocking`], which runs file operations. Both continue when the caller's future is dropped.
//!
//! This is not [`ggnet_core::keyed_locks`], because each lock here also guards state about its object: entries outlive their holders until
//! [`Slots::sweep`] removes them, and [`Slots::close`] returns all of them.
//!
//! Invariants: an object's lock is held until its file operation has ended, even if the caller is gone (the guard moves into the
//! operation); after [`Slots::close`] no operation starts.
#![cfg_attr(
    not(any(feature = "bootfile-tftpd-hpa", feature = "writeback-layers", feature = "writeback-reflink")),
    allow(dead_code, reason = "the image store has locks of its own")
)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ggnet_core::{Error, ErrorKind, Result, nouns::ResourceId};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The locks, each over the state of its object.
pub(crate) struct Slots<T> {
    backend: &'static str,
    closed: AtomicBool,
    map: Mutex<HashMap<ResourceId, Arc<AsyncMutex<T>>>>,
}

impl<T: Default> Slots<T> {
    /// No locks yet.
    pub(crate) fn new(backend: &'static str) -> Self {
        Self { backend, closed: AtomicBool::new(false), map: Mutex::default() }
    }

    /// `Unavailable` after `close`.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, format!("Backend {} is shut down", self.backend))
                .with_backend(self.backend));
        }
        Ok(())
    }

    /// Waits for the object's lock. If the future is dropped, nothing has happened.
    pub(crate) async fn lock(&self, id: &ResourceId) -> Result<OwnedMutexGuard<T>> {
        self.check_open()?;
        let slot = self.map().entry(id.clone()).or_default().clone();
        let guard = slot.lock_owned().await;
        // Checked again: `close` returns every slot once, and nothing may start after that.
        self.check_open()?;
        Ok(guard)
    }

    /// Removes the slots that nobody locks or waits for, unless `keep` says that their state is still needed.
    pub(crate) fn sweep(&self, keep: impl Fn(&T) -> bool) {
        self.map().retain(|_, slot| Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|s| keep(&s)));
    }

    /// The objects whose slot is not locked now and for which `which` returns true.
    #[cfg(feature = "writeback-layers")]
    pub(crate) fn which(&self, which: impl Fn(&T) -> bool) -> Vec<ResourceId> {
        let map = self.map();
        map.iter().filter(|(_, s)| s.try_lock().is_ok_and(|s| which(&s))).map(|(id, _)| id.clone()).collect()
    }

    /// Rejects new calls and returns every slot. A caller that locks all of them has waited for all calls in flight.
    pub(crate) fn close(&self) -> Vec<(ResourceId, Arc<AsyncMutex<T>>)> {
        self.closed.store(true, Ordering::Release);
        self.map().drain().collect()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<ResourceId, Arc<AsyncMutex<T>>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a file operation on a blocking thread. It continues to its end even if this future is dropped. Errors get the context.
pub(crate) async fn blocking<T: Send + 'static>(
    backend: &'static str,
    operation: &'static str,
    subject: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("A file operation of a backend panicked").with_source(e)))
        .map_err(|e| e.with_backend(backend).with_operation(operation).with_subject(subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_object_waits_and_others_do_not() {
        let slots = Slots::<u8>::new("test");
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut held = slots.lock(&a).await.unwrap();
        *held = 7;
        slots.lock(&b).await.unwrap();
        let waiting = slots.lock(&a);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        slots.sweep(|_| false);
        drop(held);
        assert_eq!(*waiting.await.unwrap(), 7, "a slot in use is not forgotten");
        slots.sweep(|n| *n == 7);
        assert_eq!(*slots.lock(&a).await.unwrap(), 7, "nor one that matters");
        slots.sweep(|_| false);
        assert_eq!(*slots.lock(&a).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn nothing_begins_after_the_end() {
        let slots = Slots::<u8>::new("test");
        let a = "a".parse().unwrap();
        let held = slots.lock(&a).await.unwrap();
        let late = slots.lock(&a);
        tokio::pin!(late);
        assert!(futures_util::poll!(&mut late).is_pending());
        let all = slots.close();
        assert_eq!(all.len(), 1);
        drop(held);
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(slots.lock(&a).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

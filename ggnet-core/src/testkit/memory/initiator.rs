//! [`MemoryInitiator`]: the initiator's end of a connection to a [`MemoryTargets`](super::MemoryTargets), and [`Link`], the
//! target's end.
//!
//! ```text
//!   open ──logout, drop, close, sever──▶ closed
//! ```
//! Invariant: a command holds the link's lock shared, closing holds it alone: when closing is done no command runs.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    block::BlockDevice,
    error::{Error, ErrorKind, Result},
    nouns::{ResourceId, Timestamp},
    ports::{Clock as _, Connection, Observation, Observer, SystemClock},
};

/// The disks behind a target's LUNs, and whether each refuses writes.
pub(super) type Disks = BTreeMap<u8, (Arc<dyn BlockDevice>, bool)>;

/// Why a login was refused, with the status that an iSCSI target would have sent (RFC 7143 11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// 0301: try again.
    #[error("Service unavailable (0301)")]
    ServiceUnavailable,
    /// 0201: a wrong secret, or none.
    #[error("Authentication failure (0201)")]
    AuthenticationFailure,
    /// 0202: this initiator may not.
    #[error("Authorization failure (0202)")]
    AuthorizationFailure,
    /// 0203: there is no such target.
    #[error("Not found (0203)")]
    NoSuchTarget,
}

/// The target's end of a connection.
pub(super) struct Link {
    pub(super) target: ResourceId,
    pub(super) initiator: String,
    peer: SocketAddr,
    since: Timestamp,
    // Held shared by commands, exclusively for closing.
    commands_in_flight: tokio::sync::RwLock<()>,
    // `None` once closed. Not inside the async lock, so that a dying process can sever it at once.
    disks: Mutex<Option<Disks>>,
    observer: Arc<dyn Observer>,
    read: AtomicU64,
    written: AtomicU64,
    commands: AtomicU64,
    saw_read: AtomicBool,
    saw_write: AtomicBool,
}

impl Link {
    pub(super) fn open(
        target: ResourceId,
        initiator: &str,
        peer: SocketAddr,
        disks: Disks,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            target,
            initiator: initiator.to_owned(),
            peer,
            since: SystemClock.now(),
            commands_in_flight: tokio::sync::RwLock::new(()),
            disks: Mutex::new(Some(disks)),
            observer,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            saw_read: AtomicBool::new(false),
            saw_write: AtomicBool::new(false),
        })
    }

    fn disks(&self) -> std::sync::MutexGuard<'_, Option<Disks>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes it as the death of our process does: nothing is flushed and the observer is not notified.
    pub(super) fn sever(&self) {
        self.disks().take();
    }

    /// Waits for commands in flight, flushes, and closes. When the future is dropped the connection is open or closed.
    pub(super) async fn close(&self, reason: &str) {
        // Held across the flush on purpose: no command may slip in between.
        let _alone = self.commands_in_flight.write().await;
        let disks = self.disks().clone().unwrap_or_default();
        let flush = move || {
            for (disk, read_only) in disks.values() {
                if !read_only && let Err(e) = disk.flush() {
                    tracing::warn!(error = %e, "flushing a disk of a closed connection failed");
                }
            }
        };
        // A panic of a test's device is reported by that test.
        let _ = tokio::task::spawn_blocking(flush).await;
        self.hang_up(reason);
    }

    fn hang_up(&self, reason: &str) {
        if self.disks().take().is_some() {
            let (target, reason) = (self.target.clone(), reason.to_owned());
            self.observer.observe(Observation::Disconnected { target, reason });
        }
    }

    fn disk(&self, lun: u8) -> Result<(Arc<dyn BlockDevice>, bool)> {
        let disks = self.disks();
        let disks = disks.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("The connection to {} is closed", self.target))
        })?;
        disks.get(&lun).cloned().ok_or_else(|| Error::not_found("LUN", lun))
    }

    pub(super) fn connection(&self) -> Connection {
        Connection {
            target: self.target.clone(),
            initiator: self.initiator.clone(),
            peer: Some(self.peer),
            since: Some(self.since),
            bytes_read: self.read.load(Ordering::Relaxed),
            bytes_written: self.written.load(Ordering::Relaxed),
            commands: self.commands.load(Ordering::Relaxed),
            io: None,
        }
    }
}

type Forget = Arc<dyn Fn(&Arc<Link>) + Send + Sync>;

/// An initiator that is logged in. Dropping it breaks the connection; [`logout`](MemoryInitiator::logout) ends it cleanly.
pub struct MemoryInitiator {
    link: Arc<Link>,
    forget: Forget,
}

impl std::fmt::Debug for MemoryInitiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MemoryInitiator").field(&self.link.connection()).finish()
    }
}

impl MemoryInitiator {
    pub(super) fn new(link: Arc<Link>, forget: Forget) -> Self {
        Self { link, forget }
    }

    /// Whether the target still serves it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.disks().is_some()
    }

    /// Reads `len` bytes at `offset` of a LUN. `Unavailable` when the target has closed the connection, `NotFound` for a LUN that
    /// is not there, and the disk's own errors.
    pub async fn read(&self, lun: u8, offset: u64, len: usize) -> Result<Vec<u8>> {
        let read = move |disk: &dyn BlockDevice| {
            let mut buf = vec![0; len];
            disk.read_at(&mut buf, offset).map(|()| buf)
        };
        let bytes = self.command(lun, false, read).await?;
        self.link.read.fetch_add(len as u64, Ordering::Relaxed);
        if !self.link.saw_read.swap(true, Ordering::Relaxed) {
            self.link.observer.observe(Observation::FirstRead { target: self.link.target.clone() });
        }
        Ok(bytes)
    }

    /// Writes at `offset` of a LUN. `Permission` for a read-only one; else as for [`read`](MemoryInitiator::read).
    pub async fn write(&self, lun: u8, offset: u64, data: &[u8]) -> Result<()> {
        let (data, len) = (data.to_vec(), data.len() as u64);
        self.command(lun, true, move |disk: &dyn BlockDevice| disk.write_at(&data, offset)).await?;
        self.link.written.fetch_add(len, Ordering::Relaxed);
        if !self.link.saw_write.swap(true, Ordering::Relaxed) {
            self.link.observer.observe(Observation::FirstWrite { target: self.link.target.clone() });
        }
        Ok(())
    }

    /// SYNCHRONIZE CACHE.
    pub async fn flush(&self, lun: u8) -> Result<()> {
        self.command(lun, false, |disk: &dyn BlockDevice| disk.flush()).await
    }

    /// UNMAP.
    pub async fn discard(&self, lun: u8, offset: u64, len: u64) -> Result<()> {
        self.command(lun, true, move |disk: &dyn BlockDevice| disk.discard(offset, len)).await
    }

    async fn command<T: Send + 'static>(
        &self,
        lun: u8,
        writes: bool,
        work: impl FnOnce(&dyn BlockDevice) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        // Held across the disk's work on purpose: closing waits for it.
        let _in_flight = self.link.commands_in_flight.read().await;
        let (disk, read_only) = self.link.disk(lun)?;
        if writes && read_only {
            return Err(Error::new(ErrorKind::Permission, format!("LUN {lun} is write-protected")));
        }
        self.link.commands.fetch_add(1, Ordering::Relaxed);
        let done = tokio::task::spawn_blocking(move || work(disk.as_ref())).await;
        let done = done.map_err(|e| Error::internal("A disk task died").with_source(e))?;
        let target = &self.link.target;
        done.map_err(|e| {
            let message = format!("LUN {lun}: {e}");
            self.link.observer.observe(Observation::DiskTrouble { target: target.clone(), message });
            Error::io(format!("LUN {lun} of {target}"), e)
        })
    }

    /// Logs out: flushes and closes.
    pub async fn logout(self) {
        self.link.close("The initiator logged out").await;
    }
}

impl Drop for MemoryInitiator {
    fn drop(&mut self) {
        self.link.hang_up("The connection broke");
        (self.forget)(&self.link);
    }
}

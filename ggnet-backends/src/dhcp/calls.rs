//! [`Calls`]: runs the calls of a backend that configures a daemon. Each call completes even if its caller is gone; calls for the same
//! machine run one after the other.

use std::{future::Future, path::PathBuf};

use ggnet_core::{
    error::{Error, Result},
    keyed_locks::KeyedLocks,
    nouns::ResourceId,
    ports::{DhcpChange, DhcpRefusal, Health, apply_each},
};
use rustix::fs::{Access, access};
use tokio_util::task::TaskTracker;

use super::files;
use crate::service::{Service, State};

/// The calls of one backend.
pub(super) struct Calls {
    backend: &'static str,
    turns: KeyedLocks<ResourceId>,
    tasks: TaskTracker,
}

impl Calls {
    /// The calls of the backend with this name, which its errors contain.
    pub(super) fn of(backend: &'static str) -> Self {
        Self { backend, turns: KeyedLocks::default(), tasks: TaskTracker::new() }
    }

    /// Runs `work` to its end.
    pub(super) async fn whole<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        #[expect(clippy::disallowed_methods, reason = "one call, tracked")]
        let done = self.tasks.spawn(work).await;
        let done = done
            .unwrap_or_else(|e| Err(Error::internal("A task of the DHCP backend panicked").with_source(e)));
        done.map_err(|e| e.with_backend(self.backend).with_operation(operation))
    }

    /// Runs `work` when no other call for this machine is running.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        operation: &'static str,
        machine: &ResourceId,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turns.lock(machine).await;
        let work = async move {
            // The guard is held inside the task: the next call waits even if the caller of this one is gone.
            let _turn = turn;
            work.await
        };
        self.whole(operation, work).await
    }

    /// Makes each of these changes when no other call for its machine is running, all of them concurrently.
    pub(super) async fn each<Work>(
        &self,
        changes: &[DhcpChange],
        one: impl Fn(DhcpChange) -> Work,
    ) -> Vec<DhcpRefusal>
    where
        Work: Future<Output = Result<()>> + Send + 'static,
    {
        apply_each(changes, |change| self.in_turn("apply", change.id(), one(change.clone()))).await
    }

    /// Waits for the calls in flight and rejects new ones.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The problem with a daemon or with the folders that we write for it, if any.
pub(super) async fn trouble<const N: usize>(service: &Service, folders: [PathBuf; N]) -> Option<Health> {
    match service.state().await {
        Ok(State::Running) => {}
        Ok(State::Stopped(why) | State::Suspended(why)) => return Some(Health::Down(why)),
        Err(e) => return Some(Health::Down(e.report())),
    }
    // A folder may be on a mount that hangs.
    let looked = files::blocking(move || {
        folders.iter().try_for_each(|dir| {
            let may = access(dir, Access::WRITE_OK | Access::EXEC_OK);
            may.map_err(|e| files::error("Writing to", dir, e.into()))
        })
    });
    looked.await.err().map(|e| Health::Down(e.report()))
}

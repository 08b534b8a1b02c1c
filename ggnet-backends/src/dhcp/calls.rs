//! [`Calls`]: how a backend that writes for a daemon is called: each call goes on to its end, also when its caller goes away, and those
//! for one machine are one after the other.

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
    /// Of the backend with this name, which its errors bear.
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

    /// The same when it is this machine's turn.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        operation: &'static str,
        machine: &ResourceId,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turns.lock(machine).await;
        let work = async move {
            // Held in the work: the next call waits also when this one's caller has gone.
            let _turn = turn;
            work.await
        };
        self.whole(operation, work).await
    }

    /// Each of these changes in its machine's turn, all of them at the same time.
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

    /// Waits for the calls that have begun; no other may begin.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What is wrong with a daemon or with the folders that we write for it.
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

//! [`Process`]: the part that a crash ends. A fixture runs its backend in a separate runtime, so that its tasks can be ended at any point
//! while the test case continues. A system call that has started returns first, as it does when a process is killed.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    time::Duration,
};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::netns;

/// A runtime for one backend.
pub struct Process(Option<Runtime>);

impl Process {
    /// A runtime without tasks.
    pub fn start() -> Self {
        Self::start_with(|| ())
    }

    /// A runtime in a network namespace.
    pub fn start_in(ns: &str) -> Self {
        let ns = ns.to_owned();
        Self::start_with(move || netns::enter(&ns))
    }

    fn start_with(on_thread: impl Fn() + Send + Sync + 'static) -> Self {
        let mut builder = Builder::new_multi_thread();
        Self(Some(builder.worker_threads(2).enable_all().on_thread_start(on_thread).build().unwrap()))
    }

    /// To run things in it.
    pub fn handle(&self) -> Handle {
        self.0.as_ref().expect("not killed yet").handle().clone()
    }

    /// Ends everything in it.
    pub async fn kill(mut self) {
        let runtime = self.0.take().expect("killed once");
        // Waits for system calls, so it must not run here.
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(120)))
            .await
            .unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Polls `call` here, and runs what it spawns in the process: if dropped between two polls, it stops there, as without this function.
pub async fn within<T>(process: &Handle, call: impl Future<Output = T>) -> T {
    let mut call = pin!(call);
    poll_fn(|cx| {
        let _entered = process.enter();
        call.as_mut().poll(cx)
    })
    .await
}

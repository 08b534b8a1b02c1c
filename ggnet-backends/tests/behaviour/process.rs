//! [`Process`]: what a crash ends. A backend of a fixture lives in a runtime of its own, so that its tasks can be ended where they
//! stand while the case goes on. A system call that has begun returns first, as it does when a process is killed.

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
    /// One that runs nothing yet.
    pub fn start() -> Self {
        Self::start_with(|| ())
    }

    /// One that stands in a network namespace.
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
        // Waits for system calls, so not here.
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

/// Polls `call` here, with what it spawns in the process: dropped between two polls it is cut there, as without this.
pub async fn within<T>(process: &Handle, call: impl Future<Output = T>) -> T {
    let mut call = pin!(call);
    poll_fn(|cx| {
        let _entered = process.enter();
        call.as_mut().poll(cx)
    })
    .await
}

//! [`Spawner`]: the thread that starts programs.
//!
//! Why a separate thread: the kernel sends the signal of `PR_SET_PDEATHSIG` when the *thread* that forked ends, not the process. Runtime
//! threads come and go; this thread lives as long as the runner, so a program is killed when the runner or the whole process ends, even by
//! SIGKILL, and never for another reason.

use std::{
    io,
    sync::mpsc::{Sender, channel},
};

use ggnet_core::error::{Error, Result};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

struct Request {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts programs from one long-lived thread, which ends when this value is dropped.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: Sender<Request>,
}

impl Spawner {
    pub(super) fn new() -> Result<Self> {
        let (requests, queue) = channel::<Request>();
        std::thread::Builder::new()
            .name("ggnet-spawn".to_owned())
            .spawn(move || {
                while let Ok(mut request) = queue.recv() {
                    let _entered = request.runtime.enter();
                    let child = request.command.spawn();
                    // The caller is gone: the child is dropped here, and `kill_on_drop` ends it.
                    let _ = request.reply.send(child);
                }
            })
            .map_err(|e| Error::io("starting the thread that starts programs", e))?;
        Ok(Self { requests })
    }

    /// Starts `command`. If the future is dropped, the program is not started, or is killed at once.
    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts programs has ended");
        self.requests.send(Request { command, runtime: Handle::current(), reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

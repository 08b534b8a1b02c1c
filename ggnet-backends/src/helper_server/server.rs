//! The server side of the helper: accepts connections, identifies the caller, and does what [`Duties`] allow.
//!
//! ```text
//!   accept ─▶ caller? ─▶ a whole line within READ ─▶ allowed? ─▶ done ─▶ response within WRITE ─▶ close
//!               └ not allowed ───────────────────────┴ no ──▶ an error, nothing changed
//! ```
//! Changes of the same target wait for each other, those of different targets do not. A change that has started completes, even if its
//! caller is gone.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use ggnet_core::{
    error::{Error, ErrorKind, Result},
    keyed_locks::KeyedLocks,
    nouns::{InstanceId, Iqn, ResourceId},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use super::fence;
use crate::{
    helper::{Action, Answer, MAX_REQUEST, Request, decode, encode, too_long},
    lio::{Op, names::Names, tree::Tree},
    owner::Owner,
    service::Service,
};

/// Time limits for receiving a request and for sending a response.
const READ: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(10);
/// The maximum number of concurrent connections; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Pause after a failed accept, so that a lack of file descriptors does not spin a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a helper may do, and for which user.
pub struct Duties {
    /// The server's user: only this user and root may send requests, and disks are opened with this user's rights.
    pub owner: Owner,
    /// The kernel's target; `None`: the helper does not change it.
    pub target: Option<TargetDuty>,
    /// The daemons that may be queried and (re)started, by the names of their units.
    pub units: BTreeMap<String, Service>,
}

/// Which parts of the kernel's target may be changed.
pub struct TargetDuty {
    root: PathBuf,
    iqn_prefix: Iqn,
    instance_file: PathBuf,
    disks: Vec<PathBuf>,
    instance: OnceLock<InstanceId>,
    turns: KeyedLocks<ResourceId>,
}

impl TargetDuty {
    /// Targets below `root` whose names start with `iqn_prefix` and the instance in `instance_file`, which is read on first use, with disks
    /// below the folders `disks`.
    #[must_use]
    pub fn new(root: PathBuf, iqn_prefix: Iqn, instance_file: PathBuf, disks: Vec<PathBuf>) -> Self {
        let (instance, turns) = (OnceLock::new(), KeyedLocks::default());
        Self { root, iqn_prefix, instance_file, disks, instance, turns }
    }

    /// The instance of this GGnet on the host. Read only once: the server owns the file and could otherwise become another instance later.
    fn instance(&self, owner: &Owner) -> Result<&InstanceId> {
        if let Some(instance) = self.instance.get() {
            return Ok(instance);
        }
        let path = &self.instance_file;
        let text = owner
            .run(|| read_short(path))
            .map_err(|e| Error::io(format!("Reading {}", path.display()), e))?;
        let read = text.trim().parse()?;
        Ok(self.instance.get_or_init(|| read))
    }

    fn load(&self) -> Result<()> {
        let fabric = self.root.join("iscsi");
        match std::fs::create_dir(&fabric) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("The kernel target is not loaded: cannot create {}", fabric.display()),
                )
                .with_reason(e)
                .with_hint("mount -t configfs configfs /sys/kernel/config; modprobe target_core_mod; modprobe iscsi_target_mod"))
            }
            _ => Ok(()),
        }
    }

    fn apply(&self, owner: &Owner, target: &ResourceId, ops: &[Op]) -> Result<()> {
        let names = Names::of(&self.iqn_prefix, self.instance(owner)?, target)?;
        for op in ops {
            fence::judge(&names, &self.disks, op)?;
        }
        fence::look(&self.root, &self.disks, owner, ops)?;
        Tree::at(self.root.clone(), None).with_backing(*owner).apply(ops)
    }
}

/// Reads a file of a few bytes; does not follow a link and does not block.
fn read_short(path: &Path) -> io::Result<String> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    Ok(text)
}

/// Serves `listener` until `stop`, then finishes the requests in flight.
pub async fn serve(listener: UnixListener, duties: Duties, stop: CancellationToken) {
    let (duties, places, tasks) =
        (Arc::new(duties), Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    let take = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let duties = Arc::clone(&duties);
                    #[expect(clippy::disallowed_methods, reason = "one connection, tracked")]
                    tasks.spawn(async move {
                        let _place = place;
                        converse(stream, &duties).await;
                    });
                }
                Err(e) => {
                    tracing::warn!(target: "helper", error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = take => {}
        () = stop.cancelled() => {}
    }
    tasks.close();
    tasks.wait().await;
}

/// Handles one request.
async fn converse(mut stream: UnixStream, duties: &Arc<Duties>) {
    let answer = match question(&mut stream, duties).await {
        Ok(Some(request)) => {
            let shown = summary(&request);
            let done = duties.perform(request).await;
            match &done {
                Ok(_) => tracing::info!(target: "helper", "{shown}"),
                Err(e) => tracing::warn!(target: "helper", error = %e.report(), "{shown}"),
            }
            done
        }
        // The caller closed the connection without a request.
        Ok(None) => return,
        Err(e) => {
            tracing::warn!(target: "helper", error = %e.report(), "rejected a request");
            Err(e)
        }
    };
    let answer = answer.unwrap_or_else(Answer::Failed);
    let Ok(line) = encode(&answer) else { return };
    // The caller does not have to wait for the response.
    let _ = timeout(WRITE, async {
        stream.write_all(&line).await?;
        stream.shutdown().await
    })
    .await;
}

async fn question(stream: &mut UnixStream, duties: &Duties) -> Result<Option<Request>> {
    let peer = stream.peer_cred().map_err(|e| Error::io("Reading the credentials of the caller", e))?;
    if peer.uid() != 0 && peer.uid() != duties.owner.uid.as_raw() {
        let message = format!("User id {} is not allowed to use the helper", peer.uid());
        return Err(Error::new(ErrorKind::Permission, message)
            .with_hint("It accepts root and the server's user (--user of ggnet-helper.service)"));
    }
    let mut line = Zeroizing::new(Vec::with_capacity(16 << 10));
    match timeout(READ, read_line(stream, &mut line)).await {
        Err(_) => Err(Error::new(ErrorKind::Timeout, format!("No complete request within {READ:?}"))),
        Ok(Err(e)) => Err(Error::new(ErrorKind::Invalid, format!("Cannot read the request: {e}"))),
        Ok(Ok(())) if line.is_empty() => Ok(None),
        Ok(Ok(())) => decode(&line).map(Some),
    }
}

/// Reads up to the first newline, or to the end; bytes after the newline are kept, and rejected.
async fn read_line(stream: &mut UnixStream, line: &mut Vec<u8>) -> io::Result<()> {
    let mut seen = 0;
    while stream.read_buf(line).await? > 0 {
        if line[seen..].contains(&b'\n') {
            break;
        }
        if line.len() >= MAX_REQUEST {
            return Err(too_long(MAX_REQUEST));
        }
        seen = line.len();
    }
    Ok(())
}

/// The log text of a request: without values of attributes.
fn summary(request: &Request) -> String {
    match request {
        Request::LoadTarget => "load the kernel's iSCSI target".to_owned(),
        Request::Apply { target, ops } => format!("{} changes of target {target}", ops.len()),
        Request::Unit { unit, action } => format!("{action:?} of unit {unit:?}"),
    }
}

impl Duties {
    async fn perform(self: &Arc<Self>, request: Request) -> Result<Answer> {
        match request {
            Request::LoadTarget => {
                self.blocking(|_, duty| duty.load()).await?;
                Ok(Answer::Done)
            }
            Request::Apply { target, ops } => {
                // Held to the end: the next list of changes of this target starts from the result of this one.
                let _turn = self.target()?.turns.lock(&target).await;
                self.blocking(move |owner, duty| duty.apply(owner, &target, &ops)).await?;
                Ok(Answer::Done)
            }
            Request::Unit { unit, action } => {
                let service = self.units.get(&unit).ok_or_else(|| not_ours(&unit))?;
                match action {
                    Action::State => return Ok(Answer::State(service.state().await?)),
                    Action::Start => service.start().await?,
                    Action::Restart => service.restart().await?,
                }
                Ok(Answer::Done)
            }
        }
    }

    fn target(&self) -> Result<&TargetDuty> {
        self.target.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Permission, "This helper is not configured to change the kernel's target")
                .with_hint("Its configuration has no [target] backend = \"lio-configfs\"; set it, then: systemctl restart ggnet-helper")
        })
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Owner, &TargetDuty) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let duties = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&duties.owner, duties.target()?)).await;
        done.map_err(|e| Error::internal("A task of the helper panicked").with_source(e))?
    }
}

fn not_ours(unit: &str) -> Error {
    Error::new(ErrorKind::Permission, format!("The helper does not manage unit {unit:?}"))
        .with_hint("systemctl edit ggnet-helper: add it with --unit in ExecStart=")
}

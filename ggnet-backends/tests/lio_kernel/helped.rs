//! The backend of a server that is not root: it reads the kernel's tree as another user, and the helper changes the tree.

use std::{
    fs,
    future::{Future, poll_fn},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
};

use async_trait::async_trait;
use ggnet_backends::{
    helper_server::{Duties, TargetDuty, serve},
    owner::Owner,
    target::lio_configfs::{Hook, LioConfig, LioConfigfs},
};
use ggnet_core::{
    block::Disk,
    error::{ErrorKind, Result},
    nouns::ResourceId,
    ports::{
        Connection, Health, Listed, LoginGate, LunDisks, Observer, Removal, TargetBackend,
        TargetCapabilities, TargetEndpoint, TargetSpec,
    },
    testkit::suite::{Fixture as _, TargetFixture as _, instance, iqn_prefix},
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::{
    net::UnixListener,
    runtime::{Builder, Handle, Runtime},
};
use tokio_util::sync::CancellationToken;

use crate::kernel::{Kernel, assert_same, block_on, pristine, spec, tree};

/// nobody.
const USER: u32 = 65_534;

/// A helper, and threads that do not run as root.
pub struct Helped {
    socket: PathBuf,
    root: Option<Runtime>,
    user: Option<Runtime>,
}

impl Helped {
    /// A helper for disks in `dir`, to which the user then has access.
    pub fn start(dir: &Path) -> Self {
        let socket = dir.join("helper.sock");
        let instance_file = dir.join("instance");
        fs::File::create(&instance_file)
            .and_then(|mut f| io::Write::write_all(&mut f, instance().to_string().as_bytes()))
            .unwrap();
        let root = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = {
            let _in_it = root.enter();
            UnixListener::bind(&socket).unwrap()
        };
        for (path, mode) in [(dir, 0o755), (&socket, 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let tree = LioConfig::default().root;
        let target = TargetDuty::new(tree, iqn_prefix(), instance_file, vec![dir.to_owned()]);
        let duties = Duties {
            owner: Owner::new(USER, USER),
            target: Some(target),
            units: std::collections::BTreeMap::new(),
        };
        root.spawn(serve(listener, duties, CancellationToken::new()));
        let mut user = Builder::new_multi_thread();
        user.worker_threads(2).enable_all().on_thread_start(|| {
            let (uid, gid) = (rustix::fs::Uid::from_raw(USER), rustix::fs::Gid::from_raw(USER));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
        });
        Self { socket, root: Some(root), user: Some(user.build().unwrap()) }
    }

    /// Gives a file to the user.
    pub fn own(path: &Path) {
        chown(path, Some(USER), Some(USER)).unwrap();
    }

    pub fn open(&self, hook: Hook) -> Arc<dyn TargetBackend> {
        let user = self.user.as_ref().expect("it runs").handle().clone();
        let config = LioConfig { helper: Some(self.socket.clone()), ..LioConfig::default() };
        let (done, started) = std::sync::mpsc::channel();
        user.spawn_blocking(move || {
            assert!(!rustix::process::geteuid().is_root());
            done.send(LioConfigfs::start_hooked(config, iqn_prefix(), instance(), Some(hook)))
        });
        Arc::new(Unprivileged { backend: started.recv().unwrap().unwrap(), user })
    }
}

impl Drop for Helped {
    fn drop(&mut self) {
        for runtime in [self.user.take(), self.root.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

/// A backend whose work runs on threads without root.
struct Unprivileged {
    backend: LioConfigfs,
    user: Handle,
}

impl Unprivileged {
    /// Polls `call` here, and runs what it spawns on the user's threads: if dropped between two polls, it stops there, as without this
    /// function.
    async fn within<T>(&self, call: impl Future<Output = T>) -> T {
        let mut call = pin!(call);
        poll_fn(|cx| {
            let _entered = self.user.enter();
            call.as_mut().poll(cx)
        })
        .await
    }
}

#[async_trait]
impl TargetBackend for Unprivileged {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn capabilities(&self) -> TargetCapabilities {
        self.backend.capabilities()
    }

    fn attach(&self, gate: Arc<dyn LoginGate>, observer: Arc<dyn Observer>) {
        self.backend.attach(gate, observer);
    }

    async fn ensure(&self, spec: &TargetSpec, disks: &LunDisks) -> Result<TargetEndpoint> {
        self.within(self.backend.ensure(spec, disks)).await
    }

    async fn endpoint(&self, id: &ResourceId) -> Result<Option<TargetEndpoint>> {
        self.within(self.backend.endpoint(id)).await
    }

    async fn get(&self, id: &ResourceId) -> Result<Option<Listed>> {
        self.within(self.backend.get(id)).await
    }

    async fn remove(&self, id: &ResourceId, how: Removal) -> Result<()> {
        self.within(self.backend.remove(id, how)).await
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.within(self.backend.list()).await
    }

    async fn connections(&self) -> Result<Vec<Connection>> {
        self.within(self.backend.connections()).await
    }

    async fn health(&self) -> Health {
        self.within(self.backend.health()).await
    }

    async fn shutdown(&self) {
        self.within(self.backend.shutdown()).await;
    }
}

#[test]
fn a_disk_that_the_servers_user_may_not_open_is_not_opened_for_it_by_the_kernel() {
    let kernel = Kernel::by_the_helper();
    block_on(async {
        let port = kernel.fresh().await;
        let Disk::File { path, .. } = kernel.disk("roots", 1 << 20).await else { panic!("a file") };
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let spec = spec(&path, 1, None);
        let e = port.ensure(&spec, &spec.disks).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Permission, "{e}");
        assert_same(&tree(), &pristine(), "nothing is left of it");
        Helped::own(&path);
        let endpoint = port.ensure(&spec, &spec.disks).await.unwrap();
        let client = kernel.connect(&endpoint, &spec.access).await.unwrap();
        client.write(0, &[7; 512]).await.unwrap();
        client.logout().await.unwrap();
        port.remove(&spec.id, Removal::Force).await.unwrap();
        assert_same(&tree(), &pristine(), "nor of the one that was served");
    });
}

#[test]
fn a_secret_that_may_not_be_read_is_changed_all_the_same() {
    let kernel = Kernel::by_the_helper();
    block_on(async {
        let port = kernel.fresh().await;
        let Disk::File { path, .. } = kernel.disk("secret", 1 << 20).await else { panic!("a file") };
        let (old, mut new) =
            (spec(&path, 1, Some("TopSecret1234567")), spec(&path, 1, Some("Other12345678901")));
        (new.id, new.iqn) = (old.id.clone(), old.iqn.clone());
        let endpoint = port.ensure(&old, &old.disks).await.unwrap();
        kernel.connect(&endpoint, &old.access).await.unwrap().logout().await.unwrap();
        port.ensure(&new, &new.disks).await.unwrap();
        kernel.connect(&endpoint, &old.access).await.map(drop).expect_err("the old secret is worth nothing");
        kernel.connect(&endpoint, &new.access).await.unwrap().logout().await.unwrap();
        let mut open = new.clone();
        open.access = spec(&path, 1, None).spec.access;
        port.ensure(&open, &open.disks).await.unwrap();
        kernel.connect(&endpoint, &open.access).await.unwrap().logout().await.unwrap();
    });
}

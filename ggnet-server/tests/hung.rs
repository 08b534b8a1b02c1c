//! The whole server over a folder that never answers (a FUSE file system whose process is stopped), and over backends of which one
//! cannot be made.

#![expect(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod support;

use std::{
    fs::File,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use ggnet_core::{
    Error, ErrorKind, Result,
    nouns::{Firmware, ImageId, Machine, MachineId, MachineState, Principal, WritebackPolicy},
    orchestrator::{Orchestrator, StartRequest, Started},
    ports::{Clock as _, SystemClock},
    registry::{Descriptor, Registry},
    testkit::{
        flaky::{FaultPlan, Flaky},
        memory::{
            MemoryBootFiles, MemoryConverter, MemoryDhcp, MemoryImages, MemoryStore, MemoryTargets,
            MemoryWritebacks,
        },
    },
};
use ggnet_server::{config::Config, serve::Server};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use support::{FOR_EVER, get, image, until};

// A folder that never answers.

/// An ext4 in a file, served by fuse2fs; it ends with the test.
struct Fuse {
    child: Child,
    at: std::path::PathBuf,
}

#[expect(clippy::disallowed_methods, reason = "the tools of the host")]
fn tool(package: &str, program: &str, arguments: &[&str]) -> Child {
    // What is not root's PATH on Debian.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let child = Command::new(program).args(arguments).env("PATH", path).spawn();
    child.unwrap_or_else(|e| panic!("{program}: {e}; apt-get install {package}"))
}

impl Fuse {
    fn mount(image: &Path, at: &Path) -> Self {
        File::create(image).unwrap().set_len(64 << 20).unwrap();
        let (image, shown) = (image.to_str().unwrap(), at.to_str().unwrap());
        assert!(tool("e2fsprogs", "mkfs.ext4", &["-q", "-F", image]).wait().unwrap().success());
        let arguments = ["--pdeathsig", "KILL", "fuse2fs", "-f", image, shown, "-o", "fakeroot"];
        let child = tool("fuse2fs", "setpriv", &arguments);
        let mut this = Self { child, at: at.to_owned() };
        for _ in 0..3000 {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            if mounts.lines().any(|line| line.split(' ').nth(1) == Some(shown)) {
                return this;
            }
            if let Some(status) = this.child.try_wait().unwrap() {
                panic!(
                    "fuse2fs: {status}; apt-get install fuse2fs, and as root or where user namespaces may mount FUSE"
                );
            }
            sleep(Duration::from_millis(10));
        }
        panic!("fuse2fs never mounted {shown}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        // On a busy host some of its threads go on for a while, and still answer.
        while signal == Signal::STOP && !self.is_stopped() {
            sleep(Duration::from_millis(1));
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut states = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")));
        states.all(|stat| stat.unwrap().rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Whoever waits for it gets an error now.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = tool("mount", "umount", &["-l", self.at.to_str().unwrap()]).wait();
    }
}

/// A file system in memory with far more room than is used of it, so that the room on the host's disk says nothing about the server under test; it ends with the test.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Self {
        let arguments = ["-t", "tmpfs", "-o", "size=4g,mode=0700", "tmpfs", at.to_str().unwrap()];
        assert!(tool("mount", "mount", &arguments).wait().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = tool("mount", "umount", &["-l", self.0.to_str().unwrap()]).wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing else runs on this thread")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

const UNSHARED: &str = "GGNET_TEST_UNSHARED";

/// Runs `body` with the right to mount; `test` is the calling test's name.
#[expect(clippy::disallowed_methods, reason = "the tools of the host")]
fn with_mounts(test: &str, body: impl Future<Output = ()>) {
    if geteuid().is_root() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        return runtime.worker_threads(2).enable_all().build().unwrap().block_on(body);
    }
    assert!(std::env::var_os(UNSHARED).is_none(), "unshare made nobody root");
    let exe = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["-Urm", exe.to_str().unwrap(), "--exact", test, "--nocapture"])
        .env(UNSHARED, "1")
        .status()
        .unwrap_or_else(|e| panic!("unshare: {e}; apt-get install util-linux"));
    assert!(status.success(), "as root, or where user namespaces are allowed");
}

async fn machine(o: &Orchestrator, n: u8, image: ImageId) -> Machine {
    let now = SystemClock.now();
    let machine = Machine {
        id: MachineId::generate(),
        name: format!("pc-{n}").parse().unwrap(),
        description: String::new(),
        macs: vec![format!("52:54:00:00:00:{n:02x}").parse().unwrap()],
        device_type: Default::default(),
        firmware: Firmware::Unknown,
        fixed_address: None,
        groups: vec![],
        state: MachineState::Active,
        image: Some(image),
        pinned_version: None,
        auto_start: false,
        writeback: WritebackPolicy::Discard,
        created_at: now,
        updated_at: now,
        revision: 0,
    };
    o.machines().create(machine, &Principal::embedder()).await.unwrap()
}

async fn start(o: &Orchestrator, machine: &Machine) -> Result<Started> {
    let start = o.sessions().start(StartRequest {
        machine: machine.id,
        image: None,
        data_disks: vec![],
        by: Principal::embedder(),
    });
    tokio::time::timeout(FOR_EVER, start).await.expect("a start has a limit")
}

#[test]
fn a_folder_that_never_answers_stops_neither_the_api_nor_the_shutdown() {
    with_mounts("a_folder_that_never_answers_stops_neither_the_api_nor_the_shutdown", async {
        let dir = tempfile::tempdir().unwrap();
        let _room = Tmpfs::mount(dir.path());
        let data = dir.path().join("data");
        let writebacks = data.join("writebacks");
        std::fs::create_dir_all(&writebacks).unwrap();
        let fuse = Fuse::mount(&dir.path().join("ext4"), &writebacks);
        let text = format!(
            "data_dir = {data:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[target]\nlisten = [\"127.0.0.1:0\"]\n\
             [limits.writeback]\nread = 6\nchange = 6\nhealth = 1\nshutdown = 2\n"
        );
        let mut registry = Registry::new();
        ggnet_backends::register(&mut registry);
        let server = Server::start(&Config::parse(&text, "test").unwrap(), &registry).await.unwrap();
        let (o, http) = (server.orchestrator.clone(), server.http);
        let token = server.new_token.as_ref().unwrap().expose().to_owned();
        until("it serves", async || o.is_serving()).await;
        let image = image(&o, "debian").await.0;
        let (one, two) = (machine(&o, 1, image).await, machine(&o, 2, image).await);
        start(&o, &one).await.unwrap();

        fuse.signal(Signal::STOP);
        let e = start(&o, &two).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Timeout, "{}", e.report());
        assert!(e.message().contains("writeback layers ensure"), "{e}");
        // Everything else goes on, and says which port it is.
        let three = machine(&o, 3, image).await;
        let listed = get(http, "/api/v1/machines", &token).await;
        assert!(listed.contains(three.name.as_str()), "{listed}");
        let health: serde_json::Value =
            serde_json::from_str(&get(http, "/health/ready", &token).await).unwrap();
        assert_eq!(health["ready"], false, "{health}");
        for backend in health["backends"].as_array().unwrap() {
            let writeback = backend["port"] == "writeback";
            assert_eq!(backend["status"], if writeback { "down" } else { "up" }, "{health}");
            assert!(!writeback || backend["reason"].as_str().unwrap().contains("Look at"), "{health}");
        }
        let metrics = get(http, "/metrics", &token).await;
        let ports = "port=\"writeback\",backend=\"layers\"";
        let counted = format!("ggnet_port_calls_total{{{ports},operation=\"ensure\",outcome=\"timeout\"}} 1");
        assert!(metrics.lines().any(|line| line == counted), "{metrics}");
        let overdue = format!("ggnet_port_calls_overdue{{{ports}}} ");
        let hanging = |metrics: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(&overdue).map(str::to_owned));
            line.unwrap_or_else(|| panic!("{metrics}")).parse::<u64>().unwrap()
        };
        assert!(hanging(&metrics) > 0, "{metrics}");
        assert!(metrics.contains("ggnet_sessions{state=\"active\"} 1"), "{metrics}");

        // It answers again: what hung has ended, and what was given up is cleared away.
        fuse.signal(Signal::CONT);
        until("all calls end", async || hanging(&get(http, "/metrics", &token).await) == 0).await;
        let started = start(&o, &two).await;
        started.unwrap_or_else(|e| panic!("the folder answers again: {}", e.report()));

        fuse.signal(Signal::STOP);
        start(&o, &three).await.unwrap_err();
        tokio::time::timeout(Duration::from_secs(80), server.stop()).await.expect("the stop ends");
        drop(fuse);
    });
}

// A backend that cannot be made.

/// The ports in the order in which they are made.
const ORDER: [&str; 7] = ["store", "target", "image", "writeback", "dhcp", "boot_file", "image_converter"];

fn refused<T>(port: &str, fails: &str, backend: T) -> Result<T> {
    if port == fails { Err(Error::new(ErrorKind::Unavailable, "It cannot be made")) } else { Ok(backend) }
}

macro_rules! add {
    ($factories:expr, $name:literal, $port:literal, $fails:expr, $plan:expr, $new:expr) => {{
        let (plan, fails) = ($plan.clone(), $fails.to_owned());
        $factories.add(Descriptor::new($name, move |_, _| {
            let backend = refused($port, &fails, Flaky::new(Arc::new($new), &plan));
            async move { backend.map(|b| Arc::new(b) as _) }
        }));
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_backend_cannot_be_made_those_before_it_are_shut_down() {
    for fails in ORDER.into_iter().chain(["templates"]) {
        let (plan, mut registry) = (FaultPlan::new(), Registry::new());
        add!(registry.stores, "sqlite", "store", fails, plan, MemoryStore::new());
        add!(registry.targets, "builtin", "target", fails, plan, MemoryTargets::new());
        add!(registry.images, "files", "image", fails, plan, MemoryImages::new());
        add!(registry.writebacks, "layers", "writeback", fails, plan, MemoryWritebacks::new());
        add!(registry.dhcp, "proxy", "dhcp", fails, plan, MemoryDhcp::new());
        add!(registry.boot_files, "builtin", "boot_file", fails, plan, MemoryBootFiles::new());
        add!(registry.converters, "qemu-img", "image_converter", fails, plan, MemoryConverter::new());
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        config.http.listen = "127.0.0.1:0".parse().unwrap();
        if fails == "templates" {
            config.templates_dir = Some(dir.path().join("not-there"));
        }
        assert!(Server::start(&config, &registry).await.is_err(), "{fails}");
        let made = ORDER.into_iter().take_while(|port| *port != fails);
        // The converter has nothing to close.
        let mut expected: Vec<_> = made.filter(|port| *port != "image_converter").collect();
        expected.reverse();
        let ended: Vec<_> =
            plan.log().into_iter().filter(|op| op.name == "shutdown").map(|op| op.port).collect();
        assert_eq!(ended, expected, "{fails} failed");
    }
}

//! Network namespaces for tests: a server, a client and another host on one bridged link without a connection to the outside.
//!
//! A thread enters a namespace, and everything that it opens or starts is in it. Without root a test runs itself again with `unshare
//! -Urnm`; if that is forbidden, the failure says so.

use std::{
    fs::File,
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const UNSHARED: &str = "GGNET_TEST_UNSHARED";
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs `body` with permission to create namespaces; `test` is the calling test's name.
pub fn with_namespaces(test: &str, body: impl FnOnce()) {
    if rustix::process::geteuid().is_root() {
        if std::env::var_os(UNSHARED).is_some() {
            run("mount", "mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        }
        return body();
    }
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-Urnm", exe.to_str().unwrap(), "--exact", test, "--nocapture"])
        .env(UNSHARED, "1")
        .output()
        .unwrap_or_else(|e| panic!("unshare: {e}; apt-get install util-linux"));
    assert!(
        output.status.success(),
        "as root, or where user namespaces are allowed (sysctl kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns): {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a program to its end and returns its output; fails the test if the program fails.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; apt-get install {package}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A program that ends with the test.
pub struct Running(Child);

impl Running {
    /// Starts it in the calling thread's namespace.
    pub fn start(package: &str, program: &str, arguments: &[String]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}; apt-get install {package}"));
        Self(child)
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `server` has the bridge br0 with 10.77.0.1/24; `client` has eth0 without an address; `other` has eth0 with 10.77.0.2/24.
pub struct Link {
    pub server: String,
    pub client: String,
    pub other: String,
}

impl Link {
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("gg{}-{number}-{role}", std::process::id());
        let link = Self { server: name("srv"), client: name("cli"), other: name("oth") };
        let ip = |line: &str| {
            run("iproute2", "ip", &line.split(' ').collect::<Vec<_>>());
        };
        for ns in [&link.server, &link.client, &link.other] {
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link set lo up"));
        }
        let s = &link.server;
        ip(&format!("-n {s} link add br0 type bridge"));
        for (ns, port) in [(&link.client, "pc"), (&link.other, "oth")] {
            ip(&format!("-n {s} link add {port} type veth peer name eth0 netns {ns}"));
            ip(&format!("-n {s} link set {port} master br0 up"));
            ip(&format!("-n {ns} link set eth0 up"));
        }
        ip(&format!("-n {s} addr add 10.77.0.1/24 dev br0"));
        ip(&format!("-n {s} link set br0 up"));
        ip(&format!("-n {} addr add 10.77.0.2/24 dev eth0", link.other));
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for ns in [&self.server, &self.client, &self.other] {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

/// A thread inside a namespace.
pub fn thread<T: Send + 'static>(ns: &str, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let ns = ns.to_owned();
    std::thread::spawn(move || {
        enter(&ns);
        body()
    })
}

/// Moves the calling thread into a namespace.
pub fn enter(ns: &str) {
    let file = File::open(format!("/run/netns/{ns}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Runs `body` inside a namespace to its end.
pub fn inside<T: Send + 'static>(ns: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    thread(ns, body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

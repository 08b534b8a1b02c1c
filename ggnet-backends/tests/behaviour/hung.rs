//! Daemons, programs and buses that hang, behind the limits of [`Ports`]: the call ends, health names the cause, and an operation that was
//! not done is not reported as done.
#![expect(clippy::disallowed_methods, reason = "the tests run themselves again, with a bus that hangs")]

use std::{os::unix::net::UnixListener, path::Path, process::Command, sync::Arc, time::Duration};

use ggnet_backends::{
    dhcp::dnsmasq::{Dnsmasq, DnsmasqConfig, Mode},
    run::SystemRunner,
    service::{Manager, ServiceConfig},
};
use ggnet_core::{
    ErrorKind,
    metrics::Registry,
    orchestrator::{Backends, Ports},
    ports::{DhcpBackend, DhcpBackendExt as _, Health, SystemClock},
    testkit::{
        memory::{
            MemoryBootFiles, MemoryConverter, MemoryImages, MemoryStore, MemoryTargets, MemoryWritebacks,
        },
        suite::{instance, run},
    },
    wrap::PortLimits,
};

use crate::native_dhcp::host;

/// This DHCP backend with limits of that many seconds, and otherwise backends in memory.
fn limited(dhcp: Arc<dyn DhcpBackend>, seconds: u64) -> Ports {
    let (mut limits, limit) = (PortLimits::default(), Duration::from_secs(seconds));
    limits.dhcp.read = limit;
    limits.dhcp.change = limit;
    limits.dhcp.health = limit;
    limits.dhcp.shutdown = limit;
    let backends = Backends {
        store: Arc::new(MemoryStore::new()),
        target: Arc::new(MemoryTargets::new()),
        writeback: Arc::new(MemoryWritebacks::new()),
        images: Arc::new(MemoryImages::new()),
        dhcp,
        boot_files: Arc::new(MemoryBootFiles::new()),
        converter: Arc::new(MemoryConverter::new()),
        clock: Arc::new(SystemClock),
    };
    Ports::new(backends, &limits, &mut Registry::default()).unwrap()
}

/// A daemon stopped by SIGSTOP, until this is dropped.
pub struct Suspended(rustix::process::Pid);

impl Suspended {
    /// The daemon of a pid file.
    pub fn by(pid_file: &Path) -> Self {
        let pid = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let this = Self(pid);
        // The signal is delivered with a delay.
        let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::yield_now();
        }
        this
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        // It may have been killed in the meantime.
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

/// A suspended daemon is down and named in health, accepts no machine, and is up again once it is continued; a removal does not wait for
/// that, because it restarts the daemon.
pub async fn suspended(dhcp: Arc<dyn DhcpBackend>, pid_file: &Path, removed: Duration) {
    dhcp.ensure(&host(11)).await.unwrap();
    let stopped = Suspended::by(pid_file);
    let ports = limited(Arc::clone(&dhcp), 15);
    let health = ports.dhcp().health().await;
    let Health::Down(why) = &health else { panic!("{health:?}") };
    assert!(why.contains("suspended") && why.contains("kill -CONT"), "{why}");
    let e = ports.dhcp().ensure(&host(12)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "it was not told: {}", e.report());
    assert_eq!(ports.dhcp().list().await.unwrap().len(), 1);
    drop(stopped);
    ports.dhcp().ensure(&host(12)).await.unwrap();
    assert_eq!(ports.dhcp().health().await, Health::Up);

    // It does not exit when asked to, and is killed after 20 s: longer than the limit here. The removal still completes.
    let _stopped = Suspended::by(pid_file);
    let id = host(11).id;
    let e = ports.dhcp().remove(&id).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{}", e.report());
    let e = ports.dhcp().ensure(&host(11)).await.unwrap_err();
    assert!(e.message().contains("still busy with an earlier call"), "{e}");
    let gone = async {
        while ports.dhcp().remove(&id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(removed, gone).await.expect("the daemon was killed and started");
    assert_eq!(ports.dhcp().health().await, Health::Up);
    let left = ports.dhcp().list().await.unwrap();
    assert!(left.iter().map(|l| &l.id).eq([&host(12).id]), "{left:?}");
}

const BUS: &str = "DBUS_SYSTEM_BUS_ADDRESS";

#[test]
fn a_d_bus_that_takes_connections_and_never_answers_costs_a_limit() {
    let name = "hung::a_d_bus_that_takes_connections_and_never_answers_costs_a_limit";
    if std::env::var_os(BUS).is_some_and(|bus| bus.to_string_lossy().contains("ggnet-hung-bus")) {
        return run(under_a_bus_that_hangs());
    }
    let dir = tempfile::Builder::new().prefix("ggnet-hung-bus").tempdir().unwrap();
    let socket = dir.path().join("bus");
    // Its backlog accepts the connections; no process reads.
    let _bus = UnixListener::bind(&socket).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(BUS, format!("unix:path={}", socket.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

async fn under_a_bus_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let config = DnsmasqConfig {
        mode: Mode::Proxy,
        hosts_dir: dir.path().join("hosts"),
        options_dir: dir.path().join("options"),
        service: ServiceConfig { manager: Manager::Systemd, ..ServiceConfig::default() },
        ..DnsmasqConfig::default()
    };
    let runner = Arc::new(SystemRunner::new().unwrap());
    let dnsmasq = Arc::new(Dnsmasq::open(config, &instance(), runner).await.unwrap());
    let ports = limited(Arc::clone(&dnsmasq) as Arc<dyn DhcpBackend>, 2);
    let dhcp = ports.dhcp();
    let e = dhcp.ensure(&host(11)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{}", e.report());
    let health = dhcp.health().await;
    let Health::Down(why) = &health else { panic!("{health:?}") };
    assert!(why.contains("dhcp dnsmasq health") && why.contains("apply of"), "{why}");
    // Files are read without the bus.
    assert!(dhcp.list().await.unwrap().is_empty());
    // The backend has its own limit for the bus: nothing hangs forever, and the error names the cause.
    let alone = tokio::time::timeout(Duration::from_secs(120), dnsmasq.ensure(&host(12))).await;
    let e = alone.expect("the backend's own limit").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
    assert!(e.message().contains("No response from the system's D-Bus"), "{e}");
    tokio::time::timeout(Duration::from_secs(60), ports.shutdown()).await.expect("the ports close");
}

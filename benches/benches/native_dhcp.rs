//! How long the DHCP backends take to tell a daemon of a machine: dnsmasq, ISC's dhcpd by restart, and ISC's dhcpd by OMAPI.
//!
//! The real daemons run the configurations of `infra/examples` in a network namespace of their own; the rounds of the three are
//! interleaved. A call ends when the next request would be answered by it. systemd is not in it: what a unit's start and stop cost
//! comes on top of a restart. Nothing is asserted about time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "files that are thrown away")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ggnet_backends::dhcp::dnsmasq::{Dnsmasq, DnsmasqConfig};
use ggnet_backends::dhcp::isc_dhcpd::{IscDhcpd, IscDhcpdConfig, KeyAlgorithm, OmapiConfig};
use ggnet_backends::run::SystemRunner;
use ggnet_backends::service::{Manager, ServiceConfig};
use ggnet_benches::{TABLE, Times, heading};
use ggnet_core::nouns::{DeviceType, InstanceId, MacAddr};
use ggnet_core::ports::{DhcpBackend, DhcpBackendExt as _, DhcpHost};
use ggnet_tests::process;

const INSIDE: &str = "GGNET_BENCH_INSIDE";
const ROUNDS: usize = 10;
const AT_ONCE: u8 = 100;
const US: &str = "192.0.2.1";

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        let mut command = process::command("unshare");
        command.arg(if rustix::process::geteuid().is_root() { "-n" } else { "-Urn" });
        let status = command.arg(std::env::current_exe().unwrap()).env(INSIDE, "1").status();
        assert!(status.unwrap().success(), "a network namespace of its own");
        return;
    }
    for (program, package) in [("ip", "iproute2"), ("dnsmasq", "dnsmasq-base"), ("dhcpd", "isc-dhcp-server")]
    {
        process::tool(program, package).unwrap();
    }
    let ip = |line: &str| process::run(process::command("ip").args(line.split(' '))).unwrap();
    for line in
        ["link set lo up", "link add br0 type bridge", "addr add 192.0.2.1/24 dev br0", "link set br0 up"]
    {
        ip(line);
    }
    println!("{}", heading("cargo bench -p ggnet-benches --bench native_dhcp"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

/// One backend with a daemon of its own, and what its calls took.
struct Contender {
    name: &'static str,
    backend: Arc<dyn DhcpBackend>,
    pid_file: PathBuf,
    add: Vec<Duration>,
    change: Vec<Duration>,
    remove: Vec<Duration>,
    add_all: Vec<Duration>,
    remove_all: Vec<Duration>,
}

impl Drop for Contender {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.pid_file).unwrap_or_default();
        let _ = process::command("kill").arg(pid.trim()).status();
    }
}

async fn measure() {
    let dir = tempfile::Builder::new().prefix("ggnet-bench-").tempdir().unwrap();
    let dir = dir.path();
    let instance: InstanceId = "0ddba11e".parse().unwrap();
    let runner = Arc::new(SystemRunner::new().unwrap());
    let dnsmasq = Dnsmasq::open(dnsmasq(&dir.join("dnsmasq")), &instance, runner.clone()).await.unwrap();
    let mut contenders = vec![contender("dnsmasq", dnsmasq, &dir.join("dnsmasq"))];
    for (name, by_omapi) in [("isc-dhcpd, restart", false), ("isc-dhcpd, OMAPI", true)] {
        let dir = dir.join(if by_omapi { "omapi" } else { "restart" });
        let backend = IscDhcpd::open(dhcpd(&dir, by_omapi), &instance, runner.clone()).await.unwrap();
        contenders.push(contender(name, backend, &dir));
    }
    for _ in 0..ROUNDS {
        for c in &mut contenders {
            round(c).await;
        }
    }
    println!("{TABLE}");
    for c in &mut contenders {
        for (what, times) in [
            ("one machine added", &mut c.add),
            ("one machine changed", &mut c.change),
            ("one machine removed", &mut c.remove),
            ("100 added at once, all", &mut c.add_all),
            ("100 removed at once, all", &mut c.remove_all),
        ] {
            println!("{}", Times::new(std::mem::take(times)).row(&format!("{}: {what}", c.name), "-"));
        }
    }
}

fn contender(name: &'static str, backend: impl DhcpBackend, dir: &Path) -> Contender {
    let (add, change, remove, add_all, remove_all) = Default::default();
    let pid_file = dir.join("pid");
    Contender { name, backend: Arc::new(backend), pid_file, add, change, remove, add_all, remove_all }
}

async fn round(c: &mut Contender) {
    let one = host(250);
    let changed = DhcpHost { fixed_address: None, ..one.clone() };
    c.add.push(timed(c.backend.ensure(&one)).await);
    c.change.push(timed(c.backend.ensure(&changed)).await);
    c.remove.push(timed(c.backend.remove(&one.id)).await);
    let hosts: Vec<DhcpHost> = (100..100 + AT_ONCE).map(host).collect();
    for adds in [true, false] {
        let begun = Instant::now();
        let tasks: Vec<_> = hosts
            .iter()
            .map(|host| {
                let (backend, host) = (Arc::clone(&c.backend), host.clone());
                tokio::spawn(async move {
                    match adds {
                        true => backend.ensure(&host).await,
                        false => backend.remove(&host.id).await,
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        if adds { &mut c.add_all } else { &mut c.remove_all }.push(begun.elapsed());
    }
}

async fn timed(call: impl Future<Output = ggnet_core::Result<()>>) -> Duration {
    let begun = Instant::now();
    call.await.unwrap();
    begun.elapsed()
}

fn host(n: u8) -> DhcpHost {
    DhcpHost {
        id: format!("m{n}").parse().unwrap(),
        name: format!("pc-{n}").parse().unwrap(),
        macs: vec![MacAddr::new([0x52, 0x54, 0, 0xaa, 0, n]).unwrap()],
        fixed_address: Some(std::net::Ipv4Addr::new(192, 0, 2, n).into()),
        device_type: DeviceType::X64,
    }
}

/// An example with other lines in it.
fn example(name: &str, dir: &Path, changes: &[(&str, &str)]) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/examples").join(name);
    let text = std::fs::read_to_string(source).unwrap();
    let text = changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{name} has {from}");
        text.replace(from, to)
    });
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn service(dir: &Path, command: Vec<String>) -> ServiceConfig {
    ServiceConfig {
        manager: Manager::Process,
        pid_file: Some(dir.join("pid")),
        command: Some(command),
        ..ServiceConfig::default()
    }
}

fn dnsmasq(dir: &Path) -> DnsmasqConfig {
    let changes =
        [("/var/lib/ggnet-dhcp/dnsmasq", dir.to_str().unwrap()), ("interface=eth0", "interface=br0")];
    let conf = example("dnsmasq.conf", dir, &changes);
    let me = if rustix::process::geteuid().is_root() { "root" } else { "" };
    let command = vec![
        "dnsmasq".to_owned(),
        format!("--conf-file={}", conf.display()),
        format!("--user={me}"),
        format!("--group={me}"),
        format!("--pid-file={}", dir.join("pid").display()),
        format!("--dhcp-leasefile={}", dir.join("leases").display()),
        format!("--log-facility={}", dir.join("log").display()),
    ];
    DnsmasqConfig {
        hosts_dir: dir.join("hosts"),
        options_dir: dir.join("options"),
        advertise: Some(US.parse().unwrap()),
        service: service(dir, command),
        ..DnsmasqConfig::default()
    }
}

fn dhcpd(dir: &Path, by_omapi: bool) -> IscDhcpdConfig {
    let hosts = dir.join("hosts.conf");
    let mut changes = vec![("/etc/dhcp/ggnet/hosts.conf", hosts.to_str().unwrap())];
    let key = example("ggnet-omapi.conf", dir, &[]);
    let included = format!("\ninclude \"{}\";", key.display());
    if by_omapi {
        changes.push(("\n#include \"/etc/dhcp/ggnet-omapi.conf\";", &included));
    }
    let main_file = example("dhcpd.conf", dir, &changes);
    let omapi = by_omapi.then(|| {
        let text = std::fs::read_to_string(&key).unwrap();
        let secret = text.split_once("secret \"").unwrap().1.split_once('"').unwrap().0;
        let key_file = dir.join("key");
        std::fs::write(&key_file, secret).unwrap();
        OmapiConfig {
            address: "127.0.0.1:7911".parse().unwrap(),
            key_name: "ggnet".to_owned(),
            key_file,
            algorithm: KeyAlgorithm::default(),
        }
    });
    std::fs::write(dir.join("leases"), "").unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let argv = [
        "dhcpd",
        "-4",
        "-cf",
        &main_file.display().to_string(),
        "-lf",
        &path("leases"),
        "-pf",
        &path("pid"),
        "br0",
    ];
    IscDhcpdConfig {
        main_file,
        hosts_file: hosts,
        advertise: Some(US.parse().unwrap()),
        omapi,
        service: service(dir, argv.map(str::to_owned).into()),
        ..IscDhcpdConfig::default()
    }
}

//! The DHCP backend "dnsmasq" on a link with the real dnsmasq, which runs the example configuration, and machines that send requests.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ggnet_backends::{
    dhcp::dnsmasq::{Dnsmasq, DnsmasqConfig, Mode},
    service::{Manager, ServiceConfig},
};
use ggnet_core::{
    ErrorKind,
    nouns::MacAddr,
    ports::{Completeness, DhcpBackend, DhcpBackendExt as _, Health},
    testkit::suite::{DhcpAnswer, DhcpFixture, Fixture, Foreign, instance, run},
};
use tempfile::TempDir;

use crate::{
    hung,
    machine::Asks,
    native_dhcp::{
        self, InProcess, Theirs, US, answer, ask, assert_boots, assert_does_not_boot, example, host,
        suite_on_a_link,
    },
    netns::{Link, Running, inside, with_namespaces},
    process::Process,
};

const FOLDER: &str = "/var/lib/ggnet-dhcp/dnsmasq";

/// A link with dnsmasq on it, in an empty state.
pub struct OnLink {
    pub link: Link,
    dir: TempDir,
    process: Mutex<Option<Process>>,
    mode: Mode,
}

impl OnLink {
    pub fn new() -> Self {
        Self::with(Mode::Server)
    }

    fn with(mode: Mode) -> Self {
        Self { link: native_dhcp::link(), dir: tempfile::tempdir().unwrap(), process: Mutex::default(), mode }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> DnsmasqConfig {
        let name = if self.mode == Mode::Server { "dnsmasq.conf" } else { "dnsmasq-proxy.conf" };
        let conf = example(name, FOLDER, self.dir.path());
        // In unprivileged namespaces a program cannot change user or group, so dnsmasq keeps its own.
        let me = if rustix::process::geteuid().is_root() { "root" } else { "" };
        let command = vec![
            "dnsmasq".to_owned(),
            format!("--conf-file={}", conf.display()),
            format!("--user={me}"),
            format!("--group={me}"),
            format!("--pid-file={}", self.at("pid").display()),
            format!("--dhcp-leasefile={}", self.at("leases").display()),
            format!("--log-facility={}", self.at("log").display()),
            "--log-dhcp".to_owned(),
        ];
        DnsmasqConfig {
            mode: self.mode,
            hosts_dir: self.at("hosts"),
            options_dir: self.at("options"),
            advertise: Some(US),
            service: ServiceConfig {
                manager: Manager::Process,
                pid_file: Some(self.at("pid")),
                command: Some(command),
                ..ServiceConfig::default()
            },
            ..DnsmasqConfig::default()
        }
    }

    pub async fn open(&self, config: DnsmasqConfig) -> ggnet_core::Result<InProcess<Dnsmasq>> {
        let old = self.process.lock().unwrap().take();
        if let Some(old) = old {
            old.kill().await;
        }
        let process = Process::start_in(&self.link.server);
        let runner = native_dhcp::runner(&process).await;
        let opened = process.handle().spawn(async move { Dnsmasq::open(config, &instance(), runner).await });
        let opened = opened.await.unwrap();
        let handle = process.handle();
        *self.process.lock().unwrap() = Some(process);
        opened.map(|backend| InProcess { backend: Arc::new(backend), process: handle })
    }

    pub fn kill_daemon(&self) {
        native_dhcp::kill_daemon(&self.at("pid"));
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for dir in ["hosts", "options"] {
            for entry in std::fs::read_dir(self.at(dir)).unwrap() {
                names.push(format!("{dir}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        names.sort();
        names
    }
}

impl Drop for OnLink {
    fn drop(&mut self) {
        self.kill_daemon();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for OnLink {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        self.kill_daemon();
        for name in ["hosts", "options"] {
            let _ = std::fs::remove_dir_all(self.at(name));
        }
        self.reopen().await
    }

    /// dnsmasq survives our crash.
    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        Arc::new(self.open(self.config()).await.unwrap())
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let mut kept = Vec::new();
        for (dir, name, text) in [
            ("hosts", "ggnet-0ddba11f-m1", "52:54:00:bb:00:01,set:ggnet,theirs\n"),
            ("options", "ggnet-0ddba11f-m1", "tag:theirs,option:bootfile-name,x\n"),
            ("hosts", "ggnet-0ddba11e", "52:54:00:bb:00:02,operators\n"),
            ("hosts", "ggnet-0ddba11e-NOT AN ID", "52:54:00:bb:00:03,operators3\n"),
        ] {
            kept.push((native_dhcp::write(&self.at(dir).join(name), text), text.to_owned()));
        }
        Some(Box::new(Theirs(kept)))
    }

    fn has_foreign(&self) -> bool {
        true
    }
}

#[async_trait]
impl DhcpFixture for OnLink {
    fn can_ask(&self) -> bool {
        true
    }

    /// It assigns an address to every client, so a response always arrives.
    async fn ask(&self, mac: MacAddr) -> DhcpAnswer {
        answer(&self.link, mac)
    }
}

suite_on_a_link!("dnsmasq", OnLink::new(), not_run: [what_is_answered_is_observed]);

fn on_link(test: &str, mode: Mode, body: impl AsyncFnOnce(&OnLink, InProcess<Dnsmasq>)) {
    with_namespaces(&format!("dnsmasq::{test}"), || {
        run(async {
            let on_link = OnLink::with(mode);
            let backend = on_link.open(on_link.config()).await.unwrap();
            body(&on_link, backend).await;
        });
    });
}

#[test]
fn each_kind_of_firmware_gets_its_boot_file_and_a_removed_machine_gets_none() {
    on_link(
        "each_kind_of_firmware_gets_its_boot_file_and_a_removed_machine_gets_none",
        Mode::Server,
        async |on_link, backend| {
            let (one, two) = (host(11), host(12));
            backend.ensure(&one).await.unwrap();
            backend.ensure(&two).await.unwrap();
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &one);
                assert_boots(&on_link.link, &two);
            });
            backend.remove(&one.id).await.unwrap();
            tokio::task::block_in_place(|| {
                assert_does_not_boot(&on_link.link, one.macs[0]);
                assert_boots(&on_link.link, &two);
            });
            // A client of an operating system, over the whole exchange.
            let leased = tokio::task::block_in_place(|| {
                native_dhcp::lease(&on_link.link, two.macs[0], on_link.dir.path())
            });
            assert_eq!(Some(leased.into()), two.fixed_address);
        },
    );
}

#[test]
fn a_suspended_dnsmasq_is_down_and_takes_no_machine() {
    on_link("a_suspended_dnsmasq_is_down_and_takes_no_machine", Mode::Server, async |on_link, backend| {
        hung::suspended(Arc::new(backend), &on_link.at("pid"), Duration::from_secs(120)).await;
        tokio::task::block_in_place(|| {
            assert_boots(&on_link.link, &host(12));
            assert_does_not_boot(&on_link.link, host(11).macs[0]);
        });
    });
}

#[test]
fn additions_need_no_restart_and_fifty_removals_at_once_are_few() {
    on_link(
        "additions_need_no_restart_and_fifty_removals_at_once_are_few",
        Mode::Server,
        async |on_link, backend| {
            let hosts: Vec<_> = (11..61).map(host).collect();
            let starts = || on_link.log().matches(": started, version").count();
            for host in &hosts {
                backend.ensure(host).await.unwrap();
            }
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &hosts[49]));
            assert_eq!(starts(), 1, "additions need none");
            let removals = hosts[..49].iter().map(|h| backend.remove(&h.id));
            futures_util::future::join_all(removals).await.into_iter().for_each(|done| done.unwrap());
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &hosts[49]);
                assert_does_not_boot(&on_link.link, hosts[0].macs[0]);
            });
            assert!((2..=3).contains(&starts()), "{}", on_link.log());
        },
    );
}

#[test]
fn killed_between_any_two_writes_ensure_and_remove_mend_it() {
    on_link(
        "killed_between_any_two_writes_ensure_and_remove_mend_it",
        Mode::Server,
        async |on_link, backend| {
            let (old, mut new) = (host(11), host(11));
            new.macs = host(21).macs;
            let name = "ggnet-0ddba11e-m11";
            let paths = [on_link.at("hosts").join(name), on_link.at("options").join(name)];
            let marker = on_link.at("hosts").join(format!(".{name}.untold"));
            let mut texts = Vec::new();
            for spec in [&new, &old] {
                backend.ensure(spec).await.unwrap();
                texts.push(paths.clone().map(|p| std::fs::read_to_string(p).unwrap()));
            }
            let put = |n: usize, text: &str| native_dhcp::write(&paths[n], text);
            // A change: the marker; the options; the hosts; the restart.
            for steps in 1..=3 {
                backend.ensure(&old).await.unwrap();
                native_dhcp::write(&marker, "");
                if steps > 1 {
                    put(1, &texts[0][1]);
                }
                if steps > 2 {
                    put(0, &texts[0][0]);
                }
                let listed = backend.list().await.unwrap();
                assert_eq!(listed[0].completeness, Completeness::Partial, "after step {steps}");
                backend.ensure(&new).await.unwrap();
                tokio::task::block_in_place(|| {
                    assert!(ask(&on_link.link, new.macs[0], Asks::Firmware(7)).boot_file().is_some());
                    assert_does_not_boot(&on_link.link, old.macs[0]);
                });
            }
            // A removal: the marker; the hosts; the options; the restart. And an addition: only the options.
            for steps in 1..=4 {
                backend.ensure(&old).await.unwrap();
                if steps < 4 {
                    native_dhcp::write(&marker, "");
                }
                if steps > 1 {
                    std::fs::remove_file(&paths[0]).unwrap();
                }
                if steps == 3 {
                    std::fs::remove_file(&paths[1]).unwrap();
                }
                let listed = backend.list().await.unwrap();
                assert_eq!(
                    (listed.len(), listed[0].completeness),
                    (1, Completeness::Partial),
                    "after step {steps}"
                );
                backend.remove(&old.id).await.unwrap();
                assert!(on_link.files().is_empty(), "{:?}", on_link.files());
                tokio::task::block_in_place(|| assert_does_not_boot(&on_link.link, old.macs[0]));
            }
            // The next process removes an incomplete file that was never renamed.
            native_dhcp::write(&on_link.at("hosts").join(format!(".{name}.Xy12z")), "52:54:00");
            on_link.open(on_link.config()).await.unwrap();
            assert!(on_link.files().is_empty(), "{:?}", on_link.files());
        },
    );
}

#[test]
fn a_stopped_dnsmasq_is_unavailable_and_names_its_pid_file() {
    on_link(
        "a_stopped_dnsmasq_is_unavailable_and_names_its_pid_file",
        Mode::Server,
        async |on_link, backend| {
            backend.ensure(&host(11)).await.unwrap();
            assert_eq!(backend.health().await, Health::Up);
            on_link.kill_daemon();
            let e = backend.ensure(&host(12)).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
            let pid_file = on_link.at("pid").to_str().unwrap().to_owned();
            assert!(e.to_string().contains(&pid_file), "{e}");
            assert!(matches!(backend.health().await, Health::Down(why) if why.contains(&pid_file)));
            assert_eq!(backend.list().await.unwrap().len(), 1, "nothing was begun");
            backend.remove(&host(11).id).await.unwrap();
            // The ID of another process in the file is not dnsmasq, and gets no signal.
            native_dhcp::write(&on_link.at("pid"), &std::process::id().to_string());
            assert_eq!(backend.ensure(&host(12)).await.unwrap_err().kind(), ErrorKind::Unavailable);
            on_link.open(on_link.config()).await.unwrap().ensure(&host(12)).await.unwrap();
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &host(12)));
        },
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    on_link("a_folder_that_cannot_be_made_is_named", Mode::Server, async |on_link, _| {
        // If root can write anywhere, /proc still does not allow creating a folder.
        let config = DnsmasqConfig { options_dir: "/proc/ggnet/options".into(), ..on_link.config() };
        let e = on_link.open(config).await.err().unwrap();
        assert!(e.to_string().contains("/proc/ggnet/options"), "{e}");
        let e = on_link.open(DnsmasqConfig { advertise: None, ..on_link.config() }).await.err().unwrap();
        assert_eq!(e.field(), Some("advertise"));
    });
}

#[test]
fn in_proxy_mode_another_server_gives_the_address_and_dnsmasq_the_boot_file() {
    on_link(
        "in_proxy_mode_another_server_gives_the_address_and_dnsmasq_the_boot_file",
        Mode::Proxy,
        async |on_link, backend| {
            let link = &on_link.link;
            let arguments: Vec<String> = [
                "--no-daemon",
                "--conf-file=/dev/null",
                "--port=0",
                "--interface=eth0",
                "--no-ping",
                "--dhcp-range=10.77.0.100,10.77.0.199",
                "--leasefile-ro",
            ]
            .map(str::to_owned)
            .into();
            let ns = link.other.clone();
            let _other = inside(&ns, move || Running::start("dnsmasq-base", "dnsmasq", &arguments));
            assert!(!backend.capabilities().leases);
            let (known, removed) = (host(11), host(12));
            backend.ensure(&known).await.unwrap();
            backend.ensure(&removed).await.unwrap();
            backend.remove(&removed.id).await.unwrap();
            assert_eq!(on_link.files(), ["hosts/ggnet-0ddba11e-m11"]);
            let script = format!("http://{US}:8080/boot/first.ipxe");
            for (asks, file) in [
                (Asks::Firmware(0), "undionly.kpxe"),
                (Asks::Firmware(7), "ipxe.efi"),
                (Asks::Ipxe(0), &script),
                (Asks::Ipxe(7), &script),
            ] {
                let offers =
                    tokio::task::block_in_place(|| native_dhcp::offers(link, known.macs[0], asks, 2));
                let boot = offers.iter().find(|o| o.address.is_unspecified()).expect("dnsmasq's offer");
                assert_eq!(boot.boot_file().as_deref(), Some(file), "{asks:?}: {boot:?}");
                assert_eq!(boot.next_server, US);
                assert!(offers.iter().any(|o| !o.address.is_unspecified()), "{offers:?}");
            }
            // The other server answers the removed machine, and dnsmasq, which would have answered before its response to the next request,
            // does not.
            let offers = tokio::task::block_in_place(|| {
                native_dhcp::offers(link, removed.macs[0], Asks::Firmware(0), 1)
            });
            assert!(offers.iter().all(|o| o.boot_file().is_none()), "{offers:?}");
            // Its log line has no fixed time: the response of the other server may arrive first.
            let wanted = format!("{} proxy-ignored", removed.macs[0]);
            for _ in 0..200 {
                if on_link.log().contains(&wanted) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            panic!("no \"{wanted}\" in: {}", on_link.log());
        },
    );
}

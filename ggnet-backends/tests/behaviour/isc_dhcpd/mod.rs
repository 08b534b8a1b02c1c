//! The DHCP backend "isc-dhcpd" on a link with the real dhcpd, which runs the example configuration, and machines that send requests: with
//! restarts, and over OMAPI. This file has the fixture, the port's suite for both, and the tests that apply to both.

mod omapi;
mod restart;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::future::join_all;
use ggnet_backends::{
    dhcp::isc_dhcpd::{IscDhcpd, IscDhcpdConfig, OmapiConfig},
    run::{CommandRunner, Invocation, Output, SystemRunner},
    service::{Manager, ServiceConfig},
};
use ggnet_core::{
    ErrorKind, Result,
    nouns::MacAddr,
    ports::{Completeness, DhcpBackend, DhcpBackendExt as _, DhcpHost, Health},
    testkit::suite::{DhcpAnswer, DhcpFixture, Fixture, Foreign, instance, run},
};
use tempfile::TempDir;

use crate::{
    machine::Asks,
    native_dhcp::{
        self, InProcess, Theirs, US, answer, ask, assert_boots, assert_does_not_boot, host, suite_on_a_link,
    },
    netns::{Link, with_namespaces},
    process::Process,
};

/// The lines of the example with file names: a test has its own files.
const HOSTS: &str = "\ninclude \"/etc/dhcp/ggnet/hosts.conf\";";
const OMAPI: &str = "\n#include \"/etc/dhcp/ggnet-omapi.conf\";";

fn include(path: &Path) -> String {
    format!("include \"{}\";", path.display())
}

/// How dhcpd gets changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Restart,
    Omapi,
}

/// Counts the programs that it runs.
struct Counting {
    runner: Arc<SystemRunner>,
    checks: AtomicUsize,
    starts: AtomicUsize,
}

#[async_trait]
impl CommandRunner for Counting {
    async fn run(&self, invocation: Invocation) -> Result<Output> {
        let is_check = invocation.args.iter().any(|arg| arg.value() == "-t");
        if is_check { &self.checks } else { &self.starts }.fetch_add(1, Ordering::Relaxed);
        self.runner.run(invocation).await
    }
}

/// A link with dhcpd on it, in an empty state.
struct OnLink {
    link: Link,
    dir: TempDir,
    process: Mutex<Option<Process>>,
    runner: Mutex<Option<Arc<Counting>>>,
    by: By,
}

impl OnLink {
    fn new(by: By) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (process, runner) = (Mutex::default(), Mutex::default());
        let on_link = Self { link: native_dhcp::link(), dir, process, runner, by };
        std::fs::create_dir(on_link.at("hosts")).unwrap();
        on_link.write_main("");
        on_link
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// dhcpd's main file, with an addition at its end.
    fn write_main(&self, end: &str) {
        let text = std::fs::read_to_string(native_dhcp::example_path("dhcpd.conf")).unwrap();
        let omapi = native_dhcp::example_path("ggnet-omapi.conf");
        let mut changes = vec![(HOSTS, format!("\n{}", include(&self.at("hosts/hosts.conf"))))];
        if self.by == By::Omapi {
            changes.push((OMAPI, format!("\n{}", include(&omapi))));
        }
        let text = changes.into_iter().fold(text, |text, (line, mine)| {
            assert_eq!(text.matches(line).count(), 1, "{line}");
            text.replace(line, &mine)
        });
        native_dhcp::write(&self.at("dhcpd.conf"), &(text + end));
    }

    fn config(&self) -> IscDhcpdConfig {
        let leases = self.at("leases");
        // dhcpd does not create it.
        std::fs::File::options().append(true).create(true).open(&leases).unwrap();
        let command = vec![
            "dhcpd".to_owned(),
            "-4".to_owned(),
            "-cf".to_owned(),
            self.at("dhcpd.conf").display().to_string(),
            "-lf".to_owned(),
            leases.display().to_string(),
            "-pf".to_owned(),
            self.at("pid").display().to_string(),
            "br0".to_owned(),
        ];
        let omapi = (self.by == By::Omapi).then(|| {
            let text = std::fs::read_to_string(native_dhcp::example_path("ggnet-omapi.conf")).unwrap();
            let secret = text.split_once("secret \"").unwrap().1.split_once('"').unwrap().0;
            OmapiConfig {
                address: "127.0.0.1:7911".parse().unwrap(),
                key_name: "ggnet".to_owned(),
                key_file: native_dhcp::write(&self.at("omapi.key"), &format!("{secret}\n")),
                algorithm: ggnet_backends::dhcp::isc_dhcpd::KeyAlgorithm::default(),
            }
        });
        IscDhcpdConfig {
            main_file: self.at("dhcpd.conf"),
            hosts_file: self.at("hosts/hosts.conf"),
            advertise: Some(US),
            omapi,
            service: ServiceConfig {
                manager: Manager::Process,
                pid_file: Some(self.at("pid")),
                command: Some(command),
                ..ServiceConfig::default()
            },
            ..IscDhcpdConfig::default()
        }
    }

    async fn open(&self, config: IscDhcpdConfig) -> Result<InProcess<IscDhcpd>> {
        let old = self.process.lock().unwrap().take();
        if let Some(old) = old {
            old.kill().await;
        }
        let process = Process::start_in(&self.link.server);
        let runner = Arc::new(Counting {
            runner: native_dhcp::runner(&process).await,
            checks: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
        });
        *self.runner.lock().unwrap() = Some(Arc::clone(&runner));
        let opened = process.handle().spawn(async move { IscDhcpd::open(config, &instance(), runner).await });
        let opened = opened.await.unwrap();
        let handle = process.handle();
        *self.process.lock().unwrap() = Some(process);
        opened.map(|backend| InProcess { backend: Arc::new(backend), process: handle })
    }

    /// Checks and starts since the last call.
    fn counted(&self) -> (usize, usize) {
        let runner = self.runner.lock().unwrap().clone().unwrap();
        (runner.checks.swap(0, Ordering::Relaxed), runner.starts.swap(0, Ordering::Relaxed))
    }

    fn kill_daemon(&self) {
        native_dhcp::kill_daemon(&self.at("pid"));
    }

    fn hosts(&self) -> String {
        std::fs::read_to_string(self.at("hosts/hosts.conf")).unwrap()
    }

    fn put(&self, end: &str, text: &str) {
        native_dhcp::write(&self.at(&format!("hosts/hosts.conf{end}")), text);
    }
}

impl Drop for OnLink {
    fn drop(&mut self) {
        self.kill_daemon();
        if std::thread::panicking() {
            for name in ["hosts/hosts.conf", "hosts/hosts.conf.checked", "hosts/hosts.conf.untold", "leases"]
            {
                eprintln!("--- {name}\n{}", std::fs::read_to_string(self.at(name)).unwrap_or_default());
            }
        }
    }
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for OnLink {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        self.kill_daemon();
        for name in ["", ".checked", ".untold"] {
            let _ = std::fs::remove_file(self.at(&format!("hosts/hosts.conf{name}")));
        }
        let _ = std::fs::remove_file(self.at("leases"));
        self.reopen().await
    }

    /// dhcpd survives our crash.
    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        Arc::new(self.open(self.config()).await.unwrap())
    }

    /// Files next to ours, with names similar to ours, and dhcpd's own.
    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let text = "host ggnet-0ddba11f-m1 { hardware ethernet 52:54:00:bb:00:01; }\n";
        let mut kept = Vec::new();
        for name in ["hosts/ggnet-0ddba11f.conf", "hosts/hosts.conf.operators", "hosts/.operators"] {
            kept.push((native_dhcp::write(&self.at(name), text), text.to_owned()));
        }
        let main = self.at("dhcpd.conf");
        kept.push((main.clone(), std::fs::read_to_string(main).unwrap()));
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

mod by_restart {
    use super::{By, OnLink, suite_on_a_link};

    suite_on_a_link!("isc_dhcpd::by_restart", OnLink::new(By::Restart), not_run: [what_is_answered_is_observed]);
}

mod by_omapi {
    use super::{By, OnLink, suite_on_a_link};

    suite_on_a_link!("isc_dhcpd::by_omapi", OnLink::new(By::Omapi), not_run: [what_is_answered_is_observed]);
}

fn on_link(test: &str, by: By, body: impl AsyncFnOnce(&OnLink, InProcess<IscDhcpd>)) {
    with_namespaces(&format!("isc_dhcpd::{test}"), || {
        run(async {
            let on_link = OnLink::new(by);
            let backend = on_link.open(on_link.config()).await.unwrap();
            body(&on_link, backend).await;
        });
    });
}

async fn each_kind_of_firmware(on_link: &OnLink, backend: InProcess<IscDhcpd>) {
    let (one, mut two) = (host(11), host(12));
    // Words of dhcpd's own language, and texts that look like numbers.
    two.id = "0.host.subnet-1.9e9".parse().unwrap();
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
        // A client of an operating system, over the whole exchange.
        let leased = native_dhcp::lease(&on_link.link, two.macs[0], on_link.dir.path());
        assert_eq!(Some(leased.into()), two.fixed_address);
    });
}

/// Their addresses are outside the example's range.
fn a_hundred() -> Vec<DhcpHost> {
    (2..=99).chain(200..=201).map(host).collect()
}

async fn ensure_all(backend: &InProcess<IscDhcpd>, hosts: &[DhcpHost]) {
    let made = join_all(hosts.iter().map(|host| backend.ensure(host))).await;
    made.into_iter().for_each(Result::unwrap);
}

/// Sets the files as a kill after each write leaves them, and lets the next process repair them.
async fn killed_between_any_two_writes(on_link: &OnLink, backend: InProcess<IscDhcpd>) {
    let (bystander, old, mut new) = (host(10), host(11), host(11));
    new.macs = host(21).macs;
    new.macs.extend(host(22).macs);
    backend.ensure(&bystander).await.unwrap();
    let mut texts = Vec::new();
    for spec in [Some(&new), Some(&old), None] {
        match spec {
            Some(spec) => backend.ensure(spec).await.unwrap(),
            None => backend.remove(&old.id).await.unwrap(),
        }
        texts.push(on_link.hosts());
    }
    let names: String = ["m11", "m11_2"].map(|name| format!("ggnet-0ddba11e-{name}\n")).concat();
    let by = if on_link.by == By::Omapi { "# told by OMAPI\n" } else { "" };
    let mut backend = backend;
    // From `old` to `new`, and from `old` to nothing: hosts; untold; checked; the change in dhcpd. And from nothing to `new`.
    for (from, to) in [(Some(&old), Some(&new)), (Some(&old), None), (None, Some(&new))] {
        let text = if to.is_some() { &texts[0] } else { &texts[2] };
        for steps in 1..=3 {
            match from {
                Some(spec) => backend.ensure(spec).await.unwrap(),
                None => backend.remove(&old.id).await.unwrap(),
            }
            on_link.put("", text);
            if steps > 1 {
                on_link.put(".untold", &format!("{by}{names}"));
            }
            if steps > 2 {
                on_link.put(".checked", text);
            }
            let at = format!("step {steps} to {:?}", to.map(|to| &to.macs));
            let listed = backend.list().await.unwrap();
            let ours = listed.iter().find(|l| l.id == old.id).unwrap_or_else(|| panic!("{at}"));
            assert_eq!(ours.completeness, Completeness::Partial, "{at}");
            backend = on_link.open(on_link.config()).await.unwrap();
            match to {
                Some(spec) => backend.ensure(spec).await.unwrap(),
                None => backend.remove(&old.id).await.unwrap(),
            }
            let listed = backend.list().await.unwrap();
            assert!(listed.iter().all(|l| l.completeness == Completeness::Whole), "{at}: {listed:?}");
            assert_eq!(on_link.hosts(), *text, "{at}");
            tokio::task::block_in_place(|| {
                assert_does_not_boot(&on_link.link, old.macs[0]);
                assert_boots(&on_link.link, &bystander);
                for mac in &new.macs {
                    let boots = ask(&on_link.link, *mac, Asks::Firmware(7)).boot_file().is_some();
                    assert_eq!(boots, to.is_some(), "{at}: {mac}");
                }
            });
        }
    }
    // The next process removes an incomplete file that was never renamed.
    let half = native_dhcp::write(&on_link.at("hosts/.hosts.conf.Xy12z"), "host ");
    on_link.open(on_link.config()).await.unwrap();
    assert!(!half.exists());
}

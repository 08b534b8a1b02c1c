//! The DHCP backend "isc-dhcpd" on a link with the real dhcpd, which runs the example configuration, and machines that ask it.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use ggnet_backends::{
    dhcp::{
        isc_dhcpd::{IscDhcpd, IscDhcpdConfig, Subnet},
        proxy::arch::Arch,
    },
    service::{Manager, ServiceConfig},
};
use ggnet_core::{
    ErrorKind,
    nouns::MacAddr,
    ports::{Completeness, DhcpBackend, Health, Removal},
    testkit::suite::{DhcpAnswer, DhcpFixture, Fixture, Foreign, instance, run},
};
use tempfile::TempDir;

use crate::{
    machine::Asks,
    native_dhcp::{self, US, ask, assert_boots, assert_does_not_boot, example, host, suite_on_a_link, write},
    netns::{Link, with_namespaces},
    process::Process,
};

const FOLDER: &str = "/etc/dhcp/ggnet";

/// A link with dhcpd on it, in an empty world.
struct OnLink {
    link: Link,
    dir: TempDir,
    process: Mutex<Option<Process>>,
}

impl OnLink {
    fn new() -> Self {
        let on_link =
            Self { link: native_dhcp::link(), dir: tempfile::tempdir().unwrap(), process: Mutex::default() };
        // Counts its starts, and refuses to start with a machine that the test names.
        let script = "#!/bin/sh\ncd \"${0%/*}\" || exit 1\necho >>starts\nwhile read -r name; do grep -q \"$name\" ggnet.conf && exit 1; done <refused\nexec dhcpd \"$@\"\n";
        let script = write(&on_link.at("start"), script);
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["leases", "starts", "refused"] {
            write(&on_link.at(name), "");
        }
        on_link
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap()
    }

    fn config(&self) -> IscDhcpdConfig {
        let conf = if self.at("dhcpd.conf").exists() {
            self.at("dhcpd.conf")
        } else {
            example("dhcpd.conf", FOLDER, self.dir.path())
        };
        let at = |name: &str| self.at(name).display().to_string();
        let conf_name = conf.display().to_string();
        let (start, pid, leases) = (at("start"), at("pid"), at("leases"));
        let command = [&start, "-4", "-q", "-cf", &conf_name, "-pf", &pid, "-lf", &leases, "br0"];
        IscDhcpdConfig {
            config_file: conf,
            include_file: self.at("ggnet.conf"),
            advertise: Some(US),
            service: ServiceConfig {
                manager: Manager::Process,
                pid_file: Some(self.at("pid")),
                command: Some(command.map(str::to_owned).into()),
                ..ServiceConfig::default()
            },
            ..IscDhcpdConfig::default()
        }
    }

    async fn open(&self, config: IscDhcpdConfig) -> ggnet_core::Result<IscDhcpd> {
        let old = self.process.lock().unwrap().take();
        if let Some(old) = old {
            old.kill().await;
        }
        let process = Process::start_in(&self.link.server);
        let runner = native_dhcp::runner(&process).await;
        let opened = process.handle().spawn(async move { IscDhcpd::open(config, &instance(), runner).await });
        let opened = opened.await.unwrap();
        *self.process.lock().unwrap() = Some(process);
        opened
    }

    fn starts(&self) -> usize {
        self.read("starts").len()
    }
}

impl Drop for OnLink {
    fn drop(&mut self) {
        native_dhcp::kill_daemon(&self.at("pid"));
    }
}

#[async_trait]
impl Fixture<dyn DhcpBackend> for OnLink {
    async fn fresh(&self) -> Arc<dyn DhcpBackend> {
        native_dhcp::kill_daemon(&self.at("pid"));
        for name in ["ggnet.conf", "ggnet.conf.previous"] {
            let _ = std::fs::remove_file(self.at(name));
        }
        self.reopen().await
    }

    /// dhcpd outlives our crash.
    async fn reopen(&self) -> Arc<dyn DhcpBackend> {
        Arc::new(self.open(self.config()).await.unwrap())
    }

    async fn foreign(&self) -> Option<Box<dyn Foreign>> {
        let theirs = "host ggnet-0ddba11f-m1-0 { hardware ethernet 52:54:00:bb:00:01; }\n";
        write(&self.at("ggnet.conf.theirs"), theirs);
        let main =
            format!("{}\ninclude \"{}\";\n", self.read("dhcpd.conf"), self.at("ggnet.conf.theirs").display());
        write(&self.at("dhcpd.conf"), &main);
        Some(Box::new(Theirs(vec![
            (self.at("ggnet.conf.theirs"), theirs.into()),
            (self.at("dhcpd.conf"), main),
        ])))
    }

    fn has_foreign(&self) -> bool {
        true
    }
}

struct Theirs(Vec<(PathBuf, String)>);

#[async_trait]
impl Foreign for Theirs {
    async fn check(&self) -> Result<(), String> {
        for (path, text) in &self.0 {
            let now = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            if now != *text {
                return Err(format!("{}: {now}", path.display()));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl DhcpFixture for OnLink {
    fn can_ask(&self) -> bool {
        true
    }

    /// It gives everybody an address, so an answer always comes.
    async fn ask(&self, mac: MacAddr) -> DhcpAnswer {
        let offer = tokio::task::block_in_place(|| ask(&self.link, mac, Asks::Firmware(7)));
        let address = (!offer.address.is_unspecified()).then(|| offer.address.into());
        DhcpAnswer { boot_file: offer.boot_file(), address }
    }
}

suite_on_a_link!("isc_dhcpd", OnLink::new(), [
    an_empty_backend_lists_nothing,
    ensure_twice_equals_once,
    list_shows_exactly_what_was_ensured,
    remove_of_nothing_is_success,
    what_was_removed_can_be_made_again,
    a_changed_spec_converges_or_is_busy,
    fifty_ensures_at_once_of_different_names,
    fifty_ensures_at_once_of_one_name,
    ensures_and_removes_at_once_of_one_name,
    a_dropped_ensure_is_completed_by_the_next,
    a_dropped_ensure_is_undone_by_remove,
    a_dropped_remove_is_completed_by_the_next,
    a_dropped_change_is_completed_by_the_next,
    what_exists_is_adopted_after_a_crash,
    a_crash_within_a_call_is_mended,
    what_is_not_ours_is_left_alone,
    an_ensured_machine_is_answered,
    a_removed_machine_is_answered_no_more,
    every_card_of_a_machine_is_answered,
    a_replaced_card_is_answered_no_more,
    a_reserved_address_is_given,
], not_run: [what_is_answered_is_observed]);

fn on_link(test: &str, body: impl AsyncFnOnce(&OnLink, IscDhcpd)) {
    with_namespaces(&format!("isc_dhcpd::{test}"), || {
        run(async {
            let on_link = OnLink::new();
            let backend = on_link.open(on_link.config()).await.unwrap();
            body(&on_link, backend).await;
        });
    });
}

#[test]
fn each_kind_of_firmware_gets_its_boot_file_and_a_removed_machine_gets_none() {
    on_link(
        "each_kind_of_firmware_gets_its_boot_file_and_a_removed_machine_gets_none",
        async |on_link, backend| {
            let (one, two) = (host(11), host(12));
            backend.ensure(&one).await.unwrap();
            backend.ensure(&two).await.unwrap();
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &one);
                assert_boots(&on_link.link, &two);
            });
            backend.remove(&one.id, Removal::IfIdle).await.unwrap();
            tokio::task::block_in_place(|| {
                assert_does_not_boot(&on_link.link, one.macs[0]);
                assert_boots(&on_link.link, &two);
                let leased = native_dhcp::lease(&on_link.link, two.macs[0], on_link.dir.path());
                assert_eq!(Some(leased.into()), two.fixed_address);
            });
        },
    );
}

#[test]
fn a_hundred_starts_at_once_are_few_restarts_and_no_change_is_none() {
    on_link("a_hundred_starts_at_once_are_few_restarts_and_no_change_is_none", async |on_link, backend| {
        let hosts: Vec<_> = (2..102).map(host).collect();
        let before = on_link.starts();
        let all = futures_util::future::join_all(hosts.iter().map(|h| backend.ensure(h))).await;
        all.into_iter().for_each(|done| done.unwrap());
        let restarts = on_link.starts() - before;
        assert!((1..=2).contains(&restarts), "{restarts} restarts");
        assert_eq!(backend.list().await.unwrap().len(), 100);
        tokio::task::block_in_place(|| assert_boots(&on_link.link, &hosts[99]));
        for host in &hosts[..3] {
            backend.ensure(host).await.unwrap();
        }
        assert_eq!(on_link.starts() - before, restarts, "nothing changed");
    });
}

#[test]
fn what_dhcpd_refuses_leaves_the_old_file_and_a_daemon_that_serves_the_others() {
    on_link(
        "what_dhcpd_refuses_leaves_the_old_file_and_a_daemon_that_serves_the_others",
        async |on_link, backend| {
            backend.ensure(&host(11)).await.unwrap();
            let (file, pid) = (on_link.read("ggnet.conf"), on_link.read("pid"));
            let template = write(&on_link.at("template"), "subnet {{ next_server }} netmask nonsense {\n");
            let broken = IscDhcpdConfig { template: Some(template), ..on_link.config() };
            let backend = on_link.open(broken).await.unwrap();
            assert!(matches!(backend.health().await, Health::Degraded(why) if why.contains("dhcpd refuses")));
            let e = backend.ensure(&host(12)).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid, "{}", e.report());
            assert!(e.tool().is_some_and(|tool| tool.stderr_tail.contains("netmask")), "{}", e.report());
            assert_eq!((on_link.read("ggnet.conf"), on_link.read("pid")), (file, pid));
            assert!(!on_link.at("ggnet.conf.previous").exists());
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &host(11));
                assert_does_not_boot(&on_link.link, host(12).macs[0]);
            });
            let listed = backend.list().await.unwrap();
            assert_eq!(listed.len(), 1, "{listed:?}");
            // The operator mends it.
            let backend = on_link.open(on_link.config()).await.unwrap();
            backend.ensure(&host(12)).await.unwrap();
            assert_eq!(backend.health().await, Health::Up);
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &host(12)));
        },
    );
}

#[test]
fn a_dhcpd_that_does_not_start_gets_its_previous_file_back() {
    on_link("a_dhcpd_that_does_not_start_gets_its_previous_file_back", async |on_link, backend| {
        backend.ensure(&host(11)).await.unwrap();
        let file = on_link.read("ggnet.conf");
        write(&on_link.at("refused"), "pc-13\n");
        let e = backend.ensure(&host(13)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
        assert_eq!(on_link.read("ggnet.conf"), file);
        assert!(!on_link.at("ggnet.conf.previous").exists());
        tokio::task::block_in_place(|| assert_boots(&on_link.link, &host(11)));
        assert_eq!(backend.list().await.unwrap().len(), 1);
        backend.ensure(&host(12)).await.unwrap();
        tokio::task::block_in_place(|| assert_boots(&on_link.link, &host(12)));
    });
}

#[test]
fn killed_between_any_two_writes_ensure_and_remove_mend_it() {
    on_link("killed_between_any_two_writes_ensure_and_remove_mend_it", async |on_link, backend| {
        let (stays, changed) = (host(10), host(11));
        backend.ensure(&stays).await.unwrap();
        let without = on_link.read("ggnet.conf");
        backend.ensure(&changed).await.unwrap();
        let with = on_link.read("ggnet.conf");
        // An addition, and a removal: the candidate; what dhcpd has is kept; the file; the restart.
        for (adds, (old, new)) in [(true, (&without, &with)), (false, (&with, &without))] {
            for steps in 1..=4 {
                if adds {
                    backend.remove(&changed.id, Removal::Force).await.unwrap();
                } else {
                    backend.ensure(&changed).await.unwrap();
                }
                assert_eq!(&on_link.read("ggnet.conf"), old);
                write(&on_link.at("ggnet.conf.new"), &new[..new.len() / 2]);
                if steps > 1 {
                    write(&on_link.at("ggnet.conf.previous"), old);
                }
                if steps > 2 {
                    write(&on_link.at("ggnet.conf"), new);
                }
                let listed = backend.list().await.unwrap();
                let of = |id| listed.iter().find(|l| &l.id == id).map(|l| l.completeness);
                assert_eq!(of(&stays.id), Some(Completeness::Whole));
                if steps > 2 {
                    assert_eq!(of(&changed.id), Some(Completeness::Partial), "step {steps}: {listed:?}");
                }
                if adds {
                    backend.ensure(&changed).await.unwrap();
                } else {
                    backend.remove(&changed.id, Removal::Force).await.unwrap();
                }
                assert_eq!(&on_link.read("ggnet.conf"), new);
                assert!(
                    !on_link.at("ggnet.conf.previous").exists() && !on_link.at("ggnet.conf.new").exists()
                );
                tokio::task::block_in_place(|| {
                    let boots = ask(&on_link.link, changed.macs[0], Asks::Firmware(7)).boot_file().is_some();
                    assert_eq!(boots, adds, "step {steps}");
                });
            }
        }
        tokio::task::block_in_place(|| assert_boots(&on_link.link, &stays));
    });
}

#[test]
fn a_stopped_dhcpd_is_unavailable_and_names_its_pid_file() {
    on_link("a_stopped_dhcpd_is_unavailable_and_names_its_pid_file", async |on_link, backend| {
        backend.ensure(&host(11)).await.unwrap();
        native_dhcp::kill_daemon(&on_link.at("pid"));
        let e = backend.ensure(&host(12)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
        let pid_file = on_link.at("pid").to_str().unwrap().to_owned();
        assert!(e.to_string().contains(&pid_file), "{e}");
        assert!(matches!(backend.health().await, Health::Down(why) if why.contains(&pid_file)));
        let starts = on_link.starts();
        backend.remove(&host(11).id, Removal::Force).await.unwrap();
        assert_eq!(
            (backend.list().await.unwrap().len(), on_link.starts()),
            (0, starts),
            "an operator stopped it"
        );
    });
}

#[test]
fn hostile_boot_files_and_the_operators_subnets_are_what_dhcpd_understands() {
    on_link("hostile_boot_files_and_the_operators_subnets_are_what_dhcpd_understands", async |on_link, _| {
        let hostile = "http://x/\"; } host evil { hardware ethernet 52:54:00:ee:00:01; filename \"\\";
        let config = on_link.config();
        let main = on_link.read("dhcpd.conf");
        let (start, end) = (main.find("subnet").unwrap(), main.find("# The machines").unwrap());
        write(&on_link.at("dhcpd.conf"), &format!("{}{}", &main[..start], &main[end..]));
        let subnet = Subnet {
            network: [192, 0, 2, 0].into(),
            netmask: [255, 255, 255, 0].into(),
            range: Some(([192, 0, 2, 100].into(), [192, 0, 2, 199].into())),
            router: Some(US),
            dns: vec![US, [192, 0, 2, 2].into()],
        };
        let loaders = [(Arch(11), hostile.to_owned())].into();
        native_dhcp::kill_daemon(&on_link.at("pid"));
        // dhcpd does not start without a subnet, so the file comes first.
        let off = ServiceConfig { command: None, ..config.service.clone() };
        let ours = IscDhcpdConfig { subnets: vec![subnet], loaders, ..config.clone() };
        on_link.open(IscDhcpdConfig { service: off, ..ours.clone() }).await.unwrap();
        let backend = on_link.open(ours).await.unwrap();
        backend.ensure(&host(11)).await.unwrap();
        let offer = tokio::task::block_in_place(|| ask(&on_link.link, host(11).macs[0], Asks::Firmware(11)));
        assert_eq!(offer.boot_file().as_deref(), Some(hostile));
        assert_eq!(offer.options[&6], [192, 0, 2, 1, 192, 0, 2, 2]);
        tokio::task::block_in_place(|| {
            assert_does_not_boot(&on_link.link, "52:54:00:ee:00:01".parse().unwrap());
        });
        // Two GGnets need a file each, and a main file must include ours.
        let theirs = on_link.read("ggnet.conf").replacen("0ddba11e", "0ddba11f", 1);
        write(&on_link.at("ggnet.conf"), &theirs);
        assert_eq!(on_link.open(config.clone()).await.err().unwrap().kind(), ErrorKind::Conflict);
        write(&on_link.at("ggnet.conf"), "");
        write(&on_link.at("dhcpd.conf"), "authoritative;\n");
        assert_eq!(on_link.open(config).await.err().unwrap().field(), Some("config_file"));
    });
}

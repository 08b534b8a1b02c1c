//! The behaviour of dhcpd with restarts, and the configurations that it rejects.

use std::time::Duration;

use super::*;
use crate::hung;

#[test]
fn each_kind_of_firmware_gets_its_boot_file_and_a_removed_machine_gets_none() {
    on_link(
        "restart::each_kind_of_firmware_gets_its_boot_file_and_a_removed_machine_gets_none",
        By::Restart,
        async |on_link, backend| each_kind_of_firmware(on_link, backend).await,
    );
}

#[test]
fn a_suspended_dhcpd_is_down_and_takes_no_machine() {
    on_link(
        "restart::a_suspended_dhcpd_is_down_and_takes_no_machine",
        By::Restart,
        async |on_link, backend| {
            hung::suspended(Arc::new(backend), &on_link.at("pid"), Duration::from_secs(120)).await;
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &host(12));
                assert_does_not_boot(&on_link.link, host(11).macs[0]);
            });
        },
    );
}

#[test]
fn a_hundred_at_once_are_one_check_and_one_restart() {
    on_link(
        "restart::a_hundred_at_once_are_one_check_and_one_restart",
        By::Restart,
        async |on_link, backend| {
            let hosts = a_hundred();
            on_link.counted();
            ensure_all(&backend, &hosts).await;
            assert_eq!(on_link.counted(), (1, 1));
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &hosts[99]));
            ensure_all(&backend, &hosts).await;
            assert_eq!(on_link.counted(), (0, 0), "nothing has changed");
            let removals = hosts[..99].iter().map(|host| backend.remove(&host.id));
            join_all(removals).await.into_iter().for_each(Result::unwrap);
            assert_eq!(on_link.counted(), (1, 1));
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &hosts[99]);
                assert_does_not_boot(&on_link.link, hosts[0].macs[0]);
            });
        },
    );
}

#[test]
fn a_refused_configuration_leaves_the_others_served_and_dhcpd_untouched() {
    on_link(
        "restart::a_refused_configuration_leaves_the_others_served_and_dhcpd_untouched",
        By::Restart,
        async |on_link, backend| {
            backend.ensure(&host(11)).await.unwrap();
            let (text, pid) = (on_link.hosts(), std::fs::read_to_string(on_link.at("pid")).unwrap());
            on_link.write_main("\nnonsense {\n");
            let Health::Degraded(why) = backend.health().await else {
                panic!("an operator's mistake shows before it bites")
            };
            assert!(why.contains("dhcpd.conf line "), "{why}");
            // The line may contain a key, and health is public.
            assert!(!why.contains("nonsense"), "{why}");
            for call in ["ensure", "change", "remove"] {
                let done = match call {
                    "ensure" => backend.ensure(&host(12)).await,
                    "change" => {
                        let mut changed = host(11);
                        changed.fixed_address = None;
                        backend.ensure(&changed).await
                    }
                    _ => backend.remove(&host(11).id).await,
                };
                let e = done.unwrap_err();
                assert_eq!(e.kind(), ErrorKind::Invalid, "{call}: {}", e.report());
                assert!(e.to_string().contains("dhcpd.conf line "), "dhcpd's words: {e}");
                assert_eq!(on_link.hosts(), text, "{call}");
                assert_eq!(std::fs::read_to_string(on_link.at("pid")).unwrap(), pid);
                assert_eq!(backend.list().await.unwrap().len(), 1);
            }
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &host(11));
                assert_does_not_boot(&on_link.link, host(12).macs[0]);
            });
            on_link.write_main("");
            backend.ensure(&host(12)).await.unwrap();
            assert_eq!(backend.health().await, Health::Up);
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &host(12)));
        },
    );
}

#[test]
fn a_restart_that_fails_is_taken_back() {
    on_link("restart::a_restart_that_fails_is_taken_back", By::Restart, async |on_link, backend| {
        backend.ensure(&host(11)).await.unwrap();
        let text = on_link.hosts();
        // dhcpd -t does not check for a lease file, and without one dhcpd does not start.
        let leases = on_link.at("leases");
        std::fs::remove_file(&leases).unwrap();
        let e = backend.ensure(&host(12)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable, "{}", e.report());
        assert!(e.to_string().contains(leases.to_str().unwrap()), "dhcpd's words: {e}");
        assert_eq!(on_link.hosts(), text);
        let listed = backend.list().await.unwrap();
        assert!(listed.iter().any(|l| l.id == host(12).id && l.completeness == Completeness::Partial));
        let backend = on_link.open(on_link.config()).await.unwrap();
        backend.ensure(&host(12)).await.unwrap();
        tokio::task::block_in_place(|| {
            assert_boots(&on_link.link, &host(11));
            assert_boots(&on_link.link, &host(12));
        });
    });
}

#[test]
fn killed_between_any_two_writes_ensure_and_remove_mend_it() {
    on_link(
        "restart::killed_between_any_two_writes_ensure_and_remove_mend_it",
        By::Restart,
        async |on_link, backend| killed_between_any_two_writes(on_link, backend).await,
    );
}

#[test]
fn a_stopped_dhcpd_is_unavailable_and_names_its_pid_file() {
    on_link(
        "restart::a_stopped_dhcpd_is_unavailable_and_names_its_pid_file",
        By::Restart,
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
            assert!(backend.list().await.unwrap().is_empty());
            let backend = on_link.open(on_link.config()).await.unwrap();
            backend.ensure(&host(12)).await.unwrap();
            tokio::task::block_in_place(|| {
                assert_boots(&on_link.link, &host(12));
                assert_does_not_boot(&on_link.link, host(11).macs[0]);
            });
        },
    );
}

#[test]
fn a_missing_program_and_files_that_are_not_ours_are_named() {
    on_link(
        "restart::a_missing_program_and_files_that_are_not_ours_are_named",
        By::Restart,
        async |on_link, backend| {
            drop(backend);
            // If root can write anywhere, /proc still does not allow creating a folder.
            let config = IscDhcpdConfig { hosts_file: "/proc/ggnet/hosts.conf".into(), ..on_link.config() };
            let e = on_link.open(config).await.err().unwrap();
            assert!(e.to_string().contains("/proc/ggnet"), "{e}");
            let e = on_link.open(IscDhcpdConfig { advertise: None, ..on_link.config() }).await.err().unwrap();
            assert_eq!(e.field(), Some("advertise"));
            let others = on_link.hosts().replace("0ddba11e", "0ddba11f");
            let hosts_file = native_dhcp::write(&on_link.at("hosts/others.conf"), &others);
            let config = IscDhcpdConfig { hosts_file: hosts_file.clone(), ..on_link.config() };
            let e = on_link.open(config).await.err().unwrap();
            assert!(e.kind() == ErrorKind::Conflict && e.to_string().contains("others.conf"), "{e}");
            assert_eq!(std::fs::read_to_string(hosts_file).unwrap(), others);
            let nothing = Arc::new(SystemRunner::with_path("/nonexistent").unwrap());
            let backend = IscDhcpd::open(on_link.config(), &instance(), nothing).await.unwrap();
            let e = backend.ensure(&host(11)).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Unavailable);
            assert!(
                e.to_string().contains("dhcpd") && e.hint().is_some_and(|h| h.contains("apt-get")),
                "{e}"
            );
            assert!(matches!(backend.health().await, Health::Down(why) if why.contains("dhcpd")));
            assert!(backend.list().await.unwrap().is_empty(), "it was taken back");
        },
    );
}

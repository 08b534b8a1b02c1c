//! The behaviour of dhcpd with changes over OMAPI.

use super::*;

#[test]
fn each_kind_of_firmware_gets_its_boot_file_by_omapi_too() {
    on_link(
        "omapi::each_kind_of_firmware_gets_its_boot_file_by_omapi_too",
        By::Omapi,
        async |on_link, backend| {
            each_kind_of_firmware(on_link, backend).await;
        },
    );
}

#[test]
fn by_omapi_a_hundred_at_once_are_no_restart_and_a_restart_forgets_none() {
    on_link(
        "omapi::by_omapi_a_hundred_at_once_are_no_restart_and_a_restart_forgets_none",
        By::Omapi,
        async |on_link, backend| {
            let hosts = a_hundred();
            on_link.counted();
            ensure_all(&backend, &hosts).await;
            let (checks, starts) = on_link.counted();
            assert!((1..=3).contains(&checks) && starts == 0, "{checks} checks, {starts} starts");
            let mut moved = hosts[0].clone();
            moved.fixed_address = Some("192.0.2.240".parse().unwrap());
            backend.ensure(&moved).await.unwrap();
            backend.remove(&hosts[1].id).await.unwrap();
            backend.remove(&hosts[2].id).await.unwrap();
            backend.ensure(&hosts[2]).await.unwrap();
            let right = || {
                tokio::task::block_in_place(|| {
                    assert_boots(&on_link.link, &moved);
                    assert_does_not_boot(&on_link.link, hosts[1].macs[0]);
                    assert_boots(&on_link.link, &hosts[2]);
                    assert_boots(&on_link.link, &hosts[99]);
                });
            };
            right();
            for lease_file in ["kept", "kept", "lost"] {
                on_link.kill_daemon();
                if lease_file == "lost" {
                    std::fs::remove_file(on_link.at("leases")).unwrap();
                }
                let backend = on_link.open(on_link.config()).await.unwrap();
                right();
                let listed = backend.list().await.unwrap();
                assert!(listed.iter().all(|l| l.completeness == Completeness::Whole), "{listed:?}");
                assert_eq!(listed.len(), 99);
                // A declaration in the main file that is not in the lease file can still be changed by OMAPI.
                let mut elsewhere = hosts[3].clone();
                elsewhere.fixed_address = Some("192.0.2.241".parse().unwrap());
                backend.ensure(&elsewhere).await.unwrap();
                tokio::task::block_in_place(|| assert_boots(&on_link.link, &elsewhere));
                backend.ensure(&hosts[3]).await.unwrap();
                tokio::task::block_in_place(|| assert_boots(&on_link.link, &hosts[3]));
            }
        },
    );
}

#[test]
fn killed_between_any_two_writes_omapi_mends_it_too() {
    on_link(
        "omapi::killed_between_any_two_writes_omapi_mends_it_too",
        By::Omapi,
        async |on_link, backend| {
            killed_between_any_two_writes(on_link, backend).await;
        },
    );
}

#[test]
fn a_wrong_key_and_a_closed_port_are_named_and_omapi_is_not_left_silently() {
    on_link(
        "omapi::a_wrong_key_and_a_closed_port_are_named_and_omapi_is_not_left_silently",
        By::Omapi,
        async |on_link, backend| {
            backend.ensure(&host(11)).await.unwrap();
            assert_eq!(backend.health().await, Health::Up);
            let with = |change: &dyn Fn(&mut OmapiConfig)| {
                let mut config = on_link.config();
                change(config.omapi.as_mut().unwrap());
                config
            };
            let wrong = native_dhcp::write(&on_link.at("wrong.key"), "d3JvbmcK");
            for (config, kind) in [
                (with(&|omapi| omapi.key_file = wrong.clone()), ErrorKind::Permission),
                (with(&|omapi| omapi.key_name = "other".into()), ErrorKind::Permission),
                (with(&|omapi| omapi.address.set_port(7912)), ErrorKind::Unavailable),
            ] {
                let backend = on_link.open(config).await.unwrap();
                let e = backend.ensure(&host(12)).await.unwrap_err();
                assert_eq!(e.kind(), kind, "{}", e.report());
                assert!(!e.report().contains("d3JvbmcK"), "{e}");
                assert!(matches!(backend.health().await, Health::Down(_)));
                let listed = backend.list().await.unwrap();
                assert!(
                    listed.iter().any(|l| l.id == host(12).id && l.completeness == Completeness::Partial)
                );
            }
            let backend = on_link.open(on_link.config()).await.unwrap();
            backend.ensure(&host(12)).await.unwrap();
            tokio::task::block_in_place(|| assert_boots(&on_link.link, &host(12)));
            let e = on_link.open(IscDhcpdConfig { omapi: None, ..on_link.config() }).await.err().unwrap();
            assert_eq!(e.field(), Some("omapi"), "{e}");
        },
    );
}

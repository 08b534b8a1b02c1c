//! What the kernel tells of sessions, and what the disk tells of itself.

use std::{fs, path::Path, sync::Arc, time::Duration};

use ggnet_core::{
    block::Disk,
    ports::{self, TargetBackend, TargetEndpoint},
    testkit::suite::{Fixture as _, TargetFixture as _},
};
use ggnet_iscsi::initiator::Connection;

use crate::kernel::{Kernel, ROOT, block_on, spec};

async fn only_one(port: &dyn TargetBackend) -> ports::Connection {
    let mut all = port.connections().await.unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn sessions_and_their_bytes_are_read_back_also_with_chap() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        for (n, secret) in [(1, None), (2, Some("TopSecret1234567"))] {
            let Disk::File { path, .. } = kernel.disk(&n.to_string(), 1 << 20).await else {
                panic!("a file")
            };
            let spec = spec(&path, n, secret);
            let endpoint = port.ensure(&spec, &spec.disks).await.unwrap();
            let client = kernel.connect(&endpoint, &spec.access).await.unwrap();
            let before = only_one(port.as_ref()).await;
            assert_eq!(before.target, spec.id);
            assert_eq!(before.initiator, format!("iqn.2026-11.local.ggnet:pc-{n}"));
            assert_eq!(before.peer.unwrap().ip(), endpoint.listen[0].ip());
            client.read(0, 65536).await.unwrap();
            client.write(0, &[7; 1 << 20]).await.unwrap();
            client.write(0, &[8; 1 << 20]).await.unwrap();
            let after = only_one(port.as_ref()).await;
            assert_eq!(after.bytes_read - before.bytes_read, 65536, "{before:?} {after:?}");
            assert_eq!(after.bytes_written - before.bytes_written, 2 << 20, "{before:?} {after:?}");
            assert!(after.commands > before.commands, "{before:?} {after:?}");
            client.logout().await.unwrap();
        }
    });
}

#[test]
fn an_initiator_that_is_no_longer_allowed_goes_with_its_session() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let Disk::File { path, .. } = kernel.disk("changed", 1 << 20).await else { panic!("a file") };
        let (old, mut new) = (spec(&path, 1, Some("TopSecret1234567")), spec(&path, 2, None));
        (new.id, new.iqn, new.luns) = (old.id.clone(), old.iqn.clone(), old.luns.clone());
        let endpoint = port.ensure(&old, &old.disks).await.unwrap();
        let client = kernel.connect(&endpoint, &old.access).await.unwrap();
        port.ensure(&new, &new.disks).await.unwrap();
        client.read(0, 512).await.expect("it is still served");
        kernel.connect(&endpoint, &old.access).await.map(drop).expect_err("its secret is worth nothing now");
        // And back: it may again, with its secret.
        port.ensure(&old, &old.disks).await.unwrap();
        kernel.connect(&endpoint, &old.access).await.unwrap().logout().await.unwrap();
        client.read(0, 512).await.expect("and it was served all the time");
    });
}

/// How initiator `n` begins a login.
fn who(n: u32, endpoint: &TargetEndpoint) -> String {
    format!("InitiatorName=iqn.2026-11.local.ggnet:pc-{n}\0TargetName={}\0SessionType=Normal\0", endpoint.iqn)
}

/// One request of a login in the operational stage; whether it was granted.
async fn login_step(wire: &mut Connection, flags: u8, keys: &str) -> bool {
    let answer = wire.login_request([0x80, 0, 0, 0, 0, 1], flags, keys.as_bytes()).await;
    answer.is_ok_and(|(answer, _)| answer == flags)
}

#[test]
fn a_login_under_way_does_not_outlive_the_rule_that_it_came_by() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let Disk::File { path, .. } = kernel.disk("changed", 1 << 20).await else { panic!("a file") };
        let (old, mut new) = (spec(&path, 1, None), spec(&path, 2, None));
        (new.id, new.iqn, new.luns) = (old.id.clone(), old.iqn.clone(), old.luns.clone());
        let endpoint = port.ensure(&old, &old.disks).await.unwrap();
        let mut wire = Connection::connect(endpoint.listen[0]).await.unwrap();
        assert!(login_step(&mut wire, 0x04, &who(1, &endpoint)).await, "the first half of a login");
        assert!(port.connections().await.unwrap().is_empty(), "the kernel shows no session yet");

        let (changing, wanted) = (Arc::clone(&port), new.clone());
        let changing = tokio::spawn(async move { changing.ensure(&wanted, &wanted.disks).await });
        let group = Path::new(ROOT).join("iscsi").join(old.iqn.to_string()).join("tpgt_1");
        let as_before = || {
            group.join("acls/iqn.2026-11.local.ggnet:pc-1").exists()
                && fs::read_to_string(group.join("enable")).unwrap().trim() == "1"
        };
        while as_before() && !changing.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Granted, it would be a session by nobody's rule, and the change would wait for its end.
        assert!(!login_step(&mut wire, 0x87, "").await, "who is no longer allowed has got in");
        changing.await.unwrap().unwrap();
        kernel.connect(&endpoint, &new.access).await.unwrap().logout().await.unwrap();
    });
}

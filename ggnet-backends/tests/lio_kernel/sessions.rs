//! What the kernel tells of sessions, and what the disk tells of itself.

use ggnet_core::{
    block::Disk,
    ports::{Connection, TargetBackend},
    testkit::suite::{Fixture as _, TargetFixture as _},
};

use crate::kernel::{Kernel, block_on, spec};

async fn only_one(port: &dyn TargetBackend) -> Connection {
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
            let endpoint = port.ensure(&spec).await.unwrap();
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
        let endpoint = port.ensure(&old).await.unwrap();
        let client = kernel.connect(&endpoint, &old.access).await.unwrap();
        port.ensure(&new).await.unwrap();
        client.read(0, 512).await.expect("it is still served");
        kernel.connect(&endpoint, &old.access).await.map(drop).expect_err("its secret is worth nothing now");
        // And back: it may again, with its secret.
        port.ensure(&old).await.unwrap();
        kernel.connect(&endpoint, &old.access).await.unwrap().logout().await.unwrap();
        client.read(0, 512).await.expect("and it was served all the time");
    });
}

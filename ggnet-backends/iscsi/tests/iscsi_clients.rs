//! The iSCSI target against other people's initiators: libiscsi's tools and QEMU's block driver.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;

use std::sync::atomic::Ordering::SeqCst;

use ggnet_iscsi::{Chap, ChapPair, Exclusivity, LoginDecision, Secret};
use iscsi_support::{IQN, MemDisk, Policy, Rig, pattern, tool};

const MIB: usize = 1 << 20;

fn pair(user: &str, secret: &str) -> ChapPair {
    ChapPair { user: user.into(), secret: Secret::new(secret) }
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_inquiry() {
    let rig = Rig::open(MemDisk::new(64 * MIB, 512));
    let said = tool("libiscsi-bin", &["iscsi-ls", "-s", &format!("iscsi://{}/", rig.address)]).await;
    assert!(said.ok, "{}", said.text);
    assert!(said.text.contains(&format!("Target:{IQN} Portal:{},1", rig.address)), "{}", said.text);
    assert!(said.text.contains("Lun:0") && said.text.contains("DIRECT_ACCESS"), "{}", said.text);
    let said = tool("libiscsi-bin", &["iscsi-inq", "-e", "1", "-c", "128", &rig.url()]).await;
    assert!(said.text.contains("serial-1"), "{}", said.text);
    let said = tool("libiscsi-bin", &["iscsi-inq", "-e", "1", "-c", "131", &rig.url()]).await;
    assert!(said.ok && said.text.contains("DESIGNATOR"), "{}", said.text);
    let said = tool("libiscsi-bin", &["iscsi-readcapacity16", &rig.url()]).await;
    assert!(said.text.contains(&format!("Total size:{}", 64 * MIB)), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_reads_and_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (block, decline) in [(512, false), (512, true), (4096, false)] {
        let disk = MemDisk::new(32 * MIB, block);
        disk.decline.store(decline, SeqCst);
        let image = pattern(32 * MIB, 7);
        disk.data.write().unwrap().copy_from_slice(&image);
        let rig = Rig::open(disk.clone());
        let read = ["qemu-img", "convert", "-f", "raw", "-O", "raw", &rig.url(), &path("out.raw")];
        let said = tool("qemu-utils qemu-block-extra", &read).await;
        assert!(said.ok, "{}", said.text);
        assert!(std::fs::read(path("out.raw")).unwrap() == image);
        let url = rig.url();
        disk.data.write().unwrap().fill(0);
        let write = [
            "qemu-img",
            "convert",
            "-n",
            "-t",
            "writeback",
            "-f",
            "raw",
            "-O",
            "raw",
            &path("out.raw"),
            &url,
        ];
        let said = tool("qemu-utils qemu-block-extra", &write).await;
        assert!(said.ok, "{}", said.text);
        assert!(*disk.data.read().unwrap() == image);
        assert!(disk.flushes.load(SeqCst) > 0, "QEMU flushes at the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chap_one_way_and_mutual() {
    let rig = Rig::open(MemDisk::new(MIB, 512));
    let one_way = Chap::OneWay(pair("lab", "abcdefgh12345678"));
    let accept = |chap: Chap| LoginDecision::Accept { chap, exclusivity: Exclusivity::Shared };
    rig.policy.say(accept(one_way));
    let address = rig.address;
    let inq = async |login: &str, query: &str| {
        tool("libiscsi-bin", &["iscsi-inq", &format!("iscsi://{login}{address}/{IQN}/0{query}")]).await
    };
    assert!(inq("lab%abcdefgh12345678@", "").await.ok);
    for wrong in ["lab%abcdefgh12345679@", "bal%abcdefgh12345678@", ""] {
        let said = inq(wrong, "").await;
        assert!(!said.ok && said.text.contains("(513)"), "{wrong}: {}", said.text);
    }
    let users: Vec<_> =
        rig.policy.authenticated.lock().unwrap().iter().map(|l| l.chap_user.clone()).collect();
    assert!(
        !users.is_empty() && users.iter().all(|u| u.as_deref() == Some("lab")),
        "the commit ran for proved logins only"
    );

    rig.policy.say(accept(Chap::Mutual {
        initiator: pair("lab", "abcdefgh12345678"),
        target: pair("disk", "8765432187654321"),
    }));
    assert!(inq("lab%abcdefgh12345678@", "?target_user=disk&target_password=8765432187654321").await.ok);
    assert!(!inq("lab%abcdefgh12345678@", "?target_user=disk&target_password=1111111111111111").await.ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_as_libiscsi_reads_them() {
    let rig = Rig::new(Policy::accept(Chap::None, Exclusivity::Shared));
    rig.add(IQN, MemDisk::new(MIB, 512));
    for (decision, code) in [
        (LoginDecision::NotReady, "(769)"),
        (LoginDecision::NotFound, "(515)"),
        (LoginDecision::Refused, "(514)"),
    ] {
        rig.policy.say(decision);
        let said = tool("libiscsi-bin", &["iscsi-inq", &rig.url()]).await;
        assert!(!said.ok && said.text.contains(code), "{code}: {}", said.text);
    }
}

//! GGnet's targets next to the program targetcli: it shows our targets, and saves and restores them unchanged.

use std::process::Command;

use ggnet_core::{
    block::Disk,
    ports::{Completeness, Removal},
    testkit::suite::{Fixture as _, TargetFixture as _},
};

use crate::kernel::{Kernel, assert_same, block_on, pristine, spec};

fn targetcli(args: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "the operator's own call")]
    let output = Command::new("targetcli").args(args).output().expect("apt-get install targetcli-fb");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn it_shows_saves_and_restores_our_targets() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let Disk::File { path, .. } = kernel.disk("one", 1 << 20).await else { panic!("a file") };
        let spec = spec(&path, 1, Some("TopSecret1234567"));
        let endpoint = port.ensure(&spec, &spec.disks).await.unwrap();
        let client = kernel.connect(&endpoint, &spec.access).await.unwrap();
        client.write(0, &[7; 512]).await.unwrap();
        client.flush().await.unwrap();
        client.logout().await.unwrap();

        let shown = targetcli(&["ls"]);
        for name in
            [spec.iqn.to_string(), path.display().to_string(), "iqn.2026-11.local.ggnet:pc-1".to_owned()]
        {
            assert!(shown.contains(&name), "{name} is not in {shown}");
        }
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("saved.json").display().to_string();
        targetcli(&["saveconfig", &saved]);
        targetcli(&["restoreconfig", &saved, "clear_existing=true"]);

        // Unchanged: complete, for the same initiator with the same secret, on the same disk.
        let listed = port.list().await.unwrap();
        let whole: Vec<_> =
            listed.iter().filter(|l| l.completeness == Completeness::Whole).map(|l| &l.id).collect();
        assert_eq!(whole, [&spec.id], "{listed:?}");
        let client = kernel.connect(&endpoint, &spec.access).await.unwrap();
        assert_eq!(client.read(0, 512).await.unwrap(), vec![7; 512]);
        // Under a live session the disks must not change: so an ensure succeeds only if they are the wanted ones.
        assert_eq!(port.ensure(&spec, &spec.disks).await.unwrap().iqn, spec.iqn);
        assert_eq!(client.read(0, 512).await.unwrap(), vec![7; 512]);
        client.logout().await.unwrap();
        port.remove(&spec.id, Removal::Force).await.unwrap();
        assert_same(&crate::kernel::tree(), &pristine(), "nothing is left, also of what was restored");
    });
}

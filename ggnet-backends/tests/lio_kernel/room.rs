//! Many targets at once, and repeated calls.

use std::{fs, os::unix::fs::FileExt as _, sync::Arc};

use ggnet_core::{
    block::Disk,
    nouns::ImageFormat,
    ports::{Completeness, Removal},
    testkit::suite::{Fixture as _, TargetFixture as _},
};

use crate::kernel::{Kernel, assert_same, block_on, pristine, spec, tree};

#[test]
fn fifty_ensures_at_once_leave_fifty_right_targets_and_removed_none() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let mut specs = Vec::new();
        for n in 0..50 {
            let Disk::File { path, .. } = kernel.disk(&n.to_string(), 1 << 20).await else {
                panic!("a file")
            };
            // The first byte identifies the disk.
            fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[n; 512], 0).unwrap();
            specs.push(spec(&path, n.into(), Some(&format!("Secret{n:010}"))));
        }
        let calls = specs.iter().cloned().map(|spec| {
            let port = Arc::clone(&port);
            tokio::spawn(async move { port.ensure(&spec, &spec.disks).await.unwrap() })
        });
        let mut endpoints = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            endpoints.push(call.await.unwrap());
        }
        let listed = port.list().await.unwrap();
        assert_eq!(listed.len(), 50);
        assert!(listed.iter().all(|l| l.completeness == Completeness::Whole), "{listed:?}");
        for (n, (spec, endpoint)) in (0_u8..).zip(specs.iter().zip(&endpoints)) {
            let client = kernel.connect(endpoint, &spec.access).await.unwrap();
            assert_eq!(client.read(0, 512).await.unwrap(), vec![n; 512], "target {n} serves its own disk");
            client.logout().await.unwrap();
        }
        let calls = specs.iter().cloned().map(|spec| {
            let port = Arc::clone(&port);
            tokio::spawn(async move { port.remove(&spec.id, Removal::Force).await.unwrap() })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        assert_same(&tree(), &pristine(), "nothing is left in the whole tree");
    });
}

#[test]
fn ensure_twice_equals_once_in_every_object_and_value() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let Disk::File { path, .. } = kernel.disk("twice", 1 << 20).await else { panic!("a file") };
        let mut spec = spec(&path, 1, Some("TopSecret1234567"));
        let mut second = spec.luns[0].clone();
        second.number = 5;
        second.read_only = true;
        spec.disks.insert(5, Disk::File { path: path.clone(), format: ImageFormat::Raw });
        spec.luns.push(second);
        port.ensure(&spec, &spec.disks).await.unwrap();
        let once = tree();
        port.ensure(&spec, &spec.disks).await.unwrap();
        assert_same(&tree(), &once, "ensured once");
        // Also by the next process.
        drop(port);
        kernel.reopen().await.ensure(&spec, &spec.disks).await.unwrap();
        assert_same(&tree(), &once, "ensured once");
    });
}

#[test]
fn a_disk_that_is_not_there_leaves_nothing() {
    let kernel = Kernel::with_files();
    block_on(async {
        let port = kernel.fresh().await;
        let mut spec = spec(std::path::Path::new("/tmp/nonexistent"), 1, None);
        port.ensure(&spec, &spec.disks).await.unwrap_err();
        assert_same(&tree(), &pristine(), "nothing is left");
        // The kernel detects it when the device is opened: then a part of the target exists.
        spec.disks.insert(0, Disk::Device { path: "/dev/nonexistent".into() });
        port.ensure(&spec, &spec.disks).await.unwrap_err();
        assert_same(&tree(), &pristine(), "nothing is left");
    });
}

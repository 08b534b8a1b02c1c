//! A store that images and kept writes do not belong to: objects that it does not know would be removed.

use std::sync::Arc;

use ggnet_core::{
    ErrorKind, Result,
    metrics::Registry,
    nouns::{ImageVersionId, WritebackPolicy},
    orchestrator::{Backends, Ports},
    ports::{ImageSpec, Removal},
    testkit::memory::MemoryStore,
    wrap::PortLimits,
};

use crate::site::Site;

fn refused(result: Result<()>, what: &str) {
    let e = result.expect_err(what);
    assert_eq!(e.kind(), ErrorKind::Invalid, "{}", e.report());
    let said = e.report();
    assert!(said.contains(what), "no {what:?} in {said}");
}

#[tokio::test]
async fn a_new_one_is_refused_beside_images_and_beside_kept_writes() {
    let site = Site::new();
    let p = site.open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    drop(p.power_on(&machine).await);
    p.stop(&p.session(&machine).await, true).await.unwrap();
    let kept = p.left().await["writeback"].first().cloned().expect("kept writes");
    let version = p.image_ids().await[0];
    let draft = ImageSpec::new(ImageVersionId::generate(), 4096);

    let own = &p.ports;
    let backends = Backends {
        store: Arc::new(MemoryStore::new()),
        target: own.target().clone(),
        writeback: own.writeback().clone(),
        images: own.images().clone(),
        dhcp: own.dhcp().clone(),
        boot_files: own.boot_files().clone(),
        converter: own.converter().clone(),
        clock: own.clock().clone(),
    };
    let new = Ports::new(backends, &PortLimits::default(), &mut Registry::default()).unwrap();
    refused(new.check_store().await, &version.to_string());
    own.check_store().await.expect("their own store");
    own.images().remove(version, Removal::Force).await.unwrap();
    refused(new.check_store().await, kept.as_str());
    own.writeback().remove(&kept, Removal::Force).await.unwrap();
    own.images().draft(&draft).await.unwrap();
    new.check_store().await.expect("nothing is there that it would have to know");
}

//! The queries of pages: each takes as many reads for a thousand rows as for one.

use ggnet_core::{
    ErrorKind,
    nouns::{ImageState, ImageVersionId, MacAddr, SessionId, VersionState},
    ports::SessionFilter,
};

use crate::site::{Process, Site, all, mac};

/// The calls since `from`, in their order.
fn calls(p: &Process, from: usize) -> Vec<String> {
    p.plan.log()[from..].iter().map(|op| format!("{}.{}", op.port, op.name)).collect()
}

#[tokio::test]
async fn a_page_of_images_has_their_versions_and_is_two_reads() {
    let p = Site::new().open().await;
    let (debian, first) = p.image("debian").await;
    let second = p.version(debian, 2).await;
    let (win11, of_win11) = p.image("win11").await;
    let from = p.plan.log().len();
    let page = p.o.read().images(all()).await.unwrap();
    assert_eq!(calls(&p, from), ["store.images", "store.versions_of"]);
    let found: Vec<_> = page
        .items
        .iter()
        .map(|view| (view.image.id, view.versions.iter().map(|v| v.version.id).collect::<Vec<_>>()))
        .collect();
    assert_eq!(found, [(debian, vec![first, second]), (win11, vec![of_win11])]);
    assert!(page.items.iter().all(|view| view.state == ImageState::Ready));

    let read = p.o.read();
    for reference in ["debian", &debian.to_string()] {
        let image = read.image(reference).await.unwrap();
        assert_eq!(read.image_view(image).await.unwrap(), page.items[0]);
    }
    assert_eq!(read.image("gone").await.unwrap_err().kind(), ErrorKind::NotFound);
    let view = read.version(second).await.unwrap();
    assert_eq!((view.version.state, view.progress_per_mille), (VersionState::Ready, None));
    assert_eq!(read.version_name(second).await.unwrap(), "debian version 2");
    let gone = ImageVersionId::generate();
    assert_eq!(read.version_name(gone).await.unwrap(), format!("version {gone}"));
}

#[tokio::test]
async fn a_page_of_sessions_has_names_and_no_secrets_and_is_two_reads() {
    let p = Site::new().open().await;
    let (image, _) = p.image("debian").await;
    let mut machines = Vec::new();
    for n in 1..=3 {
        let machine = p.machine(n, image, |m| m.auto_start = false).await;
        p.start(&machine).await.unwrap();
        machines.push(machine);
    }
    let from = p.plan.log().len();
    let filter = SessionFilter { live: Some(true), ..SessionFilter::default() };
    let page = p.o.read().sessions(&filter, all()).await.unwrap();
    assert_eq!(calls(&p, from), ["store.sessions", "store.names"]);
    let names = page.items.iter().map(|view| view.machine_name.as_ref().unwrap().as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["pc-3", "pc-2", "pc-1"]);
    let _disk = p.power_on(&machines[1]).await;
    let online = p.o.read().sessions(&filter, all()).await.unwrap();
    assert_eq!(online.items.iter().map(|view| view.online).collect::<Vec<_>>(), [false, true, false]);
    for view in &page.items {
        assert_eq!(view.image_name.as_ref().unwrap().as_str(), "debian");
        assert_eq!(view.session.current.chap, None);
        let one = p.o.read().session(view.session.id).await.unwrap();
        assert!(one.session.current.chap.is_some(), "a session alone is read whole");
        assert_eq!(one.target_iqn, view.target_iqn);
    }
    let gone = p.o.read().session(SessionId::generate()).await.unwrap_err();
    assert_eq!(gone.code().name(), "session_not_found");
}

#[tokio::test]
async fn connections_have_names_in_as_many_reads_for_all() {
    let p = Site::new().open().await;
    let (image, _) = p.image("debian").await;
    let mut disks = Vec::new();
    for n in 1..=3 {
        let machine = p.machine(n, image, |_| ()).await;
        disks.push(p.power_on(&machine).await);
    }
    let from = p.plan.log().len();
    let found = p.o.read().connections().await.unwrap();
    // The logins may be recorded at the same time.
    let calls = calls(&p, from);
    for once in ["store.targets", "target.connections", "store.names"] {
        assert_eq!(calls.iter().filter(|call| *call == once).count(), 1, "{once} in {calls:?}");
    }
    assert_eq!((found.connections.len(), found.machines.len(), found.manual.len()), (3, 3, 0));
    let targets = p.o.read().targets().await.unwrap();
    assert_eq!(targets.len(), 3);
    assert!(targets.iter().all(|t| t.session.is_some() && t.connections.len() == 1 && t.manual.is_none()));
}

#[tokio::test]
async fn a_machine_is_found_by_id_name_and_address_and_a_name_comes_first() {
    let p = Site::new().open().await;
    let (image, _) = p.image("debian").await;
    let machine = p.machine(1, image, |m| m.macs.push(mac(7))).await;
    let hyphenated = mac(7).hyphenated();
    let spellings = [machine.id.to_string(), "pc-1".to_owned(), mac(1).to_string(), hyphenated.clone()];
    for reference in &spellings {
        assert_eq!(p.o.read().machine(reference).await.unwrap().id, machine.id, "{reference}");
    }
    // A name may look like the address of another machine.
    let odd = p.machine(2, image, |m| m.name = hyphenated.parse().unwrap()).await;
    assert_eq!(p.o.read().machine(&hyphenated).await.unwrap().id, odd.id);
    assert_eq!(p.o.read().machine(&mac(7).to_string()).await.unwrap().id, machine.id);
    for unknown in ["pc-9", "52:54:00:ff:ff:ff", "no name at all"] {
        let e = p.o.read().machine(unknown).await.unwrap_err();
        assert_eq!(e.code().name(), "machine_not_found", "{unknown}");
    }
    let stranger: MacAddr = mac(9);
    let e = p.o.read().seen_machine(stranger).await.unwrap_err();
    assert_eq!(e.code().name(), "seen_machine_not_found");
}

//! The cases about what a target is asked to be: how it is reached, which disks it has, and what is refused.

use super::*;

/// What a client needs.
pub async fn the_endpoint_names_the_target_and_its_first_lun(f: &impl TargetFixture) {
    let served = serve(f).await;
    let mut spec = spec(f, &id(), only(1)).await;
    spec.luns[0].number = 3;
    spec.disks = spec.disks.values().map(|disk| (3, disk.clone())).collect();
    let endpoint = served.ensure(&spec).await.expect("ensure");
    assert_eq!(endpoint.iqn, spec.iqn);
    assert_eq!(endpoint.lun, 3);
    assert!(!endpoint.listen.is_empty(), "it listens somewhere");
    assert!(endpoint.listen.iter().all(|at| at.port() != 0), "{:?}", endpoint.listen);
}

/// The same as `ensure` said, none when there is none, and asking makes none.
pub async fn the_endpoint_can_be_read(f: &impl TargetFixture) {
    let served = serve(f).await;
    let (one, other) = (spec(f, &id(), only(1)).await, spec(f, &id(), only(2)).await);
    let read = async |id: &ResourceId| served.port.endpoint(id).await.expect("endpoint");
    assert_eq!(read(&one.id).await, None, "nothing was made");
    let endpoint = served.ensure(&one).await.expect("ensure");
    assert_eq!(read(&one.id).await, Some(endpoint));
    assert_eq!(read(&other.id).await, None, "nothing of this name was made");
    assert_whole::<Targets>(served.port.as_ref(), std::slice::from_ref(&one)).await;
    served.port.remove(&one.id, Removal::Force).await.expect("remove");
    assert_eq!(read(&one.id).await, None, "it was removed");
}

/// What does not fit together is refused, and nothing is left of it.
pub async fn each_lun_has_one_disk(f: &impl TargetFixture) {
    let served = serve(f).await;
    let whole = spec(f, &id(), only(1)).await;
    let mut without = whole.clone();
    without.disks.clear();
    let mut beside = whole.clone();
    beside.disks.insert(7, whole.disks[&0].clone());
    let mut twice = whole.clone();
    twice.luns.push(whole.luns[0].clone());
    for (wrong, field) in [(without, "disks"), (beside, "disks"), (twice, "luns")] {
        let e = served.ensure(&wrong).await.expect_err("it does not fit together");
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some(field)), "{}", e.report());
        assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
    }
}

/// Refused as declared, and nothing is left of it.
pub async fn a_disk_form_it_does_not_take_is_unsupported(f: &impl TargetFixture) {
    let served = serve(f).await;
    let accepts = served.port.capabilities().accepts;
    let blocks: Arc<dyn BlockDevice> = Arc::new(RamDisk::zeros(1 << 20));
    let file = Disk::File { path: "/nonexistent/ggnet-disk".into(), format: ImageFormat::Raw };
    let device = Disk::Device { path: "/dev/nonexistent-ggnet-disk".into() };
    for disk in [Disk::Blocks(blocks), file, device] {
        if accepts.contains(&disk.form()) {
            continue;
        }
        let mut spec = spec(f, &id(), only(1)).await;
        spec.disks.insert(0, disk);
        let e = served.ensure(&spec).await.expect_err("a form that it does not take");
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
        assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
    }
}

/// Refused as declared: a target without the secret that was asked for would be open to all.
pub async fn chap_it_cannot_demand_is_unsupported(f: &impl TargetFixture) {
    let served = serve(f).await;
    let access = Access::Initiator { name: initiator(1), chap: Some(chap(false)), mutual: None };
    let e = served.ensure(&spec(f, &id(), access).await).await.expect_err("CHAP that it cannot demand");
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{}", e.report());
    assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
}

/// Refused as declared.
pub async fn mutual_chap_it_cannot_do_is_unsupported(f: &impl TargetFixture) {
    let served = serve(f).await;
    let pair = ChapPair { user: "disk-1".into(), secret: Secret::new("TargetSecret1234") };
    // Without CHAP itself it is that which is refused.
    let chap = served.port.capabilities().chap.then(|| chap(false));
    let access = Access::Initiator { name: initiator(1), chap, mutual: Some(pair) };
    let e = served.ensure(&spec(f, &id(), access).await).await.expect_err("mutual CHAP");
    assert!(matches!(e.kind(), ErrorKind::Unsupported), "{}", e.report());
    assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
}

/// One more than declared is refused; as many as declared are not (up to 8 are tried).
pub async fn too_many_luns_are_refused(f: &impl TargetFixture) {
    let served = serve(f).await;
    let max = served.port.capabilities().max_luns;
    let mut spec = spec(f, &id(), only(1)).await;
    let (first, first_disk) = (spec.luns.remove(0), spec.disks.remove(&0).expect("its disk"));
    for number in 0..=max {
        if number == max.min(8) {
            served.ensure(&spec).await.expect("no more LUNs than declared");
            served.port.remove(&spec.id, Removal::IfIdle).await.expect("remove");
        }
        let key = format!("{}-{number}", spec.id);
        // Beyond eight the same disk serves: such a target is only refused.
        let disk = if number < 8 { f.disk(&key, SIZE).await } else { first_disk.clone() };
        spec.disks.insert(number, disk);
        spec.luns.push(LunSpec {
            number,
            disk_key: key,
            serial: format!("SERIAL-{number}"),
            ..first.clone()
        });
    }
    let e = served.ensure(&spec).await.expect_err("more LUNs than declared");
    assert!(matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Invalid), "{}", e.report());
    assert!(listed::<Targets>(served.port.as_ref()).await.is_empty());
}

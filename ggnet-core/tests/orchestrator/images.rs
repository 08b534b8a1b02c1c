//! Imports in the background, and what may be deleted.

use std::{path::PathBuf, time::Duration};

use ggnet_core::{
    ErrorKind,
    checksum::sha256_bytes,
    nouns::{EventKind, ImageVersion, ImageVersionId, JobState, Principal, VersionState, WritebackPolicy},
    orchestrator::{ImportRequest, NewTarget},
    ports::{Batch, Removal, Store as _, Write},
    testkit::flaky::{Fault, FaultPlan},
};

use crate::house::{House, Process, until};

pub fn source(house: &House, bytes: &[u8]) -> PathBuf {
    use std::io::Write as _;
    let path = house.dir.path().join("source.raw");
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

pub fn request(path: PathBuf) -> ImportRequest {
    ImportRequest {
        image: "debian".parse().unwrap(),
        path,
        format: None,
        expected_sha256: None,
        comment: "first".to_owned(),
        make_current: true,
        by: Principal::embedder(),
    }
}

pub async fn ended(p: &Process, id: ImageVersionId) -> ImageVersion {
    until("the import ends", async || {
        p.store.version(id).await.unwrap().unwrap().state != VersionState::Importing
            && p.o.images().import_progress(id).is_none()
    })
    .await;
    p.store.version(id).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_import_becomes_ready_and_current() {
    let house = House::new();
    let p = house.open().await;
    let bytes = vec![7; 300_000];
    let mut ask = request(source(&house, &bytes));
    ask.expected_sha256 = Some(sha256_bytes(&bytes).to_uppercase());
    p.plan.add(Fault::on("image_converter.convert").is_delayed(Duration::from_millis(100)));
    let (image, version) = p.o.images().import(ask.clone()).await.unwrap();
    assert_eq!((version.state, version.number), (VersionState::Importing, 1));
    until("progress is shown", async || p.o.images().import_progress(version.id).is_some_and(|n| n >= 150))
        .await;
    let ready = ended(&p, version.id).await;
    assert_eq!(ready.state, VersionState::Ready);
    assert_eq!(ready.size_bytes % 512, 0);
    let stored = p.image_bytes(version.id).await;
    assert_eq!(ready.sha256, Some(sha256_bytes(&stored)));
    assert_eq!(&stored[..bytes.len()], bytes);
    assert_eq!(p.store.image(image.id).await.unwrap().unwrap().current, Some(version.id));
    let job = p.o.jobs().of_version(version.id).await.unwrap().unwrap();
    let changed = |state| EventKind::JobChanged { job: job.id, state };
    let told = [
        EventKind::ImageCreated,
        EventKind::VersionImporting,
        changed(JobState::Running),
        EventKind::VersionReady,
        EventKind::ImageUpdated,
        changed(JobState::Succeeded),
    ];
    assert_eq!(p.all_events().await, told);

    ask.make_current = false;
    let (again, second) = p.o.images().import(ask.clone()).await.unwrap();
    assert_eq!((again.id, second.number), (image.id, 2));
    ended(&p, second.id).await;
    assert_eq!(p.store.image(image.id).await.unwrap().unwrap().current, Some(version.id), "not asked to be");
    assert_eq!(p.image_ids().await.len(), 2);

    p.o.images().delete_version(second.id, &Principal::embedder()).await.unwrap();
    let (_, third) = p.o.images().import(ask).await.unwrap();
    assert_eq!(third.number, 3, "a number means one version for ever");
    ended(&p, third.id).await;
}

#[tokio::test]
async fn a_failed_import_leaves_the_reason_and_nothing_else() {
    let house = House::new();
    let p = house.open().await;
    let path = source(&house, b"QFI\xfbnot what it says");
    let raw = source(&house, &[1; 4096]);
    let mut wrong_sum = request(raw.clone());
    wrong_sum.expected_sha256 = Some("0".repeat(64));
    let mut wrong_format = request(raw.clone());
    wrong_format.format = Some(ggnet_core::nouns::ImageFormat::Qcow2);
    for (ask, fault, says, code) in [
        (wrong_sum, None, "checksum", "checksum_mismatch"),
        (wrong_format, None, "not Qcow2", "format_mismatch"),
        (request(house.dir.path().join("missing.raw")), None, "not_found", "not_found"),
        (request(raw.clone()), Some(Fault::on("convert").nth(1).fails(ErrorKind::Full)), "full", "full"),
        (
            request(raw.clone()),
            Some(Fault::on("convert").nth(1).loses_the_answer(ErrorKind::Timeout)),
            "timeout",
            "timeout",
        ),
    ] {
        p.plan.clear();
        fault.into_iter().for_each(|f| {
            p.plan.add(f);
        });
        let (_, version) = p.o.images().import(ask).await.unwrap();
        let failed = ended(&p, version.id).await;
        assert_eq!(failed.state, VersionState::Failed, "{says}");
        assert!(failed.error.as_ref().unwrap().contains(says), "{says}: {failed:?}");
        assert!(failed.finished_at.is_some());
        assert!(p.image_ids().await.is_empty(), "{says}");
        let why = failed.failure.clone().unwrap();
        assert_eq!(why.code, code, "{says}");
        assert_eq!(why.hint.is_some(), code.ends_with("mismatch"), "the hint of its error: {why:?}");
        let event = EventKind::VersionFailed { reason: failed.error.unwrap(), failure: failed.failure };
        // The last one is of its job.
        assert_eq!(p.all_events().await.iter().nth_back(1), Some(&event));
        p.o.images().delete_version(version.id, &Principal::embedder()).await.unwrap();
    }
    assert_eq!(std::fs::read(&raw).unwrap(), [1; 4096], "the source is intact");
    let _ = path;
}

#[tokio::test]
async fn a_converter_that_was_cut_off_leaves_no_bytes_for_long() {
    for polls in 0..6 {
        let house = House::new();
        let p = house.open().await;
        p.plan.add(Fault::on("convert").nth(1).is_cut_after(polls));
        let (_, version) = p.o.images().import(request(source(&house, &[1; 4096]))).await.unwrap();
        let state = ended(&p, version.id).await.state;
        // What it had begun, it may still do.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let p = house.open().await;
        assert_eq!(p.image_ids().await.len(), usize::from(state == VersionState::Ready), "{polls} polls");
        assert_eq!(p.store.version(version.id).await.unwrap().unwrap().state, state);
    }
}

#[tokio::test]
async fn a_cancelled_import_ends_as_failed() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("convert").is_delayed(Duration::from_millis(100)));
    let (image, version) = p.o.images().import(request(source(&house, &[1; 4096]))).await.unwrap();
    for refused in [
        p.o.images().delete_version(version.id, &Principal::embedder()).await.map(|_| ()),
        p.o.images().delete(image.id, &Principal::embedder()).await,
        p.o.images().set_current(image.id, version.id, &Principal::embedder()).await.map(|_| ()),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    }
    p.o.jobs().cancel_import(version.id, &Principal::embedder()).await.unwrap();
    assert_eq!(ended(&p, version.id).await.state, VersionState::Failed);
    assert!(p.image_ids().await.is_empty());
    let again = p.o.jobs().cancel_import(version.id, &Principal::embedder()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_import_that_is_cancelled_while_its_file_is_probed_ends_at_once() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.probe").hangs());
    let (_, version) = p.o.images().import(request(source(&house, &[1; 4096]))).await.unwrap();
    until("the file is probed", async || p.plan.calls("image_converter.probe") > 0).await;
    p.o.jobs().cancel_import(version.id, &Principal::embedder()).await.unwrap();
    let failed = ended(&p, version.id).await;
    assert!(failed.state == VersionState::Failed && failed.error.unwrap().contains("cancelled"));
    assert_eq!(p.plan.calls("image_converter.convert"), 0);
    p.o.images().delete_version(version.id, &Principal::embedder()).await.unwrap();
}

/// A real kill ends the converter's thread too; here it must come to its end before the next process looks at the folder.
async fn abandoned_copy_ended(dir: &std::path::Path) {
    // The pool's queue is first in, first out: behind this one the copy has begun.
    tokio::task::spawn_blocking(|| ()).await.unwrap();
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to.starts_with(dir))
    };
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if !open() {
            return;
        }
    }
}

#[tokio::test]
async fn an_interrupted_import_is_failed_at_the_next_start() {
    for polls in [0, 1, 3, 1000] {
        let house = House::new();
        let p = house.open().await;
        p.plan.add(Fault::on("convert").nth(1).kills(polls));
        let (_, version) = p.o.images().import(request(source(&house, &[1; 200_000]))).await.unwrap();
        p.plan.killed().await;
        abandoned_copy_ended(house.dir.path()).await;
        // Bytes that no record explains, and a version that is there.
        house.images.plant(ImageVersionId::generate(), 4096, &[]).unwrap();
        let (_, ready) = p.image("win11").await;
        let p = house.open().await;
        let failed = p.store.version(version.id).await.unwrap().unwrap();
        assert_eq!(failed.state, VersionState::Failed);
        assert!(failed.error.unwrap().contains("interrupted"));
        assert_eq!(p.image_ids().await, [ready], "{polls} polls");
    }
}

#[tokio::test]
async fn an_import_does_not_begin_during_the_clean_up() {
    let house = House::new();
    let plan = FaultPlan::new();
    plan.add(Fault::on("image.list").first(1).hangs());
    let p = house.open_unready(&plan);
    let import = p.o.images().import(request(source(&house, &[1; 4096])));
    assert!(tokio::time::timeout(Duration::from_millis(100), import).await.is_err());
    assert!(p.store.images(crate::house::all()).await.unwrap().items.is_empty(), "its bytes would be swept");
}

#[tokio::test]
async fn an_import_waits_for_the_clean_up_after_the_last_process() {
    let house = House::new();
    let plan = FaultPlan::new();
    plan.add(Fault::on("image.list").first(1).is_delayed(Duration::from_millis(100)));
    let p = house.open_unready(&plan);
    let (_, version) = p.o.images().import(request(source(&house, &[1; 200_000]))).await.unwrap();
    assert_eq!(plan.calls("image.list"), 1);
    assert_eq!(ended(&p, version.id).await.state, VersionState::Ready);
    assert_eq!(p.image_ids().await.len(), 1);
}

#[tokio::test]
async fn an_import_whose_end_is_not_recorded_yet_can_be_cancelled_and_deleted() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("convert").nth(1).is_delayed(Duration::from_millis(50)));
    let (_, version) = p.o.images().import(request(source(&house, &[1; 4096]))).await.unwrap();
    let before = p.plan.calls("store.commit");
    p.plan.add(Fault::on("store.commit").first(1).fails(ErrorKind::Full));
    until("its end is tried", async || p.plan.calls("store.commit") > before).await;
    assert!(p.o.images().import_progress(version.id).is_some(), "it counts as running");
    assert_eq!(p.store.version(version.id).await.unwrap().unwrap().state, VersionState::Importing);
    p.o.jobs().cancel_import(version.id, &Principal::embedder()).await.unwrap();
    let failed = ended(&p, version.id).await;
    assert!(failed.state == VersionState::Failed && failed.error.unwrap().contains("cancelled"));
    p.o.images().delete_version(version.id, &Principal::embedder()).await.unwrap();
    assert!(p.image_ids().await.is_empty());
}

#[tokio::test]
async fn what_machines_boot_is_what_is_current_pinned_or_used() {
    let house = House::new();
    let p = house.open().await;
    let boots = async || p.o.read().versions_to_boot().await.unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(boots().await, []);
    let (debian, one) = p.image("debian").await;
    let (_, other) = p.image("win11").await;
    let (two, three) = (p.version(debian, 2).await, p.version(debian, 3).await);
    p.version(debian, 4).await;
    let sorted = |mut versions: Vec<ImageVersionId>| {
        versions.sort();
        versions
    };
    assert_eq!(boots().await, sorted(vec![one, other]));
    // Pinned, and in use by a session that began before another became current.
    p.machine(1, debian, |m| m.pinned_version = Some(two)).await;
    let machine = p.machine(2, debian, |_| ()).await;
    let session = p.start(&machine).await.unwrap().session;
    p.set_current(debian, three).await;
    assert_eq!(boots().await, sorted(vec![one, two, three, other]));
    p.stop(&session, false).await.unwrap();
    assert_eq!(boots().await, sorted(vec![two, three, other]));
}

#[tokio::test]
async fn a_version_in_use_stays() {
    let house = House::new();
    let p = house.open().await;
    let (image, one) = p.image("debian").await;
    let two = p.version(image, 2).await;
    let refused = async |id: ImageVersionId, says: &str| {
        let e = p.o.images().delete_version(id, &Principal::embedder()).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict, "{says}");
        assert!(e.message().contains(says), "{says}: {e}");
        assert!(e.hint().is_some(), "{says}");
    };
    refused(one, "current").await;
    let machine = p.machine(1, image, |m| m.writeback = WritebackPolicy::Keep).await;
    let session = p.start(&machine).await.unwrap().session;
    p.set_current(image, two).await;
    refused(one, "stands on").await;
    assert_eq!(
        p.o.images().delete(image, &Principal::embedder()).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    p.stop(&session, false).await.unwrap();
    // A stopped session's kept writeback stands on it, too.
    refused(one, "stands on").await;
    p.o.machines().discard_kept(machine.id, &Principal::embedder()).await.unwrap();
    p.update(&machine, move |m| m.pinned_version = Some(one)).await;
    refused(one, "in use").await;
    p.update(&machine, |m| m.pinned_version = None).await;
    let new = NewTarget { name: "shared".parse().unwrap(), version: one, initiator: None };
    let (target, _) = p.o.targets().create(new, &Principal::embedder()).await.unwrap();
    refused(one, "in use").await;
    p.o.targets().delete(target.id, false, &Principal::embedder()).await.unwrap();
    p.o.images().delete_version(one, &Principal::embedder()).await.unwrap();
    assert!(p.store.version(one).await.unwrap().is_none());
    assert_eq!(
        p.o.images().delete_version(one, &Principal::embedder()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );

    assert_eq!(
        p.o.images().delete(image, &Principal::embedder()).await.unwrap_err().kind(),
        ErrorKind::Conflict,
        "assigned"
    );
    p.update(&machine, |m| m.image = None).await;
    p.o.images().delete(image, &Principal::embedder()).await.unwrap();
    assert!(p.store.image(image).await.unwrap().is_none());
}

#[tokio::test]
async fn a_version_whose_bytes_are_gone_or_others_boots_nobody() {
    let house = House::new();
    let p = house.open().await;
    let (image, version) = p.image("debian").await;
    let machine = p.machine(1, image, |_| ()).await;
    ggnet_core::ports::ImageStore::remove(&*p.images, version, Removal::Force).await.unwrap();
    let gone = p.start(&machine).await.unwrap_err();
    assert_eq!((gone.kind(), gone.code().name()), (ErrorKind::Corrupt, "image_file_gone"), "{gone}");
    house.images.plant(version, 512, &[1; 512]).unwrap();
    let other = p.start(&machine).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Corrupt, "{other}");
    assert!(other.message().contains("has 512 bytes") && other.hint().is_some(), "{other}");
    assert!(p.left().await["writeback"].is_empty(), "no disk was made over it");
    house.images.plant(version, crate::house::SIZE, &[]).unwrap();
    p.start(&machine).await.unwrap();
}

#[tokio::test]
async fn two_imports_at_once_are_two_versions_of_one_image() {
    let house = House::new();
    let p = house.open().await;
    let path = source(&house, &[1; 4096]);
    let (a, b) = tokio::join!(p.o.images().import(request(path.clone())), p.o.images().import(request(path)));
    let ((image, a), (other, b)) = (a.unwrap(), b.unwrap());
    assert_eq!(image.id, other.id);
    assert_eq!(a.number + b.number, 3);
    ended(&p, a.id).await;
    ended(&p, b.id).await;
    assert_eq!(p.image_ids().await.len(), 2);
}

#[tokio::test]
async fn an_imports_end_that_could_not_be_recorded_is_recorded_later() {
    for works in [true, false] {
        let house = House::new();
        let p = house.open().await;
        p.plan.add(Fault::on("image_converter.convert").is_delayed(Duration::from_secs(1)));
        let (image, version) = p.o.images().import(request(source(&house, &[1; 4096]))).await.unwrap();
        let before = p.plan.calls("store.commit");
        // The cancel itself is recorded.
        let first = u64::from(!works);
        for nth in [first + 1, first + 2] {
            p.plan.add(Fault::on("store.commit").nth(nth).fails(ErrorKind::Full));
        }
        if !works {
            p.o.jobs().cancel_import(version.id, &Principal::embedder()).await.unwrap();
        }
        let done = ended(&p, version.id).await;
        assert!(p.plan.calls("store.commit") >= before + 3, "it was recorded at once");
        assert_eq!(done.state, if works { VersionState::Ready } else { VersionState::Failed });
        let current = p.store.image(image.id).await.unwrap().unwrap().current;
        assert_eq!(current, works.then_some(version.id));
        assert_eq!(p.image_ids().await.len(), usize::from(works));
    }
}

#[tokio::test]
async fn an_import_that_nobody_works_on_is_failed_by_the_reconciler() {
    let house = House::new();
    let p = house.open().await;
    p.plan.add(Fault::on("image_converter.convert").is_delayed(Duration::from_millis(500)));
    let (_, version) = p.o.images().import(request(source(&house, &[1; 4096]))).await.unwrap();
    // As an import that died leaves it.
    let dead = ImageVersion { id: ImageVersionId::generate(), number: 7, ..version.clone() };
    p.store.commit(Batch::new().write(Write::Version(dead.clone()))).await.unwrap();
    house.images.plant(dead.id, 4096, &[]).unwrap();
    let report = p.o.reconcile().await;
    assert_eq!((report.ended, report.trouble), (1, vec![]));
    let failed = p.store.version(dead.id).await.unwrap().unwrap();
    assert_eq!(failed.state, VersionState::Failed);
    let why = failed.failure.unwrap();
    assert_eq!(
        (why.code.as_str(), why.hint.as_deref()),
        ("import_interrupted", Some("`ggnet job retry` does it again, or import the file again"))
    );
    assert_eq!(ended(&p, version.id).await.state, VersionState::Ready, "one that is under way goes on");
    assert_eq!(p.image_ids().await.len(), 1);
}

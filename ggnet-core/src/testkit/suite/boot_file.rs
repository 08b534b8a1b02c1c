//! The suite of [`BootFileStore`]: see [`crate::boot_file_behaviour`].

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Fixture,
    attached::Witness,
    common::{Declarative, Specs, assert_whole, common_cases, id, reopen},
};
use crate::{
    error::{Error, ErrorKind, Result},
    nouns::ResourceId,
    ports::{BootBundle, BootFileStore, BootPath, Listed, NullObserver, Observation, Removal, SpecDigest},
};

/// Runs the behaviour suite of [`BootFileStore`] on the store of a [`BootFileFixture`](crate::testkit::suite::BootFileFixture).
///
/// ```text
/// ggnet_core::boot_file_behaviour!(my_files, MyFixture::new());
/// ```
/// `not_run: […]` as for [`target_behaviour`](crate::target_behaviour).
#[macro_export]
macro_rules! boot_file_behaviour {
    ($module:ident, $fixture:expr) => { $crate::boot_file_behaviour!(@ $module, $fixture, None); };
    ($module:ident, $fixture:expr, not_run: [$($case:ident),* $(,)?]) => {
        $crate::boot_file_behaviour!(@ $module, $fixture, Some(&[$(stringify!($case)),*]));
    };
    (@ $module:ident, $fixture:expr, $expected:expr) => {
        $crate::__behaviour!($module, $fixture, boot_file, $expected, [
            an_empty_backend_lists_nothing,
            ensure_twice_equals_once,
            list_shows_exactly_what_was_ensured,
            get_shows_what_list_shows,
            remove_of_nothing_is_success,
            what_was_removed_can_be_made_again,
            a_changed_spec_converges_or_is_busy,
            fifty_ensures_at_once_of_different_names,
            fifty_ensures_at_once_of_one_name,
            ensures_and_removes_at_once_of_one_name,
            a_dropped_ensure_is_completed_by_the_next,
            a_dropped_ensure_is_undone_by_remove,
            a_dropped_remove_is_completed_by_the_next,
            a_dropped_change_is_completed_by_the_next,
            what_exists_is_adopted_after_a_crash,
            a_crash_within_a_call_is_mended,
            what_is_not_ours_is_left_alone,
            files_are_read_back_exactly,
            a_missing_file_is_not_found,
            files_are_replaced_and_dropped,
            a_file_is_the_old_or_the_new_one,
            a_path_of_another_bundle_is_a_conflict,
            removed_files_are_gone,
            what_is_written_is_whole_after_a_crash,
            a_client_gets_the_bytes,
            what_is_sent_is_observed,
        ]);
    };
}

/// Makes boot file stores, and clients that fetch from them.
#[async_trait]
pub trait BootFileFixture: Fixture<dyn BootFileStore> {
    /// Whether clients can fetch here. If not, the cases that need one are not run.
    fn can_fetch(&self) -> bool {
        false
    }

    /// Whether the store reports the files that it sends. If not, that case is not run.
    fn observes(&self) -> bool {
        false
    }

    /// Acts as a client: fetches a file as firmware would (TFTP, HTTP). `NotFound` when the server answers that.
    async fn fetch(&self, path: &BootPath) -> Result<Bytes> {
        let _ = path;
        Err(Error::new(ErrorKind::Unsupported, "No client can run here"))
    }
}

/// The marker of this port.
pub struct BootFiles;

#[async_trait]
impl Declarative for BootFiles {
    type Port = dyn BootFileStore;
    type Spec = BootBundle;

    fn attach(port: &dyn BootFileStore) {
        port.attach(Arc::new(NullObserver));
    }

    fn digest(spec: &BootBundle) -> SpecDigest {
        spec.digest()
    }

    fn id(spec: &BootBundle) -> ResourceId {
        spec.id.clone()
    }

    // The port declares nothing about it: files in the memory of our process are lost with it, and the reconciler creates them again.
    fn survives(_: &dyn BootFileStore) -> bool {
        false
    }

    async fn ensure(port: &dyn BootFileStore, spec: &BootBundle) -> Result<String> {
        port.ensure(spec).await.map(|()| String::new())
    }

    async fn remove(port: &dyn BootFileStore, id: &ResourceId, _: Removal) -> Result<()> {
        port.remove(id).await
    }

    async fn get(port: &dyn BootFileStore, id: &ResourceId) -> Result<Option<Listed>> {
        port.get(id).await
    }

    async fn list(port: &dyn BootFileStore) -> Result<Vec<Listed>> {
        port.list().await
    }
}

fn path(text: &str) -> BootPath {
    text.parse().expect("a valid path")
}

fn bundle(id: &ResourceId, files: &[(String, Vec<u8>)]) -> BootBundle {
    let files: BTreeMap<_, _> = files.iter().map(|(p, b)| (path(p), Bytes::from(b.clone()))).collect();
    BootBundle { id: id.clone(), files }
}

#[async_trait]
impl<F: BootFileFixture> Specs<BootFiles> for F {
    async fn spec(&self, id: &ResourceId, variant: u8) -> BootBundle {
        let script = format!("#!ipxe\necho variant {variant} of {id}\n").into_bytes();
        let shared = (format!("machines/{id}.ipxe"), script.clone());
        let other = (format!("pi/{id}/config-{variant}.txt"), script);
        bundle(id, &[shared, other])
    }
}

/// Why a case cannot run on this fixture's store; `None`: it can.
pub async fn not_run(f: &impl BootFileFixture, case: &str) -> Option<String> {
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    let client = || lacks(f.can_fetch(), "the fixture has no client");
    match case {
        "what_is_not_ours_is_left_alone" => lacks(f.has_foreign(), "the fixture makes no foreign object"),
        "a_client_gets_the_bytes" => client(),
        "what_is_sent_is_observed" => {
            client().or_else(|| lacks(f.observes(), "it does not report the files that it sends"))
        }
        _ => None,
    }
}

common_cases!(BootFiles, BootFileFixture:
    /// Nothing is listed at first.
    an_empty_backend_lists_nothing,
    /// The same `ensure` again changes nothing.
    ensure_twice_equals_once,
    /// `list` is what was ensured and not removed.
    list_shows_exactly_what_was_ensured,
    /// `get` is `list` for one name.
    get_shows_what_list_shows,
    /// Removing an absent object succeeds, for every `how`.
    remove_of_nothing_is_success,
    /// A name can be used again.
    what_was_removed_can_be_made_again,
    /// A changed spec is applied completely, or it is refused and nothing changes.
    a_changed_spec_converges_or_is_busy,
    /// Concurrent calls for different names.
    fifty_ensures_at_once_of_different_names,
    /// The same call from many callers at once.
    fifty_ensures_at_once_of_one_name,
    /// Concurrent creation and removal of one object.
    ensures_and_removes_at_once_of_one_name,
    /// `ensure` dropped at every place, then again.
    a_dropped_ensure_is_completed_by_the_next,
    /// `ensure` dropped at every place, then removed.
    a_dropped_ensure_is_undone_by_remove,
    /// `remove` dropped at every place, then again.
    a_dropped_remove_is_completed_by_the_next,
    /// `ensure` of a changed spec dropped at every place, then again.
    a_dropped_change_is_completed_by_the_next,
    /// A new process finds or creates again, and removes, the objects of the old one.
    what_exists_is_adopted_after_a_crash,
    /// A process that dies within a call leaves nothing that the next one cannot repair.
    a_crash_within_a_call_is_mended,
    /// Files of others are not listed and not touched.
    what_is_not_ours_is_left_alone,
);

async fn serve(f: &impl BootFileFixture) -> (Arc<dyn BootFileStore>, Arc<Witness>) {
    let (port, witness) = (f.fresh().await, Arc::new(Witness::default()));
    port.attach(Arc::clone(&witness) as _);
    (port, witness)
}

async fn assert_missing(port: &dyn BootFileStore, path: &BootPath) {
    let e = port.read(path).await.expect_err("it should not be there");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
}

/// Bytes of every value and sizes around those of packets.
fn awkward(id: &ResourceId) -> BootBundle {
    let sizes = [0, 1, 511, 512, 513, 1468, 1_000_000];
    let bytes =
        |n: usize| (0..n).map(|i| u8::try_from((i * 7 + i / 256) % 256).unwrap_or(0)).collect::<Vec<u8>>();
    let files: Vec<_> = sizes.iter().map(|n| (format!("sizes/{id}/f{n}.bin"), bytes(*n))).collect();
    bundle(id, &files)
}

/// Byte for byte, from nothing to a megabyte.
pub async fn files_are_read_back_exactly(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let bundle = awkward(&id());
    port.ensure(&bundle).await.expect("ensure");
    for (path, bytes) in &bundle.files {
        assert!(port.read(path).await.expect("read") == *bytes, "{path}");
    }
}

/// Also below and above what is there.
pub async fn a_missing_file_is_not_found(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    assert_missing(port.as_ref(), &path("nothing/here.ipxe")).await;
    let bundle = bundle(&id(), &[("a/b.ipxe".into(), b"x".to_vec())]);
    port.ensure(&bundle).await.expect("ensure");
    for absent in ["a", "a/b.ipxe/c", "a/b", "A/B.ipxe", "b.ipxe"] {
        assert_missing(port.as_ref(), &path(absent)).await;
    }
}

/// Exactly these files: changed ones are replaced, and files that it no longer has are gone.
pub async fn files_are_replaced_and_dropped(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let id = id();
    let old = bundle(
        &id,
        &[
            ("x/keep".into(), b"1".to_vec()),
            ("x/change".into(), b"old".to_vec()),
            ("x/drop".into(), b"3".to_vec()),
        ],
    );
    let new = bundle(
        &id,
        &[
            ("x/keep".into(), b"1".to_vec()),
            ("x/change".into(), b"newer".to_vec()),
            ("x/add".into(), b"4".to_vec()),
        ],
    );
    for want in [&old, &new, &old, &new] {
        port.ensure(want).await.expect("ensure");
        for (path, bytes) in &want.files {
            assert_eq!(port.read(path).await.expect("read"), *bytes, "{path}");
        }
    }
    assert_missing(port.as_ref(), &path("x/drop")).await;
    // What was dropped is free for another bundle.
    let other = bundle(&super::common::id(), &[("x/drop".into(), b"5".to_vec())]);
    port.ensure(&other).await.expect("the path is free");
    assert_whole::<BootFiles>(port.as_ref(), &[new, other]).await;
}

/// A reader at any time gets one whole file.
pub async fn a_file_is_the_old_or_the_new_one(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let id = id();
    let variants =
        [bundle(&id, &[("x/y".into(), vec![1; 300_000])]), bundle(&id, &[("x/y".into(), vec![2; 200_000])])];
    port.ensure(&variants[0]).await.expect("ensure");
    let writer = {
        let (port, variants) = (Arc::clone(&port), variants.clone());
        tokio::spawn(async move {
            for n in 0..60 {
                port.ensure(&variants[n % 2]).await.expect("ensure");
            }
        })
    };
    let whole: Vec<&Bytes> = variants.iter().flat_map(|v| v.files.values()).collect();
    while !writer.is_finished() {
        let have = port.read(&path("x/y")).await.expect("it is always there");
        assert!(whole.contains(&&have), "{} bytes that are neither file", have.len());
        tokio::task::yield_now().await;
    }
    writer.await.expect("every ensure succeeds");
}

/// Two bundles never share a path, and the later one changes nothing.
pub async fn a_path_of_another_bundle_is_a_conflict(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let first = bundle(&id(), &[("x/shared".into(), b"first".to_vec())]);
    let second = bundle(&id(), &[("a/own".into(), b"1".to_vec()), ("x/shared".into(), b"second".to_vec())]);
    port.ensure(&first).await.expect("ensure");
    let e = port.ensure(&second).await.expect_err("the path belongs to the first");
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    assert_whole::<BootFiles>(port.as_ref(), std::slice::from_ref(&first)).await;
    assert_eq!(port.read(&path("x/shared")).await.expect("read"), "first");
    assert_missing(port.as_ref(), &path("a/own")).await;
    port.remove(&first.id).await.expect("remove");
    port.ensure(&second).await.expect("now it is free");
    assert_eq!(port.read(&path("x/shared")).await.expect("read"), "second");
}

/// Its files, and no others.
pub async fn removed_files_are_gone(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let (a, b) = (f.spec(&id(), 0).await, f.spec(&id(), 0).await);
    port.ensure(&a).await.expect("ensure");
    port.ensure(&b).await.expect("ensure");
    port.remove(&a.id).await.expect("remove");
    for path in a.files.keys() {
        assert_missing(port.as_ref(), path).await;
    }
    for (path, bytes) in &b.files {
        assert_eq!(port.read(path).await.expect("read"), *bytes);
    }
}

/// After a crash, the next `ensure` makes the bytes correct.
pub async fn what_is_written_is_whole_after_a_crash(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let bundle = awkward(&id());
    port.ensure(&bundle).await.expect("ensure");
    let port = reopen::<BootFiles>(f, port).await;
    port.ensure(&bundle).await.expect("ensure");
    for (path, bytes) in &bundle.files {
        assert!(port.read(path).await.expect("read") == *bytes, "{path}");
    }
    port.remove(&bundle.id).await.expect("remove");
    let port = reopen::<BootFiles>(f, port).await;
    for path in bundle.files.keys() {
        assert_missing(port.as_ref(), path).await;
    }
}

/// What a firmware fetches is what was ensured.
pub async fn a_client_gets_the_bytes(f: &impl BootFileFixture) {
    let (port, _) = serve(f).await;
    let bundle = awkward(&id());
    port.ensure(&bundle).await.expect("ensure");
    for (path, bytes) in &bundle.files {
        assert!(f.fetch(path).await.expect("fetch") == *bytes, "{path}");
    }
    port.remove(&bundle.id).await.expect("remove");
    for path in bundle.files.keys() {
        let e = f.fetch(path).await.expect_err("it was removed");
        assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    }
}

/// A stage of the boot, with the machine that the path names.
pub async fn what_is_sent_is_observed(f: &impl BootFileFixture) {
    let (port, witness) = serve(f).await;
    let name = "machines/52-54-00-12-34-56.ipxe";
    port.ensure(&bundle(&id(), &[(name.into(), b"#!ipxe\n".to_vec())])).await.expect("ensure");
    f.fetch(&path(name)).await.expect("fetch");
    let machine = "52:54:00:12:34:56".parse().ok();
    let sent = |o: &Observation| matches!(o, Observation::BootFileSent { mac, path, .. } if *mac == machine && path == name);
    witness.sees("the file that was sent", sent).await;
}

//! The suite of [`ImageConverter`]: see [`crate::converter_behaviour`].

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    Fixture,
    attached::eventually,
    cut::{Cut, timed},
    files::{checksum, image, names, read_file, write_file},
};
use crate::{
    error::ErrorKind,
    nouns::ImageFormat,
    ports::{ConvertSpec, Health, ImageConverter, Progress},
};

const SIZE: usize = 6 << 20;

/// Runs the behaviour suite of [`ImageConverter`] on the converter of a
/// [`ConverterFixture`](crate::testkit::suite::ConverterFixture).
///
/// ```text
/// ggnet_core::converter_behaviour!(my_converter, MyFixture::new());
/// ```
/// `not_run: […]` as for [`target_behaviour`](crate::target_behaviour).
#[macro_export]
macro_rules! converter_behaviour {
    ($module:ident, $fixture:expr) => { $crate::converter_behaviour!(@ $module, $fixture, None); };
    ($module:ident, $fixture:expr, not_run: [$($case:ident),* $(,)?]) => {
        $crate::converter_behaviour!(@ $module, $fixture, Some(&[$(stringify!($case)),*]));
    };
    (@ $module:ident, $fixture:expr, $expected:expr) => {
        $crate::__behaviour!($module, $fixture, converter, $expected, [
            it_is_up,
            a_raw_file_is_recognised,
            a_missing_file_is_not_found,
            raw_becomes_the_same_raw,
            every_sample_becomes_its_raw_bytes,
            a_file_is_read_as_it_is_named,
            holes_stay_holes,
            progress_only_grows_and_ends_at_1000,
            the_source_is_never_changed,
            an_existing_destination_is_refused,
            a_missing_destination_folder_leaves_nothing,
            a_cancelled_conversion_leaves_nothing,
            a_dropped_conversion_leaves_nothing,
            conversions_at_once_do_not_mix,
            clean_removes_leftovers_and_nothing_else,
        ]);
    };
}

/// Makes converters, and images for them.
#[async_trait]
pub trait ConverterFixture: Fixture<dyn ImageConverter> {
    /// An existing, empty folder that is not shared with another case.
    fn folder(&self) -> PathBuf;

    /// Images in the other formats that this converter reads, written into `dir`, each holding exactly the bytes of `raw`.
    async fn samples(&self, dir: &Path, raw: &Path) -> Vec<(ImageFormat, PathBuf)> {
        let _ = (dir, raw);
        Vec::new()
    }

    /// Whether [`samples`](ConverterFixture::samples) gives any.
    fn has_samples(&self) -> bool {
        false
    }

    /// Puts into `dir` what a killed process of this converter leaves beside `destination`. If false, that case is not run.
    async fn leave_behind(&self, dir: &Path, destination: &Path) -> bool {
        let _ = (dir, destination);
        false
    }

    /// Whether [`leave_behind`](ConverterFixture::leave_behind) leaves anything.
    fn can_leave_behind(&self) -> bool {
        false
    }
}

/// Why a case cannot run on this fixture's converter; `None`: it can.
pub async fn not_run(f: &impl ConverterFixture, case: &str) -> Option<String> {
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    match case {
        "every_sample_becomes_its_raw_bytes" => {
            lacks(f.has_samples(), "the fixture has no image of another format")
        }
        "clean_removes_leftovers_and_nothing_else" => {
            lacks(f.can_leave_behind(), "the fixture cannot leave what a killed process leaves")
        }
        _ => None,
    }
}

/// A converter, an image of [`SIZE`] bytes in a folder of its own, and an empty folder for results.
struct Bench {
    converter: Arc<dyn ImageConverter>,
    source: PathBuf,
    bytes: Vec<u8>,
    results: PathBuf,
}

async fn bench(f: &impl ConverterFixture) -> Bench {
    let (sources, results) = (f.folder().join("sources"), f.folder().join("results"));
    for dir in [&sources, &results] {
        let dir = dir.clone();
        super::files::blocking(move || std::fs::create_dir_all(&dir).expect("create a folder")).await;
    }
    let (source, bytes) = (sources.join("source.raw"), image(5, SIZE));
    write_file(&source, bytes.clone()).await;
    Bench { converter: f.fresh().await, source, bytes, results }
}

impl Bench {
    fn spec(&self, name: &str) -> ConvertSpec {
        let destination = self.results.join(name);
        ConvertSpec { source: self.source.clone(), format: ImageFormat::Raw, destination }
    }

    /// Waits until nothing is left: a helper of a dropped call may need a moment to end.
    async fn comes_to_nothing(&self) {
        let what = format!("an empty {}", self.results.display());
        eventually(&what, || async { names(&self.results).await.is_empty() }).await;
    }
}

fn silent() -> Progress {
    Arc::new(|_| ())
}

async fn convert(bench: &Bench, spec: &ConvertSpec) -> u64 {
    let done = bench.converter.convert(spec, silent(), CancellationToken::new()).await;
    done.unwrap_or_else(|e| panic!("convert {}: {}", spec.source.display(), e.report())).size_bytes
}

/// Its tool is there; the reason says how to install it.
pub async fn it_is_up(f: &impl ConverterFixture) {
    assert_eq!(f.fresh().await.health().await, Health::Up);
}

/// Format and sizes.
pub async fn a_raw_file_is_recognised(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let probe = bench.converter.probe(&bench.source).await.expect("probe");
    assert_eq!(probe.format, ImageFormat::Raw);
    assert_eq!(probe.virtual_size, SIZE as u64);
    assert!(probe.actual_size > 0, "{probe:?}");
}

/// By `probe` and by `convert`, which leaves nothing.
pub async fn a_missing_file_is_not_found(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let mut spec = bench.spec("a.raw");
    spec.source = bench.source.with_file_name("no-such-image.raw");
    let e = bench.converter.probe(&spec.source).await.expect_err("there is no such file");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    let converted = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
    let e = converted.expect_err("there is no such file");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    assert!(names(&bench.results).await.is_empty());
}

/// Byte for byte, and nothing beside it.
pub async fn raw_becomes_the_same_raw(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let spec = bench.spec("a.raw");
    assert_eq!(convert(&bench, &spec).await, SIZE as u64);
    assert!(read_file(&spec.destination).await == bench.bytes, "the bytes differ");
    assert_eq!(names(&bench.results).await, ["a.raw"]);
}

/// Every other format that the converter reads.
pub async fn every_sample_becomes_its_raw_bytes(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let dir = f.folder().join("sources");
    let samples = f.samples(&dir, &bench.source).await;
    assert!(!samples.is_empty(), "has_samples() promised some");
    for (format, source) in samples {
        let probe =
            bench.converter.probe(&source).await.unwrap_or_else(|e| panic!("{format:?}: {}", e.report()));
        assert_eq!(probe.format, format, "{}", source.display());
        let mut spec = bench.spec(&format!("{}.raw", format.qemu_name()));
        (spec.source, spec.format) = (source, format);
        let size = convert(&bench, &spec).await;
        assert_eq!(size, probe.virtual_size, "{format:?}: the size that the probe told");
        let have = read_file(&spec.destination).await;
        assert_eq!(have.len() as u64, size, "{format:?}");
        // Some formats round the disk's size up; what they add is zeros.
        assert!(have[..SIZE] == bench.bytes[..], "{format:?}: the bytes differ");
        assert!(have[SIZE..].iter().all(|b| *b == 0), "{format:?}: the end is not zeros");
    }
}

/// Never as it looks: a raw file that is said to be of another format is refused.
pub async fn a_file_is_read_as_it_is_named(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    for format in [ImageFormat::Qcow2, ImageFormat::Vhdx, ImageFormat::Vmdk] {
        let spec = ConvertSpec { format, ..bench.spec("a.raw") };
        let converted = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
        converted.expect_err("a raw file is not of this format");
        bench.comes_to_nothing().await;
    }
}

/// A sparse image does not grow to its full size.
pub async fn holes_stay_holes(f: &impl ConverterFixture) {
    use std::os::unix::fs::MetadataExt as _;
    let bench = bench(f).await;
    let mut bytes = vec![0; 32 << 20];
    bytes[1 << 20..(1 << 20) + 4096].fill(1);
    write_file(&bench.source, bytes.clone()).await;
    let spec = bench.spec("a.raw");
    convert(&bench, &spec).await;
    let path = spec.destination.clone();
    let taken =
        super::files::blocking(move || std::fs::metadata(&path).expect("metadata").blocks() * 512).await;
    assert!(taken < 8 << 20, "a file of 4 KiB of data takes {taken} bytes");
    assert!(read_file(&spec.destination).await == bytes, "the bytes differ");
}

/// What a person sees moves one way, and to the end.
pub async fn progress_only_grows_and_ends_at_1000(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let told: Arc<Mutex<Vec<u16>>> = Arc::default();
    let teller = Arc::clone(&told);
    let progress: Progress = Arc::new(move |n| teller.lock().unwrap_or_else(PoisonError::into_inner).push(n));
    let spec = bench.spec("a.raw");
    bench.converter.convert(&spec, progress, CancellationToken::new()).await.expect("convert");
    let told = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(told.last(), Some(&1000), "{told:?}");
}

/// Whatever happens.
pub async fn the_source_is_never_changed(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let before = checksum(&bench.source).await;
    convert(&bench, &bench.spec("a.raw")).await;
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    bench.converter.convert(&bench.spec("b.raw"), silent(), cancelled).await.expect_err("it was cancelled");
    assert_eq!(checksum(&bench.source).await, before, "the source changed");
}

/// A version is never written over.
pub async fn an_existing_destination_is_refused(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let spec = bench.spec("a.raw");
    write_file(&spec.destination, b"precious".to_vec()).await;
    let converted = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
    let e = converted.expect_err("the destination exists");
    assert_eq!(e.kind(), ErrorKind::Conflict, "{}", e.report());
    assert_eq!(read_file(&spec.destination).await, b"precious");
    assert_eq!(names(&bench.results).await, ["a.raw"]);
}

/// Nowhere to write to.
pub async fn a_missing_destination_folder_leaves_nothing(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let spec = bench.spec("no-such-folder/a.raw");
    let converted = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
    converted.expect_err("there is no such folder");
    assert!(names(&bench.results).await.is_empty());
}

/// Before it begins, and from within it.
pub async fn a_cancelled_conversion_leaves_nothing(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    bench.converter.convert(&bench.spec("a.raw"), silent(), cancel).await.expect_err("it was cancelled");
    bench.comes_to_nothing().await;
    // At the first sign of progress. A converter that is through by then has won, and the file is whole.
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    let progress: Progress = Arc::new(move |_| trigger.cancel());
    let spec = bench.spec("b.raw");
    match bench.converter.convert(&spec, progress, cancel).await {
        Ok(_) => assert!(read_file(&spec.destination).await == bench.bytes, "neither cancelled nor whole"),
        Err(_) => bench.comes_to_nothing().await,
    }
}

/// At every place: whole or not at all, and the next conversion works.
pub async fn a_dropped_conversion_leaves_nothing(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let spec = bench.spec("a.raw");
    let (usual, _) = timed(convert(&bench, &spec)).await;
    let remove = || {
        let path = spec.destination.clone();
        super::files::blocking(move || std::fs::remove_file(&path).expect("remove the result"))
    };
    remove().await;
    let few = (0..12).map(Cut::Polls).chain((0..10).map(|n| Cut::Time(usual * n / 10)));
    for cut in few {
        let done = cut.apply(bench.converter.convert(&spec, silent(), CancellationToken::new())).await;
        if let Some(done) = &done {
            assert!(done.is_ok(), "{cut:?}: {done:?}");
        }
        // Nothing, or the whole file and nothing beside it.
        let settled = || async {
            let names = names(&bench.results).await;
            names.is_empty() || names == ["a.raw"]
        };
        eventually(&format!("nothing or a whole file after {cut:?}"), settled).await;
        if done.is_none() {
            // A whole file may go yet: behind the limits of a port a conversion that nobody waits for leaves none.
            let path = spec.destination.clone();
            let there = super::files::blocking(move || {
                let there = std::fs::read(&path).ok();
                let _ = std::fs::remove_file(&path);
                there
            });
            if let Some(bytes) = there.await {
                assert!(bytes == bench.bytes, "{cut:?}: a part of a file");
            }
            convert(&bench, &spec).await;
        }
        assert!(read_file(&spec.destination).await == bench.bytes, "{cut:?}: the bytes differ");
        remove().await;
    }
}

/// Each result has its own source's bytes; of two to one destination one wins.
pub async fn conversions_at_once_do_not_mix(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let mut specs = Vec::new();
    for n in 0..4 {
        let source = bench.source.with_file_name(format!("source-{n}.raw"));
        write_file(&source, image(20 + n, 2 << 20)).await;
        specs.push(ConvertSpec { source, ..bench.spec(&format!("{n}.raw")) });
    }
    futures_util::future::join_all(specs.iter().map(|spec| convert(&bench, spec))).await;
    for (n, spec) in (20..).zip(&specs) {
        assert!(read_file(&spec.destination).await == image(n, 2 << 20), "{}", spec.destination.display());
    }
    let rivals: Vec<_> = specs
        .iter()
        .map(|s| ConvertSpec { destination: bench.results.join("one.raw"), ..s.clone() })
        .collect();
    let race = rivals.iter().map(|s| bench.converter.convert(s, silent(), CancellationToken::new()));
    let ended = futures_util::future::join_all(race).await;
    assert_eq!(ended.iter().filter(|e| e.is_ok()).count(), 1, "one of four makes the file: {ended:?}");
    let winner = ended.iter().position(Result::is_ok).expect("counted above");
    let have = read_file(&bench.results.join("one.raw")).await;
    assert!(have == read_file(&rivals[winner].source).await, "the file is its winner's");
    assert_eq!(names(&bench.results).await, ["0.raw", "1.raw", "2.raw", "3.raw", "one.raw"]);
}

/// What a killed process left goes; versions and an operator's files stay.
pub async fn clean_removes_leftovers_and_nothing_else(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    convert(&bench, &bench.spec("a.raw")).await;
    write_file(&bench.results.join("notes.txt"), b"an operator's".to_vec()).await;
    let left = f.leave_behind(&bench.results, &bench.results.join("b.raw")).await;
    assert!(left && names(&bench.results).await.len() > 2, "can_leave_behind() promised something");
    let converter = f.reopen().await;
    converter.clean(&bench.results).await.expect("clean");
    assert_eq!(names(&bench.results).await, ["a.raw", "notes.txt"]);
    assert!(read_file(&bench.results.join("a.raw")).await == bench.bytes, "the version is whole");
    converter.clean(&bench.results).await.expect("clean again");
    let spec = bench.spec("b.raw");
    converter.convert(&spec, silent(), CancellationToken::new()).await.expect("now it can be made");
}

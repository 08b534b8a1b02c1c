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
    files::{blocking, checksum, image, names, read, read_file, write_file},
};
use crate::{
    checksum::sha256_bytes,
    error::ErrorKind,
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, Health, ImageConverter, Progress, Sink, SinkForm},
    testkit::memory::RamDisk,
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
            the_checksum_is_of_the_raw_disk,
            a_sink_of_another_form_is_unsupported,
            a_second_conversion_to_a_sink_begins_anew,
            a_missing_folder_of_the_sink_leaves_nothing,
            a_cancelled_conversion_leaves_nothing_outside_the_sink,
            a_dropped_conversion_leaves_nothing_outside_the_sink,
            conversions_at_once_do_not_mix,
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
}

/// Why a case cannot run on this fixture's converter; `None`: it can.
pub async fn not_run(f: &impl ConverterFixture, case: &str) -> Option<String> {
    let lacks = |so: bool, why: &str| (!so).then(|| why.to_owned());
    let files = || async { f.fresh().await.sinks().contains(&SinkForm::File) };
    match case {
        "every_sample_becomes_its_raw_bytes" => {
            lacks(f.has_samples(), "the fixture has no image of another format")
        }
        "holes_stay_holes" | "a_missing_folder_of_the_sink_leaves_nothing" => {
            lacks(files().await, "it writes to no file")
        }
        "a_sink_of_another_form_is_unsupported" => {
            lacks(f.fresh().await.sinks().len() < FORMS.len(), "it writes to every form of sink")
        }
        _ => None,
    }
}

const FORMS: [SinkForm; 2] = [SinkForm::File, SinkForm::Blocks];

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
        blocking(move || std::fs::create_dir_all(&dir).expect("create a folder")).await;
    }
    let (source, bytes) = (sources.join("source.raw"), image(5, SIZE));
    write_file(&source, bytes.clone()).await;
    Bench { converter: f.fresh().await, source, bytes, results }
}

impl Bench {
    /// Where a disk of this size goes: a file of this name in the folder for results, or blocks of our process.
    fn sink(&self, form: SinkForm, name: &str, size: usize) -> Sink {
        match form {
            SinkForm::File => Sink::File(self.results.join(name)),
            SinkForm::Blocks => Sink::Blocks(Arc::new(RamDisk::zeros(size))),
        }
    }

    fn forms(&self) -> Vec<SinkForm> {
        let forms = self.converter.sinks();
        assert!(!forms.is_empty(), "it writes somewhere");
        forms
    }

    fn spec_for(&self, form: SinkForm, name: &str, size: usize) -> ConvertSpec {
        ConvertSpec {
            source: self.source.clone(),
            format: ImageFormat::Raw,
            virtual_size: size as u64,
            sink: self.sink(form, name, size),
        }
    }

    /// Of the source to the form that it names first.
    fn spec(&self, name: &str) -> ConvertSpec {
        self.spec_for(self.forms()[0], name, SIZE)
    }

    /// Waits until there are no other results than these: a helper of a dropped call may need a moment to end.
    async fn comes_to(&self, allowed: &[&str]) {
        let what = format!("nothing but {allowed:?} in {}", self.results.display());
        let settled = || async { names(&self.results).await.iter().all(|name| allowed.contains(&&**name)) };
        eventually(&what, settled).await;
    }
}

/// The bytes that were written.
async fn raw(spec: &ConvertSpec) -> Vec<u8> {
    match &spec.sink {
        Sink::File(path) => read_file(path).await,
        Sink::Blocks(device) => {
            let size = usize::try_from(device.info().size_bytes).expect("small");
            read(device, 0, size).await
        }
    }
}

fn silent() -> Progress {
    Arc::new(|_| ())
}

async fn converted(bench: &Bench, spec: &ConvertSpec) -> Converted {
    let done = bench.converter.convert(spec, silent(), CancellationToken::new()).await;
    done.unwrap_or_else(|e| panic!("convert {}: {}", spec.source.display(), e.report()))
}

async fn convert(bench: &Bench, spec: &ConvertSpec) -> u64 {
    converted(bench, spec).await.size_bytes
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

/// By `probe` and by `convert`.
pub async fn a_missing_file_is_not_found(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let mut spec = bench.spec("a.raw");
    spec.source = bench.source.with_file_name("no-such-image.raw");
    let e = bench.converter.probe(&spec.source).await.expect_err("there is no such file");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    let converted = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
    let e = converted.expect_err("there is no such file");
    assert_eq!(e.kind(), ErrorKind::NotFound, "{}", e.report());
    bench.comes_to(&["a.raw"]).await;
}

/// Byte for byte, and nothing beside it, in every form of sink.
pub async fn raw_becomes_the_same_raw(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    for form in bench.forms() {
        let spec = bench.spec_for(form, "a.raw", SIZE);
        assert_eq!(convert(&bench, &spec).await, SIZE as u64);
        assert!(raw(&spec).await == bench.bytes, "{form:?}: the bytes differ");
        bench.comes_to(&["a.raw"]).await;
    }
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
        let size = usize::try_from(probe.virtual_size).expect("small");
        let name = format!("{}.raw", format.qemu_name());
        let mut spec = bench.spec_for(bench.forms()[0], &name, size);
        (spec.source, spec.format) = (source, format);
        let size = convert(&bench, &spec).await;
        assert_eq!(size, probe.virtual_size, "{format:?}: the size that the probe told");
        let have = raw(&spec).await;
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
        bench.comes_to(&["a.raw"]).await;
    }
}

/// A sparse image does not grow to its full size.
pub async fn holes_stay_holes(f: &impl ConverterFixture) {
    use std::os::unix::fs::MetadataExt as _;
    let bench = bench(f).await;
    let mut bytes = vec![0; 32 << 20];
    bytes[1 << 20..(1 << 20) + 4096].fill(1);
    write_file(&bench.source, bytes.clone()).await;
    let spec = bench.spec_for(SinkForm::File, "a.raw", bytes.len());
    convert(&bench, &spec).await;
    let path = bench.results.join("a.raw");
    let taken = blocking(move || std::fs::metadata(&path).expect("metadata").blocks() * 512).await;
    assert!(taken < 8 << 20, "a file of 4 KiB of data takes {taken} bytes");
    assert!(raw(&spec).await == bytes, "the bytes differ");
}

/// What a person sees moves one way, and to the end.
pub async fn progress_only_grows_and_ends_at_1000(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let reported: Arc<Mutex<Vec<u16>>> = Arc::default();
    let recorder = Arc::clone(&reported);
    let progress: Progress =
        Arc::new(move |n| recorder.lock().unwrap_or_else(PoisonError::into_inner).push(n));
    let spec = bench.spec("a.raw");
    bench.converter.convert(&spec, progress, CancellationToken::new()).await.expect("convert");
    let reported = reported.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(reported.is_sorted(), "{reported:?}");
    assert_eq!(reported.last(), Some(&1000), "{reported:?}");
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

/// Of all its bytes, holes too: what a version is known by.
pub async fn the_checksum_is_of_the_raw_disk(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    for form in bench.forms() {
        let spec = bench.spec_for(form, "a.raw", SIZE);
        assert_eq!(converted(&bench, &spec).await.sha256, sha256_bytes(&bench.bytes), "{form:?}");
    }
}

/// Wiring should have refused the pair.
pub async fn a_sink_of_another_form_is_unsupported(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let forms = bench.forms();
    for form in FORMS.into_iter().filter(|form| !forms.contains(form)) {
        let spec = bench.spec_for(form, "a.raw", SIZE);
        let e = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
        let e = e.expect_err("it writes to no such sink");
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{form:?}: {}", e.report());
        assert!(names(&bench.results).await.is_empty());
    }
}

/// What an earlier one left there is nothing.
pub async fn a_second_conversion_to_a_sink_begins_anew(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    for form in bench.forms() {
        let spec = bench.spec_for(form, "a.raw", SIZE);
        convert(&bench, &spec).await;
        // Zeros where the first has bytes.
        let source = bench.source.with_file_name("zeros.raw");
        let mut bytes = vec![0; SIZE];
        bytes[SIZE - 512..].fill(3);
        write_file(&source, bytes.clone()).await;
        convert(&bench, &ConvertSpec { source, ..spec.clone() }).await;
        assert!(raw(&spec).await == bytes, "{form:?}: the bytes differ");
    }
}

/// Nowhere to write to.
pub async fn a_missing_folder_of_the_sink_leaves_nothing(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let spec = bench.spec_for(SinkForm::File, "no-such-folder/a.raw", SIZE);
    let converted = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
    converted.expect_err("there is no such folder");
    bench.comes_to(&[]).await;
}

/// Before it begins, and from within it.
pub async fn a_cancelled_conversion_leaves_nothing_outside_the_sink(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    bench.converter.convert(&bench.spec("a.raw"), silent(), cancel).await.expect_err("it was cancelled");
    bench.comes_to(&["a.raw"]).await;
    // At the first sign of progress. A converter that is through by then has won, and the disk is whole.
    let cancel = CancellationToken::new();
    let trigger = cancel.clone();
    let progress: Progress = Arc::new(move |_| trigger.cancel());
    let spec = bench.spec("b.raw");
    if bench.converter.convert(&spec, progress, cancel).await.is_ok() {
        assert!(raw(&spec).await == bench.bytes, "neither cancelled nor whole");
    }
    bench.comes_to(&["a.raw", "b.raw"]).await;
    // And the sink can be written to again.
    convert(&bench, &spec).await;
    assert!(raw(&spec).await == bench.bytes, "the bytes differ");
}

/// At every place: nothing beside the sink, and the next conversion to it works.
pub async fn a_dropped_conversion_leaves_nothing_outside_the_sink(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let spec = bench.spec("a.raw");
    let (usual, _) = timed(convert(&bench, &spec)).await;
    let few = (0..12).map(Cut::Polls).chain((0..10).map(|n| Cut::Time(usual * n / 10)));
    for cut in few {
        let done = cut.apply(bench.converter.convert(&spec, silent(), CancellationToken::new())).await;
        if let Some(done) = &done {
            assert!(done.is_ok(), "{cut:?}: {done:?}");
        }
        bench.comes_to(&["a.raw"]).await;
        // Behind the limits of a port the dropped one may have to end first.
        let again = || async {
            let again = bench.converter.convert(&spec, silent(), CancellationToken::new()).await;
            if let Err(e) = &again {
                assert!(e.is_retryable(), "{cut:?}: {}", e.report());
            }
            again.is_ok()
        };
        eventually(&format!("the next conversion works after {cut:?}"), again).await;
        assert!(raw(&spec).await == bench.bytes, "{cut:?}: the bytes differ");
    }
    bench.comes_to(&["a.raw"]).await;
}

/// Each result has its own source's bytes.
pub async fn conversions_at_once_do_not_mix(f: &impl ConverterFixture) {
    let bench = bench(f).await;
    let mut specs = Vec::new();
    for n in 0..4 {
        let source = bench.source.with_file_name(format!("source-{n}.raw"));
        write_file(&source, image(20 + n, 2 << 20)).await;
        let name = format!("{n}.raw");
        specs.push(ConvertSpec { source, ..bench.spec_for(bench.forms()[0], &name, 2 << 20) });
    }
    futures_util::future::join_all(specs.iter().map(|spec| convert(&bench, spec))).await;
    for (n, spec) in (20..).zip(&specs) {
        assert!(raw(spec).await == image(n, 2 << 20), "{:?}", spec.sink);
    }
    bench.comes_to(&["0.raw", "1.raw", "2.raw", "3.raw"]).await;
}

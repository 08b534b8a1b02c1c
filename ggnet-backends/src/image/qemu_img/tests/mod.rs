//! The converter against the real qemu-img (and, for the exact argv, against a mock of the runner).

mod argv;
mod damaged;
mod formats;
mod header;
mod hostile;
mod interrupted;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ggnet_core::{
    error::{Error, Result},
    nouns::ImageFormat,
    ports::{ConvertSpec, Converted, ImageConverter as _, Progress, Sink},
};
use rand::{RngCore as _, SeedableRng as _};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{QemuImg, QemuImgConfig};
use crate::run::SystemRunner;

const MIB: u64 = 1 << 20;

fn converter() -> QemuImg {
    converter_with(QemuImgConfig::default())
}

fn converter_with(config: QemuImgConfig) -> QemuImg {
    QemuImg::new(config, Arc::new(SystemRunner::new().unwrap()))
}

/// Runs a tool that prepares a test; if it is missing, the test fails and prints the command that installs it.
#[expect(clippy::disallowed_methods, reason = "prepares files; what is tested is the runner's own user")]
fn tool(program: &str, dir: &Path, args: &[&str]) {
    let out = std::process::Command::new(program).args(args).current_dir(dir).output();
    let out = out.unwrap_or_else(|e| panic!("{program}: {e}; install it: apt-get install qemu-utils"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&out.stderr),
        String::from_utf8_lossy(&out.stdout)
    );
}

fn qemu_img(dir: &Path, args: &[&str]) {
    tool("qemu-img", dir, args);
}

/// A folder with `disk.raw`: 24 MiB, random data at the beginning, in the middle and at the very end, with holes between.
struct Lab {
    dir: TempDir,
    content: Vec<u8>,
}

impl Lab {
    const SIZE: u64 = 24 * MIB;

    fn new() -> Self {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let mut content = vec![0; usize::try_from(Self::SIZE).unwrap()];
        for (from, len) in [(0, 700_000), (9_000_000, 1_500_000), (content.len() - 5000, 5000)] {
            rng.fill_bytes(&mut content[from..from + len]);
        }
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("disk.raw")).unwrap();
        file.set_len(Self::SIZE).unwrap();
        for (at, block) in content.chunks(4096).enumerate().filter(|(_, b)| b.iter().any(|b| *b != 0)) {
            file.write_all_at(block, at as u64 * 4096).unwrap();
        }
        Self { dir, content }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `disk.raw` as `format` with qemu-img's options, in `name`.
    fn make(&self, name: &str, format: &str, options: &[&str]) -> PathBuf {
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        args.extend(options);
        args.extend(["disk.raw", name]);
        qemu_img(self.dir.path(), &args);
        self.path(name)
    }

    /// Hidden files: a conversion leaves nothing next to its sink.
    fn leftovers(&self) -> Vec<PathBuf> {
        leftovers(self.dir.path())
    }
}

fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

/// Random bytes that no format can compress, so that a slowed conversion takes long.
fn dense(path: &Path, len: u64) {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    rand::rngs::StdRng::seed_from_u64(11).fill_bytes(&mut bytes);
    File::create(path).unwrap().write_all_at(&bytes, 0).unwrap();
}

/// A conversion of a raw file, or of an image of a [`Lab`]'s disk.
fn spec(source: &Path, format: ImageFormat, sink: &Path) -> ConvertSpec {
    let virtual_size = match format {
        ImageFormat::Raw => fs::metadata(source).map_or(0, |m| m.len().next_multiple_of(512)),
        _ => Lab::SIZE,
    };
    ConvertSpec { source: source.to_owned(), format, virtual_size, sink: Sink::File(sink.to_owned()) }
}

fn quiet() -> Progress {
    Arc::new(|_| {})
}

/// Converts as a caller does that has probed first. A specified raw is not probed: its bytes may look like another format.
async fn convert(source: &Path, format: ImageFormat, sink: &Path) -> Result<Converted> {
    let mut job = spec(source, format, sink);
    if format != ImageFormat::Raw
        && let Ok(probe) = converter().probe(source).await
    {
        job.virtual_size = probe.virtual_size;
    }
    converter().convert(&job, quiet(), CancellationToken::new()).await
}

/// The result of converting these bytes.
fn hash(bytes: &[u8]) -> String {
    ggnet_core::checksum::sha256_bytes(bytes)
}

/// Probes and converts, and expects the same error from both; returns the error of the probe.
async fn both_fail(lab: &Lab, source: &Path, format: ImageFormat) -> Error {
    let probed = converter().probe(source).await.expect_err(&format!("probe of {}", source.display()));
    let out = lab.path("never.raw");
    let converted =
        convert(source, format, &out).await.expect_err(&format!("convert of {}", source.display()));
    assert_eq!(probed.kind(), converted.kind(), "{probed} / {converted}");
    assert!(!out.exists() && lab.leftovers().is_empty(), "nothing half-made stays");
    probed
}

/// A progress sink and its reports.
fn listening() -> (Progress, Arc<Mutex<Vec<u16>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    (Arc::new(move |p| sink.lock().unwrap().push(p)), heard)
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

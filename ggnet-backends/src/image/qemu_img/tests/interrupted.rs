//! Cancelled, dropped, killed, disk full, source in use: no incomplete image is left, the source is intact.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ggnet_core::{
    error::{ErrorKind, Result, code},
    nouns::ImageFormat,
    ports::{Converted, ImageConverter as _},
};
use rustix::process::{Pid, Signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    Lab, MIB, QemuImgConfig, convert, converter, converter_with, dense, leftovers, listening, quiet, spec,
};

/// A conversion that takes half a minute if it is not stopped, in progress.
struct Slow {
    lab: Lab,
    out: PathBuf,
    source: PathBuf,
    before: Vec<u8>,
    cancel: CancellationToken,
    task: JoinHandle<Result<Converted>>,
    pid: i32,
}

async fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = done() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

/// The process with `needle` in its command line.
fn process_with(needle: &str) -> Option<i32> {
    fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok()).find(
        |pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"/")
                && String::from_utf8_lossy(&line).contains(needle)
                && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "qemu-img")
        },
    )
}

impl Slow {
    async fn start(name: &str) -> Self {
        let lab = Lab::new();
        let (source, out) = (lab.path("dense.raw"), lab.path(name));
        dense(&source, 32 * MIB);
        let converter = converter_with(QemuImgConfig { rate_limit: Some(MIB), ..QemuImgConfig::default() });
        let (progress, heard) = listening();
        let cancel = CancellationToken::new();
        let (job, token) = (spec(&source, ImageFormat::Raw, &out), cancel.clone());
        #[expect(clippy::disallowed_methods, reason = "a task of the test, which it waits for")]
        let task = tokio::spawn(async move { converter.convert(&job, progress, token).await });
        let pid = until("qemu-img runs", || process_with(&format!("file.filename={name}"))).await;
        until("progress", || heard.lock().unwrap().first().copied()).await;
        assert!(out.exists() && lab.leftovers().is_empty(), "it writes to its sink alone");
        let before = fs::read(&source).unwrap();
        Self { lab, out, source, before, cancel, task, pid }
    }

    /// Nothing of it is left, and the same call works now.
    async fn nothing_is_left(&self) {
        until("qemu-img is gone", || (!fs::exists(format!("/proc/{}", self.pid)).unwrap()).then_some(()))
            .await;
        assert!(!self.out.exists() && self.lab.leftovers().is_empty(), "{:?}", self.lab.leftovers());
        assert!(fs::read(&self.source).unwrap() == self.before, "the source changed");
        convert(&self.source, ImageFormat::Raw, &self.out).await.unwrap();
        assert!(fs::read(&self.out).unwrap() == self.before);
    }
}

#[tokio::test]
async fn cancelled() {
    let mut slow = Slow::start("cancelled.raw").await;
    slow.cancel.cancel();
    let e = (&mut slow.task).await.unwrap().unwrap_err();
    assert_eq!(e.code(), &code::import_cancelled(), "{e}");
    assert!(!e.is_retryable() && e.message().contains("cancelled"), "{e}");
    assert!(slow.lab.leftovers().is_empty(), "at once");
    slow.nothing_is_left().await;
}

#[tokio::test]
async fn dropped() {
    let mut slow = Slow::start("dropped.raw").await;
    slow.task.abort();
    assert!((&mut slow.task).await.unwrap_err().is_cancelled());
    slow.nothing_is_left().await;
}

#[tokio::test]
async fn killed_by_somebody() {
    let mut slow = Slow::start("killed.raw").await;
    rustix::process::kill_process(Pid::from_raw(slow.pid).unwrap(), Signal::KILL).unwrap();
    let e = (&mut slow.task).await.unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.is_retryable() && e.message().contains("signal 9"), "{e}");
    slow.nothing_is_left().await;
}

#[tokio::test]
async fn out_of_time() {
    let lab = Lab::new();
    let (source, out) = (lab.path("dense.raw"), lab.path("late.raw"));
    dense(&source, 32 * MIB);
    let config = QemuImgConfig { rate_limit: Some(MIB), convert_timeout_secs: 2, ..QemuImgConfig::default() };
    let job = spec(&source, ImageFormat::Raw, &out);
    let e = converter_with(config).convert(&job, quiet(), CancellationToken::new()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
    assert!(!out.exists() && lab.leftovers().is_empty());
}

#[tokio::test]
async fn a_token_cancelled_before_starts_nothing() {
    let lab = Lab::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let job = spec(&lab.path("disk.raw"), ImageFormat::Raw, &lab.path("out.raw"));
    let e = converter().convert(&job, quiet(), cancel).await.unwrap_err();
    assert_eq!(e.code(), &code::import_cancelled(), "{e}");
    assert!(!lab.path("out.raw").exists() && lab.leftovers().is_empty());
}

#[tokio::test]
async fn a_source_that_changes_meanwhile_is_refused() {
    let lab = Lab::new();
    let (source, out) = (lab.path("disk.raw"), lab.path("out.raw"));
    let writer = File::options().write(true).open(&source).unwrap();
    let progress: ggnet_core::ports::Progress = Arc::new(move |_| writer.write_all_at(b"x", 4096).unwrap());
    let job = spec(&source, ImageFormat::Raw, &out);
    let e = converter().convert(&job, progress, CancellationToken::new()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert!(e.message().contains("written to"), "{e}");
    assert!(!out.exists() && lab.leftovers().is_empty());
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "plays the virtual machine that uses the image")]
async fn an_image_in_use_is_busy() {
    let lab = Lab::new();
    let image = lab.make("image", "qcow2", &[]);
    let start = || {
        let mut command = tokio::process::Command::new("qemu-io");
        command.args(["-f", "qcow2", "-c", "sleep 600000"]).arg(&image).kill_on_drop(true);
        command.spawn().expect("apt-get install qemu-utils")
    };
    let mut user = start();
    let e = {
        let mut found = None;
        // Until qemu-io has taken its lock. qemu-io gives up if it starts while a probe holds the image: then it is started again.
        for _ in 0..600 {
            if let Err(e) = converter().probe(&image).await {
                found = Some(e);
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            if user.try_wait().unwrap().is_some() {
                user = start();
            }
        }
        found.expect("the image is never in use")
    };
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    assert!(e.is_retryable());
    user.kill().await.unwrap();
    converter().probe(&image).await.unwrap();
}

/// The folder in which the child process converts until it is killed.
const DOOMED: &str = "GGNET_TEST_DOOMED_CONVERSION";

/// Starts this program again as the process that is killed.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "starts this test again as the process that is killed")]
async fn our_own_process_killed() {
    let slow = QemuImgConfig { rate_limit: Some(MIB), ..QemuImgConfig::default() };
    if let Some(dir) = std::env::var_os(DOOMED) {
        let dir = Path::new(&dir);
        let job = spec(&dir.join("dense.raw"), ImageFormat::Raw, &dir.join("doomed.raw"));
        converter_with(slow).convert(&job, quiet(), CancellationToken::new()).await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("dense.raw");
    dense(&source, 32 * MIB);
    let mut doomed = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::qemu_img::tests::interrupted::our_own_process_killed"])
        .env(DOOMED, dir.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = until("qemu-img runs", || process_with("file.filename=doomed.raw")).await;
    doomed.kill().await.unwrap();
    until("qemu-img is gone", || process_with("file.filename=doomed.raw").is_none().then_some(pid)).await;
    assert!(leftovers(dir.path()).is_empty(), "nothing is left outside the sink");
    // The content of the sink has no meaning, and the next conversion to it starts again.
    let sink = dir.path().join("doomed.raw");
    let before = fs::read(&source).unwrap();
    convert(&source, ImageFormat::Raw, &sink).await.unwrap();
    assert!(fs::read(&sink).unwrap() == before);
}

/// The folder where the child process mounts its small disk.
const SMALL: &str = "GGNET_TEST_SMALL_DISK";

/// Starts this program again in a user and mount namespace, where mounting a small disk needs no root.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "starts this test again in a namespace")]
async fn a_full_disk() {
    if let Some(dir) = std::env::var_os(SMALL) {
        return full_disk_inside(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "image::qemu_img::tests::interrupted::a_full_disk", "--nocapture"])
        .env(SMALL, dir.path())
        .output()
        .expect("apt-get install util-linux");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(
        out.status.success() && said.contains("1 passed"),
        "{said}\n(When unshare is refused: sysctl kernel.unprivileged_userns_clone=1, and on Ubuntu \
         kernel.apparmor_restrict_unprivileged_userns=0.)"
    );
}

async fn full_disk_inside(dir: &Path) {
    super::tool("mount", Path::new("/"), &["-t", "tmpfs", "-o", "size=8m", "none", dir.to_str().unwrap()]);
    let lab = Lab::new();
    let (source, out) = (lab.path("dense.raw"), dir.join("out.raw"));
    dense(&source, 16 * MIB);
    let before = fs::read(&source).unwrap();
    let e = convert(&source, ImageFormat::Raw, &out).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Full, "{e}");
    assert!(!e.is_retryable() && e.hint().is_some(), "{e}");
    assert!(!out.exists() && leftovers(dir).is_empty(), "nothing is left");
    assert!(fs::read(&source).unwrap() == before);
    // The space is free again: the sparse disk, which is larger than the file system but has little data, fits.
    convert(&lab.path("disk.raw"), ImageFormat::Raw, &out).await.unwrap();
    assert!(fs::read(&out).unwrap() == lab.content);
}

//! The exact command lines, with a mock of the runner; and the configuration.

use std::{fs, sync::Arc};

use bytes::Bytes;
use ggnet_core::{
    error::{Error, ErrorKind},
    nouns::ImageFormat,
    ports::ImageConverter as _,
};
use mockall::{Sequence, predicate};
use tokio_util::sync::CancellationToken;

use super::{Lab, QemuImg, QemuImgConfig, hash, quiet, spec};
use crate::{
    image::qemu_img::convert::per_mille,
    run::{Invocation, MockCommandRunner, Output, Stdin},
};

const OPTS: &str = "driver=qcow2,file.driver=file,file.filename=/proc/self/fd/0";

fn info(size: u64) -> Output {
    let text = format!(r#"{{"virtual-size":{size},"filename":"x","format":"qcow2","actual-size":4096}}"#);
    Output { code: Some(0), stdout: Bytes::from(text), ..Output::default() }
}

fn good() -> Output {
    Output { code: Some(0), ..Output::default() }
}

/// Expects a command line.
fn expect(runner: &mut MockCommandRunner, order: &mut Sequence, argv: &[&str], answer: Output) {
    let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
    runner
        .expect_run()
        .with(predicate::function(move |run: &Invocation| {
            let shown = run.shown_argv();
            shown == argv
                && matches!(run.stdin, Stdin::File(_))
                && run.limits.address_space.is_some()
                && run.limits.file_size.is_some()
        }))
        .times(1)
        .in_sequence(order)
        .returning(move |_| Ok(answer.clone()));
}

#[tokio::test]
async fn a_conversion_is_three_exact_calls() {
    let lab = Lab::new();
    let (source, out) = (lab.make("image", "qcow2", &[]), lab.path("out,1.raw"));
    let (mut runner, mut order) = (MockCommandRunner::new(), Sequence::new());
    expect(
        &mut runner,
        &mut order,
        &["qemu-img", "info", "--output=json", "--image-opts", OPTS],
        info(Lab::SIZE),
    );
    expect(&mut runner, &mut order, &["qemu-img", "check", "--output=json", "--image-opts", OPTS], good());
    let target = "driver=raw,file.driver=file,file.locking=off,file.filename=out,,1.raw";
    expect(
        &mut runner,
        &mut order,
        &[
            "qemu-img",
            "convert",
            "-p",
            "-n",
            "-S",
            "4k",
            "-r",
            "5000",
            "--image-opts",
            "--target-image-opts",
            OPTS,
            target,
        ],
        good(),
    );
    let config = QemuImgConfig { rate_limit: Some(5000), ..QemuImgConfig::default() };
    let converter = QemuImg::new(config, Arc::new(runner));
    let job = spec(&source, ImageFormat::Qcow2, &out);
    let done = converter.convert(&job, quiet(), CancellationToken::new()).await.unwrap();
    assert_eq!(done.size_bytes, Lab::SIZE);
    // The runner is a mock, so nothing was written.
    assert_eq!(done.sha256, hash(&vec![0; lab.content.len()]));
    assert_eq!(fs::metadata(&out).unwrap().len(), Lab::SIZE);
}

/// Probes a real qcow2 file with `json` as qemu-img's output of `info`.
async fn told(json: &str) -> Error {
    let lab = Lab::new();
    let image = lab.make("image", "qcow2", &[]);
    let answer = Output { code: Some(0), stdout: Bytes::from(json.to_owned()), ..Output::default() };
    let mut runner = MockCommandRunner::new();
    runner.expect_run().times(1).returning(move |_| Ok(answer.clone()));
    QemuImg::new(QemuImgConfig::default(), Arc::new(runner)).probe(&image).await.unwrap_err()
}

#[tokio::test]
async fn what_the_header_hid_is_refused_from_what_info_says() {
    let with = |more: &str| format!(r#"{{"virtual-size":1048576,"format":"qcow2","actual-size":1,{more}}}"#);
    for (more, why) in [
        (r#""backing-filename":"/etc/passwd""#, "backing file"),
        (r#""encrypted":true"#, "encrypted"),
        (r#""format-specific":{"type":"qcow2","data":{"data-file":"/etc/shadow"}}"#, "external data file"),
        (r#""format-specific":{"type":"qcow2","data":{"encrypt":{"format":"luks"}}}"#, "encrypted"),
        (
            r#""format-specific":{"type":"vmdk","data":{"extents":[{"filename":"/etc/shadow"}]}}"#,
            "other files",
        ),
    ] {
        let e = told(&with(more)).await;
        assert_eq!((e.kind(), e.field()), (ErrorKind::Invalid, Some("path")), "{e}");
        assert!(e.message().contains(why), "{e}");
    }
    let e = told(&with(r#""format-specific":{"type":"qcow2","data":{"corrupt":true}}"#)).await;
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert_eq!(told("no json").await.kind(), ErrorKind::Corrupt);
    assert_eq!(told(r#"{"virtual-size":-1,"format":"qcow2"}"#).await.kind(), ErrorKind::Corrupt);
    // Another size than the one in the image: the disk would be truncated.
    let short = told(r#"{"virtual-size":1048576,"format":"qcow2"}"#).await;
    assert_eq!(short.kind(), ErrorKind::Corrupt);
    assert!(short.message().contains("25165824 bytes, and qemu-img reads 1048576"), "{short}");
}

#[tokio::test]
async fn a_signal_says_whether_trying_again_helps() {
    // 9: killed by another process. 24: CPU time limit. 6: out of memory. 11: crashed.
    for (signal, kind) in [
        (9, ErrorKind::Unavailable),
        (15, ErrorKind::Unavailable),
        (24, ErrorKind::Corrupt),
        (6, ErrorKind::Corrupt),
        (11, ErrorKind::Corrupt),
    ] {
        let lab = Lab::new();
        let image = lab.make("image", "qcow2", &[]);
        let mut runner = MockCommandRunner::new();
        runner.expect_run().returning(move |_| Ok(Output { signal: Some(signal), ..Output::default() }));
        let e = QemuImg::new(QemuImgConfig::default(), Arc::new(runner)).probe(&image).await.unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        assert_eq!(e.is_retryable(), kind == ErrorKind::Unavailable);
        assert!(e.message().contains(&format!("signal {signal}")), "{e}");
    }
}

#[test]
fn the_configuration_has_defaults_and_no_unknown_fields() {
    let config: QemuImgConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(config, QemuImgConfig::default());
    let config: QemuImgConfig =
        serde_json::from_str(r#"{"program":"/opt/qemu/qemu-img","rate_limit":1000}"#).unwrap();
    assert_eq!((config.program.to_str(), config.rate_limit), (Some("/opt/qemu/qemu-img"), Some(1000)));
    let e = serde_json::from_str::<QemuImgConfig>(r#"{"progam":"x"}"#).unwrap_err().to_string();
    assert!(e.contains("progam") && e.contains("program"), "{e}");
}

#[test]
fn progress_lines() {
    assert_eq!(per_mille("    (12.34/100%)"), Some(123));
    assert_eq!(per_mille("(100.00/100%)"), Some(1000));
    for line in ["", "(", "(x.y/100%)", "(12/100%)", "(99999999.0/100%)", "(1./100%)", "12.34"] {
        assert_eq!(per_mille(line), None, "{line}");
    }
}

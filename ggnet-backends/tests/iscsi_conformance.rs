//! libiscsi's conformance suite, all of it, with a second portal, counted strictly: a test with any skipped part is
//! skipped, not passed; and every skip must be one of those that `docs/iscsi-conformance.md` explains.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod iscsi_support;
// Beside the others, because it needs more features than they do.
#[path = "iscsi_support/layer_disk.rs"]
mod layer_disk;

use std::net::SocketAddr;
use std::sync::Arc;

use ggnet_iscsi::{Chap, Exclusivity, TargetConfig};
use iscsi_support::{IQN, Policy, Rig, lun, tool};
use layer_disk::LayerDisk;

/// The reasons that are structural: what the suite says when it skips, and why that is right.
const STRUCTURAL: &[&str] = &[
    // The suite erases only when told to.
    "--allow-sanitize flag is not set",
    // The disk has physical blocks as large as its logical ones here; the suite's GET LBA STATUS test is only right then.
    "LBPPB < 2",
    // Runs of its own below.
    "Logical unit is not write-protected",
    // A power cut may tear a write that was not flushed; nobody promises otherwise.
    "WRITEATOMIC16 is not implemented",
    // WSNZ: WRITE SAME needs a count.
    "does not support 0-blocks",
];

struct Count {
    passed: Vec<String>,
    skipped: Vec<(String, String)>,
    failed: Vec<String>,
}

/// Reads the suite's log.
fn count(log: &str) -> Count {
    let mut count = Count { passed: Vec::new(), skipped: Vec::new(), failed: Vec::new() };
    let mut suite = String::new();
    for part in
        log.split("\n  Test: ").flat_map(|p| p.split("\nSuite: ").enumerate().map(|(i, p)| (i > 0, p)))
    {
        let (is_suite, part) = part;
        if is_suite {
            part.lines().next().unwrap_or("").clone_into(&mut suite);
            continue;
        }
        let Some((name, body)) = part.split_once(" ...") else { continue };
        let name = format!("{suite}.{name}");
        if body.starts_with("FAILED") || body.contains("\nFAILED") {
            count.failed.push(name);
        } else if let Some((_, reason)) = body.split_once("[SKIPPED]") {
            count.skipped.push((name, reason.lines().next().unwrap_or("").trim().to_owned()));
        } else {
            count.passed.push(name);
        }
    }
    count
}

async fn run(block: u32, read_only: bool, test: Option<&str>) -> Count {
    let folder = tempfile::tempdir().unwrap();
    let two = SocketAddr::from(([127, 0, 0, 1], 0));
    let rig = Rig::with(Policy::accept(Chap::None, Exclusivity::Shared), |c| c.listen = vec![two, two]);
    let mut unit = lun(0, Arc::new(LayerDisk::new(folder.path(), 1 << 30, block).await));
    // Removable, so that ejecting and its prevention are tested too.
    (unit.removable, unit.read_only) = (!read_only, read_only);
    rig.server.add_target(TargetConfig { iqn: IQN.into(), luns: vec![unit] }).unwrap();
    let urls: Vec<String> = rig.server.local_addrs().iter().map(|a| format!("iscsi://{a}/{IQN}/0")).collect();
    let mut argv = vec!["iscsi-test-cu", "-d", "-v"];
    argv.extend(test.iter().flat_map(|t| ["-t", t]));
    argv.extend(urls.iter().map(String::as_str));
    let said = tool("libiscsi-bin", &argv).await;
    let count = count(&said.text);
    // A line of its own, wherever the test runner stands; the short run is told apart from the suite.
    println!(
        "\nlibiscsi{}: {} passed, {} skipped, {} failed",
        test.map_or(String::new(), |t| format!(", {t} alone")),
        count.passed.len(),
        count.skipped.len(),
        count.failed.len()
    );
    assert!(count.failed.is_empty(), "failed: {:?}\n{}", count.failed, said.text);
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_suite() {
    let count = run(4096, false, None).await;
    let unexplained: Vec<_> =
        count.skipped.iter().filter(|(_, reason)| !STRUCTURAL.iter().any(|s| reason.contains(s))).collect();
    assert!(unexplained.is_empty(), "skipped without a reason of ours: {unexplained:?}");
    assert!(count.passed.len() >= 540, "{} passed", count.passed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_unit() {
    let count = run(512, true, Some("SCSI.ReadOnly")).await;
    assert_eq!(count.passed.len(), 1, "{:?}", count.skipped);
}

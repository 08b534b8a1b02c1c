//! What needs a kernel with an iSCSI target of its own, in a virtual machine that has one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod room;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ggnet_tests::{NativeRoom, kernel, wait};

/// Emulated on a busy host it takes a quarter of an hour. No test asserts a time: this only ends one that would never end.
const LIMIT: Duration = Duration::from_secs(5400);
/// In the names of those that need the program.
const TARGETCLI: &str = "targetcli";

#[test]
fn the_kernel_target_driven_through_configfs_behaves_as_every_target_must() {
    let program = kernel::test_program("lio_kernel").unwrap();
    // One at a time: there is one tree.
    let ended = kernel::run(&program, &["--test-threads=1", "--skip", TARGETCLI], LIMIT).unwrap();
    println!("{}", ended.text);
    assert_all_passed(&ended.text, &program, |name| !name.contains(TARGETCLI));
    assert_eq!(ended.code, 0, "{}", ended.text);
}

#[test]
fn the_kernel_target_driven_by_targetcli_behaves_as_every_target_must() {
    let program = kernel::test_program("lio_kernel").unwrap();
    let mut room = NativeRoom::new(&[("lio_kernel", &program)]).unwrap();
    // A unit of its own: it takes longer than an answer on the serial line may.
    let run = format!(
        "modprobe -a target_core_mod iscsi_target_mod && systemd-run -q --unit=suite --working-directory=/tmp \
         -p StandardOutput=file:/run/suite -p StandardError=inherit -p Environment=RUST_BACKTRACE=1 \
         /product/bin/lio_kernel --test-threads=1 {TARGETCLI}"
    );
    room.server.sh(&run).unwrap();
    wait::until("the suite's end in the machine", LIMIT, || {
        let state = room.server.shell("sleep 5; systemctl is-active suite")?.text;
        Ok((!matches!(state.trim(), "active" | "activating")).then_some(()))
    })
    .unwrap_or_else(|e| panic!("{e:?}\n{}", room.server.sh("cat /run/suite").unwrap()));
    let text = room.server.sh("cat /run/suite").unwrap();
    println!("{text}");
    assert_all_passed(&text, &program, |name| name.contains(TARGETCLI));
}

/// Fails unless every test of the program that `is_meant` has passed, and none was ignored.
fn assert_all_passed(text: &str, program: &Path, is_meant: impl Fn(&str) -> bool) {
    let output = Command::new(program).arg("--list").output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let meant = names.filter(|name| is_meant(name)).count();
    assert!(meant > 20, "{list}");
    let result =
        text.lines().find(|l| l.starts_with("test result:")).unwrap_or_else(|| panic!("no result:\n{text}"));
    let all_passed = format!("test result: ok. {meant} passed; 0 failed; 0 ignored;");
    // Said once more at the very end: what is above is long, and a log that is cut keeps its end.
    let failures = text.split_once("\nfailures:\n").map_or("", |(_, failures)| failures);
    assert!(result.starts_with(&all_passed), "{result}\n{failures}");
}

//! What needs a kernel with an iSCSI target of its own, in a virtual machine that has one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test fails")]

mod room;

use std::time::Duration;

use ggnet_tests::kernel;

/// Emulated on a busy host it takes a quarter of an hour. No test asserts a time: this only ends one that would never end.
const LIMIT: Duration = Duration::from_secs(5400);

#[test]
fn the_kernel_target_driven_through_configfs_behaves_as_every_target_must() {
    let program = kernel::test_program("lio_kernel").unwrap();
    // One at a time: there is one tree.
    let ended = kernel::run(&program, &["--test-threads=1"], LIMIT).unwrap();
    println!("{}", ended.text);
    assert_eq!(ended.code, 0, "the suite failed in the machine; its output is above");
    let result = ended.text.lines().find(|l| l.starts_with("test result:")).expect("a result");
    assert!(result.starts_with("test result: ok.") && result.contains(" 0 failed; 0 ignored;"), "{result}");
    assert!(result.contains(" 0 filtered out"), "{result}");
}
